"""The symbol of a convolution: the matrix by which it acts on each frequency, and its norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints.derivatives import goes_by_operator, untraced
from constraints.largest import gram, largest_singular_value

# A convolution with stride 1 takes f to g[t] = sum_x K[x] f[t + x]. To the wave e^{i w.t} a it does
#
#     K^(w) a,        K^(w) = sum_x K[x] e^{i w.x}        (out x in),
#
# so that its norm on the infinite lattice is the largest of ||K^(w)|| over all w, and on the torus
# of n points per axis over the w in 2 pi Z / n. With a stride s it is one of the s^d phases of the
# input, x = s j + p, each a channel of its own: g[t] = sum_{j,p} K[s j + p] f_p[t + j], and
# f -> (f_p)_p keeps the norm. The symbol then has s^d times the columns. Taps that are apart are at
# other places x. All weights are real, so K^(-w) is the conjugate of K^(w), and half of the
# frequencies will do.


#: How many entries of symbols are held at a time: some 100 MB in single precision.
ENTRIES = 2**23


def waves(
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    points: Sequence[int],
    like: Tensor,
) -> Tensor:
    """The waves that turn a kernel into its symbol, on a grid of frequencies.

    Args:
        kernel: the sizes of the kernel, of length d.
        stride: the strides.
        dilation: how far the taps are apart.
        points: how many frequencies per axis; of the last one only the first half is taken.
        like: a real tensor of the dtype and device wanted.

    Returns:
        Tensor of shape (frequencies, 2, phases, taps): real and imaginary parts.
    """
    real = torch.ones((1, 1, 1), dtype=like.dtype, device=like.device)
    imaginary = torch.zeros_like(real)
    axes = zip(kernel, stride, dilation, points, strict=True)
    for axis, (k, s, d, n) in enumerate(axes):
        half = axis == len(kernel) - 1
        w = torch.arange(n // 2 + 1 if half else n, device=like.device)
        x = d * torch.arange(k, device=like.device)
        # A whole number of n-ths of the circle: the angle is exact but for one rounding.
        turns = ((w.unsqueeze(-1) * (x // s)) % n).to(like.dtype)
        angle = (turns * (2 * math.pi / n)).unsqueeze(-2)
        phase = torch.arange(min(s, d * (k - 1) + 1), device=like.device).unsqueeze(-1)
        chosen = (x % s == phase).to(like.dtype)
        a, b = angle.cos() * chosen, angle.sin() * chosen
        real, imaginary = (
            _outer(real, a) - _outer(imaginary, b),
            _outer(real, b) + _outer(imaginary, a),
        )
    return torch.stack((real, imaginary), dim=1)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product in each of three dimensions."""
    product = first[:, None, :, None, :, None] * second[None, :, None, :, None, :]
    return product.reshape(*(a * b for a, b in zip(first.shape, second.shape, strict=True)))


def operator_norm(K: Tensor, waves: Tensor) -> Tensor:
    """The largest norm of the symbols of grouped kernels over all waves, differentiable.

    Args:
        K: shape ``(*batch, groups, out, in, taps)``, finite and real.
        waves: from `waves`.

    Returns:
        Tensor of shape ``batch``.
    """
    loudest = (_loudest_op if goes_by_operator() else _loudest)(K.detach(), waves)
    group, wave = loudest // len(waves), loudest % len(waves)
    kernel = torch.take_along_dim(K, group[..., None, None, None, None], -4).squeeze(-4)
    out, channels, taps = kernel.shape[-3:]
    kernel = kernel.reshape(*kernel.shape[:-3], 1, out * channels, taps)
    wave = waves.index_select(0, wave.reshape(-1)).reshape(*wave.shape, *waves.shape[1:])
    columns = channels * waves.shape[-2]
    A = (kernel @ wave.mT).reshape(*kernel.shape[:-3], 2, out, columns)
    real, imaginary = A.unbind(-3)
    # The same matrix in real numbers: every singular value occurs twice.
    top, bottom = torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)
    return largest_singular_value(torch.cat((top, bottom), -2))


