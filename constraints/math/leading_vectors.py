"""The singular vectors of a matrix that belong to its largest singular values, step by step.

A matrix that a step of an optimizer has moved is cut at a bound by those of its singular vectors
that belong to values above it. Before the step, nearly the same vectors were the right ones: a few
products with them find them again, where a decomposition takes hundreds of times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constraints.math.clip_singular_values import certainly_inside, clipped_and_vectors
from constraints.math.krylov_norm import generic
from constraints.math.subspace import filtered, orthonormal, polynomial, product

#: How many vectors are followed besides those near the bound: what rises is among them before it is
#: there. Fewer than the least of them are no safety.
SPARE, _MOST_SPARE, _LEAST_SPARE = 24, 104, 4


#: By which share of it a value may be below the bound and its vector be followed as one at it.
NEAR = 0.01


#: How many times as far as a step leads, the values that are not followed are below the bound where
#: fewer would do.
_RICH = 8


#: By so many generic directions it is seen what a step brings in from elsewhere.
_PROBES = 8


#: How much less than expected they may show of a step that is mainly along one direction: one of
#: them in a thousand shows less than half.
_UNSEEN = 2.0


#: Products with so many columns are no dearer than with fewer.
_COLUMNS = 16


#: So many rows of a matrix stay in the cache.
_ROWS = 128


#: In units of ``eps ||X||_F``: half of what the tolerance of the library grants.
_ROUNDING = 4.0


#: What the residuals may let a value rise by, in units of the former: the values are cut by as much
#: more, at most some 1e-4 of the bound in single precision.
_WRONG = 5.0


#: In units of ``eps ||X||_F``: how far below the bound a value may be and count as being there.
_AT_THE_BOUND = 16.0


#: By how much more than the residuals say a value may rise: they say it for the vectors before the
#: last product, and of vectors that are orthogonal to all others, where a gap makes it up to twice
#: as much. Measured: at most 3.
_MISTRUST = 4.0


#: Of more than this share of all vectors, a decomposition is the cheaper way.
_SHARE = 0.75


#: So many products of all of a matrix cost more than its decomposition.
_LIMIT = 8


#: Vectors that were no help are not tried at the next step, nor at the next 2, 4, ... after more
#: failures, up to this many.
_PATIENCE = 16


#: Between these no square of an entry leaves the range of single precision.
_MODERATE = 1e-10, 1e10


#: Of a matrix that is larger by this factor than the bound, the squares have too few digits.
_FAR = 1.5


#: From how many roundings on a polynomial is worth its products.
_WORTH = 4.0


class Vectors(NamedTuple):
    """Leading singular vectors, ``X V = U S`` and ``X' U = V S``.

    Attributes:
        U: orthonormal columns, shape ``(*batch, n, r)``.
        S: in ascending order, shape ``(*batch, r)``.
        V: orthonormal columns, shape ``(*batch, p, r)``.
        at: which of them are those of singular values at the bound, shape ``(*batch, r)``.
        size: the largest Frobenius norm.
        from_left: whether a product with U comes next, which is exactly orthonormal; else with V.
        wrong: by how much, in units of the bound, the residuals let a singular value exceed it.
        probed: what a similar matrix made of generic directions, on the right and on the left.
        spare: how many vectors are to be followed besides those near the bound, and more if a step
            is longer than the least of them are below it.
        wait: how many times a decomposition is taken without trying these, because
        waited: that many times ago they were no help.
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
        """Whether these may be the vectors of a matrix that is somewhat like X."""
        U, V = self.U, self.V
        return (U.shape[:-1], V.shape[:-1]) == (X.shape[:-1], (*X.shape[:-2], X.shape[-1])) and (
            U.dtype,
            U.device,
        ) == (X.dtype, X.device)


