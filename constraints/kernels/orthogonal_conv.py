"""Kernels of orthogonal convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from constrained import Constraint, register
from constrained.constraint.base import unguarded
from constrained.constraint.elements import unpack
from constrained.constraint.sampling import RandomNumbers
from constraints.bases.argument_checks import Count, check_whole
from constraints.bases.convolution_settings import settings_of, taken_from
from constraints.bases.expected_failures import failing, no_derivative
from constraints.math.matrix import symmetric_part
from constraints.math.paraunitary import gram_defect, kernel_of, peeled, times_factor, wide
from constraints.math.polar import polar
from constraints.math.range_projection import onto_range


@register("orthogonal_conv", aliases=("orthogonal_convolution", "bcop", "aoc", "block_orthogonal"))
class OrthogonalConv(Constraint):
    r"""Kernels of orthogonal convolutions: these, or their transposes, keep every signal's length.

    **Use**: convolutions that keep the length of a signal: 1-Lipschitz and robust convolutional
    networks, invertible layers, deep networks without normalization.

    **Set**: $\{H F_1(z) \dots F_{k-1}(z)\}$, the kernels that are such a product, in one dimension,
    and $H F_1(z) \dots F_{k-1}(z) G_1(w) \dots G_{l-1}(w)$ in two. $H$ is a matrix with orthonormal
    rows. The factors are $P + z^{-1} (I - P)$ with orthogonal projections $P$. If there are more
    channels out than in, the set holds the transposes of such products, with orthonormal columns.
    In one dimension these are all orthogonal kernels, in two those that are separable in this
    sense. The set is closed and in pieces, one for each choice of ranks of the projections. For
    square kernels of $m$ channels, the largest piece has the dimension $m (m - 1) / 2$ plus
    $m^2 / 4$ for each factor.

    With circular padding the convolution is orthogonal for images of every size that is a multiple
    of the stride and no smaller than the kernel. It keeps lengths if it has at least as many
    channels out as channels in times the stride. Otherwise its transpose keeps lengths, and its
    singular values are 1 and 0. With zero padding it is a part of such an operator: no singular
    value is above 1, and those of waves at the border are below 1.

    **Map**: $(H, M) \mapsto$ the product for the polar factor of $H$, and for $P = (I + S) / 2$
    with $S$ the polar factor of the symmetric part of each matrix in $M$, a reflection. Onto.

    **Right inverse**: the factors are divided off one by one. $P$ projects onto the directions that
    are in the first tap rather than in the last one. The more taps there are, the shorter are some
    of these directions, and digits are lost: hardly any up to five taps, half of them at nine.

    **Reference**: Vaidyanathan, Multirate Systems and Filter Banks (1993), section 14.4; Gao,
    Nguyen and Strang, On factorization of $M$-channel paraunitary filterbanks (IEEE Transactions on
    Signal Processing 49, 2001); Li et al., Preventing gradient attenuation in Lipschitz constrained
    convolutional networks (NeurIPS 2019), for two dimensions.

    `project` is a retraction: the map, applied to the factors that are divided off. If only the
    norm is to be bounded, take `spectral_norm_conv`.

    `constrained.constrain` takes arguments that are left out from a torch layer. It refuses a layer
    whose convolution is not orthogonal, such as one that pads with reflections.

    Args:
        stride: the stride of the layer, one for all axes or one for each; 1 without a layer. Each
            divides the size of the kernel, or is larger.
        groups: the number of groups of the layer; 1 without a layer. For a weight with a view it is
            not taken from the layer.
        event_dim: how many trailing dimensions make one kernel, 2 more than the convolution has;
            by default the whole tensor is one kernel.

    Shape:
        ``(*batch, out, in / groups, *kernel)`` with one or two kernel sizes: the weight of a Conv1d
        or Conv2d, or of their transposes.

    Raises:
        TypeError: if an argument is not a whole number.
        ValueError: if an argument is out of its range, or does not fit the shape.

    Example:
        >>> orthogonal_conv = OrthogonalConv()
        >>> K = orthogonal_conv.sample((4, 4, 3), generator=torch.Generator().manual_seed(0))
        >>> first_with_last = K[..., 0] @ K[..., 2].mT
        >>> torch.allclose(first_with_last, torch.zeros(4, 4), atol=1e-6)
        True
    """

    event_dim = None
    examples = (
        ({"event_dim": 3}, (3, 3, 3)),
        ({"event_dim": 3}, (2, 4, 2)),
        ({"event_dim": 3}, (4, 2, 1)),
        ({"event_dim": 4}, (3, 3, 2, 3)),
        ({"event_dim": 4, "stride": 2}, (4, 1, 2, 2)),
        ({"event_dim": 4, "stride": [1, 2], "groups": 2}, (4, 2, 3, 4)),
    )
    expected_failures = {  # noqa: RUF012 - never changed
        "nearest": "the nearest orthogonal kernel has no formula: project() is a retraction",
        "adam_reaches_the_optimum": "the set is in pieces, one for each choice of ranks, and that "
        "of the start may not hold the target",
        **failing(
            "the set is in pieces of different dimensions, one for each choice of ranks; along its "
            "own piece every direction at a member has a gradient",
            *("no_dead_directions", "every_start_trains", "flat_members_are_told"),
        ),
        **no_derivative(
            "the polar factor has no limit at zero, nor at any matrix that has not full rank",
            "zero_params",
        ),
    }

    def __init__(
        self,
        stride: Count | Sequence[Count] | None = None,
        groups: Count | None = None,
        event_dim: Literal[3, 4] | None = None,
    ) -> None:
        super().__init__()
        for name, numbers in (("stride", stride), ("groups", groups)):
            if numbers is not None:
                check_whole("orthogonal_conv", name, numbers)
        if event_dim is not None and event_dim not in (3, 4):
            raise ValueError(
                "orthogonal_conv: event_dim must be 3 or 4, or None for the whole tensor, got "
                f"{event_dim!r}."
            )
        self.stride, self.groups, self.event_dim = stride, groups, event_dim

    def fitted(self, module: nn.Module, name: str, *, viewed: bool = False) -> OrthogonalConv:
        """The constraint with the stride and the groups of a convolution."""
        layer = settings_of(module, name)
        if layer is None or self.event_dim not in (None, 2 + len(layer.stride)):
            return self
        mode, most = layer.padding_mode, max(layer.surplus)
        if mode not in ("zeros", "circular") or (mode == "circular" and most > 0):
            grows = f", by which an axis grows by {most}" if most > 0 else ""
            raise ValueError(
                f"{self!r} needs a layer that pads with zeros, or circularly and no more than "
                f"keeps the size, got padding_mode={mode!r}{grows}: part of an image is there "
                "twice, and no such convolution is orthogonal."
            )
        if any(s > 1 and d > 1 for s, d in zip(layer.stride, layer.dilation, strict=True)):
            raise ValueError(
                f"{self!r} needs a layer with the stride 1 or the dilation 1 along each axis, got "
                f"stride={layer.stride} and dilation={layer.dilation}."
            )
        groups = {} if viewed else {"groups": (layer.groups, 1)}
        return taken_from(self, stride=(layer.stride, 1), **groups)

    def forward(self, H: Tensor, *M: Tensor) -> Tensor:
        """The product of the factors, as a kernel."""
        dims = H.ndim - 3 if self.event_dim is None else self.event_dim - 2
        phases = tuple(H.shape[H.ndim - dims :])
        rows, channels = H.shape[-dims - 2], H.shape[-dims - 1]
        matrix = polar(wide(H.reshape(*H.shape[: -dims - 1], channels * math.prod(phases))))
        product = matrix[..., None, None, :, :]
        for reflections in M:
            # Parameters of the second axis have one dimension more, which tells the axes apart.
            axis = -3 if reflections.ndim == H.ndim - dims + 2 else -4
            S = polar(symmetric_part(reflections))
            S = S.squeeze(-4) if axis == -3 else S
            P = (torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) + S) / 2
            for i in range(P.shape[-3]):
                product = times_factor(product, P[..., i, None, None, :, :], axis)
        taps = product.mT if rows > channels * math.prod(phases) else product
        return kernel_of(taps, phases, channels)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """The factors, one by one from the last to the first."""
        event = tuple(value.shape if self.event_dim is None else value.shape[-self.event_dim :])
        phases, _ = self._phases(event)
        taps, tall = self._taps(value.double() if value.dtype == torch.float32 else value)
        reflections: list[Tensor] = []
        for axis in (-3, -4):
            found: list[Tensor] = []
            for _ in range(taps.shape[axis] - 1):
                taps, S = peeled(taps, axis)
                found.insert(0, S)
            if found:
                stacked = torch.stack(found, dim=-3)
                reflections.insert(0, stacked.unsqueeze(-4) if axis == -3 else stacked)
        H = polar(taps[..., 0, 0, :, :])
        H = H.mT if tall else H
        H = H.reshape(*H.shape[:-1], event[1], *phases)
        return tuple(param.to(value.dtype).contiguous() for param in (H, *reflections))

    def canonical(self, H: Tensor, *M: Tensor) -> tuple[Tensor, ...]:
        """Parameters of the same element: an orthogonal H, and reflections."""
        dims = H.ndim - 3 if self.event_dim is None else self.event_dim - 2
        with torch.no_grad():
            matrix = polar(H.flatten(-dims - 1)).reshape(H.shape)
            return matrix, *(polar(symmetric_part(each)) for each in M)

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Each parameter by itself."""
        return [[i] for i in range(count)]

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection onto the tangent space of the piece of the set, by iteration.

        It is the range of the derivative of the map at the factors.
        """
        factors = unpack(unguarded(self, "right_inverse")(value.double()))
        event = value.ndim if self.event_dim is None else self.event_dim
        forward = unguarded(self, "forward")
        exactness = torch.finfo(vector.dtype).eps
        found = onto_range(forward, factors, vector.double(), event, exactness)
        return found.to(vector.dtype)

    def retract(self, value: Tensor) -> Tensor:
        """A member that agrees with the nearest one to second order in the distance.

        The step from `project` towards ``value`` is made tangent, and taken.
        """
        member = self._retracted(value)
        return self._retracted(member + self.tangent(member, value - member))

    def violation(self, value: Tensor) -> Tensor:
        """The larger of two errors: of orthogonality, and of separability.

        The first is the largest entry of half of ``K(z) K(1/z)' - I``, over all powers of z. The
        second, for kernels with taps along two axes, is the largest entry of the difference from
        the projection.
        """
        taps, _ = self._taps(value)
        defect = gram_defect(taps)
        if min(taps.shape[-4:-2]) == 1:
            return defect
        rest = (value - self._retracted(value)).abs()
        event = value.ndim if self.event_dim is None else self.event_dim
        dims = tuple(range(value.ndim - event, value.ndim))
        return torch.maximum(defect, rest.amax(dims) if rest.numel() else rest.sum(dims))

    def norm(self, value: Tensor) -> Tensor:
        """An upper bound of the norm of the convolution: 1, and what rounding may add.

        Args:
            value: shape ``(*batch, out, in / groups, *kernel)``, finite.

        Returns:
            Tensor of shape ``batch``.
        """
        taps, _ = self._taps(value)
        # The sum of the norms of all autocorrelation matrices less the identity.
        count = taps.shape[-2] * math.prod(2 * t - 1 for t in taps.shape[-4:-2])
        return (1 + 2 * count * gram_defect(taps)).sqrt()

    def project(self, value: Tensor) -> Tensor:
        """A retraction: the map, applied to the factors of the right inverse."""
        return self._retracted(value)

    def _retracted(self, value: Tensor) -> Tensor:
        wide = value.double() if value.dtype == torch.float32 else value
        factors = unguarded(self, "right_inverse")(wide)
        return unguarded(self, "forward")(*factors).to(value.dtype)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """The map at random factors: uniform H, uniform projections of half of the full rank."""
        event = tuple(shape if self.event_dim is None else shape[-self.event_dim :])
        batch = tuple(shape[: len(shape) - len(event)])
        phases, counts = self._phases(event)
        rows, columns = event[0] // self._groups(), event[1] * math.prod(phases)
        m = max(rows, columns)
        H = random.normal((*batch, self._groups(), rows, event[1], *phases))
        signs = torch.where(torch.arange(m, device=H.device) < m // 2, 1, -1).to(H.dtype)
        reflections: list[Tensor] = []
        for axis, count in enumerate(counts):
            if count > 1:
                Q = polar(random.normal((*batch, self._groups(), count - 1, m, m)))
                S = (Q * signs) @ Q.mT
                reflections.append(S.unsqueeze(-4) if axis == 1 else S)
        return self.forward(H, *reflections)

    def dimension(self, shape: Sequence[int]) -> int:
        """That of the largest piece: an orthogonal matrix, and projections of half the rank."""
        event = tuple(shape)
        phases, counts = self._phases(event)
        rows, columns = event[0] // self._groups(), event[1] * math.prod(phases)
        p, m = min(rows, columns), max(rows, columns)
        factors = sum(count - 1 for count in counts)
        free = p * m - p * (p + 1) // 2 + factors * (m // 2) * (m - m // 2)
        return self._groups() * min(free, p * m * math.prod(counts))

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """A kernel of one or two dimensions, whose channels and sizes fit the layer."""
        dims = len(event) - 2
        if dims not in (1, 2) or min(event) < 1:
            return "must have channels out, channels in, and one or two sizes, none of them 0"
        if event[0] % self._groups():
            return f"must have a multiple of {self.groups} channels out, one part for each group"
        if isinstance(self.stride, Sequence) and len(self.stride) != dims:
            return f"must have as many sizes as there are strides, {len(self.stride)}"
        for k, s in zip(event[2:], self._strides(dims), strict=True):
            if k > s and k % s:
                return f"must have sizes that are multiples of the stride, {s}, or smaller"
        return None

    def _groups(self) -> int:
        return self.groups or 1

    def _strides(self, dims: int) -> tuple[int, ...]:
        stride = self.stride
        return tuple(stride) if isinstance(stride, Sequence) else (stride or 1,) * dims

    def _phases(self, event: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many phases of the input each axis has, and how many taps each phase has."""
        sizes = event[2:]
        phases = tuple(map(min, sizes, self._strides(len(sizes))))
        return phases, tuple(k // p for k, p in zip(sizes, phases, strict=True))

    def _taps(self, value: Tensor) -> tuple[Tensor, bool]:
        """The taps as wide matrices, and whether they were transposed for that.

        The shape is ``(*batch, groups, taps, taps, rows, columns)``.
        """
        event = tuple(value.shape if self.event_dim is None else value.shape[-self.event_dim :])
        batch = value.shape[: value.ndim - len(event)]
        phases, counts = self._phases(event)
        p1, p2 = (*phases, 1)[:2]
        t1, t2 = (*counts, 1)[:2]
        rows = event[0] // self._groups()
        split = value.reshape(*batch, self._groups(), rows, event[1], t1, p1, t2, p2)
        # (groups, rows, channels, t1, p1, t2, p2) -> (groups, t1, t2, rows, channels, p1, p2)
        taps = split.movedim((-4, -2), (-6, -5)).flatten(-3)
        tall = taps.shape[-2] > taps.shape[-1]
        return (taps.mT if tall else taps), tall
