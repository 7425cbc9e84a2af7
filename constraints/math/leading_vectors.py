"""Cut the singular values of a matrix at a bound, with vectors followed from step to step.

To cut a matrix, only the singular vectors whose values are above the bound are needed. An optimizer
step changes them little, so a few products with those from before the step give the new ones,
hundreds of times faster than a decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.clip_singular_values import certainly_inside, clipped_and_vectors
from constraints.math.singular_vectors import PROBES, SPARE, Vectors, inverse, probe, product
from constraints.math.subspace import (
    FAR,
    NEAR,
    Ritz,
    apart,
    filtered,
    orthonormal,
    polynomial,
    ritz,
)

#: The largest and the smallest number of vectors that are followed besides those near the bound.
#: With fewer, a value that is not followed could rise above the bound.
_MOST_SPARE, _LEAST_SPARE = 104, 4

#: Fewer vectors are followed if all others are farther below the bound than this many steps.
_RICH = 8

#: By this factor the generic directions may underestimate a step that is mainly along one
#: direction: for one such step in a thousand they show less than half of it.
_UNSEEN = 2.0

#: Products with this many columns take no longer than with fewer.
_COLUMNS = 16

#: This many rows of a matrix stay in the cache.
_ROWS = 128

#: A rounding error, in units of ``eps ||X||_F``: half of the library's tolerance.
_ROUNDING = 4.0

#: By how much, according to the residuals, a value may exceed the bound, in units of the rounding
#: above. Values are cut by that much more, at most some 1e-4 of the bound in single precision.
_WRONG = 5.0

#: How far below the bound a value may be and still count as equal to it, in ``eps ||X||_F``.
_AT_THE_BOUND = 16.0

#: Following more than this share of all vectors is slower than a decomposition.
_SHARE = 0.75

#: This many products with all columns of a matrix are slower than its decomposition.
_LIMIT = 8

#: Vectors that did not help are not tried at the next step. After repeated failures they are not
#: tried at the next 2, 4, ... steps, up to this many.
_PATIENCE = 16

#: Between these no square of an entry leaves the range of single precision.
_MODERATE = 1e-10, 1e10

#: From this error on, in units of rounding, a polynomial is worth its products.
_WORTH = 4.0


def cut(X: Tensor, bound: float, before: Vectors | None) -> tuple[Tensor, Vectors | None]:
    """X with singular values of at most ``bound``, and the leading vectors of the result.

    It takes a few products with the vectors of a similar matrix if these suffice, else a
    decomposition. As far as the residuals tell, the products leave no value above the bound by more
    than the library's tolerance. A vector that no product has reached yet is found at a later step.

    Args:
        X: shape ``(*batch, n, p)``, single or double precision, not traced.
        bound: greater than zero.
        before: the vectors of a similar matrix, if any are known.

    Returns:
        The cut matrix, or X itself; and its vectors, or None if it is small and inside.

    Reference:
        See `constraints.math.subspace`.
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
    """The leading vectors of a member; None for a matrix outside or without values at the bound."""
    W, vectors = _decomposed(X, bound, even_inside=False)
    return vectors if torch.equal(W, X) else None


def _decomposed(X: Tensor, bound: float, even_inside: bool) -> tuple[Tensor, Vectors | None]:
    """`cut` by a decomposition.

    Args:
        X: as for `cut`.
        bound: as for `cut`.
        even_inside: whether to find the vectors of a matrix without singular values at the bound.
    """
    wide = X.shape[-2] < X.shape[-1]
    tall = X.mT if wide else X
    if not even_inside:
        share = _share(linalg.matrix_norm(X).nan_to_num().amax(), bound)
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
    U = images * inverse(S).unsqueeze(-2)
    size = linalg.matrix_norm(W).amax()
    at = S >= bound * (1 - _share(size, bound))
    U, V = (V.contiguous(), U) if wide else (U, V.contiguous())
    vectors = Vectors(U, S, V, at, float(size), from_left=wide)
    if X.ndim > 2:
        return W, vectors
    return W, vectors._replace(probed=(W @ probe(V, X), W.mT @ probe(U, X)))


def _share(size: Tensor, bound: float) -> float:
    """The share of the bound by which a singular value may be below it and count as equal."""
    share = _AT_THE_BOUND * torch.finfo(size.dtype).eps * max(float(size) / bound, 1.0)
    # A matrix far outside may be of any size.
    return min(share, NEAR)


def _followed(X: Tensor, bound: float, before: Vectors) -> tuple[Tensor, Vectors] | None:
    """`cut` by products with known vectors; None where a decomposition is cheaper or safer."""
    least = min(X.shape)
    if not _MODERATE[0] < bound < _MODERATE[1]:
        return None
    eps = torch.finfo(X.dtype).eps
    # A step hardly changes the norm of the matrix.
    rounding = _ROUNDING * eps * max(before.size / bound, 2.0)
    left = before.from_left
    basis = _start(before, bound * (1 - NEAR))
    if basis.shape[-1] > _SHARE * least:
        return None
    images = product(X, torch.cat((probe(basis, X), basis), -1), left)
    seen, image = images[:, :PROBES], images[:, PROBES:]
    # The vectors of the other side explain the image, up to the angle by which the step turned
    # them. It turned the basis by about as much, which no product has shown yet: 2 * found.wrong.
    others = before.V if left else before.U
    within = others.mT @ image
    squares = image.mT @ image
    # NaN and infinity of a matrix are in all its images, and LAPACK stops at them.
    if not float(squares.diagonal().amax()) < (FAR * bound) ** 2:
        return None
    # The images of generic directions show what the step brought in from outside the subspace.
    new = seen - before.probed[left]
    share = (PROBES / len(basis)) ** 0.5
    moved = _UNSEEN * float(linalg.matrix_norm(new, 2)) / (share * bound)
    state = before._replace(probed=(before.probed[0], seen) if left else (seen, before.probed[1]))
    # If the step is shorter than the distance of the values that are not followed from the bound,
    # none of them can rise above it.
    floor = 1 - NEAR if moved <= _room(before.S / bound) else 0.0
    found = ritz(squares, within, bound, floor)
    if found is None:
        return None
    wrong = 2 * found.wrong + before.wrong
    room = _room(found.S)
    if moved > room and before.spare < _MOST_SPARE:
        state = state._replace(spare=before.spare + _COLUMNS)
    elif _RICH * moved < room and before.spare > SPARE:
        state = state._replace(spare=before.spare - _COLUMNS)
    if wrong <= _WRONG * rounding and found.spare >= _LEAST_SPARE and moved <= room:
        W, vectors = _cut_by(X, basis, image, found, bound, left, wrong, rounding, state)
        return W, vectors._replace(from_left=not left)
    # Scaled to the size of the other columns, so that their directions exceed rounding.
    new = new / linalg.vector_norm(new, dim=0).clamp(min=torch.finfo(X.dtype).tiny) * bound
    return _iterated(X, new, image, bound, left, rounding, floor, state, images.shape[-1])


