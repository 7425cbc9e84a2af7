r"""Steps of square orthogonal matrices along gradients of low rank, by thin products.

The gradient of a linear layer with respect to its weight has at most the rank of its batch. Then
the whole step, from one orthogonal matrix to the next, can be had from products of the weight with
as few vectors: neither the projection of the gradient nor the way back takes a full product.

Derivation. Let ``G = Q B`` with orthonormal columns Q, s of them. With ``P = W' Q`` and
``S = W B'`` the tangent part of the gradient is

    T = G - W (W' G + G' W) / 2 = (Q B - S P') / 2 = U D V',

where ``U = [Q, S]``, ``V = [B', P]`` and ``D = diag(I, -I) / 2``. Because W is orthogonal,
``W V = [S, Q]``, and ``W' T`` is the skew matrix ``A = V K V'`` with ``K = [[0, -I], [I, 0]] / 2``.
The curve

    W (I - r A + (r A)^2 / 2 - (r A)^3 / 8)

stays orthogonal up to ``|r A|^6 / 64``, and agrees with the geodesic to second order. With
``H = V' V`` its step of rate r is that of the gradient

    U D (I - r (H K) / 2 + (r H K)^2 / 8) V'.

Whether the gradient is ``Q B`` is not taken for granted: see `thin_landing_`.

Reference:
    Halko, Martinsson and Tropp, Finding structure with randomness (2011), algorithm 4.1 and section
    4.3, for Q and for its check; Wen and Yin, A feasible method for optimization with orthogonality
    constraints (2013), section 2, for curves of low rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.polar import ROUNDING

#: Smaller matrices are as fast without.
_LEAST = 192

#: The number of random vectors beyond the rank, and of those that check the result.
_MORE, _CHECKS = 4, 2

#: How much of the gradient may be lost, in units of the machine epsilon. The rounding errors of the
#: gradient itself have full rank, and are about one.
_LOST = 16.0

#: After as many steps at most it is tried again, and the rank is looked at again.
_PATIENCE = 64


class _Finder:
    """Finds the range of the gradients of one tensor, step by step.

    Args:
        W: the tensor.
    """

    def __init__(self, W: Tensor) -> None:
        self.n = W.shape[-1]
        self.like = W.shape, W.dtype, W.device
        self.generator = torch.Generator(W.device).manual_seed(self.n)
        self.most = 3 * self.n // 8
        self.wait = self.failures = 0
        self.set_size(min(self.n // 8 + 2 * _MORE, self.most), W)

    def set_size(self, size: int, like: Tensor) -> None:
        """Look for a range of this dimension from now on."""
        self.size, self.age = size, 0
        self.vectors = torch.empty(
            self.n, size + _CHECKS, dtype=like.dtype, device=like.device
        ).normal_(generator=self.generator)
        K = torch.zeros(2 * size, 2 * size, dtype=like.dtype, device=like.device)
        K[:size, size:].fill_diagonal_(-0.5)
        K[size:, :size].fill_diagonal_(0.5)
        self.K = K
        self.D = torch.full((2 * size, 1), 0.5, dtype=like.dtype, device=like.device)
        self.D[size:] = -0.5

    def find(self, G: Tensor) -> tuple[Tensor, Tensor] | None:
        """``(Q', B)`` with ``G = Q B`` up to rounding; None if there is no thin Q."""
        s = self.size
        fresh = self.vectors[:, s:]
        fresh.copy_(torch.empty_like(fresh).normal_(generator=self.generator))
        products = G @ self.vectors
        Q, R = linalg.qr(products[:, :s])
        B = Q.mT @ G
        lost = torch.addmm(products[:, s:], Q, B @ fresh, alpha=-1)
        # The expected square of the norm is `_CHECKS` times that of the part of G outside of Q. For
        # NaN the comparison fails.
        allowed = _LOST * torch.finfo(G.dtype).eps * _CHECKS**0.5
        if not float(linalg.vector_norm(lost)) <= allowed * float(linalg.vector_norm(B)):
            self.fail(G)
            return None
        self.failures = 0
        self.age += 1
        if self.age % _PATIENCE == 1:
            self.shrink(R, G)
        return Q.mT, B

    def fail(self, like: Tensor) -> None:
        """Look for a larger range next, or wait for longer and longer."""
        if self.size < self.most:
            self.set_size(min(2 * self.size, self.most), like)
        else:
            self.wait = min(2**self.failures, _PATIENCE)
            self.failures += 1

    def shrink(self, R: Tensor, like: Tensor) -> None:
        """Look for a smaller range from now on if the rank is smaller."""
        sizes = R.diagonal().abs()
        rank = int((sizes > _LOST * torch.finfo(R.dtype).eps * sizes.amax()).sum())
        size = -(-(rank + _MORE) // _MORE) * _MORE
        if size < self.size:
            self.set_size(size, like)


def _finder(W: Tensor, notes: dict[str, Any]) -> _Finder:
    found: _Finder | None = notes.get("finder")
    if found is None or found.like != (W.shape, W.dtype, W.device):
        found = notes["finder"] = _Finder(W)
    return found


def thin_landing_(W: Tensor, G: Tensor, rate: float, notes: dict[str, Any]) -> bool:
    """Replace a gradient of low rank by one whose step ends at an orthogonal matrix.

    A range of the gradient is found by its products with random vectors, and checked with other
    random vectors. After failures it is tried more and more rarely.

    Args:
        W: orthogonal, shape ``(n, n)``. Nothing is done for other shapes.
        G: the gradient, of the same shape. It is overwritten.
        rate: the learning rate.
        notes: what was noted in earlier steps.

    Returns:
        Whether it could. If not, G has no such rank, the step is too long for the curve, or a
        number is not finite, and G is as it was.
    """
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] < _LEAST:
        return False
    finder = _finder(W, notes)
    if finder.wait:
        finder.wait -= 1
        return False
    K, D = finder.K, finder.D
    found = finder.find(G)
    if found is None:
        return False
    Q, B = found
    V = torch.cat((B, Q @ W))
    Y = (V @ V.mT).mm(K)
    M = Y @ Y
    # |A|^2 = -trace (H K)^2 in the Frobenius norm.
    length = rate * math.sqrt(max(0.0, -float(M.diagonal().sum())))
    if not length**6 / 64 <= torch.finfo(W.dtype).eps / 8:
        return False
    M.mul_(rate**2 / 8).sub_(Y, alpha=rate / 2)
    M.diagonal().add_(1)
    torch.mm(torch.cat((Q, B @ W.mT)).mT, M.mul_(D) @ V, out=G)
    return True


def is_probably_orthogonal(W: Tensor, notes: dict[str, Any]) -> bool:
    """Whether ``|W' W z - z|`` is rounding for a random z.

    The expected square of that norm is ``||W' W - I||_F^2``.

    Args:
        W: shape ``(n, n)``.
        notes: those of `thin_landing_`.
    """
    finder = _finder(W, notes)
    z = torch.empty(finder.n, dtype=W.dtype, device=W.device).normal_(generator=finder.generator)
    distance = float(linalg.vector_norm(torch.addmv(z, W.mT, W @ z, beta=-1)))
    return distance <= ROUNDING * torch.finfo(W.dtype).eps * math.sqrt(finder.n)
