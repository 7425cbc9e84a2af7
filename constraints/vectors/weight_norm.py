"""Tensors in polar coordinates: the lengths of slices, and their directions."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from constrained import Constraint, register
from constrained.constraint.optional_methods import recomputed
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals import linalg
from constraints.bases.argument_checks import is_whole
from constraints.bases.expected_failures import no_derivative
from constraints.math.autograd import needs_derivative
from constraints.math.unit_vectors import is_moderate


@register("weight_norm")
class WeightNorm(Constraint):
    r"""Any tensor, with the lengths of its slices as parameters of their own.

    **Use**: weight normalization with its usual keys, in speech and audio models (WaveNet,
    HiFi-GAN, wav2vec), for old checkpoints and for training in polar coordinates.

    **Set**: $\mathbb{R}^n$, all finite tensors: closed, of dimension $n$, the number of entries.
    Nothing is constrained. Only the coordinates matter: a gradient step on a direction does not
    change the length.

    **Map**: $(g, v) \mapsto g v / \lVert v \rVert$, slice by slice, onto the set. There is a slice
    for each index along ``dim``, and $\lVert v \rVert$ is its Euclidean length. At $v = 0$ the
    value is 0, and the derivative is that of $v \mapsto v$.

    **Right inverse**: $x \mapsto (\lVert x \rVert, x)$. So a slice of zeros has $g = 0$ and
    $v = 0$. The first step of an optimizer gives it a direction, and further steps a length. (With
    another $v$ the factor $g = 0$ would leave a gradient along $v$ only.)

    **Reference**: Salimans and Kingma, Weight normalization: a simple reparameterization to
    accelerate training of deep neural networks (2016).

    The parameters have the shapes and the order of `torch.nn.utils.parametrizations.weight_norm`,
    $g$ first. There, ``dim=-1`` means what ``dim=None`` means; here it is the last dimension.

    Args:
        dim: the dimension along which the slices lie, 0 for the rows of a matrix and the output
            channels of a convolution; None if the whole element is one slice.
        event_dim: how many trailing dimensions make one element; the whole tensor by default.

    Shape:
        ``(*batch, *event)``; g has the same number of dimensions, with the length 1 in all of the
        event but ``dim``, or the shape ``batch`` with ``dim=None``.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if an element has no dimension ``dim``, or no entries.

    Example:
        >>> weight_norm = WeightNorm()
        >>> g, v = weight_norm.right_inverse(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> g
        tensor([[5.],
                [0.]])
        >>> weight_norm(2 * g, v)
        tensor([[6., 8.],
                [0., 0.]])
        >>> WeightNorm(dim=None)(torch.tensor(10.0), v)
        tensor([[6., 8.],
                [0., 0.]])
    """

    event_dim = None
    examples = (
        ({}, (3, 2)),
        ({}, (2, 3, 2)),
        ({"dim": None}, (2, 3)),
        ({"event_dim": 2}, (3, 3)),
        ({"event_dim": 2, "dim": -1}, (2, 4)),
        ({"event_dim": 1, "dim": None}, (5,)),
        ({"event_dim": 1}, (3,)),
        ({"event_dim": 3, "dim": 1}, (2, 1, 3)),
    )
    expected_failures = no_derivative(
        "g v / ||v|| has no derivative at v = 0, where that of v -> v stands in for it, so that "
        "a slice of zeros can be trained",
        *("zero_params", "zeros", "eye"),
    )

    def __init__(self, dim: int | None = 0, event_dim: Annotated[int, Ge(0)] | None = None) -> None:
        super().__init__()
        for name, number in (("dim", dim), ("event_dim", event_dim)):
            if number is not None and not is_whole(number):
                raise TypeError(f"weight_norm: {name} must be an integer or None, got {number!r}.")
        if event_dim is not None:
            problem = "must be at least 0" if event_dim < 0 else _missing(dim, event_dim)
            if problem:
                raise ValueError(f"weight_norm: event_dim {problem}, got {event_dim}.")
        self.dim = dim
        self.event_dim = event_dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """``g v / ||v||``, or v itself where it is zero."""
        axes, event = self._axes(v)
        if not needs_derivative(v) and not needs_derivative(g):
            norm = _norm(v, axes)
            if is_moderate(norm):
                return v * (self._along(g, event) / norm)
        # In units of the largest entry no square overflows or underflows. The unit is held
        # constant, which does not change the derivatives of v / ||v||.
        largest = _largest(v.detach(), axes)
        zero = largest < torch.finfo(v.dtype).tiny
        scaled = torch.where(zero, 1, v) / torch.where(zero, 1, largest)
        unit = scaled / _norm(scaled, axes)
        return torch.where(zero, v, self._along(g, event) * unit)

    def pullback(
        self, value: Tensor, gradient: Tensor, g: Tensor, v: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The component along v for the lengths; that across v, scaled, for the directions."""
        axes, event = self._axes(v)
        norm = _norm(v, axes)
        if not (v.is_cpu and is_moderate(norm)):
            return recomputed(self, gradient, (g, v))
        unit = v / norm
        product = gradient * unit
        along = product.sum(axes, keepdim=True) if axes else product
        across = unit.mul_(along).neg_().add_(gradient).mul_(self._along(g, event) / norm)
        return along.reshape(g.shape), across

    def _along(self, g: Tensor, event: int) -> Tensor:
        """The lengths, in a shape that broadcasts with v."""
        return g.reshape(*g.shape, *[1] * event) if self.dim is None else g

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The lengths of the slices, and the value as their directions."""
        axes, event = self._axes(value)
        largest = _largest(value, axes)
        unit = torch.where(largest > 0, largest, 1)
        g = unit * _norm(value / unit, axes)
        if self.dim is None:
            g = g.reshape(value.shape[: value.ndim - event])
        return g, value

    def tangent(self, value: Tensor, vector: Tensor) -> Tensor:
        """The vector itself: the set is all of space."""
        del value
        return vector

    def violation(self, value: Tensor) -> Tensor:
        """0: every finite tensor is a member."""
        _, event = self._axes(value)
        return value.new_zeros(value.shape[: value.ndim - event])

    def project(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value.clone()

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """Standard normal numbers."""
        return random.normal(shape)

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has the dimension ``dim``, and at least one entry."""
        if 0 in event:
            return "must have at least one entry"
        return _missing(self.dim, len(event))

    def _axes(self, value: Tensor) -> tuple[tuple[int, ...], int]:
        """The dimensions of a slice, counted from the end, and how many an element has."""
        event = value.ndim if self.event_dim is None else self.event_dim
        keep = None if self.dim is None else self.dim % event - event
        return tuple(axis for axis in range(-event, 0) if axis != keep), event


def _missing(dim: int | None, event: int) -> str | None:
    if dim is None or -event <= dim < event:
        return None
    return f"must have a dimension {dim}"


def _largest(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    return value.abs().amax(axes, keepdim=True) if axes else value.abs()


def _norm(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    # torch takes an empty list of axes for all of them.
    return linalg.vector_norm(value, dim=axes, keepdim=True) if axes else value.abs()
