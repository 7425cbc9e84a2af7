"""What tools that rewrite weights are told: scripting, fusion, quantization, pruning.

They expect a plain parameter, or a class that they know, and work on a copy without constraints.
Each is told so at the moment at which it touches a module, as far as it gives an occasion.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.tolerance import working_dtype
from constrained.parametrized.evaluation_mode import without_side_effects
from constrained.torch_internals.modules import IS_DISTRIBUTED, distributes, hooks_of
from constrained.torch_internals.tensors import has_values, is_wrapper

CURE = "constrained.release(copy.deepcopy(model))"


def tool_methods() -> dict[str, Any]:
    """Members of a class with parametrized tensors that tools ask for."""
    return {
        "__prepare_scriptable__": _prepare_scriptable,
        IS_DISTRIBUTED: property(_is_distributed),
    }


def _prepare_scriptable(self: Any) -> Any:
    names = ", ".join(repr(name) for name in self.parametrizations)
    raise RuntimeError(
        f"torch.jit.script cannot compile {self._base_class.__name__}, whose {names} is computed "
        f"by parametrizations: script {CURE}, a copy without them, or use torch.jit.trace or "
        "torch.export."
    )


def _is_distributed(self: Any) -> bool:
    check_not_distributing(self, sys._getframe(1))
    raise AttributeError(IS_DISTRIBUTED)


def check_not_distributing(module: Any, caller: FrameType) -> None:
    """Raise if the caller is about to cut the tensors of a module into shards."""
    if not distributes(caller):
        return
    names = ", ".join(repr(name) for name in module.parametrizations)
    raise RuntimeError(
        f"Tensor parallelism cannot cut {module._base_class.__name__} into shards, whose {names} "
        "is computed by parametrizations of whole tensors: leave the module out of the plan of "
        "parallelize_module, so that each process has all of it."
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


def check_not_sparsifying(parametrizations: Any, module: nn.Module) -> None:
    """Raise if a parametrization to come after others is one of ``torch.ao.pruning``.

    That looks for its mask in the first parametrization of a tensor, and nowhere else.
    """
    if type(module).__module__.startswith("torch.ao.pruning."):
        names = (
            name for o in parametrizations._owners for name in o if o[name] is parametrizations
        )
        raise TypeError(
            f"'{next(names, 'tensor')}' is computed by parametrizations, and torch.ao.pruning "
            f"needs a plain parameter: prune {CURE}, a copy without them."
        )


def check_not_pyros(module: nn.Module, name: str) -> None:
    """Raise if a tensor is the free parameter of a ``PyroParam``, which Pyro trains and assigns."""
    value = name.removesuffix("_unconstrained")
    if value != name and value in getattr(module, "_pyro_params", ()):
        raise ValueError(
            f"'{name}' is what Pyro computes '{value}' from, a PyroParam with a constraint of its "
            f"own: make '{value}' an nn.Parameter instead, and constrain that."
        )


def class_title(base: type) -> str:
    """How a class with parametrized tensors shows in the errors of tools that do not know it."""
    # Torch writes it into exported programs, where commas and semicolons separate.
    return (
        f"{base.__qualname__} of {base.__module__} with parametrized tensors: {CURE} has plain ones"
    )


def assign_parameter(module: Any, name: str, value: Tensor) -> None:
    """Assign a parametrized tensor what somebody takes for a plain parameter.

    Fusion assigns so, and would not notice that a right inverse has stored another value.

    Raises:
        ValueError: if the tensor cannot have the value. It is then as it was.
    """
    if module._overrides is not None:
        # As in functional_call: the value is somebody else's for the time being.
        super(module._parametrized, module).__setattr__(name, value)
        return
    parametrizations = module.parametrizations[name]
    changed = list(parametrizations.modules())
    advice = f" A tool that rewrites weights works on {CURE}, a copy without constraints."
    if is_wrapper(value) and type(value) is not type(parametrizations.originals()[0]):
        raise TypeError(
            f"'{name}' is computed by parametrizations, of tensors with plain numbers, and was "
            f"assigned a {type(value).__name__}.{advice}"
        )
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)):
        try:
            super(module._parametrized, module).__setattr__(name, value)
        except InfeasibleError as error:
            raise InfeasibleError(f"{error}{advice}") from error
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
    kind = type(module).__name__
    if not any(hooks_of(module)):
        return (
            f"'{name}' is a tensor that {kind} has as a plain attribute: make it a parameter or a "
            "buffer first, by nn.Parameter or register_buffer."
        )
    return (
        f"'{name}' is an attribute of {kind} that is computed anew before each forward: make it a "
        "parameter first, as by torch.nn.utils.prune.remove, remove_weight_norm or "
        "remove_spectral_norm."
    )