def _iterated(
    X: Tensor,
    new: Tensor,
    image: Tensor,
    bound: float,
    left: bool,
    rounding: float,
    floor: float,
    state: Vectors,
    spent: int,
) -> tuple[Tensor, Vectors] | None:
    """`cut` by subspace iteration; None where a decomposition would be cheaper.

    Args:
        X: as for `cut`.
        new: columns to be added to the image, which no product has explained yet.
        image: of the vectors that are known.
        bound: as for `cut`.
        left: whether the image is one of left vectors.
        rounding: in units of the bound.
        floor: as for `ritz`.
        state: what else is known of the vectors.
        spent: how many columns X was multiplied by.
    """
    least, explained = min(X.shape), image.shape[-1]
    image = torch.cat((new, image), -1)
    while spent <= _LIMIT * least:
        basis = orthonormal(image)
        within = basis.mT @ image[:, -explained:]
        left = not left
        image = product(X, basis, left)
        spent += basis.shape[-1]
        squares = image.mT @ image
        # The columns before the last product were singular vectors, up to a residual that is
        # orthogonal to them.
        found = ritz(squares, within.mT, bound, floor)
        if found is None:
            return None
        if found.wrong <= _WRONG * rounding and found.spare >= _LEAST_SPARE:
            return _cut_by(X, basis, image, found, bound, left, found.wrong, rounding, state)
        basis, image = basis @ found.Q, image @ found.Q
        missing = _LEAST_SPARE - found.spare
        if missing > 0:
            basis = torch.cat((apart(basis.new_zeros(len(basis), missing), basis), basis), -1)
            if basis.shape[-1] > _SHARE * least:
                return None
        # Until the next product, new columns are known from one side only.
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
    """How far the values that are not followed are below 1.

    It is read off somewhat above the lowest followed values, since these have not converged.
    """
    below = int((S < 1 - NEAR).sum())
    return 1 - float(S[min(below // 2, 2 * PROBES)])


def _cut_by(
    X: Tensor,
    basis: Tensor,
    image: Tensor,
    found: Ritz,
    bound: float,
    left: bool,
    wrong: float,
    rounding: float,
    state: Vectors,
) -> tuple[Tensor, Vectors]:
    """X without what is above the bound, by the values ``found`` on a basis; and its vectors."""
    S = found.S
    basis, image = basis @ found.Q, (image @ found.Q) * (inverse(S) / bound)
    U, V = (basis, image) if left else (image, basis)
    level, W = 1.0, X
    probed = list(state.probed)
    if float(S[-1]) + wrong > 1 + rounding:
        # Leave room for the values to rise by what the residuals allow.
        level -= wrong
        m = int((S > level).sum())
        over, V_m = U[:, -m:] * ((S[-m:] - level) * bound), V[:, -m:]
        W = _less(X, over, V_m)
        side = int(state.from_left)
        P = probe(U if side else V, X)
        probed[side] = probed[side] - (V_m @ (over.mT @ P) if side else over @ (V_m.mT @ P))
    # At the last step the values may have been cut by more than rounding.
    at = S >= 1 - _AT_THE_BOUND / _ROUNDING * rounding - state.wrong
    S = S.clamp(max=level) * bound
    return W, Vectors(U, S, V, at, state.size, left, wrong, tuple(probed), state.spare)


def _less(X: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``X - left right'``, computed by blocks of rows that fit into the cache."""
    W = torch.empty_like(X, memory_format=torch.contiguous_format)
    for first in range(0, len(X), _ROWS):
        rows = slice(first, first + _ROWS)
        torch.addmm(X[rows], left[rows], right.mT, alpha=-1, out=W[rows])
    return W


def _start(before: Vectors, level: float) -> Tensor:
    """The vectors near the bound, some below, and a few directions that are not among them."""
    basis = before.U if before.from_left else before.V
    near = int((before.S >= level).sum())
    # If many values are near the bound, many others are just below. Columns come in whole groups.
    count = max(before.spare, near // 8)
    count += -(near + count + PROBES) % _COLUMNS
    basis = basis[:, max(0, basis.shape[-1] - near - count + PROBES) :]
    # The images of generic directions contain most of what the matrix stretches much.
    new = before.probed[0 if before.from_left else 1]
    if basis.shape[-1] < near + count - PROBES:
        new = torch.cat((new, new.new_zeros(len(new), near + count - basis.shape[-1] - PROBES)), -1)
    return torch.cat((apart(new, basis), basis), -1)