def is_certainly_below(K: Tensor, waves: Tensor, bound: Tensor) -> bool:
    """Whether no symbol has a norm above the bound: sufficient, and cheaper than `operator_norm`.

    Args:
        K: as there.
        waves: as there.
        bound: shape ``batch``.
    """
    squares = bound.square()[..., None, None, None]
    with torch.no_grad():
        for part in _parts(K, waves):
            M = _grams(K, part).neg_()
            M.diagonal(dim1=-2, dim2=-1).add_(squares)
            if bool(torch.linalg.cholesky_ex(M).info.any()):
                return False
    return True


def _loudest(K: Tensor, waves: Tensor) -> Tensor:
    """At which group and wave the norm is largest: ``group * waves + wave``, of shape ``batch``."""
    with torch.no_grad():
        squares = [torch.linalg.eigvalsh(_grams(K, part))[..., -1] for part in _parts(K, waves)]
        return torch.cat(squares, -1).flatten(-2).argmax(-1)


def _parts(K: Tensor, waves: Tensor) -> tuple[Tensor, ...]:
    """The waves, so many at a time that their symbols have no more than `ENTRIES` entries."""
    each = K.shape[:-1].numel() * waves.shape[-2]
    return waves.split(max(1, ENTRIES // max(1, each)))


def _grams(K: Tensor, waves: Tensor) -> Tensor:
    """``(*batch, groups, waves, m, m)``: the smaller Gram matrices of the symbols."""
    *batch, out, channels, taps = K.shape
    count, _, phases, _ = waves.shape
    flat = K.reshape(*batch, out * channels, taps)
    parts = (flat @ part.reshape(count * phases, taps).mT for part in waves.unbind(1))
    A = torch.complex(*parts).reshape(*batch, out, channels, count, phases).movedim(-2, -4)
    return gram(A.reshape(*batch, count, out, channels * phases))


# The index alone is an operator: a tracer sees real numbers only, and no eigenvalues.

_loudest_op = torch.library.custom_op(
    "constraints::loudest_wave", untraced(_loudest), mutates_args=()
)


@_loudest_op.register_fake
def _(K: Tensor, waves: Tensor) -> Tensor:
    return K.new_empty(K.shape[:-4], dtype=torch.int64)


@_loudest_op.register_vmap
def _(info: Any, in_dims: tuple[int, None], K: Tensor, waves: Tensor) -> tuple[Tensor, int]:
    return _loudest_op(K.movedim(in_dims[0], 0), waves), 0


# The lattice has infinitely many frequencies. By a theorem of M. Riesz (1914), a real trigonometric
# polynomial T of the degree d with the maximum M = |T| at w* keeps to
#
#     T(w) >= M cos(d (w - w*))        for |w - w*| <= pi / d.
#
# On a grid of n points per axis, one is at most pi / n away from w*. For the unit vectors and the
# phase for which it is real and largest, e^{i c} u' K^(w) v is such a polynomial along each axis.
# Its exponents are 0, 1, ..., m, and the phase may take their mean off: d = m / 2. (If that is no
# whole number, T(2 w) is what the theorem is on.) So with one axis after the other on the grid,
#
#     max_{all w} ||K^(w)||  <=  max_{w on the grid} ||K^(w)||  prod_axes 1 / cos(pi m / (2 n)).


def lattice_points(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], resolution: int
) -> list[int]:
    """How many frequencies per axis stand for all of them."""
    return [max(1, resolution * m) for m in _degrees(kernel, stride, dilation)]


def between_points(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], resolution: int
) -> float:
    """How many times larger than on the grid of `lattice_points` a symbol's norm may be."""
    axes = sum(m > 0 for m in _degrees(kernel, stride, dilation))
    return math.cos(math.pi / (2 * resolution)) ** -axes


def _degrees(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[int]:
    """The largest exponent along each axis."""
    for k, s, d in zip(kernel, stride, dilation, strict=True):
        yield d * (k - 1) // s
