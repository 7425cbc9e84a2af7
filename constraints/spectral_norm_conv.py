"""Kernels of convolutions that enlarge no image by more than a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import Constraint, register
from constrained.tolerance import working_dtype
from constraints import symbol
from constraints.derivatives import goes_by_operator, has_numbers

PADDING_MODES = ("zeros", "circular")

#: In units of the machine epsilon: how far below the bound the map ends, and how far above
#: it a norm is rounding. Between the two no rounding error makes of one the other.
BELOW, ABOVE = 16.0, 2.0


@register("spectral_norm_conv")
class SpectralNormConv(Constraint):
    r"""Kernels of convolutions that enlarge no image by more than a factor.

    **Set**: :math:`\{K : \lVert K \rVert_{\mathrm{op}} \le c\}`, where the norm is that of the
    convolution as a linear map of images, the Lipschitz constant of the layer: closed, convex, of
    the dimension of the space of kernels. It is not the norm of the flattened kernel, which may be
    smaller by a factor of up to the square root of the number of taps.

    - ``padding_mode="circular"``: the norm on images of the given ``size``, exactly.
    - ``padding_mode="zeros"``: an upper bound of the norm on images of every size, padded with any
      number of zeros: the largest norm of the symbol on a grid of frequencies, times what it may
      grow between them. It is at most ``cos(pi / (2 resolution)) ** -d`` times the norm on the
      infinite lattice in d dimensions: 2 % above it for one dimension, 4 % for two, 6 % for three.

    **Map**: K -> K min(1, c / ||K||), onto the set. A kernel in the set comes back bit for bit, and
    its derivative is the identity, on the boundary too.

    **Right inverse**: the kernel itself.

    **Reference**: Sedghi, Gupta and Long, The singular values of convolutional layers (2019), for
    the symbol; M. Riesz, Eine trigonometrische Interpolationsformel (1914), for what lies between
    the points of a grid.

    Training ends at the optimum where the bound stops the loss from falling. It would not, were the
    kernel scaled back to the bound after each step: that makes all of it smaller when only a few
    frequencies are too loud. The price is that the norm of a kernel which a step took outside has
    no gradient. Its member stays on the boundary, as with the usual spectral normalization, until
    weight decay makes the kernel smaller or `constrained.rebase` starts anew from the boundary.

    `project` is the map. It gives a nearest member in the operator norm; the nearest one in the
    Frobenius norm has no closed form.

    An evaluation costs the decomposition of one (out x in) matrix for each of the frequencies, 144
    for 3 x 3 taps; a kernel in the set costs a third of that.

    Args:
        bound: the largest norm c, greater than zero.
        stride: the stride of the layer, one for all axes or one for each.
        groups: the number of groups of the layer.
        padding_mode: that of the layer, ``"zeros"`` or ``"circular"``. The latter is taken to keep
            the size, up to the stride; with less padding the bound holds as well. With the stride
            1 it holds whatever the dilation; a layer with a stride and a dilation is not covered.
        size: the size of the images, with ``"circular"`` only: one for all axes or one for each, a
            multiple of the stride and not smaller than the kernel.
        resolution: with ``"zeros"``, how many frequencies there are for each tap but the first.
        event_dim: how many trailing dimensions make one kernel, 2 more than the convolution has;
            by default the whole tensor is one.

    Shape:
        ``(*batch, out, in / groups, *kernel)`` with 1 to 3 sizes of a kernel: the weight of a
        Conv1d, Conv2d or Conv3d, and that of their transposes, of which the norms are the same.

    Raises:
        TypeError: if an argument is no number, or no whole one.
        ValueError: if an argument is out of its range, or does not go with the shape.

    Example:
        >>> spectral_norm_conv = SpectralNormConv(padding_mode="circular", size=8)
        >>> spectral_norm_conv(torch.ones(1, 1, 2, 2))
        tensor([[[[0.2500, 0.2500],
                  [0.2500, 0.2500]]]])
        >>> bool(SpectralNormConv().contains(torch.full((1, 1, 2, 2), 0.24)))
        True
    """

    event_dim = None
    examples = (
        ({}, (3, 2, 3)),
        ({"event_dim": 3}, (2, 3, 2)),
        ({"event_dim": 4, "bound": 0.5, "stride": 2}, (2, 2, 3, 3)),
        ({"event_dim": 4, "groups": 2}, (4, 1, 2, 1)),
        ({"event_dim": 4, "padding_mode": "circular", "size": 6}, (2, 3, 3, 3)),
        (
            {"event_dim": 4, "padding_mode": "circular", "size": [4, 6], "stride": [1, 2]},
            (2, 1, 3, 3),
        ),
        ({"event_dim": 5, "bound": 3.0, "resolution": 4}, (2, 2, 2, 1, 2)),
    )
    exempt: ClassVar = {
        **dict.fromkeys(
            (
                f"{order}_derivative:{point}"
                for order in ("first", "second")
                for point in ("ones", "eye", "repeated", "boundary")
            ),
            "the map has a kink on the boundary: the identity inside, a scaling outside",
        ),
        "nearest": "the nearest kernel in the Frobenius norm has no closed form: the projection is "
        "the nearest one in the operator norm",
    }

    def __init__(
        self,
        bound: float = 1.0,
        stride: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        size: int | Sequence[int] | None = None,
        resolution: int = 8,
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(bound, Real) or isinstance(bound, bool):
            raise TypeError(f"spectral_norm_conv: bound must be a number, got {bound!r}.")
        if not 0 < bound < math.inf:
            raise ValueError(
                f"spectral_norm_conv: bound must be positive and finite, got {bound!r}."
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"spectral_norm_conv: padding_mode must be 'zeros' or 'circular', of which the "
                f"norm is known, got {padding_mode!r}."
            )
        if (size is None) == (padding_mode == "circular"):
            raise ValueError(
                f"spectral_norm_conv: size, that of the images, goes with "
                f"padding_mode='circular' and must be given there, got size={size!r} and "
                f"padding_mode={padding_mode!r}."
            )
        _check_whole("stride", stride, 1)
        _check_whole("groups", [groups], 1)
        _check_whole("resolution", [resolution], 2)
        if size is not None:
            _check_whole("size", size, 1)
        if event_dim is not None and event_dim not in (3, 4, 5):
            raise ValueError(
                f"spectral_norm_conv: event_dim must be 3, 4 or 5, or None for the whole tensor, "
                f"got {event_dim!r}."
            )
        self.bound = float(bound)
        self.stride = stride
        self.groups = groups
        self.padding_mode = padding_mode
        self.size = size
        self.resolution = resolution
        self.event_dim = event_dim

    def forward(self, K: Tensor) -> Tensor:
        """``K min(1, c / ||K||)``."""
        event = self._event(K.shape)
        waves, factor = self._waves(event, K)
        scaled, unit = _scaled(K, tuple(range(-len(event), 0)))
        kernels = self._grouped(scaled, event)
        # In units of the largest entry, so that neither norms nor their squares overflow.
        eps = torch.finfo(K.dtype).eps
        limit = (1 + ABOVE * eps) * (self.bound / factor / unit)
        if not goes_by_operator() and has_numbers(K):
            # No norm of a scaled kernel exceeds the number of its entries.
            known = limit.clamp(max=math.prod(event)).reshape(kernels.shape[:-4])
            if symbol.is_certainly_below(kernels, waves, known):
                return K.clone(memory_format=torch.contiguous_format)
        norm = symbol.operator_norm(kernels, waves)[(..., *[None] * len(event))]
        outside = norm > limit
        shrunk = scaled * ((1 - BELOW * eps) * self.bound / factor / torch.where(outside, norm, 1))
        return torch.where(outside, shrunk, K)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The identity."""
        return value

    def norm(self, value: Tensor) -> Tensor:
        """The norm of the convolution, or its upper bound, for each kernel; differentiable.

        Args:
            value: shape ``(*batch, out, in / groups, *kernel)``, finite.

        Returns:
            Tensor of shape ``batch``.
        """
        event = self._event(value.shape)
        scaled, unit = _scaled(value, tuple(range(-len(event), 0)))
        waves, factor = self._waves(event, value)
        norm = symbol.operator_norm(self._grouped(scaled, event), waves)
        return factor * unit.reshape(norm.shape) * norm

    def violation(self, value: Tensor) -> Tensor:
        """``max(0, norm - bound)``, the distance in the operator norm."""
        return F.relu(self.norm(value) - self.bound)

    def project(self, value: Tensor) -> Tensor:
        """The kernel scaled to the bound: a nearest member in the operator norm."""
        return self.forward(value)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A Gaussian kernel, scaled to a norm that is uniform between 0 and the bound."""
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        options = {"generator": generator, "dtype": working_dtype(dtype), "device": device}
        gaussian = torch.randn(tuple(shape), **options)
        norm = self.norm(gaussian)
        share = torch.rand(norm.shape, **options) * self.bound / norm
        return (share[(..., *[None] * len(self._event(shape)))] * gaussian).to(dtype)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a kernel, and fits the stride, the groups and the size of the images."""
        if not 3 <= len(event) <= 5 or min(event) < 1:
            return "must be a kernel of 3 to 5 dimensions, (out, in / groups, *kernel), none empty"
        axes = len(event) - 2
        if event[0] % self.groups:
            return f"must have a multiple of groups={self.groups} output channels"
        for name, number in (("stride", self.stride), ("size", self.size)):
            if isinstance(number, Sequence) and len(number) != axes:
                return f"must have as many sizes of its kernel as there are in {name}={number!r}"
        if self.size is None:
            return None
        sizes = zip(_each(self.size, axes), _each(self.stride, axes), event[2:], strict=True)
        if any(n % s or n < k for n, s, k in sizes):
            return (
                f"must have a kernel no larger than size={self.size!r}, a multiple of "
                f"stride={self.stride!r}"
            )
        return None

    def dimension(self, shape: Sequence[int]) -> int:
        """The number of entries of a kernel."""
        return math.prod(shape)

    def _event(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        # For torch.jit.trace the sizes are tensors, and would become part of the trace.
        return tuple(map(int, shape if self.event_dim is None else shape[-self.event_dim :]))

    def _grouped(self, K: Tensor, event: tuple[int, ...]) -> Tensor:
        """Shape ``(*batch, groups, out / groups, in / groups, taps)``."""
        batch = K.shape[: K.ndim - len(event)]
        out = event[0] // self.groups
        return K.reshape(*batch, self.groups, out, event[1], math.prod(event[2:]))

    def _waves(self, event: tuple[int, ...], like: Tensor) -> tuple[Tensor, float]:
        """The waves to look at, and how many times larger the norm may be in between."""
        kernel = event[2:]
        stride = _each(self.stride, len(kernel))
        if self.size is not None:
            sizes = zip(_each(self.size, len(kernel)), stride, strict=True)
            return symbol.waves(kernel, stride, [n // s for n, s in sizes], like), 1.0
        points = symbol.lattice_points(kernel, stride, self.resolution)
        factor = symbol.between_points(kernel, stride, self.resolution)
        return symbol.waves(kernel, stride, points, like), factor


def _scaled(K: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``(K / unit, unit)``: the unit is the largest entry of a kernel, held constant."""
    finite = torch.isfinite(K).all(axes, keepdim=True)
    K = torch.where(finite, K, 0)
    unit = K.detach().abs().amax(axes, keepdim=True)
    unit = torch.where(unit < torch.finfo(K.dtype).tiny, 1, unit)
    return K / unit, unit


def _each(number: int | Sequence[int], axes: int) -> list[int]:
    return [number] * axes if isinstance(number, int) else list(number)


def _check_whole(name: str, numbers: int | Sequence[int], least: int) -> None:
    for number in numbers if isinstance(numbers, list | tuple) else [numbers]:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"spectral_norm_conv: {name} must be a whole number, got {number!r}.")
        if number < least:
            raise ValueError(f"spectral_norm_conv: {name} must be at least {least}, got {number}.")
