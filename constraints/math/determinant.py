"""The matrix near a given one whose determinant is not zero, has a given sign, or is one."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.math.autograd import may_branch, without_derivative
from constraints.math.svd import svd, svdvals

#: The least singular value of what is regular, in units of the machine epsilon times the Frobenius
#: norm: half of what the tolerance of the library grants, so that it moves no weight by more.
MARGIN = 4.0


#: Up to this logarithm a determinant is brought to 1 by the nearest point, beyond it by a factor
#: first, which leaves no more than the second one. Below log(2) there is a nearest point without a
#: jump.
NEAR, FAR = 0.2, 0.6


#: Steps that determine the multiplier, at most.
ROUNDS = 80


# -------------------------------------------------------------------- a determinant of a given sign


def regular(X: Tensor, sign: int = 0) -> Tensor:
    """X with no singular value too small to be told from zero, and a determinant of a given sign.

    Where the determinant has the other sign, that of the least singular value is changed: this is
    continuous, and what moves towards the singular matrices comes back from them. Its first three
    derivatives are exact, but for the lift of singular values, which counts as rounding.

    Args:
        X: shape ``(*batch, n, n)``, real, single or double precision.
        sign: 1, -1, or 0 for either one.

    Returns:
        Tensor of the same shape; X itself, bit for bit, where there is nothing to change.
    """
    if sign == 0:
        return X + _lift(X.detach(), sign, True)[0]
    lift, V, weights = _lift(X.detach(), sign, True)
    if may_branch(X.detach()) and not bool(V.any()):
        return X + lift
    # Derivation. v is the vector of the least eigenvalue mu of M = X' X, and the others are V_i. To
    # every order in D = M - M_0, with v_0' v = 1,
    #
    #     v = v_0 + sum_i V_i V_i' (D v - (v_0' D v) v) / (mu_0 - mu_i),
    #
    # and each iteration makes one more derivative exact. With s u = X v, the reflection is
    # X - 2 s u v' = X (I - 2 v v' / v' v).
    size = X.detach().abs().amax((-2, -1), keepdim=True)
    Y = X / torch.where(size > 0, size, 1)
    start = v_0 = V[..., -1:]
    v = v_0
    for _ in range(3):
        change = Y.mT @ (Y @ v) - Y.detach().mT @ (Y.detach() @ v)
        change = change - (start.mT @ change) * v
        v = v_0 + V @ (weights.unsqueeze(-1) * (V.mT @ change))
    square = (v * v).sum(-2, keepdim=True)
    return X - (X @ v) @ (2 * v / torch.where(square > 0, square, 1)).mT + lift


def nearest_regular(X: Tensor, sign: int = 0) -> Tensor:
    """The nearest matrix, in the Frobenius norm, with a determinant of the given sign; see above.

    Singular matrices are the boundary: what is beyond it ends on the near side of it.
    """
    return X + _lift(X.detach(), sign, False)[0]


def _find_lift(X: Tensor, sign: int, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What is to be added, right singular vectors and weights: zero where X stays."""
    lift = torch.zeros_like(X, memory_format=torch.contiguous_format)
    vectors, weights = (X.new_zeros((*X.shape[:-2], 0)) for _ in range(2))
    if sign:
        vectors, weights = torch.zeros_like(lift), X.new_zeros(X.shape[:-1])
    if X.numel() == 0:
        return lift, vectors, weights
    size = X.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size.clamp(min=torch.finfo(X.dtype).tiny), 1)
    Y = X / size
    eps = torch.finfo(X.dtype).eps
    norm = torch.linalg.matrix_norm(Y)
    # Sufficient, and cheaper than singular values: the Frobenius norm exceeds the spectral one.
    inverse, info = torch.linalg.inv_ex(Y)
    stays = (info == 0) & (norm * torch.linalg.matrix_norm(inverse) <= 1 / (2 * MARGIN * eps))
    if sign:
        stays = stays & (torch.linalg.slogdet(Y).sign == sign)
    if bool(stays.all()):
        return lift, vectors, weights
    finite = torch.isfinite(size)
    U, s, Vh = svd(torch.where(finite, Y, 0))
    stays = stays[..., None, None]
    tiny = torch.finfo(X.dtype).tiny
    least = torch.maximum(MARGIN * eps * norm.unsqueeze(-1), tiny / size.squeeze(-1))
    last = torch.zeros_like(s)
    last[..., -1] = 1
    wrong = (orientation(U, Vh) * sign < 0).unsqueeze(-1)
    flipped = wrong & (last > 0)
    reflection = torch.zeros_like(lift)
    if sign and across:
        apart = (s[..., -1:] - s) * (s[..., -1:] + s)
        apart = torch.where(apart.abs() > eps * s[..., :1].square(), apart, torch.inf)
        moved = wrong & ~stays.squeeze(-1)
        vectors = torch.where(moved.unsqueeze(-1), Vh.mT, 0).contiguous()
        weights = torch.where(moved, (1 - last) / apart, 0)
        # It comes before the lift.
        reflection = (Y @ Vh.mT[..., -1:]) @ Vh[..., -1:, :] * (-2 * wrong.unsqueeze(-1))
    # A singular value of zero may be found larger than the margin, by rounding, and not be raised.
    for k in range(8):
        target = torch.maximum(s, least * 2**k)
        if across:
            change = torch.where(flipped, s - target, target - s)
        else:
            change = torch.where(flipped, -least * 2**k, target) - s
        lift = (U * change.unsqueeze(-2)) @ Vh
        W = torch.where(finite, Y + reflection + lift, torch.nan)
        inverse, info = torch.linalg.inv_ex(W)
        condition = norm * torch.linalg.matrix_norm(inverse.nan_to_num(), 2)
        good = (info == 0) & (condition <= 1 / (2 * eps))
        if sign:
            good = good & (torch.linalg.slogdet(W).sign == sign)
        if bool((good | stays[..., 0, 0] | ~finite[..., 0, 0]).all()):
            break
    lift = torch.where(stays, 0, torch.where(finite, size * lift, torch.nan))
    return lift.contiguous(), vectors, weights


