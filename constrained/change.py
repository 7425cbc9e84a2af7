"""A tensor that is about to be constrained: prepared, carried out, or put off."""

from __future__ import annotations

import math
import traceback
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained.constraint import (
    START,
    Constraint,
    InfeasibleError,
    OutOfRangeError,
    has_values,
)
from constrained.gaussian_processes import warn_of_lost_bound
from constrained.handover import Succession, check_holds
from constrained.install import check_can_hold, install
from constrained.kernel import warn_of_small_elements, warn_of_stacked_gates
from constrained.lazy import check_can_wait, stop_waiting, wait, waiting
from constrained.originals import recording
from constrained.parametrization_list import ParametrizationList
from constrained.parametrized_class import base_class, set_class
from constrained.plain_data import short
from constrained.registry import UnknownNameError, did_you_mean
from constrained.select import Place
from constrained.spec import Request, SpecError
from constrained.tolerance import working_dtype
from constrained.transaction import all_or_nothing, around
from constrained.undisturbed import Undisturbed
from constrained.view import View
from constrained.wrapped import check_not_wrapped
from constrained.writer import Writer

INITS = ("keep", "inside", "sample", "strict")

#: Errors that are made of one sentence.
_OURS = (
    ValueError,
    TypeError,
    InfeasibleError,
    OutOfRangeError,
    SpecError,
    UnknownNameError,
)

#: Where what we raise ourselves is raised.
_PACKAGES = ("constrained", "constraints")


class ModuleKeyError(KeyError):
    """A `KeyError` of a foreign module, with a sentence."""

    def __str__(self) -> str:
        # As in `UnknownNameError`.
        return str(self.args[0])


#: Errors of foreign modules that are made of one sentence too: the kind of each stays.
_THEIRS: dict[type[Exception], type[Exception]] = {
    RuntimeError: RuntimeError,
    torch.OutOfMemoryError: torch.OutOfMemoryError,
    NotImplementedError: NotImplementedError,
    AssertionError: AssertionError,
    AttributeError: AttributeError,
    IndexError: IndexError,
    KeyError: ModuleKeyError,
}


@dataclass
class Change:
    """A tensor that is about to be constrained.

    Attributes:
        places: where it is.
        original: the tensor.
        parametrizations: what takes its place.
        is_new: whether that is still to take the tensor; else it is there for a tied one already.
        flat: how many elements start where the derivative of the map vanishes, and of how many.
    """

    places: list[Place]
    original: Tensor
    parametrizations: ParametrizationList
    is_new: bool = True
    flat: tuple[int, int] = (0, 0)

    def modules(self) -> list[nn.Module]:
        """All modules that change."""
        owners = around(place.module for place in self.places)
        return [*owners, *self.parametrizations.modules()]

    def tensors(self) -> list[Tensor]:
        """All tensors that change."""
        return [self.original]

    def succession(self) -> Succession | None:
        """What an optimizer has to know of it."""
        place = self.places[0]
        return Succession(place.module, place.name, place.path)

    def do(self) -> None:
        """Change the model."""
        with recording(self.original):
            if self.is_new:
                self.parametrizations.take(self.original)
            for place in self.places:
                install(place.module, place.name, self.parametrizations)


