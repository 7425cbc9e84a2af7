"""Models of BoTorch that are reduced to some of their outputs.

``subset_output`` copies the model and cuts those parameters of the copy whose names are in a table.
The free parameters of a constrained tensor have other names. So the method is called on a copy
without constraints, and the constraints are applied to what it returns.

BoTorch is not imported here.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from constrained.model.constrain import constrain
from constrained.model.release import release
from constrained.model.specs import spec
from constrained.parametrized.module_class import patch_when_imported

_MODULE, _CLASS = "botorch.models.gpytorch", "BatchedMultiOutputGPyTorchModel"


def adapt() -> None:
    """Let the models of BoTorch, if it is imported, cut constrained tensors."""
    cls = getattr(sys.modules.get(_MODULE), _CLASS, None)
    if cls is None or "_cuts_constrained" in vars(cls):
        return
    cls._cuts_constrained = True
    method: Any = cls.__dict__.get("subset_output")
    if inspect.isfunction(method):
        cls.subset_output = _of_released(method)


def _of_released(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        constraints = spec(self)
        if not constraints:
            return method(self, *args, **kwargs)
        found = method(release(copy.deepcopy(self)), *args, **kwargs)
        there = spec(found)
        constraints = {path: plain for path, plain in constraints.items() if path not in there}
        try:
            return constrain(found, constraints, init="strict")
        except ValueError as error:
            raise ValueError(
                f"subset_output leaves a tensor that is outside of its constraint: {error} Call it "
                "on constrained.release(copy.deepcopy(model))."
            ) from error

    return inside


patch_when_imported("botorch", adapt)
