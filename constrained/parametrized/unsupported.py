"""What cannot be done to a parametrized tensor as it can to a plain one, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from constrained.parametrized.assignment import CURE, check_not_pruning
from constrained.parametrized.override import lists, overriding
from constrained.torch_internals.rewriters import ask_before_norms


def _removal(module: nn.Module, name: str) -> str:
    """The call that makes a tensor plain, for messages."""
    # Those of others are not ours to release; torch's own lists do not say so.
    is_ours = getattr(lists(module)[name], "is_constrained", lambda: False)()
    call = "constrained.release" if is_ours else "remove_parametrizations"
    return f"{call}(module, '{name}')"


def refuse_deletion(module: nn.Module, name: str) -> RuntimeError:
    """The error of ``del module.weight``."""
    return RuntimeError(
        f"'{name}' is parametrized and can neither be deleted nor replaced by what is no tensor; "
        f"call {_removal(module, name)} first."
    )


def refuse_none(module: nn.Module, name: str) -> TypeError:
    """The error of ``module.weight = None``."""
    return TypeError(
        f"'{name}' is parametrized: it can be assigned a tensor only, got NoneType; call "
        f"{_removal(module, name)} first."
    )


def refusing_methods() -> dict[str, Callable[..., Any]]:
    """Methods of a class with parametrized tensors that refuse what does not work."""
    return {
        "get_parameter": _get_parameter,
        "get_buffer": _get_buffer,
        "register_parameter": _register_parameter,
        "register_buffer": _register_buffer,
    }


def _get_parameter(self: Any, target: str) -> nn.Parameter:
    _check_plain(self, target, "parameter")
    return super(self._parametrized, self).get_parameter(target)


def _get_buffer(self: Any, target: str) -> Any:
    _check_plain(self, target, "buffer")
    return super(self._parametrized, self).get_buffer(target)


def _register_parameter(self: Any, name: str, param: nn.Parameter | None) -> None:
    _check_free(self, name)
    check_not_pruning(self, name, param)
    super(self._parametrized, self).register_parameter(name, param)


def _register_buffer(self: Any, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
    _check_free(self, name)
    # Torch looks for the argument in the signature, and a class may have one of its own without it.
    more = () if persistent else (False,)
    super(self._parametrized, self).register_buffer(name, tensor, *more)


def _check_plain(self: nn.Module, target: str, kind: str) -> None:
    prefix, _, name = target.rpartition(".")
    owner = self.get_submodule(prefix)
    found: Any = lists(owner).get(name) if hasattr(type(owner), "_overridable") else None
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
    if name in lists(self):
        raise KeyError(
            f"attribute '{name}' already exists: it is parametrized; assign the tensor instead "
            f"(`module.{name} = tensor`), or call {_removal(self, name)} first."
        )


def _check_takes_norm(module: nn.Module, name: str) -> None:
    """Raise if an old norm of ``torch.nn.utils`` is to take a parametrized tensor."""
    found: Any = lists(module).get(name) if hasattr(type(module), "_overridable") else None
    if found is not None:
        cure = f"apply it to {CURE}, a copy without constraints"
        # Torch's own lists have none.
        if getattr(found, "constraint", lambda: None)() is None:
            # Those of others are not ours to release.
            cure = f"call remove_parametrizations(module, '{name}') first"
        raise KeyError(
            f"'{name}' is computed by parametrizations, and a norm that a hook computes needs a "
            f"plain parameter: {cure}."
        )


ask_before_norms(_check_takes_norm)
