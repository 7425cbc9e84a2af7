"""Kernels of convolutions whose operator norm is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from constrained import register
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import Count, PositiveNumber, check_whole, checked_positive
from constraints.bases.convolution_settings import settings_of, taken_from
from constraints.bases.expected_failures import no_derivative
from constraints.bases.retraction import Retraction
from constraints.math import conv_symbol as symbol
from constraints.math.autograd import goes_by_operator, has_numbers

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


# Derivation. Padding an image f with its own points is a linear map P. The layer's output is a part
# of the convolution of P f on the infinite lattice, so its norm is at most ||K|| ||P||. Several
# axes are padded one after the other, so it is enough to consider one axis, of n points, with p
# more at each end.
#   Replicating: P'P is diagonal, with 1 + p at both ends. (For n = 1 the image is constant along
# this axis, and so is the output if the layer adds no points: the symbol at the frequency zero.)
#   Reflecting: the padded image is a part of an even image on the circle of 2 (n - 1) points, where
# each point has at most one mirror image. The output occurs there at most once, as the layer adds
# no points.

#: By how much padding may increase the norm of an image, from the width of the border on one axis.
LONGER: dict[str, Callable[[int], float]] = {
    "reflect": lambda border: 2**0.5,
    "replicate": lambda border: (1 + border) ** 0.5,
}

#: In units of the machine epsilon: how far below the bound the map scales a kernel, and how far
#: above it a norm still counts as inside. The gap is so wide that no rounding error bridges it.
BELOW, ABOVE = 16.0, 2.0

#: Kernels whose symbols at all frequencies have more numbers than this are refused: no machine
#: could hold them.
MOST_NUMBERS = 2**36


@register("spectral_norm_conv")
class SpectralNormConv(Retraction):
    r"""Kernels of convolutions that increase the norm of no image by more than a factor.

    **Use**: convolutions with a certificate, a Lipschitz constant of at most $c$: critics of GANs,
    robust and invertible convolutional networks.

    **Set**: $\{K : \lVert K \rVert_{\mathrm{op}} \le c\}$, where the norm is that of the
    convolution as a linear map of images, the Lipschitz constant of the layer: closed, convex, of
    the dimension of the space of kernels. It is not the norm of the flattened kernel, which may be
    smaller by a factor of up to the square root of the number of taps.

    - ``padding_mode="zeros"``: an upper bound of the norm on images of every size, padded with any
      number of zeros. It is the largest norm of the symbol on a grid of frequencies, times the most
      by which it may grow between them. With the resolution $q$, it is at most
      $\cos(\pi / (2 q))^{-d}$ times the norm on the infinite lattice in $d$ dimensions: by default,
      2 % above it for one dimension, 4 % for two, 6 % for three.
    - ``padding_mode="circular"``: with a ``size``, exactly the norm on images of that size; else
      the same upper bound.
    - ``padding_mode="reflect"`` and ``"replicate"``: that upper bound, times the most by which the
      padding may increase the norm of an image. For each axis with more than one tap, that is
      $\sqrt{2}$, or $\sqrt{1 + w}$ with the width $w$ of the border. Some kernels reach it.

    **Map**: $K \mapsto \min(1, c / \lVert K \rVert_{\mathrm{op}}) K$, onto the set. A kernel in the
    set is returned bit for bit, and there the derivative is the identity, even on the boundary.

    **Right inverse**: the kernel itself.

    **Reference**: Sedghi, Gupta and Long, The singular values of convolutional layers (2019), for
    the symbol; M. Riesz, Eine trigonometrische Interpolationsformel (1914), for what lies between
    the points of a grid.

    If the optimum is on the boundary, training ends there. It would not if the kernel were scaled
    back to the bound after each step, because that shrinks all of it when only a few frequencies
    exceed the bound. The price is that the norm of a kernel that a step has led outside has no
    gradient. The value stays on the boundary, as with the usual spectral normalization, until
    weight decay makes the kernel smaller or `constrained.rebase` starts anew from the boundary.

    `project` is the map. It gives a nearest member in the operator norm; the nearest one in the
    Frobenius norm has no closed form.

    An evaluation costs one Cholesky decomposition for each frequency, 144 for 3 x 3 taps, of a
    matrix with as many rows as there are channels out, or channels in if these are fewer.

    The layer's settings are arguments too. `constrained.constrain` takes those that are left out
    from a torch layer, and refuses those that contradict the layer. Settings of the layer that
    change later are not noticed.

    Args:
        bound: the largest norm $c$, greater than zero.
        stride: the stride of the layer, one for all axes or one for each; 1 without a layer. It
            counts as 1 if images are padded with anything but zeros and no ``size`` is given: the
            stride may not divide the size of an image, which then wraps around out of step.
        groups: the number of groups of the layer; 1 without a layer. For a weight with a view it is
            not taken from the layer.
        padding_mode: that of the layer; without a layer, ``"circular"`` if there is a size, else
            ``"zeros"``. Padding with anything but zeros must not make images larger, apart from the
            stride.
        size: the size of the images, for ``"circular"`` only: one for all axes or one for each, a
            multiple of the stride and not smaller than the kernel.
        resolution: without a size, the number $q$ of frequencies per tap after the first.
        event_dim: how many trailing dimensions make one kernel, 2 more than the convolution has;
            by default the whole tensor is one kernel.
        dilation: the dilation of the layer, one for all axes or one for each; 1 without a layer.

    Shape:
        ``(*batch, out, in / groups, *kernel)`` with 1 to 3 kernel sizes: the weight of a Conv1d,
        Conv2d or Conv3d, or of their transposes, whose norms are the same.

    Raises:
        TypeError: if an argument is not a number, or not a whole one.
        ValueError: if an argument is out of its range, or does not fit the shape.

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
        ({"event_dim": 3, "stride": 2, "dilation": 3, "padding_mode": "replicate"}, (2, 2, 3)),
    )
    why_not_project = "the nearest kernel in the Frobenius norm has no formula"
    expected_failures = {  # noqa: RUF012 - never changed
        **no_derivative(
            "the map has a kink on the boundary: the identity inside, a scaling outside",
            *("ones", "eye", "repeated", "boundary"),
        ),
        "nearest": f"{why_not_project}: the projection is the nearest one in the operator norm",
    }

    def __init__(
        self,
        bound: PositiveNumber = 1.0,
        stride: Count | Sequence[Count] | None = None,
        groups: Count | None = None,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] | None = None,
        size: Count | Sequence[Count] | None = None,
        resolution: Annotated[int, Ge(2)] = 8,
        event_dim: Literal[3, 4, 5] | None = None,
        dilation: Count | Sequence[Count] | None = None,
    ) -> None:
        super().__init__()
        if padding_mode not in (None, *PADDING_MODES):
            raise ValueError(
                f"spectral_norm_conv: padding_mode must be {', '.join(map(repr, PADDING_MODES))}, "
                f"got {padding_mode!r}."
            )
        if size is not None and padding_mode not in (None, "circular"):
            raise ValueError(
                f"spectral_norm_conv: size, that of the images, goes with "
                f"padding_mode='circular', got size={size!r} and padding_mode={padding_mode!r}."
            )
        check_whole("spectral_norm_conv", "resolution", resolution, 2)
        for name, numbers in (
            ("stride", stride), ("groups", groups), ("size", size), ("dilation", dilation)
        ):  # fmt: skip
            if numbers is not None:
                check_whole("spectral_norm_conv", name, numbers)
        if event_dim is not None and event_dim not in (3, 4, 5):
            raise ValueError(
                f"spectral_norm_conv: event_dim must be 3, 4 or 5, or None for the whole tensor, "
                f"got {event_dim!r}."
            )
        self.bound = checked_positive("spectral_norm_conv", bound)
        self.stride = stride
        self.groups = groups
        self.padding_mode = padding_mode
        self.size = size
        self.resolution = resolution
        self.event_dim = event_dim
        self.dilation = dilation

    def fitted(self, module: nn.Module, name: str, *, viewed: bool = False) -> SpectralNormConv:
        """The constraint with the stride, dilation, groups and padding mode of a convolution."""
        layer = settings_of(module, name)
        if layer is None or self.event_dim not in (None, 2 + len(layer.stride)):
            return self
        mode, most = layer.padding_mode, max(layer.surplus)
        if mode != "zeros" and most > 0:
            raise ValueError(
                f"{self!r} covers padding_mode={mode!r} where images do not grow, but here an "
                f"axis grows by {most}, and what is there twice is counted twice; pad with fewer."
            )
        if self.size is not None and mode != "circular":
            raise ValueError(
                f"{self!r}: size goes with a layer that pads circularly, got padding_mode={mode!r}."
            )
        groups = {} if viewed else {"groups": (layer.groups, 1)}
        return taken_from(
            self,
            stride=(layer.stride, 1),
            dilation=(layer.dilation, 1),
            padding_mode=(mode, "zeros" if self.size is None else "circular"),
            **groups,
        )

    def forward(self, K: Tensor) -> Tensor:
        """``K min(1, c / ||K||)``."""
        event = self._event(K.shape)
        scaled, unit = _scaled(K, tuple(range(-len(event), 0)))
        kernels, sizes, points, factor = self._symbols(scaled, event)
        # In units of the largest entry neither norms nor their squares overflow.
        eps = torch.finfo(K.dtype).eps
        limit = (1 + ABOVE * eps) * (self.bound / factor / unit)
        loudest = None
        if not goes_by_operator() and has_numbers(K):
            # No norm of a scaled kernel exceeds the number of its entries.
            known = limit.clamp(max=math.prod(event)).reshape(kernels.shape[:-4])
            loudest = symbol.loudest_wave(kernels, sizes, points, known)
            if loudest is None:
                return K.clone(memory_format=torch.contiguous_format)
        norm = symbol.operator_norm(kernels, sizes, points, loudest)
        norm = norm[(..., *[None] * len(event))]
        outside = norm > limit
        shrunk = scaled * ((1 - BELOW * eps) * self.bound / factor / torch.where(outside, norm, 1))
        return torch.where(outside, shrunk, K)

    def norm(self, value: Tensor) -> Tensor:
        """The norm of the convolution, or its upper bound, for each kernel; differentiable.

        Args:
            value: shape ``(*batch, out, in / groups, *kernel)``, finite.

        Returns:
            Tensor of shape ``batch``.
        """
        event = self._event(value.shape)
        scaled, unit = _scaled(value, tuple(range(-len(event), 0)))
        kernels, sizes, points, factor = self._symbols(scaled, event)
        norm = symbol.operator_norm(kernels, sizes, points)
        return factor * unit.reshape(norm.shape) * norm

    def violation(self, value: Tensor) -> Tensor:
        """``max(0, norm - bound)``, the distance in the operator norm."""
        return F.relu(self.norm(value) - self.bound)

    def slack(self, value: Tensor) -> Tensor:
        """The bound less the norm."""
        return self.bound - self.norm(value)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A Gaussian kernel, scaled to a norm that is uniform between 0 and the bound."""
        gaussian = random.normal(shape)
        norm = self.norm(gaussian)
        share = random.uniform(norm.shape) * self.bound / norm
        return share[(..., *[None] * len(self._event(shape)))] * gaussian

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a kernel that fits the stride, the groups and the size of the images."""
        if not 3 <= len(event) <= 5 or min(event) < 1:
            return "must be a kernel of 3 to 5 dimensions, (out, in / groups, *kernel), none empty"
        axes = len(event) - 2
        if event[0] % (self.groups or 1):
            return f"must have a multiple of groups={self.groups} output channels"
        for name in ("stride", "size", "dilation"):
            number: int | Sequence[int] | None = getattr(self, name)
            if isinstance(number, Sequence) and len(number) != axes:
                return f"must have as many sizes of its kernel as there are in {name}={number!r}"
        per_axis = _each(self.size, axes) if self.size else [self.resolution * k for k in event[2:]]
        numbers = math.prod(per_axis) * event[0] * event[1]
        if numbers > MOST_NUMBERS:
            cause = f"resolution={self.resolution}" if self.size is None else f"size={self.size}"
            return f"must be one whose norm takes fewer numbers than {numbers:.1e}, with {cause},"
        if self.size is None:
            return None
        sizes = zip(_each(self.size, axes), _each(self.stride, axes), event[2:], strict=True)
        if any(n % s or n < k for n, s, k in sizes):
            return (
                f"must have a kernel no larger than size={self.size!r}, a multiple of "
                f"stride={self.stride!r}"
            )
        return None

    def _event(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        # Under torch.jit.trace sizes are tensors, and would become part of the trace.
        return tuple(map(int, shape if self.event_dim is None else shape[-self.event_dim :]))

    def _symbols(
        self, K: Tensor, event: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...], list[int], float]:
        """The kernels in the form that `constraints.math.conv_symbol` takes, and the frequencies.

        Returns:
            Tensor of shape ``(*batch, groups, out, in, taps)``; the sizes; how many frequencies
            there are along each axis; and by which factor the norm may exceed that at these.
        """
        kernel, groups = event[2:], self.groups or 1
        stride, dilation = (_each(n, len(kernel)) for n in (self.stride, self.dilation))
        borders = [(d * (k - 1) + 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        given: list[int] = []
        if self.size is not None:
            images = zip(_each(self.size, len(kernel)), stride, strict=True)
            given = [n // s for n, s in images]
        elif self.padding_mode in PADDING_MODES[1:]:
            stride = [1] * len(kernel)
        # A common factor of both, such as 2, acts separately on each subgrid of every second point.
        common = [math.gcd(*pair) for pair in zip(stride, dilation, strict=True)]
        stride = [s // c for s, c in zip(stride, common, strict=True)]
        dilation = [d // c for d, c in zip(dilation, common, strict=True)]
        if self.size is None:
            # With stride 1 the norm on the infinite lattice does not depend on the dilation.
            dilation = [1 if s == 1 else d for s, d in zip(stride, dilation, strict=True)]
        K = K.reshape(*K.shape[: K.ndim - len(event)], groups, event[0] // groups, *event[1:])
        K, sizes = symbol.polyphase(K, kernel, stride, dilation)
        if self.size is not None:
            return K, sizes, given, 1.0
        factor = symbol.between_points(sizes, self.resolution)
        if self.padding_mode in LONGER:
            factor *= math.prod([LONGER[self.padding_mode](border) for border in borders if border])
        return K, sizes, symbol.lattice_points(sizes, self.resolution), factor


def _scaled(K: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``(K / unit, unit)``, where the unit is the largest entry of a kernel, held constant."""
    finite = torch.isfinite(K).all(axes, keepdim=True)
    K = torch.where(finite, K, 0)
    unit = K.detach().abs().amax(axes, keepdim=True)
    unit = torch.where(unit < torch.finfo(K.dtype).tiny, 1, unit)
    return K / unit, unit


def _each(number: int | Sequence[int] | None, axes: int) -> list[int]:
    """The number for each axis, 1 if it was left out."""
    return list(number) if isinstance(number, Sequence) else [number or 1] * axes
