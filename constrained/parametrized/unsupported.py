"""What a parametrized tensor does not support: the errors, each with what to do instead.

Some things that work with a plain tensor do not work with a parametrized one: deleting it, getting
it as a parameter, scripting, old norms, pruning, sharding. Tools that rewrite weights expect a
plain parameter, or a class that they know. They work on a copy without constraints, and the error
says so. It is raised when a tool touches the module.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor, nn

from constrained.evaluation.evaluated_tensor import EvaluatedTensor, chain_repr
from constrained.parametrized.call_stack import path_in_running_model, user_stacklevel
from constrained.parametrized.override import overridable_lists, overriding
from constrained.parametrized.parametrizations import inherited, lists_of
from constrained.torch_internals.modules import IS_DISTRIBUTED, distributes
from constrained.torch_internals.rewriters import check_before_norms

#: How to get a copy with plain parameters, for messages.
CURE = "constrained.release(copy.deepcopy(model))"


def class_title(base: type) -> str:
    """The ``__qualname__`` of a class with parametrized tensors, which tools show in errors."""
    # Torch writes it into exported programs, in which commas and semicolons are separators.
    return (
        f"{base.__qualname__} of {base.__module__} with parametrized tensors: {CURE} has plain ones"
    )


# --------------------------------------------------------------------- errors of single accesses


def lost_write_error(parametrizations: nn.Module, name: str) -> RuntimeError:
    """The error of reading a tensor after somebody wrote into its last value."""
    path = name if "." in name else path_in_running_model(parametrizations, name)
    return RuntimeError(
        f"'{path}' is computed by {chain_repr(parametrizations)}, and its value was written "
        "in place since it was last read, which has no lasting effect: it is computed anew "
        "from its originals, and is as it was. Assign instead: "
        f"`module.{name.rpartition('.')[2]} = new_value`, or write inside of "
        "`with constrained.writable(module):`."
    )


def warn_of_earlier_write(parametrizations: EvaluatedTensor) -> None:
    """Warn that a value which another one has replaced was written in place."""
    name = parametrizations.place()
    warnings.warn(
        f"'{path_in_running_model(parametrizations, name)}' is computed by "
        f"{chain_repr(parametrizations)}, and a value that was read before it was last computed "
        "has been written in place since, which has no effect on the tensor. To change it, assign: "
        f"`module.{name} = new_value`, or write inside of `with constrained.writable(module):`. If "
        "the numbers of that time were meant, write into a copy: `module."
        f"{name}.detach().clone()`.",
        stacklevel=user_stacklevel(),
    )


def warn_of_hooks(parametrizations: nn.Module, name: str) -> None:
    """Warn that compiled code does not call the hooks on the value of a tensor."""
    warnings.warn(
        f"'{name}' is computed by {chain_repr(parametrizations)}, and code that is compiled does "
        "not call the hooks on its value: register them on its free parameters, under "
        f"`module.parametrizations.{name}`, or leave the module out of what is compiled.",
        stacklevel=3,
    )


def deletion_error(module: nn.Module, name: str) -> RuntimeError:
    """The error of ``del module.weight``."""
    return RuntimeError(
        f"'{name}' is parametrized and can neither be deleted nor replaced by what is no tensor; "
        f"call {_removal(module, name)} first."
    )


def none_error(module: nn.Module, name: str) -> TypeError:
    """The error of ``module.weight = None``."""
    return TypeError(
        f"'{name}' is parametrized: it can be assigned a tensor only, got NoneType; call "
        f"{_removal(module, name)} first."
    )


def _removal(module: nn.Module, name: str) -> str:
    """The call that makes a tensor plain, for messages."""
    # Only what `constrain` has parametrized can be released. Torch's lists have no such method.
    is_constrained = getattr(lists_of(module)[name], "is_constrained", lambda: False)()
    call = "constrained.release" if is_constrained else "remove_parametrizations"
    return f"{call}(module, '{name}')"


# ------------------------------------------------- methods of a class with parametrized tensors


def refusing_members() -> dict[str, Any]:
    """Members of a class with parametrized tensors that refuse what does not work."""
    methods: dict[str, Callable[..., Any]] = {
        "get_parameter": _get_parameter,
        "get_buffer": _get_buffer,
        "register_parameter": _register_parameter,
        "register_buffer": _register_buffer,
        "__prepare_scriptable__": _prepare_scriptable,
    }
    return {**methods, IS_DISTRIBUTED: property(_is_distributed)}


def _get_parameter(self: Any, target: str) -> nn.Parameter:
    _check_plain(self, target, "parameter")
    return inherited(self).get_parameter(target)


def _get_buffer(self: Any, target: str) -> Any:
    _check_plain(self, target, "buffer")
    return inherited(self).get_buffer(target)


def _register_parameter(self: Any, name: str, param: nn.Parameter | None) -> None:
    _check_free(self, name)
    _check_not_pruning(self, name, param)
    inherited(self).register_parameter(name, param)


def _register_buffer(self: Any, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
    _check_free(self, name)
    # A class may have its own method without this argument. (Torch looks at the signature.)
    more = () if persistent else (False,)
    inherited(self).register_buffer(name, tensor, *more)


def _prepare_scriptable(self: Any) -> Any:
    raise RuntimeError(
        f"torch.jit.script cannot compile {self._base_class.__name__}, whose {_names(self)} is "
        f"computed by parametrizations: script {CURE}, a copy without them, or use torch.jit.trace "
        "or torch.export."
    )


def _is_distributed(self: Any) -> bool:
    check_not_distributing(self, sys._getframe(1))
    raise AttributeError(IS_DISTRIBUTED)


def _check_plain(self: nn.Module, target: str, kind: str) -> None:
    prefix, _, name = target.rpartition(".")
    owner = self.get_submodule(prefix)
    found = overridable_lists(owner).get(name)
    if found is not None and overriding(owner, name) is None:
        originals = " and ".join(
            f"'{prefix + '.' if prefix else ''}parametrizations.{name}.{original}'"
            for original in ("original", *(f"original{i}" for i in range(found.ntensors)))
            if hasattr(found, original)
        )
        raise AttributeError(
            f"'{target}' is parametrized, hence no {kind}: read its value as an attribute; what is "
            f"trained, and can be frozen, is {originals}."
        )


def _check_free(self: nn.Module, name: str) -> None:
    if name in lists_of(self):
        raise KeyError(
            f"attribute '{name}' already exists: it is parametrized; assign the tensor instead "
            f"(`module.{name} = tensor`), or call {_removal(self, name)} first."
        )


def _names(module: Any) -> str:
    return ", ".join(repr(name) for name in module.parametrizations)


# ------------------------------------------------------------------------- tools, one after another


def check_not_distributing(module: Any, caller: FrameType) -> None:
    """Raise if the caller is about to cut the tensors of a module into shards."""
    if distributes(caller):
        raise RuntimeError(
            f"Tensor parallelism cannot cut {module._base_class.__name__} into shards, whose "
            f"{_names(module)} is computed by parametrizations of whole tensors: leave the module "
            "out of the plan of parallelize_module, so that each process has all of it, or "
            "constrain it with mode='project', whose parameters can be cut."
        )


def _check_not_pruning(module: nn.Module, name: str, param: Any) -> None:
    """Raise if ``torch.nn.utils.prune`` registers a parametrized tensor under its own name."""
    pruned = name.removesuffix("_orig")
    if pruned != name and pruned in lists_of(module) and param is not None:
        raise TypeError(
            f"'{pruned}' is computed by parametrizations, and pruning needs a plain parameter: "
            f"prune {CURE}, a copy without them."
        )


def check_not_sparsifying(parametrizations: EvaluatedTensor, module: nn.Module) -> None:
    """Raise if a parametrization that is added to others belongs to ``torch.ao.pruning``.

    It expects its mask in the first parametrization of a tensor.
    """
    if type(module).__module__.startswith("torch.ao.pruning."):
        raise TypeError(
            f"'{parametrizations.place()}' is computed by parametrizations, and torch.ao.pruning "
            f"needs a plain parameter: prune {CURE}, a copy without them."
        )


def _check_takes_norm(module: nn.Module, name: str) -> None:
    """Raise if an old norm of ``torch.nn.utils`` is to take a parametrized tensor."""
    found = overridable_lists(module).get(name)
    if found is not None:
        cure = f"apply it to {CURE}, a copy without constraints"
        # Torch's lists have no such method.
        if getattr(found, "constraint", lambda: None)() is None:
            # `release` is for tensors that `constrain` has parametrized.
            cure = f"call remove_parametrizations(module, '{name}') first"
        raise KeyError(
            f"'{name}' is computed by parametrizations, and a norm that a hook computes needs a "
            f"plain parameter: {cure}."
        )


check_before_norms(_check_takes_norm)
