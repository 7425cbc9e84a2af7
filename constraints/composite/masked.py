"""Tensors of fixed sparsity: zeros wherever a mask has zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constrained import register
from constraints.bases.argument_checks import as_tensor
from constraints.bases.linear_space import ZeroPattern


@register("masked", aliases=("sparsity",))
class Masked(ZeroPattern):
    r"""Tensors with zeros wherever a mask has zeros.

    **Use**: fixed sparsity: pruned networks that are trained further, known graphs of connections,
    autoregressive masks (MADE).

    **Set**: $\{W : W_i = 0 \text{ where } m_i = 0\}$, with the mask $m$. A linear space, whose
    dimension is the number of ones in the mask.

    **Map**: $X \mapsto X \odot m$, onto the set. Entries that are masked get no gradient.

    **Right inverse**: the identity.

    **Reference**: as ``torch.nn.utils.prune.custom_from_mask``.

    Args:
        mask: the mask $m$, zeros and ones, or truth values, of the shape of one element, as a
            tensor or as nested lists.

    Shape:
        ``(*batch, *mask.shape)``.

    Raises:
        ValueError: if the mask has no entries, or entries other than zeros and ones.

    Example:
        >>> Masked(mask=[[1, 0], [1, 1]])(torch.ones(2, 2))
        tensor([[1., 0.],
                [1., 1.]])
    """

    event_dim = 2
    examples = (
        ({"mask": [[1]]}, (1, 1)),
        ({"mask": [[1, 0, 1], [0, 0, 1]]}, (2, 3)),
        ({"mask": [[0, 0], [0, 0]]}, (2, 2)),
    )

    def __init__(self, mask: Tensor | Sequence[Any]) -> None:
        super().__init__()
        try:
            given = as_tensor(mask)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "masked: mask must be a tensor or nested lists of one shape."
            ) from None
        if given.numel() == 0 or not bool(((given == 0) | (given == 1)).all()):
            raise ValueError("masked: mask must hold zeros and ones, at least one of them.")
        self.mask = given.to(torch.bool)
        vars(self)["event_dim"] = given.ndim

    def part(self, X: Tensor) -> Tensor:
        """``X * mask``."""
        return X.where(self.mask.to(X.device), 0)

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of ones in the mask."""
        del shape
        return int(self.mask.sum())

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has the shape of the mask."""
        shape = tuple(self.mask.shape)
        return None if event == shape else f"must have the shape {shape} of the mask"
