"""The container of a module's parametrized tensors, which remembers the order of its tensors."""

from __future__ import annotations

from typing import Any

from torch import nn

from constrained.parametrized.parametrization_list import ParametrizationList


class Parametrizations(nn.ModuleDict):
    """The parametrized tensors of a module, and where its tensors stood before.

    Args:
        module: the module, before the first of its tensors is parametrized.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._places: tuple[str, ...] = (*module._parameters, *module._buffers)
        self._shared: tuple[str, ...] = ()

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """The originals here that belong to another module first, as transformers asks for them.

        It saves tied tensors once, and finds in this attribute of any module which to leave out.
        """
        lists = ((name, self._modules[name]) for name in sorted(self._shared) if name in self)
        keys = (
            f"{name}.{original}"
            for name, found in lists
            if isinstance(found, ParametrizationList) and len(found._owners) > 1
            for original in found.names()
        )
        return {key: key for key in keys}

    def places(self) -> tuple[str, ...]:
        """The names of the module's parameters and buffers, in their first order.

        The order of ``named_parameters()`` follows from it.
        """
        return self._places

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(key, module)
        others = tuple(name for name in self._shared if name != key)
        is_shared = isinstance(module, ParametrizationList) and bool(set(module._owners) - {self})
        self._shared = (*others, key) if is_shared else others
        self._own(module)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for module in self.values():
            self._own(module)

    def _own(self, module: nn.Module) -> None:
        if isinstance(module, ParametrizationList):
            module._owners.add(self)
