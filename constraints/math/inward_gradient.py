"""A gradient at the boundary of the spectral norm ball with which any optimizer finds the optimum.

At a matrix with singular values at the bound, a step that leads outside is projected back. For
plain gradient descent that is right. But a step of Adam is a step in another metric: it comes to
rest beside the optimum, where the step leads outwards and the projection back to the same point
(measured: a loss of up to one and a half times the optimum). The *gradient mapping* vanishes at the
optimum and nowhere else. It is the change made by a step of gradient descent and the projection
after it, divided by the step size,

    (W - cut(W - t G)) / t.

It is the gradient itself where the step stays inside. For short steps it is the projection of the
gradient onto the tangent cone. An optimizer whose steps are much longer than t circles around the
optimum, because the boundary is sharply curved where other singular values are near. The longer t
is, the slower parameters near the boundary move. With a step as long as the bound,
``t = bound / ||G||``, gradient descent, momentum and Adam reached the optimum to ten digits at
constant rates from 0.003 to 0.03; at 0.1 Adam circled around it (8 x 8, a loss 4e-4 above it,
relatively). With only the singular vectors within 1 % of the bound, gradient descent came to rest
up to a hundredth above the optimum at a rate of 0.09, and Adam up to a thousandth at 0.03. So all
followed vectors are used.

Reference:
    Nesterov, Lectures on Convex Optimization (2nd ed., 2018), section 2.2.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.singular_vectors import Vectors

#: A square that exceeds 1 by at most this many units of the machine epsilon counts as 1.
_ROUNDING = 32.0


def inward_gradient(G: Tensor, bound: float, vectors: Vectors) -> Tensor:
    """The gradient mapping at a member W, in the span of its leading singular vectors.

    If no singular value is at the bound it is G itself.

    Args:
        G: the gradient with respect to the value, of shape ``(*batch, n, p)``.
        bound: the largest singular value of W.
        vectors: the singular vectors of W.

    Returns:
        Tensor of the same shape.
    """
    U, V = vectors.U, vectors.V
    size = linalg.matrix_norm(G)
    left, right, changed = _taken(U.mT @ G @ V, size, bound, vectors.S, vectors.at.any(-1))
    new = G + (U @ left) @ (V @ right).mT
    return torch.where(changed[..., None, None], new, G).contiguous()


def thin_inward_gradient(
    G: Tensor, left: Tensor, right: Tensor, bound: float, vectors: Vectors
) -> Tensor:
    """`inward_gradient` for ``G = left' right`` of small rank.

    Args:
        G: the gradient, of shape ``(n, p)``.
        left: shape ``(b, n)``.
        right: shape ``(b, p)``.
        bound: the largest singular value of W.
        vectors: the singular vectors of W, of shape ``(n, p)``.

    Returns:
        G itself, changed.
    """
    U, V = vectors.U, vectors.V
    # The norm of G from the Gram matrices of the factors, which have few entries.
    size = ((left @ left.mT) * (right @ right.mT)).sum().clamp(min=0).sqrt()
    a, d, S, at = left @ U, right @ V, vectors.S, int(vectors.at.sum())
    E, below = None, len(S) - at
    if at > 2 * len(left):
        # Any basis of the space of equal singular values consists of singular vectors. If a basis
        # contains the rows of a and d, the step leaves its other vectors unchanged.
        E = linalg.qr(torch.cat((a, d))[:, below:].mT).Q
        a, d = (torch.cat((x[:, :below], x[:, below:] @ E), -1) for x in (a, d))
        S = torch.cat((S[:below], S[-1:].expand(E.shape[-1])))
    A, B, changed = _taken(a.mT @ d, size, bound, S, vectors.at.any())
    if not bool(changed):
        return G
    if E is not None:
        A, B = (torch.cat((x[:below], E @ x[below:])) for x in (A, B))
    return G.addmm_(U @ A, (V @ B).mT)


def _taken(
    M: Tensor, size: Tensor, bound: float, S: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the projection adds to the gradient: two factors in the basis of the vectors.

    Args:
        M: ``U' G V``, of shape ``(*batch, r, r)``.
        size: the Frobenius norms of G, of shape ``batch``.
        bound: the largest singular value.
        S: the singular values that belong to the vectors, of shape ``(*batch, r)``.
        at: whether any of them is at the bound, of shape ``batch``.

    Returns:
        A and B, with ``U A B' V'`` to be added to G; and for which matrices that is not zero, of
        shape ``batch``.
    """
    # LAPACK stops at NaN.
    changed = at & (size > 0) & torch.isfinite(size)
    scale = torch.where(changed, size, 1)[..., None, None]
    step = torch.where(changed[..., None, None], M / scale, 0)
    # K is W after the step, in the basis of vectors and in units of the bound.
    K = torch.diag_embed(S / bound) - step
    squares, B = linalg.eigh(K.mT @ K)
    cut = squares > 1 + _ROUNDING * torch.finfo(M.dtype).eps
    over = torch.where(cut, 1 - squares.rsqrt(), 0)
    B, over = (x[..., -max(1, int(cut.sum(-1).amax())) :] for x in (B, over))
    return (K @ B) * over.unsqueeze(-2) * scale, B, changed & cut.any(-1)