class OneSide(NamedTuple):
    """What is kept of `Vectors` that take too much memory: those on the shorter side.

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
        """Both sides, from the matrix itself."""
        other = product(X, self.basis, self.left) * _inverse(self.S).unsqueeze(-2)
        U, V = (self.basis, other) if self.left else (other, self.basis)
        return Vectors(U, self.S, V, self.at, self.size, self.left)


def one_side(vectors: Vectors) -> OneSide:
    """The left vectors of a wide matrix, the right ones of a tall one."""
    left = vectors.U.shape[-2] < vectors.V.shape[-2]
    basis = vectors.U if left else vectors.V
    return OneSide(basis, vectors.S, vectors.at, vectors.size, left)


def cut(X: Tensor, bound: float, before: Vectors | None) -> tuple[Tensor, Vectors | None]:
    """X with singular values of at most ``bound``, and the leading vectors of the result.

    By a few products with the vectors of a similar matrix where these suffice, else by a
    decomposition. The first leaves the library's tolerance above the bound at most, as far as the
    residuals tell: a vector that no product has led to yet is seen a step later.

    Args:
        X: shape ``(*batch, n, p)``, single or double precision, not traced.
        bound: greater than zero.
        before: the vectors of a similar matrix, if any are known.

    Returns:
        A matrix of the shape of X, or X itself; and its vectors, None of a small one that is
        inside.

    Reference:
        Golub and Van Loan, Matrix Computations (4th ed., 2013), sections 7.3.1, 8.2.4 and 10.1.5,
        for subspace iteration, the Rayleigh-Ritz step and polynomial acceleration.
    """
    if before is None or not before.fits(X) or X.ndim > 2:
        small = X.ndim > 2 or _SHARE * min(X.shape) <= SPARE
        return _decomposed(X, bound, even_inside=not small)
    if before.wait == 0:
        found = _followed(X, bound, before)
        if found is not None:
            return found
        wait = min(max(2 * before.waited, 1), _PATIENCE)
    else:
        wait = before.wait - 1
    W, vectors = _decomposed(X, bound, even_inside=True)
    if vectors is not None:
        waited = before.waited if before.wait else wait
        vectors = vectors._replace(wait=wait, waited=waited)
    return W, vectors


def vectors_of(X: Tensor, bound: float) -> Vectors | None:
    """The leading vectors of a member; None where no singular value is at the bound, or outside."""
    W, vectors = _decomposed(X, bound, even_inside=False)
    return vectors if torch.equal(W, X) else None


def _decomposed(X: Tensor, bound: float, even_inside: bool) -> tuple[Tensor, Vectors | None]:
    wide = X.shape[-2] < X.shape[-1]
    tall = X.mT if wide else X
    if not even_inside:
        share = _share(torch.linalg.matrix_norm(X).nan_to_num().amax(), bound)
        if bool(certainly_inside(tall, bound * (1 - share)).all()):
            return X.clone(memory_format=torch.contiguous_format), None
    W, excess, V = clipped_and_vectors(tall, bound, needed=True)
    W = W.mT.contiguous() if wide else W
    if excess is None or V is None or not bool(torch.isfinite(W).all()):
        return W, None
    top = int((excess >= (1 - NEAR) ** 2 - 1).sum(-1).amax())
    V = V[..., -min(V.shape[-1], top + SPARE) :]
    S = bound * (1 + excess[..., -V.shape[-1] :].clamp(-1, 0)).sqrt()
    images = (W.mT if wide else W) @ V
    U = images * _inverse(S).unsqueeze(-2)
    size = torch.linalg.matrix_norm(W).amax()
    at = S >= bound * (1 - _share(size, bound))
    U, V = (V.contiguous(), U) if wide else (U, V.contiguous())
    vectors = Vectors(U, S, V, at, float(size), from_left=wide)
    if X.ndim > 2:
        return W, vectors
    return W, vectors._replace(probed=(W @ _probe(V, X), W.mT @ _probe(U, X)))


def _share(size: Tensor, bound: float) -> float:
    """By which share of it a singular value may be below the bound and count as being there."""
    share = _AT_THE_BOUND * torch.finfo(size.dtype).eps * max(float(size) / bound, 1.0)
    # A matrix far outside is of any size.
    return min(share, NEAR)


def _followed(X: Tensor, bound: float, before: Vectors) -> tuple[Tensor, Vectors] | None:
    """What `cut` gives, or None where a decomposition is the cheaper or the safer way."""
    least = min(X.shape)
    if not _MODERATE[0] < bound < _MODERATE[1]:
        return None
    eps = torch.finfo(X.dtype).eps
    # A step changes the size little.
    rounding = _ROUNDING * eps * max(before.size / bound, 2.0)
    left = before.from_left
    basis = _start(before, bound * (1 - NEAR))
    if basis.shape[-1] > _SHARE * least:
        return None
    probe = _probe(basis, X)
    images = product(X, torch.cat((probe, basis), -1), left)
    seen, image = images[:, :_PROBES], images[:, _PROBES:]
    spent = images.shape[-1]
    # The other vectors explain the image up to what the step turned them by; it turned these by as
    # much, which no product has shown yet.
    others = before.V if left else before.U
    within = others.mT @ image
    squares = image.mT @ image
    # NaN and infinity of a matrix are in all its images, and LAPACK stops at them.
    if not float(squares.diagonal().amax()) < (_FAR * bound) ** 2:
        return None
    # What the step did to generic directions, by all that it brought in from elsewhere.
    new = seen - before.probed[left]
    share = (_PROBES / len(basis)) ** 0.5
    moved = _UNSEEN * float(torch.linalg.matrix_norm(new, 2)) / (share * bound)
    start = before._replace(probed=(before.probed[0], seen) if left else (seen, before.probed[1]))
    # From below all that is followed, nothing rises above the bound by a step that is no longer.
    floor = 1 - NEAR if moved <= _room(before.S / bound) else 0.0
    found = _ritz(squares, within, bound, rounding, floor)
    if found is None:
        return None
    wrong = 2 * found.wrong + before.wrong
    room = _room(found.S)
    if moved > room and before.spare < _MOST_SPARE:
        start = start._replace(spare=before.spare + _COLUMNS)
    elif _RICH * moved < room and before.spare > SPARE:
        start = start._replace(spare=before.spare - _COLUMNS)
    if wrong <= _WRONG * rounding and found.spare >= _LEAST_SPARE and moved <= room:
        W, vectors = _cut_by(X, basis, image, found, bound, left, wrong, rounding, start)
        return W, vectors._replace(from_left=not left)
    explained = image.shape[-1]
    # Columns of the size of the others are told apart from rounding.
    new = new / torch.linalg.vector_norm(new, dim=0).clamp(min=torch.finfo(X.dtype).tiny) * bound
    image = torch.cat((new, image), -1)
    while spent <= _LIMIT * least:
        basis = orthonormal(image)
        within = basis.mT @ image[:, -explained:]
        left = not left
        image = product(X, basis, left)
        spent += basis.shape[-1]
        squares = image.mT @ image
        # What the vectors before the last product explain: they were singular vectors up to the
        # rest, which is orthogonal to them.
        found = _ritz(squares, within.mT, bound, rounding, floor)
        if found is None:
            return None
        if found.wrong <= _WRONG * rounding and found.spare >= _LEAST_SPARE:
            return _cut_by(X, basis, image, found, bound, left, found.wrong, rounding, start)
        basis, image = basis @ found.Q, image @ found.Q
        missing = _LEAST_SPARE - found.spare
        if missing > 0:
            basis = torch.cat((_apart(basis.new_zeros(len(basis), missing), basis), basis), -1)
            if basis.shape[-1] > _SHARE * least:
                return None
        # Of what was brought in, no product has yet shown more than one side.
        one_sided, explained = explained < image.shape[-1], image.shape[-1]
        if missing > 0 or (found.wrong > _WORTH * rounding and not one_sided):
            half, degree = polynomial(found.S, found.wrong / rounding)
            spent += (2 * degree + 1) * basis.shape[-1]
            if spent > _LIMIT * least:
                return None
            basis = filtered(X, basis, half, degree, bound, left)
            image = product(X, basis, left)
            explained = image.shape[-1]
    return None


def _room(S: Tensor) -> float:
    """How far the values that are not followed are below 1: the least that are have not settled."""
    below = int((S < 1 - NEAR).sum())
    return 1 - float(S[min(below // 2, 2 * _PROBES)])


def _probe(basis: Tensor, X: Tensor) -> Tensor:
    """Generic directions, the same at each step, by which changes of a matrix are seen."""
    rows = generic(X.new_empty(_PROBES, len(basis)))
    return (rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)).mT


class _Ritz(NamedTuple):
    """What a basis says of the singular values, in ascending order and in units of the bound.

    Attributes:
        S: singular values of the matrix on the basis.
        Q: where they are in the basis.
        wrong: by how much they may be too small where they are the largest.
        spare: how many are not near the bound.
    """

    S: Tensor
    Q: Tensor
    wrong: float
    spare: int


def _ritz(
    squares: Tensor, within: Tensor, bound: float, rounding: float, floor: float
) -> _Ritz | None:
    """The Rayleigh-Ritz step, or None where the matrix is far outside, or not finite.

    Args:
        squares: the Gram matrix of the image of a basis.
        within: what is explained of the image, in an orthonormal basis; the rest is orthogonal.
        bound: of the singular values.
        rounding: in units of it.
        floor: below which no singular value matters, in units of it.
    """
    if not float(squares.diagonal().amax()) < (_FAR * bound) ** 2:
        return None
    mu, Q = torch.linalg.eigh(squares)
    S = mu.clamp(min=0).sqrt() / bound
    explained = within @ Q
    rest = (mu - explained.square().sum(0)) / bound**2
    may_rise = (_MISTRUST * rest > 1 - S.square()) & (S >= floor)
    explained = explained[:, may_rise]
    rest = (torch.diag(mu[may_rise]) - explained.mT @ explained) / bound**2
    wrong = _MISTRUST / 2 * float(torch.linalg.matrix_norm(rest))
    return _Ritz(S, Q, wrong, int((S < 1 - NEAR).sum()))


def _cut_by(
    X: Tensor,
    basis: Tensor,
    image: Tensor,
    found: _Ritz,
    bound: float,
    left: bool,
    wrong: float,
    rounding: float,
    start: Vectors,
) -> tuple[Tensor, Vectors]:
    S = found.S
    basis, image = basis @ found.Q, (image @ found.Q) * (_inverse(S) / bound)
    U, V = (basis, image) if left else (image, basis)
    level, W = 1.0, X
    probed = list(start.probed)
    if float(S[-1]) + wrong > 1 + rounding:
        # What may still rise has room.
        level -= wrong
        m = int((S > level).sum())
        over, V_m = U[:, -m:] * ((S[-m:] - level) * bound), V[:, -m:]
        W = _less(X, over, V_m)
        side = int(start.from_left)
        probe = _probe(U if side else V, X)
        probed[side] = probed[side] - (V_m @ (over.mT @ probe) if side else over @ (V_m.mT @ probe))
    # They may have been cut by more the last time.
    at = S >= 1 - _AT_THE_BOUND / _ROUNDING * rounding - start.wrong
    return W, Vectors(
        U,
        S.clamp(max=level) * bound,
        V,
        at,
        start.size,
        left,
        wrong,
        tuple(probed),
        start.spare,
    )


def _less(X: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``X - left right'``, some rows after others: each is in the cache when it is changed."""
    W = torch.empty_like(X, memory_format=torch.contiguous_format)
    for new, old, part in zip(*(t.split(_ROWS) for t in (W, X, left)), strict=True):
        torch.addmm(old, part, right.mT, alpha=-1, out=new)
    return W


