"""The nearest matrix with singular values between two bounds, with derivatives of every order."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math import polar
from constraints.math.autograd import differentiable
from constraints.math.matrix import all_finite, eye_like
from constraints.math.rounding import least_positive
from constraints.math.svd import svd, svdvals

#: A singular value beyond a bound by no more than this counts as equal to it. The unit is the
#: machine epsilon times the bound where an upper bound is the only one, else times the Frobenius
#: norm: half of the library's tolerance.
ROUNDING = 4.0

#: From this ratio of the bounds on, the Gram matrix holds enough digits of the smaller one.
CLOSE = 0.25


def clip_singular_values(X: Tensor, bound: float) -> Tensor:
    r"""The nearest matrix whose singular values are at most ``bound``.

    For ``X = U S V'`` it is ``U min(S, bound) V'``, the nearest in the Frobenius norm. A matrix
    without larger singular values is returned bit for bit (as a copy), and there the derivative is
    the identity. Where a singular value equals the bound the map has a kink. The exact derivative
    increases the norm of no direction. As computed, it may do so where several singular values are
    within about 10 eps of the bound and one is above it: by a factor of up to 7 in single and 5 in
    double precision (measured). NaN or infinity in an element gives NaN in that element.

    Args:
        X: shape ``(*batch, n, p)``, real, single or double precision.
        bound: the largest singular value, positive.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clip_singular_values(torch.tensor([[4.0, 0.0], [0.0, -0.5]]), 1.0)
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -0.5000]])
    """
    if X.shape[-2] < X.shape[-1]:
        return clip_singular_values(X.mT, bound).mT.contiguous()
    return _clip_tall(X, bound)


def clamp_singular_values(X: Tensor, low: float, high: float) -> Tensor:
    r"""The nearest matrix whose singular values lie between ``low`` and ``high``.

    For ``X = U S V'`` it is ``U clamp(S, low, high) V'``, the nearest in every unitarily invariant
    norm. A matrix that has no other singular values is returned bit for bit (as a copy), and there
    the derivative is the identity. At a bound the map has a kink. Where singular values vanish and
    ``low > 0`` the nearest matrix is not unique and the map not differentiable: one of the nearest
    matrices is returned, and the undefined part of the derivative is set to zero. NaN or infinity
    in an element gives NaN in that element.

    Args:
        X: shape ``(*batch, n, p)``, real, single or double precision.
        low: the least singular value, 0 or more.
        high: the largest one, greater than ``low``.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clamp_singular_values(torch.tensor([[4.0, 0.0], [0.0, -0.25]]), 0.5, 1.0)
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -0.5000]])
    """
    if X.shape[-2] < X.shape[-1]:
        return clamp_singular_values(X.mT, low, high).mT.contiguous()
    return _clamp_tall(X, low, high)


# ------------------------------------------------------------------- the value, with one bound


def _clip(X: Tensor, bound: float) -> Tensor:
    return clipped_and_vectors(X, bound)[0]


def clipped_and_vectors(
    X: Tensor, bound: float, needed: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The clipped matrix of a tall X, and its right singular vectors where they are computed.

    Args:
        X: shape ``(*batch, n, p)``, ``n >= p``.
        bound: the largest singular value.
        needed: whether to compute the vectors even if nothing is clipped.

    Returns:
        The clipped matrix; in ascending order, ``(s / bound)^2 - 1`` for its singular values s
        before they are cut, of shape ``(*batch, p)``; the vectors, of shape ``(*batch, p, p)``.
        The last two are None where no decomposition was needed.
    """
    unchanged = X.clone(memory_format=torch.contiguous_format)
    if X.numel() == 0 or (not needed and bool(certainly_inside(X, bound).all())):
        return unchanged, None, None
    # In units of the bound, the eigenvalues of E are the squares of the singular values, less 1.
    Y = X / bound
    E = polar.defect(Y, Y)
    finite = all_finite(E)
    excess, V = linalg.eigh(torch.where(finite, E, 0))
    rounding = ROUNDING * torch.finfo(X.dtype).eps
    inside = finite & (excess[..., -1:, None] <= 2 * rounding)
    if bool(inside.all()):
        return unchanged, excess, V
    if not bool(finite.all()) or float(excess.amax()) > 0.5:
        # Far outside, the Gram matrix holds too few digits of the singular values near the bound.
        Y = _far_clip(X, bound)
        excess, V = linalg.eigh(polar.defect(Y, Y).nan_to_num())
    # Only the directions of singular values above the bound are cut.
    cut = V[..., -int((excess > 0).sum(-1).amax()) :]
    over = excess[..., -cut.shape[-1] :].clamp(min=0)
    lost = 1 - torch.rsqrt(1 + over)
    W = bound * (Y - ((Y @ cut) * lost.unsqueeze(-2)) @ cut.mT)
    # The eigenvectors are orthonormal up to some ten roundings, by which W may exceed the bound.
    for _ in range(16):
        outside = ~(inside | certainly_inside(W, bound))
        if not bool(outside.any()):
            break
        W = torch.where(outside, (1 - rounding) * W, W)
    return torch.where(inside, X, W).contiguous(), excess, V


