"""The nearest matrix with determinant one, or the nearest to a multiple of a given matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import without_derivative
from constraints.math.nearest_regular import MARGIN, last_sign, orientation
from constraints.math.svd import svd, svdvals

#: If the logarithm of the determinant is at most the first number, the result is the nearest matrix
#: of determinant 1. Any other matrix is first multiplied by a factor that brings the logarithm
#: below the second number. Below log(2) the nearest matrix is a continuous function.
NEAR, FAR = 0.2, 0.6

#: The largest number of steps that find the multiplier.
ROUNDS = 80


# Derivation. The nearest Z with determinant 1 is a stationary point of |Z - X|^2 / 2 - l log det Z:
#
#     Z - l Z^-T = X.
#
# With X = U S V', where U V' has determinant 1 and so the last singular value may be negative, it
# is Z = U a V' with a_i - l / a_i = s_i, hence a_i = (s_i + sqrt(s_i^2 + 4 l)) / 2 > 0. The product
# of the a_i grows with l, and its logarithm is a concave function of l. It is defined for
# l >= -s_n^2 / 4 only, where the product is less than half of the determinant; so X is scaled down
# first if its determinant is much larger than 1.
#
# A change of X by U B V' changes Z by U D V' and l by m, where to first order
#
#     D_ij + (l / a_i a_j) D_ji - m delta_ij / a_i = B_ij,         sum D_ii / a_i = 0.
#
# The symmetric and the skew part of B are divided by 1 + l / a_i a_j and by
# 1 - l / a_i a_j = (s_i + s_j) / (a_i + a_j): equal singular values are no problem. Only s_n can be
# negative, and where s_n = -s_(n-1) the nearest point is not unique.


def unimodular(X: Tensor) -> Tensor:
    """The matrix with determinant 1 nearest to X, with two exact derivatives.

    It is the nearest in the Frobenius norm if the absolute value of the determinant of X is at most
    exp(`NEAR`), else the nearest to a multiple of X.

    Args:
        X: shape ``(*batch, n, n)``, real, single or double precision.

    Returns:
        Tensor of the same shape.
    """
    X_0 = X.detach()
    Z, U, Vh, s, a, multiplier = _solve(X_0)
    if not (torch.is_grad_enabled() or X.requires_grad):
        return Z
    n = X.shape[-1]
    B = U.mT @ (X - X_0) @ Vh.mT
    # log det (X_0 + dX) = log det X_0 + tr P - tr P^2 / 2 + ..., with P = X_0^-1 dX.
    logarithm = s.abs().log().sum(-1, keepdim=True)
    safe = torch.where(logarithm > NEAR, s, 1)
    P = B / safe.unsqueeze(-1)
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    logarithm = logarithm + trace - _trace_of_square(P) / 2
    scaled = _shrinkage(logarithm, n).unsqueeze(-1) * (torch.diag_embed(s) + B)
    B = scaled - scaled.detach()
    s = scaled.detach().diagonal(dim1=-2, dim2=-1)
    rows, columns = a.unsqueeze(-1), a.unsqueeze(-2)
    symmetric = 1 / (1 + multiplier.unsqueeze(-1) / (rows * columns))
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    vanish = sums.abs() <= torch.finfo(X.dtype).eps * a[..., :1, None]
    skew = torch.where(vanish, 0, (rows + columns) / torch.where(vanish, 1, sums))
    K = 1 / (a + multiplier / a)
    total = (K / a).sum(-1, keepdim=True)

    def solve(B: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
        m = (trace - (K * B.diagonal(dim1=-2, dim2=-1)).sum(-1, keepdim=True)) / total
        D = (symmetric * (B + B.mT) + skew * (B - B.mT)) / 2
        return D + torch.diag_embed(m * K), m

    D, m = solve(B, torch.zeros_like(multiplier))
    # The terms of second order of l Z^-T and of log det Z.
    P = D / rows
    second = multiplier.unsqueeze(-1) * (P.mT @ P.mT) - m.unsqueeze(-1) * P.mT
    more, _ = solve(second / rows, _trace_of_square(P) / 2)
    return Z + U @ (D + more) @ Vh


def _trace_of_square(P: Tensor) -> Tensor:
    return (P * P.mT).sum((-2, -1)).unsqueeze(-1)


def _shrinkage(logarithm: Tensor, n: int) -> Tensor:
    """The factor that brings the logarithm of the determinant of an n x n matrix below `FAR`."""
    excess = (logarithm - NEAR).clamp(min=0)
    # Two derivatives are continuous where the logarithm is `NEAR`.
    return torch.exp(((FAR - NEAR) * torch.tanh(excess / (FAR - NEAR)) - excess) / n)


def _find_solution(X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Z, U, V', the signed singular values s of X (raised from zero), the a of Z, and l."""
    size = X.abs().amax((-2, -1), keepdim=True) if X.numel() else X.new_ones(*X.shape[:-2], 1, 1)
    finite = torch.isfinite(size)
    U, s, Vh = svd(torch.where(finite & (size > 0), X / size, 0))
    finfo = torch.finfo(X.dtype)
    s_0 = s
    # For a matrix that is singular up to rounding, Z could need a singular value too small for the
    # dtype.
    norm = linalg.vector_norm(s, dim=-1, keepdim=True)
    s = torch.maximum(s, MARGIN * finfo.eps * norm) * size.squeeze(-1)
    # Small enough for the derivatives at zero, and large enough to be a divisor.
    s = s.clamp(min=finfo.eps * finfo.tiny**0.25)
    s_0 = s_0 * size.squeeze(-1)
    side = last_sign(s, orientation(U, Vh))
    shrinkage = _shrinkage(s.log().sum(-1, keepdim=True), X.shape[-1])
    a, multiplier = _roots((side * s * shrinkage).double())
    a, multiplier = a.to(X.dtype), multiplier.to(X.dtype)
    # The summand is small where X is nearly a member, and so are its rounding errors.
    Z = shrinkage.unsqueeze(-1) * X + (U * (side * a - s_0 * shrinkage).unsqueeze(-2)) @ Vh
    flipped = (U * side.unsqueeze(-2)).contiguous()
    # Newton's method, where the determinant still differs from 1 by more than rounding.
    for _ in range(3):
        inverse = linalg.inv_ex(Z.nan_to_num())[0].mT
        slope = linalg.matrix_norm(inverse, keepdim=True)
        missed = linalg.slogdet(Z.nan_to_num()).logabsdet[..., None, None] / slope
        rest = missed.abs() > finfo.eps * linalg.matrix_norm(Z, keepdim=True)
        rest = rest & torch.isfinite(slope)
        if not bool(rest.any()):
            break
        Z = torch.where(rest, Z - missed * inverse / slope, Z)
    Z = torch.where(finite, Z, torch.nan).contiguous()
    return Z, flipped, Vh.contiguous(), side * s, a, multiplier


