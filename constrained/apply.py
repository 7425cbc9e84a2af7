"""Constrain the tensors of a model, and release them: all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from constrained import lazy
from constrained.constraint import Constraint, InfeasibleError, has_values
from constrained.handover import Succession, check_optimizer
from constrained.install import check_can_hold, install, uninstall
from constrained.originals import recording, store
from constrained.parametrization_list import ParametrizationList, read
from constrained.places import is_parametrized
from constrained.registry import UnknownNameError, did_you_mean
from constrained.removal import remove_parametrizations
from constrained.select import Place, constrained_tensors, places, select
from constrained.spec import Request, SpecError, parse
from constrained.view import View
from constrained.wrapped import check_not_wrapped

INITS = ("keep", "sample", "strict")


def constrain(
    module: nn.Module,
    target: str | Mapping[str, Any],
    constraint: Any = None,
    *,
    view: str | None = None,
    init: str = "keep",
    optimizer: Optimizer | None = None,
    **arguments: Any,
) -> nn.Module:
    """Keep tensors of a model inside constraint sets from now on.

    Nothing else changes: any optimizer, any training loop. A tensor is then computed from free
    parameters, under ``parametrizations.<name>`` of its module. Tied tensors stay tied. After any
    error the model is as it was.

    Args:
        module: the model.
        target: a tensor's name, a dotted path, a glob over parameter paths (``*`` stays inside
            one segment, ``**`` crosses them), or a mapping from these to specs, as it comes out of
            YAML or JSON.
        constraint: a registered name, a spec string such as ``"low_rank(rank=8)"``, a mapping
            ``{"name": ..., <arguments>, "view": ..., "init": ...}``, a class path
            ``"package.module:Class"`` of an imported module, a `Constraint` (copied for every
            tensor), or any ``nn.Module`` with a ``forward``.
        view: an einops pattern that says how the tensor is seen as elements, for example
            ``"o i h w -> o (i h w)"``; lengths of its axes may follow as keyword arguments.
        init: ``"keep"``: a tensor in the set stays, another goes to the nearest point that
            ``project`` finds; ``"sample"``: a random element; ``"strict"``: a tensor outside the
            set is an error. `report` shows how far each tensor moved.
        optimizer: an optimizer that holds the tensors already: it is given the parameters that
            take their place. Without it, an optimizer that goes on to hold a tensor which left
            the model warns at its next step.
        arguments: arguments of the constraint's constructor.

    Returns:
        ``module``.

    Raises:
        ValueError: for a name, an argument, a target, a view or a shape that does not fit, for
            NaN or infinite values, and under ``init="strict"`` for a tensor outside the set
            (`InfeasibleError`). One sentence that names the tensor by its path.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model already.

    Example:
        >>> import torch
        >>> from constrained import constrain
        >>> layer = constrain(torch.nn.Linear(4, 4), "weight", "orthogonal")
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)
        True
    """
    check_optimizer(optimizer)
    requests = _requests(target, constraint, view, arguments)
    chosen = select(module, requests)
    changes = [_prepare(p, request, request.init or init) for p, request in chosen.values()]
    successions = [
        Succession(change.places[0].module, change.places[0].name, change.places[0].path)
        for change in changes
        if isinstance(change, _Change)
    ]
    _commit(changes)
    for succession in successions:
        succession.settle(optimizer)
    return module


def release(
    module: nn.Module,
    target: str = "**",
    *,
    bake: bool = True,
    optimizer: Optimizer | None = None,
) -> nn.Module:
    """Make constrained tensors plain parameters again.

    Args:
        module: the model.
        target: as in `constrain`; every constrained tensor by default.
        bake: leave each tensor at its value; else at its free parameter, which is possible only
            where there is a single one.
        optimizer: an optimizer that holds the free parameters: it is given the tensors.

    Returns:
        ``module``.

    Raises:
        ValueError: if a target other than ``"**"`` means no constrained tensor, or a tensor that
            has several free parameters should be left unbaked. The model is then as it was.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model.
    """
    check_optimizer(optimizer)
    if not isinstance(target, str):
        raise TypeError(f"The target must be a path or a glob, got {type(target).__name__}.")
    constrained = {
        path: place
        for path, place in places(module).items()
        if is_parametrized(*_owner(place)) or lazy.pending(*_owner(place))
    }
    if target != "**" or constrained:
        chosen = [p[0] for p, _ in select(module, {target: None}).values()]
        chosen = [place for place in chosen if place.path in constrained]
        if target != "**" and not chosen:
            raise ValueError(
                f"{target!r} means no constrained tensor of {type(module).__name__}."
                f"{did_you_mean(target, constrained)}"
            )
    else:
        chosen = []
    waiting = [place for place in chosen if lazy.pending(*_owner(place))]
    chosen = [place for place in chosen if place not in waiting]
    for place in chosen:
        parametrizations = place.tensor
        if not bake and not parametrizations.is_tensor:  # type: ignore[union-attr]
            raise ValueError(
                f"'{place.path}' has several free parameters, so bake=False leaves nothing that "
                "could take its place; use bake=True."
            )
        check_not_wrapped(place.module, place.path)
    if bake:
        # What fails on the value of one tensor fails before any other is released.
        with torch.no_grad():
            for place in chosen:
                read(place.tensor, place.path)  # type: ignore[arg-type]
    for place in waiting:
        lazy.drop(place.module, place.name)
    for place in chosen:
        remove_parametrizations(module, place.path, leave_parametrized=bake, optimizer=optimizer)
    return module


def rebase(model: nn.Module) -> nn.Module:
    """Choose the free parameters of every constrained tensor anew, at its present value.

    What a right inverse gives is the middle of its map: the base point of a chart moves to the
    value, factors are balanced, rounding is cleaned up. The values stay.
    """
    for path, parametrizations, _ in constrained_tensors(model):
        with torch.no_grad():
            parametrizations.right_inverse(read(parametrizations, path))
    return model


@dataclass
class _Change:
    """A tensor that is about to be constrained."""

    places: list[Place]
    original: Tensor
    before: Tensor
    parametrizations: ParametrizationList

    def do(self) -> None:
        self.parametrizations.take(self.original)
        for place in self.places:
            install(place.module, place.name, self.parametrizations)

    def undo(self) -> None:
        for place in self.places:
            if is_parametrized(place.module, place.name):
                persistent = self.parametrizations.persistent
                uninstall(place.module, place.name, self.original, persistent)
        with torch.no_grad():
            store(self.original, self.before)


@dataclass
class _Wait:
    """A tensor without a shape, which will be constrained in the first forward pass."""

    places: list[Place]
    pending: lazy.Pending

    def do(self) -> None:
        lazy.wait(self.places[0].module, self.places[0].name, self.pending)

    def undo(self) -> None:
        lazy.drop(self.places[0].module, self.places[0].name)


def _constrain_pending(module: nn.Module, name: str, pending: lazy.Pending) -> None:
    """Constrain a tensor that waited for its shape."""
    place = Place(pending.path, module, name, name in module._parameters)
    _commit([_prepare([place], pending.request, pending.init)])


def _requests(
    target: str | Mapping[str, Any], constraint: Any, view: str | None, arguments: dict[str, Any]
) -> dict[str, Request]:
    if isinstance(target, str):
        if constraint is None:
            raise SpecError(f"No constraint was given for {target!r}.")
        return {target: _parse(target, constraint, view, arguments)}
    if not isinstance(target, Mapping):
        raise SpecError(
            "The target must be a path, a glob, or a mapping from these to constraints, got "
            f"{type(target).__name__}."
        )
    for key in target:
        if not isinstance(key, str):
            raise SpecError(f"A target is a path or a glob, a string, got {key!r}.")
    if constraint is not None or view is not None or arguments:
        raise SpecError(
            "A mapping of targets holds the constraints with their views and arguments; none may "
            "be given beside it."
        )
    return {key: _parse(key, spec, None, {}) for key, spec in target.items()}


def _parse(target: str, spec: Any, view: str | None, arguments: dict[str, Any]) -> Request:
    try:
        return parse(spec, view, **arguments)
    except ValueError as error:
        raise _named(target, error) from error.__cause__


def _prepare(here: list[Place], request: Request, init: str) -> _Change | _Wait:
    """Find the free parameters of a tensor; nothing of the model is written."""
    place = here[0]
    if init not in INITS:
        raise ValueError(
            f"init must be {', '.join(map(repr, INITS[:-1]))} or {INITS[-1]!r}, got {init!r}."
            f"{did_you_mean(str(init), INITS)}"
        )
    original = place.tensor
    if not isinstance(original, Tensor):
        existing = " then ".join(repr(p) for p in original.children())
        raise ValueError(
            f"'{place.path}' is constrained already, by {existing}; release() it first."
        )
    if is_lazy(original):
        return _prepare_to_wait(here, request, init)
    try:
        for other in here:
            check_not_wrapped(other.module, other.path)
            check_can_hold(other.module, other.name)
        with recording(original):
            parametrizations = _parametrize(original, request, init, place.module.training)
            before = original.detach().clone()
            parametrizations.moved = _distance(parametrizations.preview(), before)
    except (ValueError, TypeError) as error:
        raise _named(place.path, error) from error.__cause__
    return _Change(here, original, before, parametrizations)


def _parametrize(
    original: Tensor, request: Request, init: str, training: bool
) -> ParametrizationList:
    constraint = request.build()
    if request.view is not None:
        if not isinstance(constraint, Constraint):
            raise SpecError("A view goes with a Constraint, not with any other module.")
        constraint = View(constraint, request.view, original.shape, request.sizes)
    constraint.train(training)
    start = original.detach().clone()
    if isinstance(constraint, Constraint):
        start = _start(constraint, start, init)
    elif init != "keep":
        raise SpecError(f"init={init!r} goes with a Constraint, not with any other module.")
    return ParametrizationList([constraint], original, start=start, deferred=True)


def _prepare_to_wait(here: list[Place], request: Request, init: str) -> _Wait:
    place = here[0]
    waiting = lazy.pending(place.module, place.name)
    if waiting is not None:
        raise ValueError(
            f"'{place.path}' is constrained already, by {waiting.request.constraint!r} from its "
            "first forward pass on; release() it first."
        )
    if len(here) > 1:
        raise ValueError(
            f"'{place.path}' is tied to '{here[1].path}' and has no shape yet; run a forward pass, "
            "then constrain it."
        )
    return _Wait(here, lazy.Pending(place.path, request, init, _constrain_pending))


def _start(constraint: Constraint, value: Tensor, init: str) -> Tensor:
    constraint.check_tensor(value)
    if init == "sample":
        return constraint.sample(value.shape, dtype=value.dtype, device=value.device)
    if init == "strict" and has_values(value):
        constraint.check_member(value)
        return value
    return constraint.nearest(value)


def _commit(changes: Sequence[_Change | _Wait]) -> None:
    done: list[_Change | _Wait] = []
    try:
        for change in changes:
            done.append(change)
            change.do()
    except BaseException:
        for change in reversed(done):
            change.undo()
        raise


def _distance(value: Tensor, before: Tensor) -> float:
    """How far a tensor moves, relative to its norm."""
    if not has_values(value):
        return 0.0
    precise = torch.complex128 if value.is_complex() else torch.float64
    moved = torch.linalg.vector_norm(value.to(precise) - before.to(precise))
    norm = torch.linalg.vector_norm(before.to(precise))
    return float(moved / norm) if norm > 0 else float(moved)


def _named(path: str, error: ValueError | TypeError) -> ValueError | TypeError:
    """The same error, its sentence led by the path of the tensor."""
    kind = type(error)
    if kind not in (ValueError, TypeError, InfeasibleError, SpecError, UnknownNameError):
        kind = SpecError if isinstance(error, ValueError) else TypeError
    # A foreign module may put a whole tensor into its message.
    reason = str(error)
    return kind(f"'{path}': {reason if len(reason) <= 500 else reason[:497] + '...'}")


def _owner(place: Place) -> tuple[nn.Module, str]:
    return place.module, place.name
