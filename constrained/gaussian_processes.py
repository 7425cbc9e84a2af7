"""Values that GPyTorch's modules are initialised with, and that a constraint refuses.

GPyTorch says by a ``RuntimeError``, in words of its own, that a value is out of the bounds of a
parameter. BoTorch looks for these words where it begins a fit anew: it samples hyperparameters from
their priors until one is within their bounds. So a value that is refused here is refused so, too.

GPyTorch is not imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from constrained.constraint import InfeasibleError

_MODULE, _CLASS = "gpytorch.module", "Module"


class OutOfBoundsError(InfeasibleError, RuntimeError):
    """A value outside of its set that a module of GPyTorch was to be initialised with."""


def initialize_methods(base: type) -> dict[str, Any]:
    """The method of a class derived from ``base`` by which GPyTorch sets its parameters."""
    module = getattr(sys.modules.get(_MODULE), _CLASS, None)
    return {"initialize": _initialize} if module and issubclass(base, module) else {}


def _initialize(self: Any, **values: Any) -> Any:
    try:
        return self._base_class.initialize(self, **values)
    except ValueError as error:
        # What a property or a submodule refused has been told already.
        if isinstance(error, RuntimeError) or values.keys().isdisjoint(self.parametrizations):
            raise
        raise OutOfBoundsError(
            f"{error} So it is out of bounds of its current constraints."
        ) from error