@dataclass
class Postponed:
    """A tensor of a lazy module, which will be constrained when it has a shape.

    It is what waits in the modules that have the tensor; see `constrained.lazy`.

    Attributes:
        places: where it is; forgotten once it waits.
        path: what messages call the tensor.
        request: what is asked for.
        init: how it starts.
        optimizer: who is to be told, if it is still alive then; copies have forgotten it.
        done: what took the tensor's place in the first of its owners to materialize.
    """

    places: list[Place]
    path: str
    request: Request
    init: str
    optimizer: weakref.ref[Optimizer] | None = None
    done: ParametrizationList | None = None

    def modules(self) -> list[nn.Module]:
        """All modules that change."""
        return around(place.module for place in self.places)

    def tensors(self) -> list[Tensor]:
        """No tensor changes."""
        return []

    def succession(self) -> Succession | None:
        """Nothing changes yet for an optimizer."""
        return None

    def do(self) -> None:
        """Begin to wait."""
        places, self.places = self.places, []
        for place in places:
            wait(place.module, place.name, self)
            set_class(place.module, base_class(place.module))

    def change(self, module: nn.Module, name: str) -> Change:
        """What is to be done now that the tensor of a module has its shape."""
        place = Place(self.path, module, name, is_parameter=name in module._parameters)
        original: Any = place.tensor
        if self.done is not None:
            return Change([place], original, self.done, is_new=False)
        return _change([place], original, self.request, self.init)

    def spec(self) -> dict[str, Any] | None:
        """The constraint as plain data; None for a foreign module."""
        constraint, view = self.request.constraint, self.request.view
        if not isinstance(constraint, Constraint):
            return None
        more: dict[str, Any] = {} if view is None else {"view": view, **self.request.sizes}
        if self.init != "keep":
            more["init"] = self.init
        return {**constraint.spec(), **more}

    def value_from(self, state: Mapping[str, Any], said: list[Any] | None) -> Tensor:
        """The value that belongs to the originals in a state dict, by their names there.

        Args:
            state: the entries of the tensor.
            said: what the state dict says that they were written for, if it does.

        Raises:
            ValueError: if only the shape of the tensor would tell.
        """
        if self.request.view is not None:
            raise ValueError(
                f"'{self.path}' has no shape yet, and a view does not tell it from a constrained "
                "checkpoint: call the model once on an example before loading."
            )
        module = self.request.build()
        writer = Writer.other(said, [module], None) if said else None
        if writer is not None and writer.has_only_constraints():
            return writer.value(state)[0]
        own = {k.removeprefix("0."): v for k, v in state.items() if k.startswith("0.")}
        module.load_state_dict(own, strict=False)
        count = sum(key.startswith("original") for key in state)
        names = ["original"] if "original" in state else [f"original{i}" for i in range(count)]
        with torch.no_grad():
            return module(*(state[name] for name in names))

    def __repr__(self) -> str:
        view = "" if self.request.view is None else f" viewed as {self.request.view!r}"
        return f"{self.request.constraint!r}{view}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "optimizer": None}


def prepare(
    here: list[Place], request: Request, init: str, optimizer: Optimizer | None = None
) -> Change | Postponed:
    """Find the free parameters of a tensor; nothing of the model is written.

    Args:
        here: every place of the tensor.
        request: what is asked for.
        init: one of `INITS`.
        optimizer: who is to be told of a change that is put off.

    Raises:
        ValueError: if the tensor cannot be constrained like that. It names the tensor.
        TypeError: likewise.
    """
    place = here[0]
    if init not in INITS:
        raise ValueError(
            f"init must be {', '.join(map(repr, INITS[:-1]))} or {INITS[-1]!r}, got {short(init)}."
            f"{did_you_mean(init, INITS) if isinstance(init, str) else ''}"
        )
    original = place.tensor
    existing: Any = waiting(place.module).get(place.name)
    if isinstance(original, nn.Module):
        existing = " then ".join(repr(p) for p in original.children())
    if existing is not None or isinstance(original, nn.Module):
        raise ValueError(
            f"'{place.path}' is constrained already, by {existing}; release it by this path first."
        )
    try:
        _check_request(request, init)
        for other in here:
            check_not_wrapped(other.module, other.path)
            check_can_hold(other.module, other.name)
            _check_not_written(other)
            if is_lazy(original):
                check_can_wait(other.module)
        if is_lazy(original):
            mine = replace(request, constraint=_fitted(here, request).build())
            told = None if optimizer is None else weakref.ref(optimizer)
            return Postponed(here, place.path, mine, init, told)
    except (ValueError, TypeError) as error:
        raise named(place.path, error) from error.__cause__
    return _change(here, original, request, init)