def _roots(s: Tensor) -> tuple[Tensor, Tensor]:
    """The a and the multiplier l of signed singular values, in double precision.

    Newton's method, which is monotonous from the left because the logarithm is concave.
    """

    def logarithm(x: Tensor, s: Tensor = s) -> tuple[Tensor, Tensor, Tensor]:
        root = (s * s + 4 * x).clamp(min=torch.finfo(s.dtype).tiny).sqrt()
        a = torch.where(s > 0, (s + root) / 2, 2 * x / (root - torch.where(s > 0, 0, s)))
        slope = (1 / (a * root)).sum(-1, keepdim=True)
        return a, a.log().sum(-1, keepdim=True), slope

    positive = s[..., -1:] > 0
    # From l = 0, on whichever side of the root that is, the first step ends on the left of it.
    _, value, slope = logarithm(torch.zeros_like(s[..., :1]))
    x = torch.maximum(-value / slope, -0.999 * s[..., -1:].square() / 4)
    if not bool((positive & (value > -1)).all()):
        # Far away, or with a negative singular value. At l = 1 the product is at least 1.
        trials = 10.0 ** torch.arange(-300, 0, 2, dtype=s.dtype, device=s.device)
        below = logarithm(trials.unsqueeze(-1), s.unsqueeze(-2))[1].squeeze(-1) < 0
        low = trials[(below.sum(-1, keepdim=True) - 1).clamp(min=0)]
        x = torch.where(positive, torch.where(value > 0, x, torch.maximum(x, low)), low)
    for i in range(ROUNDS):
        _, value, slope = logarithm(x)
        step = -value / slope
        before, x = x, torch.where(torch.isfinite(step), x + step, x)
        found = value.abs() <= 4 * torch.finfo(s.dtype).eps * s.shape[-1] ** 0.5
        # The first step may come from the right. A later step to the left is due to rounding.
        if bool((found | ((i > 0) & ~(x > before))).all()):
            break
    return logarithm(x)[0], x


def distance_from_unimodular(X: Tensor) -> Tensor:
    """The distance from the matrices with determinant 1 in the Frobenius norm; shape ``batch``."""
    s = svdvals(X).double()
    if X.numel() == 0:
        return X.new_zeros(X.shape[:-2])
    s = s * last_sign(s, linalg.slogdet(X.detach()).sign)
    tiny = torch.finfo(X.dtype).tiny
    logarithm = s.clamp(min=tiny).log().sum(-1)
    large = (s[..., -1] > 0) & (logarithm > 0)
    a = _roots(s.detach())[0]
    if bool(large.any()):
        a = torch.where(large.unsqueeze(-1), _nearest_smaller(s.detach(), a), a)
    return linalg.vector_norm(a - s, dim=-1).to(X.dtype)


def _nearest_smaller(s: Tensor, every: Tensor) -> Tensor:
    """The positive numbers a with product 1 nearest to numbers s with a larger product.

    Either all a are the larger root of ``a (s - a) = m``, which gives ``every`` if such an m
    exists, or the last one is the smaller root t. In the latter case ``log t = -sum log a_i(t)``,
    which fixed-point iteration from t = 0 approaches from below.
    """
    s = s.clamp(min=torch.finfo(s.dtype).tiny)
    others, last = s[..., :-1], s[..., -1:]
    a, t = others, torch.zeros_like(last)
    for _ in range(ROUNDS):
        m = t * (last - t)
        a = (others + (others.square() - 4 * m).clamp(min=0).sqrt()) / 2
        before, t = t, torch.exp(-a.log().sum(-1, keepdim=True)).minimum(last / 2)
        if not bool((t > before).any()):
            break
    one = torch.cat((a, t), dim=-1)
    missed = every.log().sum(-1, keepdim=True).abs() > 1e-9
    missed_one = one.log().sum(-1, keepdim=True).abs() > 1e-6
    far = linalg.vector_norm(every - s, dim=-1, keepdim=True)
    far_one = linalg.vector_norm(one - s, dim=-1, keepdim=True)
    return torch.where(missed | (~missed_one & (far_one < far)), one, every)


def _solution_shapes(X: Tensor) -> tuple[Tensor, ...]:
    square = [torch.empty_like(X, memory_format=torch.contiguous_format) for _ in range(3)]
    vectors = [X.new_empty(X.shape[:-1]) for _ in range(2)]
    return *square, *vectors, X.new_empty((*X.shape[:-2], 1))


_solve = without_derivative("constraints::unimodular", _find_solution, fake=_solution_shapes)
