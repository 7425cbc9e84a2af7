"""What tools that rewrite weights are told: scripting, fusion, quantization, pruning.

They expect a plain parameter, or a class that they know, and work on a copy without constraints.
Each is told so at the moment at which it touches a module, as far as it gives an occasion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from constrained.appending import without_side_effects
from constrained.constraint import InfeasibleError, has_values
from constrained.tolerance import working_dtype
from constrained.transaction import all_or_nothing, tensors_of
from constrained.undisturbed import Undisturbed

CURE = "constrained.release(copy.deepcopy(model))"


def tool_methods() -> dict[str, Callable[..., Any]]:
    """Methods of a class with parametrized tensors that tools call."""
    return {
        "__prepare_scriptable__": _prepare_scriptable,
    }


def _prepare_scriptable(self: Any) -> Any:
    names = ", ".join(repr(name) for name in self.parametrizations)
    raise RuntimeError(
        f"torch.jit.script cannot compile {self._base_class.__name__}, whose {names} is computed "
        f"by parametrizations: script {CURE}, a copy without them, or use torch.jit.trace or "
        "torch.export."
    )


def check_not_pruning(module: nn.Module, name: str, param: Any) -> None:
    """Raise if a parametrized tensor is registered as what ``torch.nn.utils.prune`` makes of it."""
    pruned = name.removesuffix("_orig")
    lists: Any = module._modules.get("parametrizations") or ()
    if pruned != name and pruned in lists and param is not None:
        raise TypeError(
            f"'{pruned}' is computed by parametrizations, and pruning needs a plain parameter: "
            f"prune {CURE}, a copy without them."
        )


def class_repr(cls: Any) -> str:
    """How a class with parametrized tensors shows in the errors of tools that do not know it."""
    base = cls._base_class
    return (
        f"<class '{base.__module__}.{base.__qualname__}' with parametrized tensors; "
        f"{CURE} has plain ones>"
    )


def assign_parameter(module: Any, name: str, value: Tensor) -> None:
    """Assign a parametrized tensor what somebody takes for a plain parameter.

    Fusion assigns so, and would not notice that a right inverse has stored another value.

    Raises:
        ValueError: if the tensor cannot have the value. It is then as it was.
    """
    if "_overrides" in module.__dict__:
        # As in functional_call: the value is somebody else's for the time being.
        module._base_class.__setattr__(module, name, value)
        return
    parametrizations = module.parametrizations[name]
    changed = list(parametrizations.modules())
    advice = f" A tool that rewrites weights works on {CURE}, a copy without constraints."
    with Undisturbed(), all_or_nothing(changed, tensors_of(changed)):
        try:
            module._base_class.__setattr__(module, name, value)
        except InfeasibleError as error:
            raise InfeasibleError(f"'{name}': {error}{advice}") from error
        if not has_values(value):
            return
        with torch.no_grad(), without_side_effects(parametrizations):
            if _is_close(getattr(module, name), value):
                return
        raise ValueError(
            f"'{name}' was assigned a parameter that is not a value of its parametrizations: they "
            f"make another one of it.{advice}"
        )


def _is_close(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same, up to what a right inverse may lose."""
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(value, expected)
    if value.shape != expected.shape:
        return False
    precise = working_dtype(expected.dtype)
    distance = torch.linalg.vector_norm(value.to(precise) - expected.to(precise))
    size = torch.linalg.vector_norm(expected.to(precise))
    return bool(distance <= 4 * torch.finfo(expected.dtype).eps ** 0.5 * size)


def hint(module: nn.Module, name: str) -> str:
    """Why a module has a tensor of that name and yet nothing that can be parametrized."""
    if not isinstance(module.__dict__.get(name), Tensor):
        return ""
    return (
        f"'{name}' is an attribute of {type(module).__name__} that is computed anew before each "
        "forward: make it a parameter first, as by torch.nn.utils.prune.remove, "
        "remove_weight_norm or remove_spectral_norm."
    )