def _change(here: list[Place], original: Tensor, request: Request, init: str) -> Change:
    warn_of_small_elements(here[0], tuple(original.shape), request)
    warn_of_stacked_gates(here[0], tuple(original.shape), request)
    try:
        request = _fitted(here, request)
        with recording(original):
            parametrizations = _parametrize(original, request, init, here[0].module.training)
            flat = _flat(parametrizations)
    except Exception as error:
        if not _is_ours(error):
            raise_failed(here[0].path, request.constraint, error)
        if isinstance(error, (ValueError, TypeError)):
            raise named(here[0].path, error) from error.__cause__
        raise
    for place in here:
        warn_of_lost_bound(place, original, parametrizations.constraint())
    return Change(here, original, parametrizations, flat=flat)


def carry_out(changes: Sequence[Change | Postponed], optimizer: Optimizer | None) -> None:
    """Change the model, all or nothing, and tell an optimizer."""
    changed = [module for change in changes for module in change.modules()]
    tensors = [tensor for change in changes for tensor in change.tensors()]
    # What a tied tensor's other owner has changed is with the optimizer already.
    first = [c.places[0] for c in changes if isinstance(c, Postponed) or c.is_new]
    check_holds(optimizer, ((place.module, place.name, place.path) for place in first))
    successions = [change.succession() for change in changes]
    with all_or_nothing(changed, tensors, optimizer):
        for change in changes:
            change.do()
        for succession in successions:
            if succession is not None:
                succession.settle(optimizer)
    _warn_of_flat([change for change in changes if isinstance(change, Change) and change.flat[0]])


def _warn_of_flat(changes: Sequence[Change]) -> None:
    """Tell, once, of members that stay where an optimizer will hardly move them."""
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


def constrain_materialized(module: nn.Module) -> None:
    """Constrain those tensors of a lazy module that have waited for a shape, and have it now."""
    tensors: dict[str, Any] = {**module._parameters, **module._buffers}
    items: dict[str, Any] = waiting(module)
    ready = [
        (name, item, item.change(module, name))
        for name, item in items.items()
        if tensors.get(name) is not None and not is_lazy(tensors[name])
    ]
    changed = [changed for _, _, change in ready for changed in change.modules()]
    with Undisturbed():
        with all_or_nothing(changed, [change.original for _, _, change in ready]):
            for name, item, change in ready:
                stop_waiting(module, name)
                carry_out([change], item.optimizer and item.optimizer())
        for _, item, change in ready:
            item.done = change.parametrizations


def stop(here: list[Place]) -> None:
    """Let nothing wait for a tensor any more, at any of its places."""
    for place in here:
        stop_waiting(place.module, place.name)
        set_class(place.module, base_class(place.module))


def _check_request(request: Request, init: str) -> None:
    if isinstance(request.constraint, Constraint):
        return
    if request.view is not None:
        raise SpecError("A view goes with a Constraint, not with any other module.")
    if init != "keep":
        raise SpecError(f"init={init!r} goes with a Constraint, not with any other module.")


def _check_not_written(place: Place) -> None:
    """Raise if torch writes into the tensor whenever its module is called: nobody can keep that."""
    module = place.module
    bound = module.max_norm if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None
    if bound is not None and place.name == "weight":
        raise ValueError(
            f"{type(module).__name__} shortens the rows that it looks up, in place, to "
            f"max_norm={bound!r}, and a value that is computed would lose that; set max_norm=None, "
            f"and constrain it by 'max_norm(bound={bound!r})' if that is what you want."
        )


def _fitted(here: list[Place], request: Request) -> Request:
    """The request with the constraint as the owners of the tensor need it."""
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