def _far_clip(X: Tensor, bound: float) -> Tensor:
    """The clipped matrix in units of the bound, from a singular value decomposition."""
    largest, Y, finite = _scaled(X, bound)
    U, S, Vh = svd(Y)
    limit = bound / largest.squeeze(-1)
    clipped = (U * torch.where(S < limit, S / limit, 1).unsqueeze(-2)) @ Vh
    return torch.where(finite, clipped, torch.nan)


def certainly_inside(X: Tensor, high: float, low: float = 0.0) -> Tensor:
    """A test that all singular values lie between bounds, cheaper than computing them.

    If it is passed, they do; if not, they still may. It is that ``(1 + slack) I - X' X / high^2``
    has a Cholesky decomposition, and for the lower bound that
    ``X' X / high^2 - (low^2 / high^2 - slack) I`` has one.

    Returns:
        Tensor of truth values, of shape ``(*batch, 1, 1)``.
    """
    Y = X / high
    E = polar.defect(Y, Y)
    slack = 2 * ROUNDING * torch.finfo(X.dtype).eps
    if low == 0:
        ends = E.neg_()
    else:
        ratio = (low / high) ** 2
        # Inside, the Frobenius norm is at least sqrt(p) low: this is less than `ROUNDING` times it.
        slack *= X.shape[-1] ** 0.5 * ratio
        ends = torch.stack((-E, E), dim=-3)
        ends[..., 1, :, :].diagonal(dim1=-2, dim2=-1).add_(1 - ratio)
    ends.diagonal(dim1=-2, dim2=-1).add_(slack)
    L, info = linalg.cholesky_ex(ends)
    # LAPACK does not stop at infinity and NaN.
    sure = (info == 0) & torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all(-1)
    return (sure if low == 0 else sure.all(-1))[..., None, None]


