"""Ties to constrained tensors that a user makes inside of `constrained.writable`.

``a.weight = b.weight`` ties plain parameters. In the block a constrained ``b.weight`` is read as a
plain parameter, so this ties ``a.weight`` to that parameter. At the end of the block ``a`` is given
the parametrizations of ``b.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.registration.install import check_can_hold

Tie = tuple[nn.Module, str, ParametrizationList]


def find_ties(
    module: nn.Module, written: Iterable[tuple[Tensor, ParametrizationList]]
) -> list[Tie]:
    """The modules that hold a parameter which stands for a constrained tensor.

    Args:
        module: it and its submodules are searched.
        written: the parameters, with the parametrizations of the tensors that they stand for.

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
