"""The loss of a model as a function of a vector: its value, its gradient, its curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from constrained.constraint.plain_data import short
from constrained.minimizing.packing import Vector, pack, size, unpack
from constrained.minimizing.variables import Variable


@dataclass
class _Evaluated:
    """A loss at one point, with the graphs that its derivatives need.

    Attributes:
        loss: the loss.
        coordinates: of each variable.
        values: of each variable.
        gradients: by the leaves, once they are computed.
    """

    loss: Tensor
    coordinates: list[list[Tensor]]
    values: list[Tensor]
    gradients: list[Tensor] | None = None


class Objective:
    """The loss of a model at points that a method tries. It remembers the best of them.

    Args:
        model: the model.
        loss: the loss, as a function of the model.
        variables: the tensors that move.
        curvature: whether products with the Hessian will be asked for.

    Attributes:
        evaluations: how many times the loss was computed.
        gradients: how many times its gradient was.
        products: how many times the Hessian was multiplied by a vector.
        best: the best point so far, or None.
        least: the loss there.
        low: the lower bounds.
        high: the upper bounds.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor],
        variables: list[Variable],
        *,
        curvature: bool,
    ) -> None:
        self._model, self._loss, self._variables = model, loss, variables
        self._curvature = curvature
        self.evaluations = self.gradients = self.products = 0
        self.best: Vector | None = None
        self.least = np.inf
        self._like = [tensor for variable in variables for tensor in variable.start]
        self.low = pack([variable.low() for variable in variables])
        self.high = pack([variable.high() for variable in variables])
        self._at: Vector | None = None
        self._evaluated: _Evaluated | None = None

    def start(self) -> Vector:
        """The vector of the model as it was, moved into the bounds."""
        return np.clip(pack(self._like), self.low, self.high)

    def forget(self) -> None:
        """Compute the loss anew, also where it was computed last, and let its graph go."""
        self._at = self._evaluated = None

    def value(self, x: Vector) -> float:
        """The loss at a point."""
        return float(self._evaluate(x).loss.detach())

    def gradient(self, x: Vector) -> Vector:
        """The gradient of the loss at a point."""
        at = self._evaluate(x)
        self.gradients += 1
        parts: list[Tensor] = []
        for variable, coordinates, value, gradient in self._pieces(at):
            if variable.is_mapped:
                parts += _pulled_back(value, coordinates, gradient.detach())
            else:
                parts.append(gradient)
        return self._finite(pack(parts), "gradient")

    def product(self, x: Vector, vector: Vector) -> Vector:
        r"""The Hessian of the loss at a point, times a vector.

        Where the value of a tensor is a function f of its coordinates, with derivative J, the
        product is :math:`J^\top H J v + \nabla_z \langle J^\top g, v \rangle`, with the gradient g
        and the Hessian H by the value.
        """
        at = self._evaluate(x)
        self.products += 1
        pieces = self._pieces(at)
        directions = self._split(unpack(np.asarray(vector, np.float64).ravel(), self._like))
        moved = [
            _pushed_forward(value, coordinates, direction) if variable.is_mapped else direction[0]
            for (variable, coordinates, value, _), direction in zip(pieces, directions, strict=True)
        ]
        slope = sum(
            (_inner(gradient, along) for (*_, gradient), along in zip(pieces, moved, strict=True)),
            torch.zeros(()),
        )
        leaves = [variable.leaf for variable, *_ in pieces]
        if slope.requires_grad:
            curved = torch.autograd.grad(slope, leaves, retain_graph=True, allow_unused=True)
        else:
            # The loss is linear.
            curved = [None] * len(leaves)
        parts: list[Tensor] = []
        for (variable, coordinates, value, gradient), curve, direction in zip(
            pieces, curved, directions, strict=True
        ):
            curve = torch.zeros_like(variable.leaf) if curve is None else curve
            if not variable.is_mapped:
                parts.append(curve)
                continue
            first = _pulled_back(value, coordinates, curve)
            second = _bent(value, coordinates, gradient.detach(), direction)
            parts += [one + other for one, other in zip(first, second, strict=True)]
        return self._finite(pack(parts), "product with the Hessian")

    @torch.no_grad()
    def write(self, x: Vector) -> list[list[Tensor]]:
        """Give the leaves the values at a point; returns the coordinates."""
        x = np.clip(np.asarray(x, np.float64).ravel(), self.low, self.high)
        split = self._split(unpack(x, self._like))
        for variable, coordinates in zip(self._variables, split, strict=True):
            variable.leaf.copy_(variable.value(coordinates))
        return split

    def linear(self) -> list[tuple[Vector, Vector, Vector]]:
        """The linear constraints: for each, a matrix, lower bounds and upper bounds."""
        found: list[Any] = []
        offset = 0
        for variable in self._variables:
            width = sum(size(tensor) for tensor in variable.start)
            form = variable.form
            if form is not None and form.matrix is not None:
                rows, entries = form.matrix.shape
                count = width // entries
                matrix = np.zeros((count, rows, len(self.low)))
                for i in range(count):
                    place = offset + i * entries
                    matrix[i, :, place : place + entries] = form.matrix.numpy()
                sides: list[Any] = [form.lower, form.upper]
                lower, upper = (np.tile(side.numpy(), count) for side in sides)
                found.append((matrix.reshape(count * rows, -1), lower, upper))
            offset += width
        return found

    def projected(self, x: Vector) -> Vector:
        """A point at which the linear constraints hold, up to rounding of the tensors."""
        split = self._split(unpack(np.clip(x, self.low, self.high), self._like))
        parts: list[Tensor] = []
        for variable, coordinates in zip(self._variables, split, strict=True):
            parts += variable.projected(coordinates)
        return pack(parts)

    # ------------------------------------------------------------------------------ inside

    def _evaluate(self, x: Vector) -> _Evaluated:
        x = np.array(x, np.float64).ravel()
        if self._evaluated is not None and self._at is not None and np.array_equal(self._at, x):
            return self._evaluated
        self._evaluated = None
        split = self.write(x)
        with torch.enable_grad():
            values = [v.leaf for v in self._variables]
            for i, variable in enumerate(self._variables):
                if variable.is_mapped:
                    for tensor in split[i]:
                        tensor.requires_grad_()
                    values[i] = variable.value(split[i])
            loss = self._check(self._loss(self._model))
        self.evaluations += 1
        number = float(loss.detach())
        if not np.isfinite(number):
            best = "" if self.best is None else f", the best before was {self.least:.6g}"
            where = "at the start" if self.evaluations == 1 else f"in evaluation {self.evaluations}"
            raise ValueError(
                f"The loss is {number} {where}{best}. Keep the parameters where it is finite by "
                "constraints, such as an interval, or start nearer to the optimum."
            )
        if number < self.least and all(v.feasible() for v in self._variables):
            self.best, self.least = np.clip(x, self.low, self.high), number
        self._at, self._evaluated = x, _Evaluated(loss, split, values)
        return self._evaluated

    def _check(self, loss: Any) -> Tensor:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = (
                f"a tensor of shape {tuple(loss.shape)} and dtype {loss.dtype}"
                if isinstance(loss, Tensor)
                else short(loss)
            )
            raise TypeError(f"The loss must be a real scalar tensor, got {found}.")
        if not loss.requires_grad:
            raise ValueError(
                "The loss has no graph: compute it from the parameters of the model by operations "
                "of torch, without detach(), item() or torch.no_grad()."
            )
        return loss.reshape(())

    def _pieces(self, at: _Evaluated) -> list[tuple[Variable, list[Tensor], Tensor, Tensor]]:
        """Each variable with its coordinates, its value, and the gradient by its value."""
        if at.gradients is None:
            leaves = [variable.leaf for variable in self._variables]
            found: Any = torch.autograd.grad(
                at.loss,
                leaves,
                create_graph=self._curvature,
                retain_graph=self._curvature,
                allow_unused=True,
            )
            if all(gradient is None for gradient in found):
                raise ValueError(
                    "The loss does not depend on any parameter of the model that is trained."
                )
            if not self._curvature:
                # The graph has been freed.
                at.loss = at.loss.detach()
            at.gradients = [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, found, strict=True)
            ]
        return list(zip(self._variables, at.coordinates, at.values, at.gradients, strict=True))

    def _split(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Tensors, one for each coordinate, as a list for each variable."""
        rest = iter(tensors)
        return [[next(rest) for _ in variable.start] for variable in self._variables]

    def _finite(self, vector: Vector, name: str) -> Vector:
        if not np.isfinite(vector).all():
            place, offset = int(np.flatnonzero(~np.isfinite(vector))[0]), 0
            for variable in self._variables:
                offset += sum(size(tensor) for tensor in variable.start)
                if place < offset:
                    raise ValueError(
                        f"'{variable.path}': the {name} of the loss holds NaN or infinity in "
                        f"evaluation {self.evaluations}, where the loss is finite. A square root "
                        "or a norm at zero, for one, has no derivative."
                    )
        return vector


def _inner(one: Tensor, other: Tensor) -> Tensor:
    product = one * other.conj()
    return (product.real if product.is_complex() else product).sum().to("cpu", torch.float64)


def _pulled_back(value: Tensor, coordinates: list[Tensor], gradient: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, coordinates, gradient, retain_graph=True, allow_unused=True)
    return [_or_zero(g, t) for g, t in zip(found, coordinates, strict=True)]


def _pushed_forward(value: Tensor, coordinates: list[Tensor], along: list[Tensor]) -> Tensor:
    # The gradient by a dummy is linear in it, and its derivative by it is J v.
    dummy = torch.zeros_like(value).requires_grad_()
    found = torch.autograd.grad(value, coordinates, dummy, create_graph=True, allow_unused=True)
    slope = _slope(found, along)
    if not slope.requires_grad:
        return torch.zeros_like(value)
    (moved,) = torch.autograd.grad(slope, dummy, allow_unused=True)
    return _or_zero(moved, value).detach()


def _bent(
    value: Tensor, coordinates: list[Tensor], gradient: Tensor, along: list[Tensor]
) -> list[Tensor]:
    found = torch.autograd.grad(value, coordinates, gradient, create_graph=True, allow_unused=True)
    slope = _slope(found, along)
    if not slope.requires_grad:
        return [torch.zeros_like(t) for t in coordinates]
    curved = torch.autograd.grad(slope, coordinates, retain_graph=True, allow_unused=True)
    return [_or_zero(c, t) for c, t in zip(curved, coordinates, strict=True)]


def _slope(gradients: Any, along: list[Tensor]) -> Tensor:
    terms = [_inner(g, v) for g, v in zip(gradients, along, strict=True) if g is not None]
    return sum(terms, torch.zeros((), dtype=torch.float64))


def _or_zero(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if gradient is None else gradient
