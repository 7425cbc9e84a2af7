"""The symbol of a convolution, the matrix by which it acts on each frequency, and its norm."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import may_branch, without_derivative
from constraints.math.top_singular_value import largest_singular_value

# A convolution with stride 1 takes f to g[t] = sum_x K[x] f[t + x]. To the wave e^{i w.t} a it does
#
#     K^(w) a,        K^(w) = sum_x K[x] e^{i w.x}        (out x in),
#
# so that its norm on the infinite lattice is the largest of ||K^(w)|| over all w, and on the torus
# of n points per axis over the w in 2 pi Z / n. A convolution with stride s is one with stride 1 on
# the s^d phases of the input, x = s j + p, each a channel of its own:
# g[t] = sum_{j,p} K[s j + p] f_p[t + j], and f -> (f_p)_p preserves the norm. Dilation changes the
# positions x of the taps. All weights are real, so K^(-w) is the conjugate of K^(w), and half of
# the frequencies suffice.
#
# The squares of all symbols follow from one product of the kernel with itself,
#
#     K^(w) K^(w)^H = sum_z R[z] e^{i w.z},        R[z] = sum_{x - y = z} K[x] K[y]',
#
# The largest of their eigenvalues is found without computing the eigenvalues of all: only those of
# the frequencies with the largest Rayleigh quotients are computed, and then Cholesky decompositions
# of the others show whether any of them has a larger one.

#: How many entries of squared symbols are in memory at a time: some 100 MB in single precision.
ENTRIES = 2**23

#: For how many squares with the largest Rayleigh quotients eigenvalues are computed at once. The
#: largest one is nearly always among them.
_CANDIDATES = 8

#: How much larger another square may be than the one that is returned as the largest, in units of
#: the machine epsilon.
_ROUNDING = 8.0


def polyphase(
    K: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """The kernel of stride and dilation 1 that does on the phases of an image what K does on it.

    Args:
        K: shape ``(*batch, out, in, *kernel)``.
        kernel: the sizes of the kernel.
        stride: the stride along each axis.
        dilation: the dilation along each axis.

    Returns:
        Tensor of shape ``(*batch, out, in * phases, taps)``, a kernel of stride and dilation 1, and
        its sizes, whose product is ``taps``.
    """
    # The sizes are an argument, since under torch.jit.trace those of a tensor are tensors.
    axes, lead = len(kernel), K.shape[: K.ndim - len(kernel)]
    phases: list[int] = []
    sizes: list[int] = []
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        phases.append(min(s, d * (k - 1) + 1))
        sizes.append(d * (k - 1) // s + 1)
        tap = {d * x: x for x in range(k)}
        # The tap at each position of each phase; index k, beyond the last one, is a zero tap.
        places = [tap.get(s * j + p, k) for p in range(phases[-1]) for j in range(sizes[-1])]
        if places != list(range(k)):
            ends = [0, 0] * (axes - 1 - axis) + [0, 1]
            K = F.pad(K, ends).index_select(axis - axes, torch.tensor(places, device=K.device))
    split = K.reshape(*lead, *(n for pair in zip(phases, sizes, strict=True) for n in pair))
    first = range(len(lead), split.ndim, 2)
    split = split.permute(*range(len(lead)), *first, *(i + 1 for i in first))
    return split.reshape(*lead[:-1], lead[-1] * math.prod(phases), math.prod(sizes)), tuple(sizes)


def operator_norm(
    K: Tensor, sizes: Sequence[int], points: Sequence[int], loudest: Tensor | None = None
) -> Tensor:
    """The largest norm of the symbols of grouped kernels on a grid of frequencies, differentiable.

    Args:
        K: shape ``(*batch, groups, out, in, taps)``, finite and real, of stride and dilation 1.
        sizes: those of the kernel, whose product is ``taps``.
        points: the number of frequencies along each axis.
        loudest: the result of `loudest_wave`, if it has been computed.

    Returns:
        Tensor of shape ``batch``.
    """
    index: Tensor = (
        _found_loudest(K.detach(), list(sizes), list(points)) if loudest is None else loudest
    )
    taps = list(itertools.product(*map(range, sizes)))
    angles = _angles(points, taps, K)
    group, wave = index // len(angles), index % len(angles)
    kernel = torch.take_along_dim(K, group[..., None, None, None, None], -4).squeeze(-4)
    angle = angles.index_select(0, wave.reshape(-1)).reshape(*wave.shape, 1, len(taps))
    real, imaginary = (kernel @ torch.stack((angle.cos(), angle.sin()), -1)).unbind(-1)
    if may_branch(K):
        return largest_singular_value(torch.complex(real, imaginary))
    # The same matrix in real numbers: every singular value occurs twice.
    top, bottom = torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)
    return largest_singular_value(torch.cat((top, bottom), -2))


@torch.no_grad()
def loudest_wave(
    K: Tensor, sizes: Sequence[int], points: Sequence[int], bound: Tensor | None = None
) -> Tensor | None:
    """The group and frequency with the largest norm, or None where no norm is above a bound.

    Args:
        K: as in `operator_norm`.
        sizes: likewise.
        points: likewise.
        bound: shape ``batch``: where no norm is above it, any index may be returned.

    Returns:
        The index ``group * frequencies + frequency``, of shape ``batch``, or None if no norm of any
        kernel is above its bound.
    """
    batch = K.shape[:-4]
    K = K.reshape(-1, *K.shape[-4:])
    ignored = K.new_zeros((len(K),)) if bound is None else bound.reshape(-1).square()
    largest, where = K.new_full((len(K),), -1), K.new_zeros((len(K),), dtype=torch.int64)
    for names, N, quotients in _negated_squares(K, sizes, points):
        # The squares that may be larger than the largest one so far; the most likely come first.
        left = torch.ones_like(quotients, dtype=torch.bool)
        while bool(left.any()):
            likely = torch.where(left, quotients, -1).topk(min(_CANDIDATES, len(names)), -1).indices
            some = torch.take_along_dim(N, likely[..., None, None], 1)
            found, best = linalg.eigvalsh(some)[..., 0].neg().max(-1)
            name = names[likely.gather(-1, best.unsqueeze(-1)).squeeze(-1)]
            where, largest = torch.where(found > largest, name, where), largest.maximum(found)
            limit = ignored.maximum(largest * (1 + _ROUNDING * torch.finfo(K.dtype).eps))
            if bool(left.all()):
                left = _is_above(N, limit.unsqueeze(-1)).scatter(-1, likely, False)
            else:
                kernel, index = left.scatter_(-1, likely, False).nonzero(as_tuple=True)
                left[kernel, index] = _is_above(N[kernel, index], limit[kernel])
    if bound is not None and not bool((largest > ignored).any()):
        return None
    return where.reshape(batch)


def _is_above(N: Tensor, limit: Tensor) -> Tensor:
    """Whether an eigenvalue of the Hermitian matrix ``-N`` is above a limit, up to rounding."""
    diagonal = N.diagonal(dim1=-2, dim2=-1)
    kept = diagonal.clone()
    # In place, and on the conjugate, whose memory layout LAPACK takes without a copy. Copying the
    # matrices, of which there may be a hundred, takes as long as multiplying them by a vector.
    diagonal.add_(limit.unsqueeze(-1))
    above = linalg.cholesky_ex(N.mT).info != 0
    diagonal.copy_(kept)
    return above


def _negated_squares(
    K: Tensor, sizes: Sequence[int], points: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``-A A^H``, or ``-A^H A`` if smaller, for all symbols A, in parts that fit into memory.

    Args:
        K: shape ``(batch, groups, out, in, taps)``.
        sizes: those of the kernel.
        points: the number of frequencies along each axis.

    Returns:
        Indices as in `loudest_wave`; the matrices, of shape ``(batch, count, n, n)``; and for each
        a Rayleigh quotient of the square, a lower bound of its largest eigenvalue.
    """
    if K.shape[-3] > K.shape[-2]:
        K = K.transpose(-3, -2)
    batch, groups, n = K.shape[:3]
    lags, even, odd = _correlations(K, sizes)
    angles = _angles(points, lags, K)
    names = torch.arange(groups * len(angles), device=K.device).reshape(groups, -1)
    start = torch.arange(1, n + 1, dtype=K.dtype, device=K.device).square().mul(0.7).cos()
    step = max(1, ENTRIES // max(1, batch * groups * n * n))
    for first in range(0, len(angles), step):
        some, angle = names[:, first : first + step], angles[first : first + step]
        cosines, sines = -angle.cos(), -angle.sin()
        N = torch.complex(cosines @ even, sines @ odd).reshape(batch, some.numel(), n, n)
        # One power iteration gives the vector of the Rayleigh quotient. The products of all squares
        # with the start follow from those of a few matrices with it.
        y, z = (part.reshape(*part.shape[:-1], n, n) @ start for part in (even, odd))
        y = torch.complex(cosines @ y, sines @ z).reshape(batch, some.numel(), n, 1)
        # Scaled, so that squares do not overflow.
        size = y.abs().amax(-2, keepdim=True)
        y = y / torch.where(size > 0, size, 1)
        quotients = -(y.mH @ (N @ y)).real / (y.mH @ y).real
        yield some.flatten(), N, quotients.squeeze((-2, -1)).nan_to_num(0)


def _correlations(K: Tensor, sizes: Sequence[int]) -> tuple[list[tuple[int, ...]], Tensor, Tensor]:
    """The taps R[z] of the squares, as even and odd parts, for z >= 0 in lexicographic order.

    Args:
        K: shape ``(batch, groups, rows, columns, taps)``.
        sizes: those of the kernel.

    Returns:
        The positions z; ``R[z] + R[-z]`` (for z = 0 only R[0]) and ``R[z] - R[-z]``, both of shape
        ``(batch, groups, positions, rows * rows)``.
    """
    batch, groups, n, _, taps = K.shape
    lags, signs = _pairs(tuple(sizes))
    signs = torch.as_tensor(signs, device=K.device).to(K.dtype)
    rows = K.movedim(-1, -3).flatten(-3, -2)
    found = K.new_zeros((batch, groups, 2 * len(lags), n * n))
    step = max(1, ENTRIES // max(1, batch * groups * taps * n * n))
    # All products of two taps, in parts that fit into memory.
    for first in range(0, taps, step):
        sign, left = signs[first : first + step], rows[..., n * first : n * (first + step), :]
        products = (left @ rows.mT).reshape(batch, groups, len(sign), n, taps, n)
        products = products.transpose(-3, -2).reshape(batch, groups, len(sign) * taps, n * n)
        found += sign.flatten(0, 1).mT @ products
    return lags, found[..., : len(lags), :], found[..., len(lags) :, :]


@functools.lru_cache(maxsize=64)
def _pairs(sizes: tuple[int, ...]) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The positions z of `_correlations`, and the signs of each pair of taps in both parts.

    Returns:
        The positions, and an array of shape (taps, taps, 2 * positions).
    """
    taps = list(itertools.product(*map(range, sizes)))
    lags = [z for z in itertools.product(*(range(1 - k, k) for k in sizes)) if z >= (0,) * len(z)]
    index = {z: i for i, z in enumerate(lags)}
    signs = np.zeros((len(taps), len(taps), 2 * len(lags)), dtype=np.int8)
    for i, x in enumerate(taps):
        for j, y in enumerate(taps):
            z = tuple(a - b for a, b in zip(x, y, strict=True))
            ahead = z in index
            place = index[z if ahead else tuple(-a for a in z)]
            signs[i, j, place] = 1
            signs[i, j, len(lags) + place] = 0 if not any(z) else 1 if ahead else -1
    return lags, signs


def _angles(points: Sequence[int], positions: Sequence[tuple[int, ...]], like: Tensor) -> Tensor:
    """``w.z`` for all frequencies w of a grid and given z, of shape (frequencies, positions).

    Along the last axis, only the first half of the frequencies is included.
    """
    counts = [*points[:-1], points[-1] // 2 + 1]
    whole = math.lcm(*points)
    turns = torch.zeros((1, 1), dtype=torch.int64, device=like.device)
    for axis, (n, count) in enumerate(zip(points, counts, strict=True)):
        w = torch.arange(count, device=like.device) * (whole // n)
        z = torch.tensor([position[axis] for position in positions], device=like.device)
        turns = (turns.unsqueeze(1) + w.unsqueeze(-1) * z).flatten(0, 1)
    # Computed in integers up to here, so the last product makes the only rounding error.
    return (turns % whole).to(like.dtype) * (2 * math.pi / whole)


# Only the index is computed by an operator, so a tracer sees no eigenvalues and no complex numbers.


def _loudest(K: Tensor, sizes: list[int], points: list[int]) -> Tensor:
    found = loudest_wave(K, sizes, points)
    assert found is not None
    return found


def _index_shape(K: Tensor, sizes: Sequence[int], points: Sequence[int]) -> Tensor:
    del sizes, points
    return K.new_empty(K.shape[:-4], dtype=torch.int64)


_found_loudest = without_derivative(
    "constraints::loudest_wave",
    _loudest,
    fake=_index_shape,
    # Not every version can tell from an annotation that `list[int]` is a list of integers.
    schema="(Tensor K, int[] sizes, int[] points) -> Tensor",
)


# The lattice has infinitely many frequencies. By a theorem of M. Riesz (1914), a real trigonometric
# polynomial T of degree d with the maximum M = |T| at w* satisfies
#
#     T(w) >= M cos(d (w - w*))        for |w - w*| <= pi / d.
#
# On a grid of n points per axis, one is at most pi / n away from w*. For unit vectors u, v and a
# phase c chosen such that it is real and maximal, e^{i c} u' K^(w) v is such a polynomial along
# each axis. Its exponents are 0, 1, ..., m, and a phase linear in w subtracts their mean, so that
# d = m / 2. (If that is not an integer, the theorem is applied to T(2 w).) Moving to the grid one
# axis after the other,
#
#     max_{all w} ||K^(w)||  <=  max_{w on the grid} ||K^(w)||  prod_axes 1 / cos(pi m / (2 n)).


def lattice_points(sizes: Sequence[int], resolution: int) -> list[int]:
    """The number of frequencies per axis that represent the infinite lattice."""
    return [max(1, resolution * (k - 1)) for k in sizes]


def between_points(sizes: Sequence[int], resolution: int) -> float:
    """The largest factor by which a norm on the lattice may exceed that on `lattice_points`."""
    return math.cos(math.pi / (2 * resolution)) ** -sum(k > 1 for k in sizes)
