"""Updating the groups and the state of an optimizer when parameters of a model are replaced."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Adagrad, Optimizer

from constrained.parametrized.tensor_locations import parameters_at
from constrained.registration.stale_parameters import listed, mark_stale
from constrained.torch_internals.modules import forget_size


class ParameterHandover:
    """Replaces the parameters of one tensor in an optimizer when its module changes.

    It is made before the change, and notes the parameters of that time.

    Args:
        module: the module that has the tensor.
        name: the tensor's name there.
        path: the tensor's name in messages.
    """

    def __init__(self, module: nn.Module, name: str, path: str) -> None:
        self._location = module, name
        self._path = path
        self._before = parameters_at(module, name)
        # A parameter may get another shape and stay the same object.
        self._shapes = {id(p): p.shape for p in self._before.values() if not is_lazy(p)}

    def apply(self, optimizer: Optimizer | None) -> None:
        """After the change: update ``optimizer``. Others that hold old parameters will warn."""
        after = parameters_at(*self._location)
        for parameter in self._before.values():
            if not any(parameter is p for p in after.values()):
                mark_stale(parameter, *self._location, self._path)
        if optimizer is not None:
            hand_over(optimizer, self._before, after, self._shapes)


def check_optimizer(optimizer: Any) -> None:
    """Raise a `TypeError` unless this is an optimizer, or None."""
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}."
        )


def check_holds(optimizer: Optimizer | None, tensors: Iterable[tuple[nn.Module, str, str]]) -> None:
    """Raise a `ValueError` unless the optimizer holds the tensors that change.

    A tensor without a gradient, frozen or a buffer, need not be held. If a tensor has several
    parameters, one of them is enough.

    Args:
        optimizer: is to be updated after the change; nothing is checked for None.
        tensors: the module, the name there and the path of each tensor, before the change.
    """
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    unknown: list[str] = []
    for module, name, path in tensors:
        parameters = parameters_at(module, name).values()
        if any(p.requires_grad for p in parameters) and held.isdisjoint(map(id, parameters)):
            unknown.append(path)
    if unknown:
        raise ValueError(
            f"The optimizer must hold the tensors that change, so that it goes on to train them, "
            f"but this {type(optimizer).__name__} holds nothing of {listed(unknown)}: give the one "
            "that does, or none, and make one afterwards."
        )


def hand_over(
    optimizer: Optimizer,
    before: Mapping[str, nn.Parameter],
    after: Mapping[str, nn.Parameter],
    shapes: Mapping[int, torch.Size],
) -> None:
    """Replace old parameters in an optimizer by new ones, in the same group with its settings.

    The state of an old parameter (moments, step count) goes to the new ones of the same shape. A
    new parameter of another shape has no state at first. `LBFGS` has one history for all
    parameters, which is cleared.

    Args:
        optimizer: any ``torch.optim`` optimizer. If it holds no old parameter, it does not change.
        before: the old parameters by name.
        after: the new ones by name; some may be the same objects.
        shapes: the shapes that the old ones had, by their ids.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    staying = {id(p) for p in before.values()} & {id(p) for p in after.values()}
    known = [p for p in before.values() if id(p) in held]
    if not known:
        return
    arriving = {name: p for name, p in after.items() if id(p) not in held}
    leaving = {id(p) for p in known} - staying
    reshaped = [p for p in known if id(p) in staying and p.shape != shapes[id(p)]]
    former = {id(p): name for name, p in before.items()}
    present = {id(p): name for name, p in after.items()}
    home: dict[str, Any] | None = None
    for group in optimizer.param_groups:
        if home is None and any(id(p) in former for p in group["params"]):
            home = group
        _regroup(group, arriving if home is group else {}, former, present)
    assert home is not None
    if isinstance(optimizer, LBFGS):
        if arriving or leaving or reshaped:
            optimizer.state.clear()
            forget_size(optimizer)
        return
    donors = [(shapes[id(p)], optimizer.state.pop(p, None)) for p in known if id(p) in leaving]
    for p in reshaped:
        optimizer.state.pop(p, None)
    for p in (*arriving.values(), *reshaped):
        state = next((s for shape, s in donors if s and shape == p.shape), None)
        if state is not None and _is_original(present[id(p)]):
            optimizer.state[p] = copy.deepcopy(state)
        elif isinstance(optimizer, Adagrad):
            # Adagrad needs a state for its steps, which only its constructor makes.
            settings = {key: home[key] for key in optimizer.defaults}
            optimizer.state[p] = type(optimizer)([p], **settings).state[p]


def _is_original(name: str) -> bool:
    """Whether a parameter of a tensor is an original, not one of a parametrization's own."""
    parts = name.split(".")
    return len(parts) == 1 or not parts[2].isdigit()


def _regroup(
    group: dict[str, Any],
    arriving: Mapping[str, nn.Parameter],
    former: Mapping[int, str],
    present: Mapping[int, str],
) -> None:
    """Remove old parameters from a group, and insert the new ones after the last of them."""
    names = group.get("param_names")
    entries: list[tuple[Any, str | None]] = []
    last = max((i for i, p in enumerate(group["params"]) if id(p) in former), default=-1)
    for i, p in enumerate(group["params"]):
        old = former.get(id(p))
        prefix = "" if old is None or names is None else names[i].removesuffix(old)
        if old is None:
            entries.append((p, None if names is None else names[i]))
            continue
        if id(p) in present:
            entries.append((p, prefix + present[id(p)]))
        if i == last:
            entries += [(q, prefix + name) for name, q in arriving.items()]
    # In place, since a scheduler or L-BFGS may hold on to the lists.
    group["params"][:] = [p for p, _ in entries]
    if names is not None:
        names[:] = [name for _, name in entries]
