"""The nearest matrix of at most a given rank, with a derivative where singular values repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from constraints.math.svd import svd

# Derivation. The nearest matrix is P X = X Q, for the projections P and Q onto the leading left and
# right singular vectors. Its derivative maps G to P G + G Q - P G Q, corrected for how P and Q
# turn: in the plane of a kept singular value s and a dropped one t, with the entries a = u_s' G v_t
# and b = u_t' G v_s of G, these become (s^2 a + s t b) / (s^2 - t^2) and (s^2 b + s t a) / (s^2 -
# t^2), which is a + (t^2 a + s t b) / (s^2 - t^2), and the same for b. So no two dropped values are
# ever compared, and these may repeat, as the zeros of a matrix of that rank do. The derivative is
# symmetric: the nearest matrix is the gradient of half of the sum of the kept s^2.


class _NearestOfRank(torch.autograd.Function):
    """The truncated singular value decomposition."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, rank: int) -> Tensor:
        U, s, Vh = svd(X)
        ctx.save_for_backward(U, s, Vh)
        ctx.rank = rank
        return (U[..., :rank] * s[..., :rank].unsqueeze(-2)) @ Vh[..., :rank, :]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        (G,), (U, s, Vh), rank = gradients, ctx.saved_tensors, ctx.rank
        left, right = U[..., :rank], Vh[..., :rank, :]
        dropped_left, dropped_right = U[..., rank:], Vh[..., rank:, :]
        high, low = s[..., :rank].unsqueeze(-1), s[..., rank:].unsqueeze(-2)
        difference = (high - low) * (high + low)
        # Where a kept value is equal to a dropped one, either matrix is nearest.
        inverse = torch.where(difference > 0, 1 / torch.where(difference > 0, difference, 1), 0)
        inner = left.mT @ G
        outer = G @ right.mT
        a = inner @ dropped_right.mT
        b = (dropped_left.mT @ outer).mT
        a, b = (
            inverse * (low.square() * a + high * low * b),
            inverse * (low.square() * b + high * low * a),
        )
        found = left @ (inner - (inner @ right.mT) @ right + a @ dropped_right)
        return found + (outer + dropped_left @ b.mT) @ right, None


def nearest_of_rank(X: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most a given rank, which has a first derivative and no second one.

    Args:
        X: shape ``(*batch, m, n)``, single or double precision.
        rank: from 1 to the smaller side.

    Example:
        >>> nearest_of_rank(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).diagonal()
        tensor([3., 2., 0.])

    Reference:
        Eckart and Young, The approximation of one matrix by another of lower rank (Psychometrika 1,
        1936); Feppon and Lermusiaux, A geometric approach to dynamical model-order reduction (SIAM
        Journal on Matrix Analysis and Applications 39, 2018), for the derivative.
    """
    apply: Callable[[Tensor, int], Tensor] = _NearestOfRank.apply  # pyright: ignore[reportUnknownVariableType] - torch declares no types here
    return apply(X, rank)
