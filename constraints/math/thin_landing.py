r"""Steps of square orthogonal matrices along gradients of low rank, by thin products.

The gradient of a linear layer with respect to its weight has at most the rank of its batch. Then
the whole step, from one orthogonal matrix to the next, can be had from products of the weight with
as few vectors: neither the projection of the gradient nor the way back takes a full product.

Derivation. Let ``G = Q B`` with orthonormal columns Q, s of them. With ``P = W' Q`` and
``S = W B'`` the tangent part of the gradient is

    T = G - W (W' G + G' W) / 2 = (Q B - S P') / 2 = U D V',

where ``U = [Q, S]``, ``V = [B', P]`` and ``D = diag(I, -I) / 2``. Because W is orthogonal,
``W V = [S, Q]``, and ``W' T`` is the skew matrix ``A = V K V'`` with ``K = [[0, -I], [I, 0]] / 2``.
The Cayley curve, which stays orthogonal, is

    W (I - r A / 2) (I + r A / 2)^-1 = W - r U D M V',    M = (I + r H K / 2)^-1,    H = V' V.

So its step of rate r is that of the gradient ``U D M V'``. For a short step, the inverse is not
needed: with ``M = I - r H K / 2 + (r H K)^2 / 8`` the end is orthogonal up to ``|r A|^6 / 64``.
Both ends agree with the geodesic, and with the polar factor of ``W - r T``, to second order.

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

#: Longer steps are made by the polar factor, from which the curve departs in third order.
_LONGEST = 1.0

#: After as many steps at most it is tried again, and the rank is looked at again.
_PATIENCE = 64


class _Bank:
    """Fresh random vectors, drawn many at once.

    Args:
        like: the device and dtype.
        n: how long each is.
    """

    def __init__(self, like: Tensor, n: int) -> None:
        self._generator = torch.Generator(like.device).manual_seed(n)
        self._vectors = like.new_empty(_PATIENCE, n)
        self._next = _PATIENCE

    def draw(self, count: int) -> Tensor:
        """The next vectors, normally distributed, of shape ``(count, n)``."""
        if self._next + count > _PATIENCE:
            self._vectors.normal_(generator=self._generator)
            self._next = 0
        self._next += count
        return self._vectors[self._next - count : self._next]


class _Steps:
    """The steps of one tensor.

    Args:
        W: the tensor.

    Attributes:
        wait: how many steps go another way before it is tried again.
    """

    def __init__(self, W: Tensor) -> None:
        n = W.shape[-1]
        self.like = W.shape, W.dtype, W.device
        self.bank = _Bank(W, n)
        self._most = 3 * n // 8
        self.wait = self._failures = 0
        self._set_size(min(n // 8 + 2 * _MORE, self._most), W)

    def _set_size(self, s: int, like: Tensor) -> None:
        """Look for a range of dimension s from now on."""
        n = like.shape[-1]
        self._size, self._age = s, 0
        self._sketch = like.new_empty(n, s + _CHECKS)
        for start in range(0, s, _PATIENCE):
            stop = min(start + _PATIENCE, s)
            self._sketch[:, start:stop] = self.bank.draw(stop - start).mT
        # [B; P'] and [Q, S]' of the derivation, and their halves.
        self._V, self._U = like.new_empty(2 * s, n), like.new_empty(2 * s, n)
        self._B, self._P = self._V[:s], self._V[s:]
        self._Q, self._S = self._U[:s], self._U[s:]
        half = like.new_full((s,), 0.5)
        self._D = torch.cat((half, -half)).diag()
        self._K = like.new_zeros(2 * s, 2 * s)
        self._K[:s, s:] = -half.diag()
        self._K[s:, :s] = half.diag()

    def land_(self, W: Tensor, G: Tensor, rate: float) -> bool:
        """See `thin_landing_`."""
        found = self._find(G)
        if found is None:
            return False
        size, R = found
        # The tangent part of the gradient, and with it A, is no longer than the gradient.
        if not rate * size <= _LONGEST:
            self._rest()
            return False
        torch.mm(self._Q, W, out=self._P)
        torch.mm(self._B, W.mT, out=self._S)
        Y = (self._V @ self._V.mT).mm(self._K)
        if (rate * size) ** 6 / 64 <= torch.finfo(W.dtype).eps / 8:
            DY = self._D @ Y
            DM = torch.addmm(DY, DY, Y, beta=-rate / 2, alpha=rate**2 / 8).add_(self._D)
        else:
            DM = self._D @ self._inverse(Y, rate, size)
        torch.mm(self._U.mT, DM @ self._V, out=G)
        self._failures = 0
        if self._age % _PATIENCE == 0:
            self._shrink(R, W)
        self._age += 1
        return True

    def _inverse(self, Y: Tensor, rate: float, size: float) -> Tensor:
        """``(I + rate Y / 2)^-1``, where the blocks of Y differ by powers of the size of B."""
        s = self._size
        unit = Y.new_ones(2 * s)
        unit[:s] = size / s**0.5
        balanced = Y * (rate / 2) * unit / unit[:, None]
        balanced.diagonal().add_(1)
        return linalg.inv_ex(balanced).inverse * unit[:, None] / unit

    def _find(self, G: Tensor) -> tuple[float, Tensor] | None:
        """Find Q and B with ``G = Q B`` up to rounding; None if there are no thin ones.

        Returns:
            The norm of B, and the triangular matrix whose diagonal tells the rank.
        """
        s = self._size
        checks = self.bank.draw(_CHECKS).mT
        self._sketch[:, s:] = checks
        products = G @ self._sketch
        Q, R = linalg.qr(products[:, :s])
        self._Q.copy_(Q.mT)
        torch.mm(self._Q, G, out=self._B)
        lost = torch.addmm(products[:, s:], Q, self._B @ checks, alpha=-1)
        size = float(linalg.vector_norm(self._B))
        # The expected square of the norm is `_CHECKS` times that of the part of G outside of Q. For
        # NaN the comparison fails.
        allowed = _LOST * torch.finfo(G.dtype).eps * _CHECKS**0.5
        if not float(linalg.vector_norm(lost)) <= allowed * size:
            if s < self._most:
                self._set_size(min(2 * s, self._most), G)
            else:
                self._rest()
            return None
        return size, R

    def _rest(self) -> None:
        """Wait for twice as long as the last time."""
        self.wait = min(2**self._failures, _PATIENCE)
        self._failures += 1

    def _shrink(self, R: Tensor, like: Tensor) -> None:
        """Look for a smaller range from now on if the rank is smaller."""
        sizes = R.diagonal().abs()
        rank = int((sizes > _LOST * torch.finfo(R.dtype).eps * sizes.amax()).sum())
        size = -(-(rank + _MORE) // _MORE) * _MORE
        if size < self._size:
            self._set_size(size, like)


def _steps_of(W: Tensor, notes: dict[str, Any]) -> _Steps:
    found: _Steps | None = notes.get("thin")
    if found is None or found.like != (W.shape, W.dtype, W.device):
        found = notes["thin"] = _Steps(W)
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
    steps = _steps_of(W, notes)
    if steps.wait:
        steps.wait -= 1
        return False
    return steps.land_(W, G, rate)


def is_probably_orthogonal(W: Tensor, notes: dict[str, Any]) -> bool:
    """Whether ``|W' W z - z|`` is rounding for a random z.

    The expected square of that norm is ``||W' W - I||_F^2``.

    Args:
        W: shape ``(n, n)``.
        notes: those of `thin_landing_`.
    """
    z = _steps_of(W, notes).bank.draw(1)[0]
    distance = float(linalg.vector_norm(torch.addmv(z, W.mT, W @ z, beta=-1)))
    return distance <= ROUNDING * torch.finfo(W.dtype).eps * math.sqrt(len(z))