def _start(before: Vectors, level: float) -> Tensor:
    """The vectors near the bound, some below, and a few directions that are not among them."""
    basis = before.U if before.from_left else before.V
    near = int((before.S >= level).sum())
    # Where there are many, others are near to them. The columns come in whole groups.
    count = max(before.spare, near // 8)
    count += -(near + count + _PROBES) % _COLUMNS
    basis = basis[:, max(0, basis.shape[-1] - near - count + _PROBES) :]
    # What the matrix makes of generic directions has most of what is large in it.
    new = before.probed[0 if before.from_left else 1]
    if basis.shape[-1] < near + count - _PROBES:
        new = torch.cat(
            (new, new.new_zeros(len(new), near + count - basis.shape[-1] - _PROBES)), -1
        )
    return torch.cat((_apart(new, basis), basis), -1)


def _apart(spare: Tensor, top: Tensor) -> Tensor:
    """Orthonormal columns near to given ones, or generic for zeros, orthogonal to ``top``."""
    zero = ~spare.any(0)
    if bool(zero.any()):
        spare = torch.where(zero, generic(spare.mT).mT, spare)
    for _ in range(2):
        spare = torch.linalg.qr(spare - top @ (top.mT @ spare)).Q
    return spare


def _inverse(S: Tensor) -> Tensor:
    """1 / S, and 0 for what is so small that its vectors are noise, and next to no bound."""
    small = 0.1 * S.amax(-1, keepdim=True)
    return torch.where(small < S, 1 / S.clamp(min=torch.finfo(S.dtype).tiny), 0)
