"""The sign of a skew matrix: of all skew contractions the one that is most aligned with it."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.gram import gram
from constraints.math.transpose import minus_transpose

#: Singular values below this share of the largest one are computed in a second pass. The square of
#: a smaller one is of the size of the rounding errors of N' N.
RESOLVED = 1e-5


def skew_sign(N: Tensor, gap: float = 1e-6) -> tuple[Tensor, Tensor]:
    r"""The skew X with ``||X||_2 <= 1`` that maximizes ``<N, X>``, and the nuclear norm of N.

    The maximum is the nuclear norm, and $X = N (N^\top N)^{-1/2}$ attains it: the polar factor of
    N, which is skew as N is. On the null space of N, where any X would do, it is zero. The singular
    values are those of the eigenvalue problem of N' N. These have half of the digits, so the
    smaller ones are computed once more, in the space of their singular vectors alone, if they are
    large enough together to matter.

    Args:
        N: skew, finite, of double precision, shape ``(*batch, m, m)``.
        gap: singular values that add up to less than a tenth of this share of the nuclear norm
            need not be resolved.

    Returns:
        X, exactly skew, of the shape of N, with singular values of at most ``1 + 1e-5``; and an
        upper bound of the nuclear norm, of shape ``batch``, too large by 1e-7 of it at most.

    Example:
        >>> N = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
        >>> X, norm = skew_sign(N)
        >>> torch.allclose(X, N / 3), float(norm)
        (True, 6.0)
    """
    scale = N.abs().amax((-2, -1), keepdim=True)
    N = N / torch.where(scale > 0, scale, 1)
    _, V = linalg.eigh(gram(N))
    NV = N @ V
    # For orthonormal columns of V, ||N||_* <= sum ||N v||, by the triangle inequality.
    lengths = linalg.vector_norm(NV, dim=-2, keepdim=True)
    resolved = (lengths > RESOLVED * lengths.amax(-1, keepdim=True)) & (lengths > 0)
    X = (NV * torch.where(resolved, 1 / lengths, 0)) @ V.mT
    norm = lengths.sum((-2, -1))
    rest = torch.where(resolved, 0, lengths).sum((-2, -1))
    if bool((rest > 0.1 * gap * norm).any()):
        X = X.clone()
        small, share = ~resolved.flatten(0, -2), gap * norm / rest
        matrices = (x.reshape(-1, *N.shape[-2:]) for x in (X, N, V))
        for x, n, v, which, inner_gap in zip(*matrices, small, share.flatten(), strict=True):
            if inner_gap < 10:
                B = v[:, which]
                inner, _ = skew_sign(minus_transpose(B.mT @ n @ B) * 0.5, float(inner_gap))
                x += B @ inner @ B.mT
    return minus_transpose(X) * 0.5, norm * scale[..., 0, 0]


def contraction(X: Tensor) -> Tensor:
    """A skew X with singular values up to ``1 + d`` made a contraction up to ``1.5 d^2``.

    It is one Newton-Schulz step, which leads the singular values near 1 towards 1.
    """
    # X' X = -X X, so that X (3 I - X' X) / 2 is:
    return minus_transpose(1.5 * X - 0.5 * (X @ gram(X))) * 0.5
