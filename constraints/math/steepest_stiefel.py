"""The steepest direction under the spectral norm within the tangent space of a Stiefel manifold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constrained.constraint.precision import autocast_disabled, raise_precision
from constrained.torch_internals import linalg
from constraints.math.skew_sign import contraction, skew_sign
from constraints.math.transpose import minus_transpose

#: A tangent part below this many machine epsilons of the gradient counts as its rounding error.
ROUNDING = 4.0

# Derivation. For orthonormal columns W (n x p) and a gradient G, minimize <G, A> over the A with
#
#     W' A + A' W = 0   (tangent)      and      ||A||_2 <= 1.
#
# Every X W with a skew n x n contraction X is such an A. Every such A is an X W: in a basis that
# begins with the columns of W, A is [K; B] with a skew K, and X must be [K, -B'; B, L]. Its first
# block row and its first block column are contractions. By the theorem of Krein, Parrott, and
# Davis, Kahan and Weinberger there is an L with which all of X is one. With L, -L' is another, and
# so is their mean, which is skew. So the problem is to minimize
#
#     <G, X W> = <G W', X> = <N, X>      over skew contractions X,      N = (G W' - W G') / 2,
#
# which X = -sign(N) solves, with the value -||N||_*. No iteration over a dual variable is needed.
# For n = p this is the known A = -W sign(W' G - G' W).
#
# The rank of N is 2 p at most. If n > 2 p, N is written in an orthonormal basis F = [W, Q] of a
# space that contains the columns of W and G; then F' W = [I; 0], and A = F X [I; 0]. What Q is
# beyond the range of G does not matter as long as F is a contraction, since
# W' A = (W' F) X (F' W) is skew whatever F is.


class SteepestTangent(NamedTuple):
    """What `steepest_tangent` finds.

    Attributes:
        direction: the tangent A with ``||A||_2 <= 1``, of the shape of the weight.
        dual_norm: the nuclear norm of ``(G W' - W G') / 2``, of shape ``batch``: no tangent A with
            ``||A||_2 <= 1`` has ``-<G, A>`` above it. It is zero at stationary points.
        relative_gap: ``1 + <G, A> / dual_norm``, of shape ``batch``; zero where the dual norm is.
    """

    direction: Tensor
    dual_norm: Tensor
    relative_gap: Tensor


def steepest_tangent(weight: Tensor, gradient: Tensor, gap: float = 1e-6) -> SteepestTangent:
    r"""The tangent direction of spectral norm 1 along which a function decreases fastest.

    It minimizes $\langle G, A \rangle$ subject to $W^\top A + A^\top W = 0$ and
    $\lVert A \rVert_2 \le 1$. The solution is $A = -\operatorname{sign}(G W^\top - W G^\top) W$,
    where sign is the orthogonal factor of the polar decomposition. It does not depend on the scale
    of the gradient, nor on its part that is normal to the manifold. In directions in which the
    tangent part of the gradient vanishes, A does too. A wide weight is transposed.

    The cost is that of the eigenvalues of a symmetric matrix in double precision, with min(n, 2 p)
    rows, twice that if many singular values of N are below 1e-5 of the largest one.

    Args:
        weight: W, with orthonormal columns, or orthonormal rows if wide; real, of shape
            ``(*batch, n, p)``.
        gradient: G, finite, of the shape of the weight.
        gap: the largest relative duality gap. Rounding leaves 1e-7 in single precision.

    Returns:
        The direction in the dtype of the weight. It is tangent up to rounding, and its norm is 1 up
        to rounding. Dual norm and gap are of double precision.

    Raises:
        ValueError: if the shapes differ, or the gradient holds NaN or infinity.
        TypeError: if the weight is complex.

    Example:
        >>> W = torch.eye(3)[:, :1]
        >>> steepest_tangent(W, torch.tensor([[5.0], [3.0], [4.0]])).direction
        tensor([[-0.0000],
                [-0.6000],
                [-0.8000]])

    Reference:
        Bernstein, Stiefel manifold, in The Modula Docs (2025), for the problem; Davis, Kahan and
        Weinberger, Norm-preserving dilations and their applications to optimal error bounds (1982),
        for the theorem that gives the solution.
    """
    if weight.shape != gradient.shape or weight.ndim < 2:
        raise ValueError(
            "The weight and its gradient must be matrices of one shape, but their shapes are "
            f"{tuple(weight.shape)} and {tuple(gradient.shape)}."
        )
    if weight.is_complex() or gradient.is_complex():
        raise TypeError("The steepest direction is computed for real weights only.")
    if weight.shape[-2] < weight.shape[-1]:
        found = steepest_tangent(weight.mT, gradient.mT, gap)
        return found._replace(direction=found.direction.mT.contiguous())
    with torch.no_grad(), autocast_disabled(weight):
        found = _steepest(raise_precision(weight), raise_precision(gradient), gap)
    return found._replace(direction=found.direction.to(weight.dtype))


def _steepest(W: Tensor, G: Tensor, gap: float) -> SteepestTangent:
    n, p = W.shape[-2:]
    scale = G.abs().amax((-2, -1), keepdim=True)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("The gradient holds NaN or infinity; the steepest direction needs finite.")
    G = G / torch.where(scale > 0, scale, 1)
    if n <= 2 * p:
        F = None
        P = G.double() @ W.double().mT
    else:
        F = _basis(W, G)
        P = F.double().mT @ G.double()
        P = torch.cat((P, P.new_zeros(*P.shape[:-1], p)), -1)
    N = minus_transpose(P) * 0.5
    least = ROUNDING * torch.finfo(W.dtype).eps * linalg.matrix_norm(G, keepdim=True)
    N = torch.where(linalg.matrix_norm(N, keepdim=True) > least, N, 0)
    X, norm = skew_sign(N, gap)
    X = contraction(X.to(W.dtype))
    value = (N * X).sum((-2, -1))
    A = X @ W if F is None else F @ X[..., :p]
    return SteepestTangent(
        A.neg_(), norm * scale[..., 0, 0], torch.where(norm > 0, 1 - value / norm, 0)
    )


def _basis(W: Tensor, G: Tensor) -> Tensor:
    """F = [W, Q], a contraction that keeps the lengths of the columns of W and G."""
    Q = linalg.qr(G - W @ (W.mT @ G)).Q
    # If columns of G are dependent, or almost, Q completes them by vectors that are not orthogonal
    # to W. Without their parts along W they are shorter, and are not needed.
    return torch.cat((W, Q - W @ (W.mT @ Q)), -1)