def orientation(U: Tensor, Vh: Tensor) -> Tensor:
    """The sign of the determinant of U Vh, for orthogonal U and Vh."""
    return torch.linalg.slogdet(U).sign * torch.linalg.slogdet(Vh).sign


def _lift_shapes(X: Tensor, sign: int, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    del across
    lift = torch.empty_like(X, memory_format=torch.contiguous_format)
    if sign == 0:
        return lift, X.new_empty((*X.shape[:-2], 0)), X.new_empty((*X.shape[:-2], 0))
    return lift, torch.empty_like(lift), X.new_empty(X.shape[:-1])


_lift = without_derivative("constraints::lift", _find_lift, fake=_lift_shapes)


# ---------------------------------------------------------------------------------- determinant one

# Derivation. The nearest Z with determinant 1 is a stationary point of |Z - X|^2 / 2 - l log det Z:
#
#     Z - l Z^-T = X.
#
# With X = U S V', where U V' has determinant 1 and so the last singular value may be negative, it
# is Z = U a V' with a_i - l / a_i = s_i, hence a_i = (s_i + sqrt(s_i^2 + 4 l)) / 2 > 0. The product
# of the a_i grows with l, and its logarithm is a concave function of l. For l < 0 it is defined
# down to l = -s_n^2 / 4 only, where the product is less than half of the determinant; so X is
# scaled down first if its determinant is much larger than 1.
#
# A change of X by U B V' changes Z by U D V' and l by m, where to first order
#
#     D_ij + (l / a_i a_j) D_ji - m delta_ij / a_i = B_ij,         sum D_ii / a_i = 0.
#
# The symmetric and the skew part of B are divided by 1 + l / a_i a_j and by
# 1 - l / a_i a_j = (s_i + s_j) / (a_i + a_j): no difference of singular values. Only s_n can be
# negative, and where s_n = -s_(n-1) the nearest point is not unique.


def unimodular(X: Tensor) -> Tensor:
    """The matrix with determinant 1 nearest to X; see above. Two derivatives are exact.

    Nearest in the Frobenius norm if the determinant of X is between 0 and exp(`NEAR`), or negative
    and no larger than that; else nearest to a multiple of X.

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
    logarithm = logarithm + _trace(P).unsqueeze(-1) - (P * P.mT).sum((-2, -1)).unsqueeze(-1) / 2
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
    more, _ = solve(second / rows, (P * P.mT).sum((-2, -1)).unsqueeze(-1) / 2)
    return Z + U @ (D + more) @ Vh


def _trace(P: Tensor) -> Tensor:
    return P.diagonal(dim1=-2, dim2=-1).sum(-1)


def _shrinkage(logarithm: Tensor, n: int) -> Tensor:
    """The factor of X that leaves of the logarithm of its determinant `FAR` at most."""
    excess = (logarithm - NEAR).clamp(min=0)
    # Two derivatives are continuous where it begins.
    return torch.exp(((FAR - NEAR) * torch.tanh(excess / (FAR - NEAR)) - excess) / n)


def _find_solution(X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Z, U, V', the signed singular values s of X, lifted, the a of Z, and the multiplier."""
    size = X.abs().amax((-2, -1), keepdim=True) if X.numel() else X.new_ones(*X.shape[:-2], 1, 1)
    finite = torch.isfinite(size)
    U, s, Vh = svd(torch.where(finite & (size > 0), X / size, 0))
    finfo = torch.finfo(X.dtype)
    s_0 = s
    # What is singular up to rounding would need a singular value too small for the dtype.
    norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    # So small that the derivatives are those of zero, and can be divided by.
    floor = finfo.eps * finfo.tiny**0.25
    s = torch.maximum(s, MARGIN * finfo.eps * norm) * size.squeeze(-1)
    s = s.clamp(min=floor)
    s_0 = s_0 * size.squeeze(-1)
    last = torch.zeros_like(s)
    last[..., -1] = 1
    side = 1 - 2 * last * (orientation(U, Vh) < 0).unsqueeze(-1)
    shrinkage = _shrinkage(s.log().sum(-1, keepdim=True), X.shape[-1])
    a, multiplier = _roots((side * s * shrinkage).double())
    a, multiplier = a.to(X.dtype), multiplier.to(X.dtype)
    # What is added is small where X is nearly a member, and so are its rounding errors.
    Z = shrinkage.unsqueeze(-1) * X + (U * (side * a - s_0 * shrinkage).unsqueeze(-2)) @ Vh
    flipped = (U * side.unsqueeze(-2)).contiguous()
    # Newton's method for what is left, if it is more than rounding.
    for _ in range(3):
        inverse = torch.linalg.inv_ex(Z.nan_to_num())[0].mT
        slope = torch.linalg.matrix_norm(inverse, keepdim=True)
        missed = torch.linalg.slogdet(Z.nan_to_num()).logabsdet[..., None, None] / slope
        rest = missed.abs() > finfo.eps * torch.linalg.matrix_norm(Z, keepdim=True)
        rest = rest & torch.isfinite(slope)
        if not bool(rest.any()):
            break
        Z = torch.where(rest, Z - missed * inverse / slope, Z)
    Z = torch.where(finite, Z, torch.nan).contiguous()
    return Z, flipped, Vh.contiguous(), side * s, a, multiplier


def _roots(s: Tensor) -> tuple[Tensor, Tensor]:
    """The a and the multiplier of signed singular values, in double precision.

    Newton's method from the left: it is monotonous, the logarithm being concave.
    """

    def logarithm(x: Tensor, s: Tensor = s) -> tuple[Tensor, Tensor, Tensor]:
        root = (s * s + 4 * x).clamp(min=torch.finfo(s.dtype).tiny).sqrt()
        a = torch.where(s > 0, (s + root) / 2, 2 * x / (root - torch.where(s > 0, 0, s)))
        slope = (1 / (a * root)).sum(-1, keepdim=True)
        return a, a.log().sum(-1, keepdim=True), slope

    positive = s[..., -1:] > 0
    # From l = 0 the first step ends on the left of the root, whichever side it comes from.
    _, value, slope = logarithm(torch.zeros_like(s[..., :1]))
    x = torch.maximum(-value / slope, -0.999 * s[..., -1:].square() / 4)
    if not bool((positive & (value > -1)).all()):
        # Far away, or with a negative one. At l = 1 the product is 1 at least.
        trials = 10.0 ** torch.arange(-300, 0, 2, dtype=s.dtype, device=s.device)
        below = logarithm(trials.unsqueeze(-1), s.unsqueeze(-2))[1].squeeze(-1) < 0
        low = trials[(below.sum(-1, keepdim=True) - 1).clamp(min=0)]
        x = torch.where(positive, torch.where(value > 0, x, torch.maximum(x, low)), low)
    for i in range(ROUNDS):
        _, value, slope = logarithm(x)
        step = -value / slope
        before, x = x, torch.where(torch.isfinite(step), x + step, x)
        found = value.abs() <= 4 * torch.finfo(s.dtype).eps * s.shape[-1] ** 0.5
        # The first step may come from the right; later ones do not, and only rounding leads back.
        if bool((found | ((i > 0) & ~(x > before))).all()):
            break
    return logarithm(x)[0], x


def distance_from_unimodular(X: Tensor) -> Tensor:
    """How far X is from the matrices with determinant 1, of shape ``batch``.

    In the Frobenius norm.
    """
    s = svdvals(X).double()
    if X.numel() == 0:
        return X.new_zeros(X.shape[:-2])
    last = torch.zeros_like(s)
    last[..., -1] = 1
    s = s * (1 - 2 * last * (torch.linalg.slogdet(X.detach()).sign < 0).unsqueeze(-1))
    tiny = torch.finfo(X.dtype).tiny
    logarithm = s.clamp(min=tiny).log().sum(-1)
    large = (s[..., -1] > 0) & (logarithm > 0)
    a = _roots(s.detach())[0]
    if bool(large.any()):
        a = torch.where(large.unsqueeze(-1), _nearest_smaller(s.detach(), a), a)
    return torch.linalg.vector_norm(a - s, dim=-1).to(X.dtype)


def _nearest_smaller(s: Tensor, every: Tensor) -> Tensor:
    """The nearest positive numbers with the product 1, for a product that is larger.

    Either all a are the larger root of ``a (s - a) = m``, as in ``every`` if there is such an m, or
    the last one is the smaller root t.
    In that case ``log t = -sum log a_i(t)``, which iteration from 0 reaches from below.
    """
    s = s.clamp(min=torch.finfo(s.dtype).tiny)
    others, last = s[..., :-1], s[..., -1:]
    t = torch.zeros_like(last)
    for _ in range(ROUNDS):
        m = t * (last - t)
        a = (others + (others.square() - 4 * m).clamp(min=0).sqrt()) / 2
        before, t = t, torch.exp(-a.log().sum(-1, keepdim=True)).minimum(last / 2)
        if not bool((t > before).any()):
            break
    one = torch.cat((a, t), dim=-1)
    missed = every.log().sum(-1, keepdim=True).abs() > 1e-9
    missed_one = one.log().sum(-1, keepdim=True).abs() > 1e-6
    far = torch.linalg.vector_norm(every - s, dim=-1, keepdim=True)
    far_one = torch.linalg.vector_norm(one - s, dim=-1, keepdim=True)
    return torch.where(missed | (~missed_one & (far_one < far)), one, every)


def _solution_shapes(X: Tensor) -> tuple[Tensor, ...]:
    square = [torch.empty_like(X, memory_format=torch.contiguous_format) for _ in range(3)]
    vectors = [X.new_empty(X.shape[:-1]) for _ in range(2)]
    return *square, *vectors, X.new_empty((*X.shape[:-2], 1))


_solve = without_derivative("constraints::unimodular", _find_solution, fake=_solution_shapes)
