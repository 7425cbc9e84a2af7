"""What will change in a model: prepared for each tensor, then carried out all or nothing.

A `TensorChange` constrains a tensor. For a tensor that has no shape yet there is
``lazy.LazyChange``.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained.atomic.contents import recording, store
from constrained.atomic.undo import all_or_nothing, around
from constrained.attached.attached_constraint import AttachedConstraint, attach
from constrained.constraint.base import Constraint
from constrained.constraint.errors import SpecError
from constrained.constraint.spec import Request
from constrained.model.config import viewed
from constrained.model.error_messages import is_own, raise_failed, with_path
from constrained.model.start import count_flat, relative_distance, start_of
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import Location
from constrained.registration.install import install
from constrained.registration.param_groups import ParameterHandover, check_holds
from constrained.torch_internals.shards import is_flat


class Change(ABC):
    """What will change about one tensor of a model, in all of its owners.

    Attributes:
        places: the tensor's locations; several if it is tied.
        is_new: whether the optimizer has to be updated. It is False if the change of a tied tensor
            has done that.
        flat: how many elements start where the derivative of the map vanishes, and how many there
            are.
    """

    places: list[Location]
    is_new: bool
    flat: tuple[int, int]

    def modules(self) -> list[nn.Module]:
        """All modules that change."""
        return around(place.module for place in self.places)

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """All tensors that change."""

    @abstractmethod
    def handover(self) -> ParameterHandover | None:
        """What gives an optimizer the new parameters; None if there are none."""

    @abstractmethod
    def do(self) -> None:
        """Change the model."""


@dataclass
class TensorChange(Change):
    """A tensor that will be constrained.

    Attributes:
        places: its locations.
        original: the tensor.
        parametrizations: the list that takes its place.
        is_new: whether the list does not hold the originals yet. It does if a tied tensor was
            changed before.
        flat: as in `Change`.
    """

    places: list[Location]
    original: Tensor
    parametrizations: ParametrizationList
    is_new: bool = True
    flat: tuple[int, int] = (0, 0)

    def modules(self) -> list[nn.Module]:
        """The owners, and all that parametrizes the tensor."""
        return [*super().modules(), *self.parametrizations.modules()]

    def tensors(self) -> list[Tensor]:
        """The tensor itself."""
        return [self.original]

    def handover(self) -> ParameterHandover | None:
        """What replaces the present parameters of the tensor in an optimizer by the new ones."""
        place = self.places[0]
        return ParameterHandover(place.module, place.name, place.path)

    def do(self) -> None:
        """Put the list of parametrizations in the place of the tensor."""
        with recording(self.original):
            if self.is_new:
                self.parametrizations.attach(self.original)
            for place in self.places:
                install(place.module, place.name, self.parametrizations)


@dataclass
class AttachedChange(Change):
    """A tensor that will have a constraint, and stay a plain parameter.

    Attributes:
        places: its locations.
        original: the tensor.
        start: the member at which it starts.
        constraint: its constraint.
        request: with the mode, and the other settings.
        moved: how far it will go, relative to its norm.
        flat: as in `Change`; an optimizer can move all elements.
    """

    places: list[Location]
    original: Tensor
    start: Tensor
    constraint: Constraint
    request: Request
    moved: float
    is_new: bool = True
    flat: tuple[int, int] = (0, 0)

    def tensors(self) -> list[Tensor]:
        """The tensor itself."""
        return [self.original]

    def handover(self) -> ParameterHandover | None:
        """The optimizer goes on with the same parameter."""
        return None

    def do(self) -> None:
        """Write the start, and attach the constraint to each of the owners."""
        settings: Any = {key: getattr(self.request, key) for key in ("mode", "on_nonfinite")}
        with torch.no_grad(), recording(self.original):
            if self.start is not self.original:
                store(self.original, self.start)
        for place in self.places:
            constraint = copy.deepcopy(self.constraint)
            found = AttachedConstraint(
                place.module,
                place.name,
                constraint,
                moved=self.moved,
                path=self.places[0].path,
                **settings,
            )
            attach(place.module, found)


def _attached_change(here: list[Location], original: Tensor, request: Request) -> AttachedChange:
    place = here[0]
    if not isinstance(original, nn.Parameter):
        raise SpecError(
            f"mode={request.mode!r} goes with a parameter, which optimizers move, and this is a "
            "buffer; make it a parameter, or use mode='parametrize'."
        )
    if is_flat(original):
        raise SpecError(
            f"mode={request.mode!r} needs the whole tensor, of which FullyShardedDataParallel "
            "leaves each process a flat piece; use fully_shard."
        )
    constraint = request.build()
    assert isinstance(constraint, Constraint)  # `check_request` has raised for all others.
    for part in constraint.modules() if request.mode == "project" else ():
        if isinstance(part, Constraint) and part.why_not_project:
            raise SpecError(
                f"mode='project' does not go with {part!r}: {part.why_not_project}; use "
                "mode='parametrize'."
            )
    constraint = viewed(constraint, request, place, original.shape)
    value = original.detach()
    start = start_of(constraint, value, request.init or "keep")
    if request.mode == "penalize" and request.init == "keep":
        # A penalty pulls towards the set, and the tensor may start outside.
        start = value
    moved = relative_distance(start, value)
    return AttachedChange(here, original, start, constraint, request, moved)


ChangeCheck = Callable[[TensorChange, Request], None]

_checks: list[ChangeCheck] = []


def check_each_change(function: ChangeCheck) -> ChangeCheck:
    """Decorator: call a function before a tensor is constrained, to warn of likely mistakes."""
    _checks.append(function)
    return function


def change_of(
    here: list[Location], original: Tensor, request: Request
) -> TensorChange | AttachedChange:
    """The change that constrains a tensor; nothing of the model is written.

    Args:
        here: the tensor's locations; several if it is tied.
        original: the tensor.
        request: the constraint with its view and its settings.

    Raises:
        ValueError: if the tensor cannot be constrained like that. It names the tensor.
        TypeError: likewise.
    """
    try:
        constraint = fitted(here, request)
        if request.mode != "parametrize":
            return _attached_change(here, original, constraint)
        with recording(original):
            parametrizations = _parametrize(here[0], original, constraint)
            flat = count_flat(parametrizations)
    except Exception as error:
        if not is_own(error):
            raise_failed(here[0].path, request.constraint, error)
        if isinstance(error, (ValueError, TypeError)):
            raise with_path(here[0].path, error) from error.__cause__
        raise
    change = TensorChange(here, original, parametrizations, flat=flat)
    for function in _checks:
        function(change, request)
    return change


def carry_out(changes: Sequence[Change], optimizer: Optimizer | None) -> None:
    """Change the model, all or nothing, and give an optimizer the new parameters."""
    changed = [module for change in changes for module in change.modules()]
    tensors = [tensor for change in changes for tensor in change.tensors()]
    # For other tied tensors the optimizer has been updated already.
    first = [change.places[0] for change in changes if change.is_new]
    check_holds(optimizer, ((place.module, place.name, place.path) for place in first))
    handovers = [change.handover() for change in changes]
    # The warning comes before anything changes, since it may be turned into an error.
    _warn_of_flat([c for c in changes if isinstance(c, TensorChange) and c.flat[0]])
    with all_or_nothing(changed, tensors, optimizer):
        for change in changes:
            change.do()
        for handover in handovers:
            if handover is not None:
                handover.apply(optimizer)


def _warn_of_flat(changes: Sequence[TensorChange]) -> None:
    """Warn, once for all changes, of members that an optimizer will hardly move."""
    if not changes:
        return
    (count, total), place = changes[0].flat, changes[0].places[0]
    constraint = changes[0].parametrizations.constraint()
    more = f" (and some of {len(changes) - 1} more tensors)" if len(changes) > 1 else ""
    warnings.warn(
        f"'{place.path}': {count} of {total} elements{more} stay next to the boundary of "
        f"{constraint!r}, where the derivative of its map vanishes: an optimizer will hardly move "
        "them. init='inside' starts them where they can be trained.",
        UserWarning,
        stacklevel=4,
    )


def check_not_written(place: Location) -> None:
    """Raise a ValueError if torch writes into the tensor whenever its module is called."""
    module = place.module
    bound = module.max_norm if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None
    if bound is not None and place.name == "weight":
        raise ValueError(
            f"{type(module).__name__} shortens the rows that it looks up, in place, to "
            f"max_norm={bound!r}, and a value that is computed would lose that; set max_norm=None, "
            f"and constrain it by 'max_norm(bound={bound!r})' if that is what you want."
        )


def fitted(here: list[Location], request: Request) -> Request:
    """The request, with missing arguments of the constraint taken from the modules of the tensor.

    `Constraint.fitted` does that for each of the modules.

    Raises:
        ValueError: if the modules of a tied tensor lead to different constraints.
    """
    constraint, viewed = request.constraint, request.view is not None
    if not isinstance(constraint, Constraint):
        return request
    found = [constraint.fitted(place.module, place.name, viewed=viewed) for place in here]
    for place, each in zip(here[1:], found[1:], strict=True):
        if each is not found[0] and each.spec() != found[0].spec():
            raise ValueError(
                f"tied tensors have one constraint, but that of '{place.path}' is {each!r}, by the "
                f"settings of its module, and here it is {found[0]!r}."
            )
    return replace(request, constraint=found[0])


def _parametrize(place: Location, original: Tensor, request: Request) -> ParametrizationList:
    constraint = request.build()
    if isinstance(constraint, Constraint):
        constraint = viewed(constraint, request, place, original.shape)
    constraint.train(place.module.training)
    start = original.detach().clone()
    if isinstance(constraint, Constraint):
        start = start_of(constraint, start, request.init or "keep")
    found = ParametrizationList([constraint], original, start=start, deferred=True)
    found.moved = relative_distance(found.preview(), original.detach())
    return found