def _parametrize(
    original: Tensor, request: Request, init: str, training: bool
) -> ParametrizationList:
    constraint = request.build()
    if request.view is not None:
        assert isinstance(constraint, Constraint)
        constraint = View(constraint, request.view, original.shape, request.sizes)
    constraint.train(training)
    start = original.detach().clone()
    if isinstance(constraint, Constraint):
        start = _start(constraint, start, init)
    found = ParametrizationList([constraint], original, start=start, deferred=True)
    found.moved = _distance(found.preview(), original.detach())
    return found


def _start(constraint: Constraint, value: Tensor, init: str) -> Tensor:
    constraint.check_tensor(value)
    _check_numbers(constraint, value.dtype)
    if init == "sample":
        return constraint.sample(value.shape, dtype=value.dtype, device=value.device)
    if init == "strict" and has_values(value):
        constraint.check_member(value)
        return value
    value = constraint.start(value)
    return constraint.inwards(value, START) if init == "inside" and has_values(value) else value


def _check_numbers(constraint: Constraint, dtype: torch.dtype) -> None:
    """Raise if a number among the arguments of a constraint is none in the dtype it computes in."""
    finfo = torch.finfo(working_dtype(dtype))
    for part in constraint.modules():
        if not isinstance(part, Constraint):
            continue
        for key, number in part.arguments().items():
            if isinstance(number, (int, float)) and math.isfinite(number):
                size = abs(number)
                if size > finfo.max or 0 < size < finfo.smallest_normal * finfo.eps:
                    raise ValueError(
                        f"{part!r}: {key}={number!r} is {'too large' if size > 1 else 'zero'} in "
                        f"{finfo.dtype}, in which the set is computed."
                    )


def _flat(parametrizations: ParametrizationList) -> tuple[int, int]:
    """How many elements of a new value cannot be trained, and of how many."""
    constraint, value = parametrizations.constraint(), parametrizations.preview()
    if constraint is None or not has_values(value):
        return 0, 0
    flat = constraint.flat(value)
    return int(flat.sum()), flat.numel()


def _distance(value: Tensor, before: Tensor) -> float:
    """How far a tensor moves, relative to its norm."""
    if not has_values(value):
        return 0.0
    precise = torch.complex128 if value.is_complex() else torch.float64
    moved = torch.linalg.vector_norm(value.to(precise) - before.to(precise))
    norm = torch.linalg.vector_norm(before.to(precise))
    return float(moved / norm) if norm > 0 else float(moved)


def raise_failed(path: str, module: nn.Module, error: Exception) -> NoReturn:
    """Raise what the code of somebody else raised, its sentence led by the path of the tensor."""
    if isinstance(error, (ValueError, TypeError)) and isinstance(module, Constraint):
        raise named(path, error) from error
    reason = f"{type(module).__name__} raised {type(error).__name__}: {error}"
    if isinstance(error, (ValueError, TypeError)):
        raise named(path, error, reason) from error
    kind = _THEIRS.get(type(error))
    if kind is None:
        # Nobody knows how one of another kind is made.
        error.add_note(f"'{path}': {type(module).__name__} raised this.")
        raise error
    raise kind(_sentence(path, reason)) from error


def _is_ours(error: Exception) -> bool:
    """Whether this package or its catalogue raised an error, rather than what these have called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] in _PACKAGES


def named(
    path: str, error: ValueError | TypeError, reason: str | None = None
) -> ValueError | TypeError:
    """The same error, its sentence led by the path of the tensor.

    Args:
        path: of the tensor.
        error: what was raised.
        reason: the sentence; that of the error if None.
    """
    kind = type(error)
    if kind not in _OURS:
        kind = SpecError if isinstance(error, ValueError) else TypeError
    return kind(_sentence(path, str(error) if reason is None else reason))


def _sentence(path: str, reason: str) -> str:
    # A foreign module may put a whole tensor into its message.
    return f"'{path}': {reason if len(reason) <= 500 else reason[:497] + '...'}"