def _scaled(X: Tensor, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entry c of each matrix, X / c, and whether X is finite.

    c is kept large enough, relative to ``high``, for the bounds to be divided by it.
    """
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    finite = torch.isfinite(largest)
    unit = torch.where(finite, largest, 1).clamp(min=high * least_positive(X.dtype))
    return unit, torch.where(finite, X / unit, 0), finite


# ------------------------------------------------------------------ the value, with two bounds


def _clamp(X: Tensor, low: float, high: float) -> Tensor:
    """The clamped matrix of a tall X, by the cheapest way that its numbers allow."""
    if low == 0:
        return _clip(X, high)
    unchanged = X.clone(memory_format=torch.contiguous_format)
    close = low >= CLOSE * high
    if X.numel() == 0 or (close and bool(certainly_inside(X, high, low).all())):
        return unchanged
    largest, Y, finite = _scaled(X, high)
    U, S, Vh = svd(Y)
    bounds = low / largest.squeeze(-1), high / largest.squeeze(-1)
    inside = finite & _inside(S, *bounds)[..., None, None]
    if bool(inside.all()):
        return unchanged
    W = X
    # U and V are orthonormal up to rounding only, which may lead W beyond the bounds. Then the
    # clamping is repeated with narrower bounds.
    for k in range(8):
        margin = k * (k + 1) * torch.finfo(X.dtype).eps * bounds[1]
        W = largest * ((U * S.clamp(bounds[0] + margin, bounds[1] - margin).unsqueeze(-2)) @ Vh)
        W = torch.where(inside, X, torch.where(finite, W, torch.nan)).contiguous()
        if close and bool(certainly_inside(W, high, low).all()):
            break
        found = _inside(svdvals(W.nan_to_num()), low, high)[..., None, None]
        if bool((~finite | inside | found).all()):
            break
    return W


def _inside(S: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Where all singular values are between the bounds, up to rounding; of shape ``batch``."""
    rounding = ROUNDING * torch.finfo(S.dtype).eps * linalg.vector_norm(S, dim=-1, keepdim=True)
    return ((S >= low - rounding) & (S <= high + rounding)).all(-1)


# ------------------------------------------------------------------------------- its derivative

# Derivation of the first derivative. For X = U S V' and the clamped values a = f(s), a change of X
# with M = U' dX V, split into its symmetric and its skew part, changes U a V' by
#
#     U (Gamma * sym M + Delta * skew M) V' + (I - U U') dX V (a / s) V',
#     Gamma_ij = (a_i - a_j) / (s_i - s_j),     Delta_ij = (a_i + a_j) / (s_i + s_j).
#
# All weights are 1 where both singular values are between the bounds. Gamma is 0 where both are
# beyond the same bound. Any other two are on different sides of a bound, so that their difference
# does not suffer from cancellation.


def _gradient(X: Tensor, W: Tensor, V: Tensor, low: float, high: float) -> Tensor:
    """The derivative of the clamped matrix W of a tall X in direction V; self-adjoint."""
    same = _same(X, W)
    if bool(same.all()):
        return V.clone(memory_format=torch.contiguous_format)
    largest, Y, finite = _scaled(X, high)
    U, s, Vh = svd(Y)
    a = s.clamp(low / largest.squeeze(-1), high / largest.squeeze(-1))
    # What is beyond a bound by rounding counts as being at it, where the inner derivative is taken.
    kept = (s - a).abs() <= ROUNDING * torch.finfo(X.dtype).eps * a
    a = torch.where(kept, s, a)
    difference = s.unsqueeze(-1) - s.unsqueeze(-2)
    slopes = (a.unsqueeze(-1) - a.unsqueeze(-2)) / difference
    gamma = torch.where(difference == 0, kept.unsqueeze(-1), slopes)
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    delta = _ratio(a.unsqueeze(-1) + a.unsqueeze(-2), sums, s[..., :1, None], low)
    VV = V @ Vh.mT
    M = U.mT @ VV
    change = U @ (gamma * (M + M.mT) + delta * (M - M.mT)) / 2
    if X.shape[-2] > X.shape[-1]:
        change = change + (VV - U @ M) * _ratio(a, s, s[..., :1], low).unsqueeze(-2)
    result = torch.where(finite, change @ Vh, torch.nan)
    return torch.where(same, V, result).contiguous()


def _same(X: Tensor, W: Tensor) -> Tensor:
    return (X == W).all(-1, keepdim=True).all(-2, keepdim=True)


def _ratio(a: Tensor, s: Tensor, largest: Tensor, low: float) -> Tensor:
    """``a / s``. Where s vanishes it is 1, or 0 if there is a lower bound and no derivative."""
    ratio = a / s
    if low == 0:
        return torch.where(s > 0, ratio, 1)
    finfo = torch.finfo(s.dtype)
    return torch.where((s > finfo.eps * largest) & (ratio < finfo.tiny**-0.5), ratio, 0)


def _clip_gradient(X: Tensor, W: Tensor, V: Tensor, bound: float) -> Tensor:
    return _gradient(X, W, V, 0.0, bound)


# Derivation of the others. The symmetric matrix A = [[-b I, X], [X', -b I]] has the eigenvalues
# s - b, -s - b and -b. For S = sign(A), its polar factor, with blocks like those of A,
#
#     U min(s, b) V' = b S_12 - X S_22:
#
# a singular value above the bound contributes u v' to S_12 and nothing to S_22, one below it
# nothing to S_12 and -v v' to S_22. The polar factor has derivatives of every order, so this has.
# With two bounds and the polar factor P = U V' of X,
#
#     U clamp(s, low, high) V' = U min(s, high) V' - U min(s, low) V' + low P.


def _clip_derivative(X: Tensor, W: Tensor, V: Tensor, bound: float) -> Tensor:
    """The derivative of the clipped matrix W of a tall X in direction V; differentiable."""
    same = _same(X, W)
    Y = torch.where(same, 0, X / bound)
    n = X.shape[-2]
    A, dA = _dilation(Y), _dilation(V)
    A = A - eye_like(A)
    S = polar.polar(A)
    dS = polar.derivative(A, S, dA)
    result = dS[..., :n, n:] - V @ S[..., n:, n:] - Y @ dS[..., n:, n:]
    return torch.where(same, V, result)


def _dilation(X: Tensor) -> Tensor:
    """``[[0, X], [X', 0]]``."""
    n, p = X.shape[-2:]
    top = torch.cat((X.new_zeros(*X.shape[:-2], n, n), X), dim=-1)
    return torch.cat((top, torch.cat((X.mT, X.new_zeros(*X.shape[:-2], p, p)), dim=-1)), dim=-2)


def _clamp_derivative(X: Tensor, W: Tensor, V: Tensor, low: float, high: float) -> Tensor:
    """The derivative of the clamped matrix W of a tall X in direction V; differentiable."""
    if low == 0:
        return _clip_derivative(X, W, V, high)
    result = _clip_derivative(X, clip_singular_values(X, high), V, high)
    result = result - _clip_derivative(X, clip_singular_values(X, low), V, low)
    result = result + low * polar.derivative(X, polar.polar(X), V)
    return torch.where(_same(X, W), V, result)


_clip_tall = differentiable(
    "constraints::clip_singular_values",
    _clip,
    "constraints::clip_singular_values_gradient",
    _clip_gradient,
    _clip_derivative,
)
_clamp_tall = differentiable(
    "constraints::clamp_singular_values",
    _clamp,
    "constraints::clamp_singular_values_gradient",
    _gradient,
    _clamp_derivative,
)
