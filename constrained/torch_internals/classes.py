"""What ``torch.nn.utils.parametrize`` writes into the class of a module, and deletes from it.

Torch makes a class for each module: registration writes a property there, removal deletes it. Here
modules of one kind share a class, which must stay as it is. So the private function that writes the
property is wrapped, and so is the ``delattr`` that deletes it. Where torch does not work like that,
`let_torch_use` returns False, and this package makes a class for each module, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from constrained.torch_internals.look_up import find


def let_torch_use(
    is_shared: Callable[[type], bool], give_property: Callable[[nn.Module, str], None]
) -> bool:
    """Let torch use these before it writes into a class; False if that is not possible.

    Args:
        is_shared: whether several modules may share a class.
        give_property: gives a module another class, in which a tensor of this name is a property.
    """
    inject = find("torch.nn.utils.parametrize._inject_property", _injects)
    if inject is None or not _deletes_by_name():
        return False

    def inject_property(module: nn.Module, tensor_name: str) -> None:
        if is_shared(type(module)):
            give_property(module, tensor_name)
        else:
            inject(module, tensor_name)

    def delete(holder: Any, name: str) -> None:
        inherits = isinstance(holder, type) and any(map(is_shared, holder.__mro__))
        if not inherits or (name in vars(holder) and not is_shared(holder)):
            delattr(holder, name)

    parametrize._inject_property = inject_property
    # A name that is set in the file hides the built-in function.
    parametrize.delattr = delete  # type: ignore[attr-defined]
    return True


def _injects(inject: Any) -> bool:
    class Probe(nn.Module):
        pass

    inject(Probe(), "x")
    names = parametrize.register_parametrization.__code__.co_names
    return isinstance(vars(Probe).get("x"), property) and "_inject_property" in names


def _deletes_by_name() -> bool:
    return "delattr" in parametrize.remove_parametrizations.__code__.co_names
