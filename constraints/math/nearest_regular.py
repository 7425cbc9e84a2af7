"""Matrices near a given one, with a determinant that is not zero or has a given sign."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import may_branch, without_derivative
from constraints.math.svd import svd

#: The least singular value of a regular matrix, in units of the machine epsilon times the Frobenius
#: norm: half of the library's tolerance, so that raising one moves no weight by more.
MARGIN = 4.0


def regular(X: Tensor, sign: int = 0) -> Tensor:
    """X with no singular value that rounding could make zero, and a determinant of a given sign.

    Where the determinant has the other sign, the least singular value is negated. This is
    continuous: a matrix that moves towards the singular ones is reflected back from them. The first
    three derivatives are exact, except that raising small singular values counts as rounding.

    Args:
        X: shape ``(*batch, n, n)``, real, single or double precision.
        sign: 1, -1, or 0 for either one.

    Returns:
        Tensor of the same shape; equal to X, bit for bit, where there is nothing to change.
    """
    if sign == 0:
        return X + _lift(X.detach(), sign, True)[0]
    lift, V, weights = _lift(X.detach(), sign, True)
    if may_branch(X.detach()) and not bool(V.any()):
        return X + lift
    # Derivation. Let v be the eigenvector of the least eigenvalue mu of M = X' X, V_i the others,
    # and the index 0 denote values held constant. To every order in D = M - M_0, with v_0' v = 1,
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
    """The nearest matrix, in the Frobenius norm, with a determinant of the given sign.

    For a matrix of the other sign, the nearest point of the closure is a singular matrix. A matrix
    whose least singular value is just large enough is returned in its place. Arguments and result
    are as for `regular`; the derivative is that of the identity.
    """
    return X + _lift(X.detach(), sign, False)[0]


def _find_lift(X: Tensor, sign: int, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What to add to X after its reflection, and what the derivative of the reflection needs.

    Args:
        X: shape ``(*batch, n, n)``.
        sign: of the determinant, or 0 for either one.
        across: whether a determinant of the other sign is reflected, not just brought to zero.

    Returns:
        The summand; right singular vectors, and the weights ``1 / (mu_0 - mu_i)`` of `regular`. All
        are zero where X is not changed, and the last two are empty if ``sign`` is 0.
    """
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
    norm = linalg.matrix_norm(Y)
    # Sufficient, and cheaper than singular values: the Frobenius norm exceeds the spectral one.
    inverse, info = linalg.inv_ex(Y)
    stays = (info == 0) & (norm * linalg.matrix_norm(inverse) <= 1 / (2 * MARGIN * eps))
    if sign:
        stays = stays & (linalg.slogdet(Y).sign == sign)
    if bool(stays.all()):
        return lift, vectors, weights
    finite = torch.isfinite(size)
    U, s, Vh = svd(torch.where(finite, Y, 0))
    stays = stays[..., None, None]
    tiny = torch.finfo(X.dtype).tiny
    least = torch.maximum(MARGIN * eps * norm.unsqueeze(-1), tiny / size.squeeze(-1))
    last = _is_last(s)
    wrong = (orientation(U, Vh) * sign < 0).unsqueeze(-1)
    flipped = wrong & last
    reflection = torch.zeros_like(lift)
    if sign and across:
        apart = (s[..., -1:] - s) * (s[..., -1:] + s)
        apart = torch.where(apart.abs() > eps * s[..., :1].square(), apart, torch.inf)
        moved = wrong & ~stays.squeeze(-1)
        vectors = torch.where(moved.unsqueeze(-1), Vh.mT, 0).contiguous()
        weights = torch.where(moved, ~last / apart, 0)
        reflection = (Y @ Vh.mT[..., -1:]) @ Vh[..., -1:, :] * (-2 * wrong.unsqueeze(-1))
    # Rounding may make a singular value of zero appear larger than the margin, so that it is not
    # raised. Hence larger and larger margins are tried.
    for k in range(8):
        target = torch.maximum(s, least * 2**k)
        if across:
            change = torch.where(flipped, s - target, target - s)
        else:
            change = torch.where(flipped, -least * 2**k, target) - s
        lift = (U * change.unsqueeze(-2)) @ Vh
        W = torch.where(finite, Y + reflection + lift, torch.nan)
        inverse, info = linalg.inv_ex(W)
        condition = norm * linalg.matrix_norm(inverse.nan_to_num(), 2)
        good = (info == 0) & (condition <= 1 / (2 * eps))
        if sign:
            good = good & (linalg.slogdet(W).sign == sign)
        if bool((good | stays[..., 0, 0] | ~finite[..., 0, 0]).all()):
            break
    lift = torch.where(stays, 0, torch.where(finite, size * lift, torch.nan))
    return lift.contiguous(), vectors, weights


def orientation(U: Tensor, Vh: Tensor) -> Tensor:
    """The sign of the determinant of U Vh, for orthogonal U and Vh."""
    return linalg.slogdet(U).sign * linalg.slogdet(Vh).sign


def last_sign(s: Tensor, sign: Tensor) -> Tensor:
    """1 for each entry of the vectors s, but -1 for the last one where the sign is negative."""
    return torch.where(_is_last(s) & (sign < 0).unsqueeze(-1), -1, 1).to(s.dtype)


def _is_last(s: Tensor) -> Tensor:
    """Truth values of the shape of s, true for the last entry of each vector."""
    return torch.arange(s.shape[-1], device=s.device).eq(s.shape[-1] - 1).expand(s.shape)


def _lift_shapes(X: Tensor, sign: int, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    del across
    lift = torch.empty_like(X, memory_format=torch.contiguous_format)
    if sign == 0:
        return lift, X.new_empty((*X.shape[:-2], 0)), X.new_empty((*X.shape[:-2], 0))
    return lift, torch.empty_like(lift), X.new_empty(X.shape[:-1])


_lift = without_derivative("constraints::lift", _find_lift, fake=_lift_shapes)
