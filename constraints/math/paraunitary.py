"""Orthogonal convolutions as products of factors with two taps: paraunitary matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.matrix import eye_like, symmetric_part
from constraints.math.svd import svd

# A convolution with stride 1 has the symbol K(z) = sum_j K_j z^-j, one matrix per frequency; it is
# orthogonal if all of these are. In one dimension every such K with k taps is
#
#     K(z) = H F_1(z) ... F_{k-1}(z),        F(z) = P + z^-1 (I - P),
#
# with an orthogonal H and orthogonal projections P (Vaidyanathan 1993, section 14.4; Gao, Nguyen
# and Strang 2001). The last factor can be divided off: the rows of the first tap lie in the range
# of P, those of the last tap in its complement, so that K(z) F(1/z) has one tap less. In two
# dimensions factors in z are followed by factors in w. To divide the latter off first, the taps
# along z are regarded as more rows. With a stride s, each of the s^d phases of the input is a
# channel of its own, as in `constraints.math.conv_symbol`.

# torch declares no types of these.
_fft: Any = torch.fft


def gram_defect(taps: Tensor) -> Tensor:
    """Half of the largest entry of the autocorrelation of the taps minus the identity."""
    if taps.numel() == 0:
        return taps.sum((-5, -4, -3, -2, -1))
    sizes = [2 * t - 1 for t in taps.shape[-4:-2]]
    symbol = _fft.fft2(taps, s=sizes, dim=(-4, -3))
    excess = _fft.ifft2(symbol @ symbol.mH, dim=(-4, -3)).real / 2
    identity = eye_like(taps.mT) / 2
    at_zero = torch.zeros(sizes, dtype=taps.dtype, device=taps.device)
    at_zero[0, 0] = 1
    excess = (excess - at_zero[..., None, None] * identity).abs().nan_to_num(nan=torch.inf)
    return excess.amax((-5, -4, -3, -2, -1))


def wide(H: Tensor) -> Tensor:
    """The matrix, or its transpose if that has fewer rows than columns."""
    return H.mT if H.shape[-2] > H.shape[-1] else H


def kernel_of(taps: Tensor, phases: tuple[int, ...], channels: int) -> Tensor:
    """The kernel with the given polyphase matrices."""
    p1, p2 = (*phases, 1)[:2]
    t1, t2, rows = taps.shape[-4:-1]
    split = taps.reshape(*taps.shape[:-1], channels, p1, p2)
    # (groups, t1, t2, rows, channels, p1, p2) -> (groups, rows, channels, t1, p1, t2, p2)
    order = split.movedim((-6, -5), (-4, -2))
    batch, groups = order.shape[:-7], order.shape[-7]
    sizes = (t1 * p1, t2 * p2)[: len(phases)]
    return order.reshape(*batch, groups * rows, channels, *sizes).contiguous()


def times_factor(product: Tensor, P: Tensor, axis: int) -> Tensor:
    """``K(z) (P + z^-1 (I - P))``: one tap more along an axis."""
    kept = product @ P
    rest = product - kept
    nothing = torch.zeros_like(kept.narrow(axis, 0, 1))
    return torch.cat((kept, nothing), axis) + torch.cat((nothing, rest), axis)


def peeled(taps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """``K(z) (P + z (I - P))``, one tap less along an axis, and the reflection 2 P - I.

    P projects onto the directions that are in the first tap more than in the last.
    """
    first, last = taps.narrow(axis, 0, 1), taps.narrow(axis, taps.shape[axis] - 1, 1)
    upper, lower = first.flatten(-4, -2), last.flatten(-4, -2)
    # Squares would lose a short tap beside a long one. Instead, with [upper; lower] = U D V', the
    # two parts of U show for each direction, however short, in which tap it is. Rows of zeros make
    # V square.
    nothing = torch.zeros_like(upper[..., :1, :]).expand(*upper.shape[:-2], upper.shape[-1], -1)
    U, s, Vh = svd(torch.cat((upper, lower, nothing), dim=-2))
    # A direction that is in neither tap is set to zero: rounding errors would decide its sign.
    rounding = torch.finfo(taps.dtype).eps * taps.shape[-1]
    size = linalg.vector_norm(taps, dim=(-4, -3, -2, -1)).unsqueeze(-1)
    U = U * (s > rounding * size).unsqueeze(-2)
    n = upper.shape[-2]
    U1, U2 = U[..., :n, :], U[..., n : n + lower.shape[-2], :]
    eigenvalues, inner = linalg.eigh(U1.mT @ U1 - U2.mT @ U2)
    Q = Vh.mT @ inner
    # For a member they are 1, -1, or 0 if a direction is in neither tap, in ascending order. For
    # those near 0 the signs are chosen such that P has about half of the full rank: there is only
    # one P of rank zero and only one of full rank, which training could not leave.
    half = torch.arange(eigenvalues.shape[-1], device=taps.device) < eigenvalues.shape[-1] // 2
    negative = torch.where(eigenvalues.abs() > rounding**0.5, eigenvalues < 0, half)
    signs = torch.where(negative, -1, 1).to(taps.dtype)
    S = symmetric_part((Q * signs.unsqueeze(-2)) @ Q.mT)
    P = ((eye_like(S) + S) / 2)[..., None, None, :, :]
    kept = taps @ P
    rest = taps - kept
    length = taps.shape[axis] - 1
    return kept.narrow(axis, 0, length) + rest.narrow(axis, 1, length), S
