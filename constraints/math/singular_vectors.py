"""Leading singular vectors of a matrix, as they are kept from one optimizer step to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.krylov_norm import generic

#: How many vectors are followed, besides those near the bound, until a step asks for more.
SPARE = 24

#: How many generic directions are used to see what a step adds outside the followed subspace.
PROBES = 8


class Vectors(NamedTuple):
    """Leading singular vectors, ``X V = U S`` and ``X' U = V S``.

    Attributes:
        U: orthonormal columns, shape ``(*batch, n, r)``.
        S: in ascending order, shape ``(*batch, r)``.
        V: orthonormal columns, shape ``(*batch, p, r)``.
        at: which of them belong to singular values at the bound, shape ``(*batch, r)``.
        size: the largest Frobenius norm.
        from_left: whether the next product is with U, whose columns are then exactly orthonormal;
            otherwise it is with V.
        wrong: by how much a singular value may exceed the bound according to the residuals, in
            units of the bound.
        probed: the products of a similar matrix with generic directions, from the right and from
            the left.
        spare: how many vectors to follow besides those near the bound. It grows if a step is longer
            than the distance of the lowest of them from the bound.
        wait: how many more times to decompose without trying these vectors.
        waited: the value of ``wait`` when they last did not help.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    at: Tensor
    size: float
    from_left: bool
    wrong: float = 0.0
    probed: tuple[Tensor, ...] = ()
    spare: int = SPARE
    wait: int = 0
    waited: int = 0

    def fits(self, X: Tensor) -> bool:
        """Whether shapes, dtype and device are those of the vectors of X."""
        U, V = self.U, self.V
        shapes = (U.shape[:-1], V.shape[:-1]) == (X.shape[:-1], (*X.shape[:-2], X.shape[-1]))
        return shapes and (U.dtype, U.device) == (X.dtype, X.device)


class OneSide(NamedTuple):
    """Only the singular vectors on the shorter side, if both sides take too much memory.

    Attributes:
        basis: orthonormal columns.
        S: the singular values, in ascending order.
        at: which of them are at the bound.
        size: the largest Frobenius norm.
        left: whether ``basis`` holds left vectors.
    """

    basis: Tensor
    S: Tensor
    at: Tensor
    size: float
    left: bool

    def vectors(self, X: Tensor) -> Vectors:
        """The vectors of both sides, the other one by a product with the matrix."""
        other = product(X, self.basis, self.left) * inverse(self.S).unsqueeze(-2)
        U, V = (self.basis, other) if self.left else (other, self.basis)
        return Vectors(U, self.S, V, self.at, self.size, self.left)


def one_side(vectors: Vectors) -> OneSide:
    """The left vectors of a wide matrix, the right ones of a tall one."""
    left = vectors.U.shape[-2] < vectors.V.shape[-2]
    basis = vectors.U if left else vectors.V
    return OneSide(basis, vectors.S, vectors.at, vectors.size, left)


def product(X: Tensor, basis: Tensor, left: bool) -> Tensor:
    """``X' basis`` for a basis of left vectors, else ``X basis``."""
    return X.mT @ basis if left else X @ basis


def inverse(S: Tensor) -> Tensor:
    """1 / S, and 0 for values far below the bound, whose vectors are mostly rounding."""
    small = 0.1 * S.amax(-1, keepdim=True)
    return torch.where(small < S, 1 / S.clamp(min=torch.finfo(S.dtype).tiny), 0)


def probe(basis: Tensor, X: Tensor) -> Tensor:
    """Generic directions on the side of a basis, the same at each step, to see changes of X."""
    rows = generic(X.new_empty(PROBES, len(basis)))
    return (rows / linalg.vector_norm(rows, dim=-1, keepdim=True)).mT
