"""What ``torch.nn.utils.parametrize`` writes into the class of a module, and takes out of it.

Torch makes a class for each module, so it may write a property there on registration and delete it
on removal. A class that many modules share must stay as it is: what changes is one module.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn
from torch.nn.utils import parametrize

from constrained.torch_internals.look_up import find


class Answers(Protocol):
    """What is asked about classes, and done with modules of ours."""

    def is_shared(self, cls: type) -> bool:
        """Whether a class is one that several modules share."""
        ...

    def give_property(self, module: nn.Module, name: str) -> None:
        """Give a module of such a class a class in which a tensor of this name is a property."""
        ...


def ask(answers: Answers) -> bool:
    """Ask from now on, whenever torch writes into a class; False where it cannot be asked."""
    inject = find("torch.nn.utils.parametrize._inject_property", _injects)
    if inject is None or not _deletes_by_name():
        return False

    def inject_property(module: nn.Module, tensor_name: str) -> None:
        if answers.is_shared(type(module)):
            answers.give_property(module, tensor_name)
        else:
            inject(module, tensor_name)

    def delete(holder: Any, name: str) -> None:
        inherits = isinstance(holder, type) and any(map(answers.is_shared, holder.__mro__))
        if not inherits or (name in vars(holder) and not answers.is_shared(holder)):
            delattr(holder, name)

    parametrize._inject_property = inject_property
    # A name of the file goes before the built-in function.
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
