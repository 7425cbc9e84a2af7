"""What the vector of an optimizer stands for: the tensors of a model that it moves.

There are three kinds. A parameter that is free, as it is. The value of a constrained tensor, if its
set is made of bounds and linear constraints that the method takes. And the free parameters from
which the constraint of a plain parameter with ``mode="project"`` computes its value.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from constrained.atomic.contents import own
from constrained.constraint.base import Constraint
from constrained.constraint.linear_form import LinearForm
from constrained.minimizing.methods import Method
from constrained.minimizing.packing import size
from constrained.parametrized.override import override
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import constrained_tensors, locations_of

#: Elements with more entries are not given to methods as linear constraints: the matrix of these
#: has an entry for each pair of an equation and an entry of the element.
MOST_ENTRIES = 1024


@dataclass
class Variable:
    """One tensor that the optimizer moves.

    Attributes:
        path: of the tensor, for messages.
        leaf: what the model reads, and the loss is differentiated by.
        start: the coordinates at the start.
        constraint: of the tensor, if the leaf is its value; else None.
        form: of the value, if the coordinates are those that it bounds; else None.
        constants: the free parameters that do not move, by their indices.
        places: the modules and names where the leaf is read in the place of a parametrized tensor.
    """

    path: str
    leaf: Tensor
    start: list[Tensor]
    constraint: Constraint | None = None
    form: LinearForm | None = None
    constants: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    places: list[tuple[nn.Module, str]] = field(default_factory=list[tuple[nn.Module, str]])

    @property
    def is_mapped(self) -> bool:
        """Whether the leaf is computed from the coordinates; else it is these."""
        return self.constraint is not None and (self.form is None or self.form.image is not None)

    def value(self, coordinates: list[Tensor]) -> Tensor:
        """The value of the leaf, as a differentiable function of the coordinates."""
        if not self.is_mapped:
            return coordinates[0]
        if self.form is not None and self.form.image is not None:
            return self.form.image(coordinates[0]).reshape(self.leaf.shape)
        moving = iter(coordinates)
        count = len(coordinates) + len(self.constants)
        params = [self.constants[i] if i in self.constants else next(moving) for i in range(count)]
        return cast(Constraint, self.constraint)(*params)

    def low(self) -> Tensor:
        """The lower bounds of the coordinates, numbers of the dtype of the tensor."""
        return self._bound(-1)

    def high(self) -> Tensor:
        """The upper bounds."""
        return self._bound(1)

    def _bound(self, side: int) -> Tensor:
        if self.form is None or self.constraint is None:
            # Not of the dtype of the tensors, of which some may be complex.
            return torch.full((sum(map(size, self.start)),), side * torch.inf, dtype=torch.float64)
        given = torch.as_tensor(self.form.low if side < 0 else self.form.high, dtype=torch.float64)
        bound = given.to(self.start[0]).expand(self.start[0].shape)
        if not self.is_mapped and self.form.matrix is None and bool(torch.isfinite(bound).all()):
            # A member of the set, also if that is open or the bound is not a number of this dtype.
            bound = self.constraint.project(bound)
        return bound.reshape(-1)

    def projected(self, coordinates: list[Tensor]) -> list[Tensor]:
        """Coordinates at which the value lies in the set, if a method has left it by rounding."""
        if self.form is None or self.constraint is None:
            return coordinates
        return [_coordinates(self.constraint.project(self.value(coordinates)), self.form)]

    def feasible(self) -> bool:
        """Whether the value lies in its set, up to the tolerance of the library."""
        if self.form is None or self.constraint is None:
            return True
        return bool(self.constraint.contains(self.leaf.detach()).all())


def variables(model: nn.Module, method: Method | None) -> list[Variable]:
    """The tensors of a model that can be trained, each once.

    Args:
        model: the model.
        method: what takes bounds and linear constraints; None if everything goes through free
            parameters.

    Raises:
        ValueError: if there is none, or one is not initialized yet, or holds NaN or infinity.
    """
    found: list[Variable] = []
    taken: set[int] = set()
    for path, holder, constraint in constrained_tensors(model):
        if isinstance(holder, ParametrizationList):
            originals = list(holder.parameters())
            form = None if method is None else _form(constraint, holder().detach(), method)
            # What is computed from frozen originals in part is left to these.
            if form is None or not originals or not all(p.requires_grad for p in originals):
                continue
            leaf = own(holder()).requires_grad_()
            places = locations_of(model, holder)
            start = [own(_coordinates(leaf.detach(), form))]
            found.append(Variable(path, leaf, start, constraint, form, places=places))
            taken |= {id(p) for p in originals}
        elif holder.mode == "project" and holder().requires_grad:
            parameter = holder()
            form = None if method is None else _form(constraint, parameter.detach(), method)
            found.append(_attached(path, parameter, constraint, form))
            taken.add(id(parameter))
    for path, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"'{path}' has no shape yet: call the model once before minimize.")
        if parameter.requires_grad and id(parameter) not in taken:
            found.append(Variable(path, parameter, [own(parameter)]))
    found = [variable for variable in found if variable.leaf.numel()]
    if not found:
        raise ValueError(
            f"There is nothing to minimize over: {type(model).__name__} has no parameter with "
            "requires_grad=True."
        )
    for variable in found:
        if not all(bool(torch.isfinite(t).all()) for t in variable.start):
            raise ValueError(f"'{variable.path}' holds NaN or infinity: no method starts there.")
    return found


def _attached(
    path: str, parameter: Tensor, constraint: Constraint, form: LinearForm | None
) -> Variable:
    if not bool(torch.isfinite(parameter.detach()).all()):
        return Variable(path, parameter, [own(parameter)])
    if form is not None:
        member = constraint.project(parameter.detach())
        return Variable(path, parameter, [own(_coordinates(member, form))], constraint, form)
    free: Any = constraint.right_inverse(constraint.start(parameter.detach()))
    params: list[Tensor] = [free] if isinstance(free, Tensor) else list(free)
    constants = {i: own(t) for i, t in enumerate(params) if i in constraint.frozen}
    moving = [own(t) for i, t in enumerate(params) if i not in constraint.frozen]
    return Variable(path, parameter, moving, constraint, None, constants)


def _coordinates(value: Tensor, form: LinearForm) -> Tensor:
    """The coordinates that a form bounds."""
    if form.image is None:
        return value
    return form.image.coordinates(value.reshape(-1, form.image.matrix.shape[0]))


def _form(constraint: Constraint, value: Tensor, method: Method) -> LinearForm | None:
    """The form of a set, if the method takes it."""
    if not method.bounds or value.is_complex():
        return None
    dims = value.ndim if constraint.event_dim is None else constraint.event_dim
    event = value.shape[value.ndim - dims :]
    if event.numel() > MOST_ENTRIES and constraint.event_dim != 0:
        return None
    form = constraint.linear_form(event)
    return form if form is None or form.matrix is None or method.linear else None


@contextmanager
def read_by_the_model(found: list[Variable]) -> Generator[None]:
    """Inside, the model reads the leaves in the place of parametrized tensors, in this thread."""
    before = [
        (module, name, override(module, name, variable.leaf))
        for variable in found
        for module, name in variable.places
    ]
    try:
        yield
    finally:
        for module, name, other in before:
            override(module, name, other)
