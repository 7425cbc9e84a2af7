"""``module.parametrizations``: the lists that parametrize the tensors of one module."""

from __future__ import annotations

from typing import Any

from torch import nn

from constrained.evaluation.evaluated_tensor import EvaluatedTensor


class Parametrizations(nn.ModuleDict):
    """The lists that parametrize the tensors of a module, and the original order of its tensors.

    Args:
        module: the module, before the first of its tensors is parametrized.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._tensor_order: tuple[str, ...] = (*module._parameters, *module._buffers)
        self._shared: tuple[str, ...] = ()

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """The originals here that another module has, too, and had first.

        transformers saves a tied tensor once. It reads this attribute of each module to find out
        which keys to leave out.
        """
        lists = ((name, self._modules[name]) for name in sorted(self._shared) if name in self)
        keys = (
            f"{name}.{original}"
            for name, found in lists
            if isinstance(found, EvaluatedTensor) and len(found._owners) > 1
            for original in found.names()
        )
        return {key: key for key in keys}

    def tensor_order(self) -> tuple[str, ...]:
        """The names of the module's parameters and buffers, in their original order.

        ``named_parameters()`` keeps this order.
        """
        return self._tensor_order

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(key, module)
        others = tuple(name for name in self._shared if name != key)
        is_shared = isinstance(module, EvaluatedTensor) and bool(set(module._owners) - {self})
        self._shared = (*others, key) if is_shared else others
        self._own(module)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of older versions have the order under the name `_places`.
        super().__setstate__(
            {"_tensor_order" if key == "_places" else key: value for key, value in state.items()}
        )
        for module in self.values():
            self._own(module)

    def _own(self, module: nn.Module) -> None:
        if isinstance(module, EvaluatedTensor):
            module._owners.add(self)


def inherited(module: Any) -> Any:
    """``super()`` for a method of a class with parametrized tensors: access to its base class."""
    return super(module._parametrized, module)  # pyright: ignore[reportUnknownVariableType] - of Any


def lists_of(module: nn.Module) -> dict[str, nn.Module]:
    """The lists that parametrize the tensors of one module, by the names of the tensors."""
    found = module._modules.get("parametrizations")
    return dict(found.items()) if isinstance(found, nn.ModuleDict) else {}
