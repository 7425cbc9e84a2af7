"""Parameters that were tied to constrained tensors while these could be written like plain ones."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.registration.install import check_can_hold, install

Tie = tuple[nn.Module, str, ParametrizationList]


def ties(module: nn.Module, written: Iterable[tuple[Tensor, ParametrizationList]]) -> list[Tie]:
    """The modules that hold a parameter in the stead of a constrained tensor, to be given `tie`.

    ``a.weight = b.weight`` ties plain parameters. Where ``b.weight`` is constrained, and read as a
    parameter for the time being, it ties ``a.weight`` to that parameter, which goes when the time
    is over.

    Args:
        module: the modules below it are looked at.
        written: the parameters, and what computes the tensors in whose stead they are read.

    Raises:
        RuntimeError: if a module can hold no constrained tensor. Nothing has changed then.
    """
    lists = {id(parameter): found for parameter, found in written}
    tied = [
        (owner, name, lists[id(parameter)])
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and id(parameter) in lists
    ]
    for owner, name, _ in tied:
        check_can_hold(owner, name)
    return tied


def tie(tied: Iterable[Tie]) -> None:
    """Give these modules the constrained tensors."""
    for owner, name, found in tied:
        install(owner, name, found)
