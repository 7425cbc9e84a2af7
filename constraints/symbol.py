"""The symbol of a convolution: the matrix by which it acts on each frequency, and its norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from constraints.largest import gram, largest_singular_value

# A convolution with stride 1 takes f to g[t] = sum_x K[x] f[t + x]. To the wave e^{i w.t} a it does
#
#     K^(w) a,        K^(w) = sum_x K[x] e^{i w.x}        (out x in),
#
# so that its norm on the infinite lattice is the largest of ||K^(w)|| over all w, and on the torus
# of n points per axis over the w in 2 pi Z / n. With a stride s it is one of the s^d phases of the
# input, x = s j + p, each a channel of its own: g[t] = sum_{j,p} K[s j + p] f_p[t + j], and
# f -> (f_p)_p keeps the norm. The symbol then has s^d times the columns. All weights are real, so
# K^(-w) is the conjugate of K^(w), and half of the frequencies will do.


def waves(
    kernel: Sequence[int], stride: Sequence[int], points: Sequence[int], like: Tensor
) -> Tensor:
    """The waves that turn a kernel into its symbol, on a grid of frequencies.

    Args:
        kernel: the sizes of the kernel, of length d.
        stride: the strides.
        points: how many frequencies per axis; of the last one only the first half is taken.
        like: a real tensor of the dtype and device wanted.

    Returns:
        Complex tensor of shape (frequencies, phases, taps).
    """
    result = torch.ones((1, 1, 1), dtype=like.dtype, device=like.device)
    result = torch.complex(result, torch.zeros_like(result))
    for axis, (k, s, n) in enumerate(zip(kernel, stride, points, strict=True)):
        half = axis == len(kernel) - 1
        w = torch.arange(n // 2 + 1 if half else n, device=like.device)
        x = torch.arange(k, device=like.device)
        # A whole number of n-ths of the circle: the angle is exact but for one rounding.
        turns = ((w.unsqueeze(-1) * (x // s)) % n).to(like.dtype)
        wave = torch.polar(torch.ones_like(turns), turns * (2 * math.pi / n))
        phase = torch.arange(min(s, k), device=like.device).unsqueeze(-1)
        chosen = (x % s == phase).to(wave.dtype)
        step = wave.unsqueeze(-2) * chosen
        result = torch.einsum("fpx,gqy->fgpqxy", result, step).reshape(
            *(a * b for a, b in zip(result.shape, step.shape, strict=True))
        )
    return result


def operator_norm(K: Tensor, waves: Tensor) -> Tensor:
    """The largest norm of the symbols of grouped kernels over all waves, differentiable.

    Args:
        K: shape ``(*batch, groups, out, in, taps)``, finite and real.
        waves: from `waves`.

    Returns:
        Real tensor of shape ``batch``.
    """
    with torch.no_grad():
        squares = torch.linalg.eigvalsh(_grams(K.detach(), waves))[..., -1]
        loudest = squares.flatten(-2).argmax(-1)
    group, wave = loudest // len(waves), loudest % len(waves)
    chosen = torch.take_along_dim(K, group[..., None, None, None, None], -4).squeeze(-4)
    out, channels, taps = chosen.shape[-3:]
    chosen = torch.complex(chosen, torch.zeros_like(chosen)).flatten(-3, -2)
    wave = waves.index_select(0, wave.reshape(-1)).reshape(*wave.shape, *waves.shape[1:])
    A = chosen @ wave.mT
    return largest_singular_value(A.reshape(*A.shape[:-2], out, -1))


def is_certainly_below(K: Tensor, waves: Tensor, bound: Tensor) -> bool:
    """Whether no symbol has a norm above the bound: sufficient, and cheaper than `operator_norm`.

    Args:
        K: as there.
        waves: as there.
        bound: shape ``batch``.
    """
    with torch.no_grad():
        M = _grams(K, waves).neg_()
        M.diagonal(dim1=-2, dim2=-1).add_(bound.square()[..., None, None, None])
        return not bool(torch.linalg.cholesky_ex(M).info.any())


def _grams(K: Tensor, waves: Tensor) -> Tensor:
    """``(*batch, groups, waves, m, m)``: the smaller Gram matrices of the symbols."""
    *batch, out, channels, taps = K.shape
    count, phases, _ = waves.shape
    flat = K.reshape(*batch, out * channels, taps)
    table = waves.reshape(count * phases, taps).mT
    A = torch.complex(flat @ table.real, flat @ table.imag)
    A = A.reshape(*batch, out, channels, count, phases).movedim(-2, -4)
    return gram(A.reshape(*batch, count, out, channels * phases))


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


def lattice_points(kernel: Sequence[int], stride: Sequence[int], resolution: int) -> list[int]:
    """How many frequencies per axis stand for all of them."""
    return [max(1, resolution * ((k - 1) // s)) for k, s in zip(kernel, stride, strict=True)]


def between_points(kernel: Sequence[int], stride: Sequence[int], resolution: int) -> float:
    """How many times larger than on the grid of `lattice_points` a symbol's norm may be."""
    axes = sum((k - 1) // s > 0 for k, s in zip(kernel, stride, strict=True))
    return math.cos(math.pi / (2 * resolution)) ** -axes
