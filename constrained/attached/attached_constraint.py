"""What a module knows of the constraint on a parameter that stays a plain one.

With ``mode="project"`` or ``"penalize"`` a constrained tensor stays an ``nn.Parameter`` under its
own name. All that is added is an `AttachedConstraint` in the ``__dict__`` of its module, which goes
along with copies and pickles of the module and is no part of its state dict.
"""

from __future__ import annotations

import json
import threading
import warnings
import weakref
from collections.abc import Hashable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from constrained.atomic.first_use import note_use
from constrained.atomic.sharded import is_shard
from constrained.constraint.base import Constraint
from constrained.constraint.view import View
from constrained.torch_internals.modules import submodules
from constrained.torch_internals.shards import is_flat, is_managed
from constrained.torch_internals.tensors import version

#: How a constraint is kept; see `constrained.constrain`.
Mode = Literal["parametrize", "project", "penalize"]

MODES: tuple[Mode, ...] = get_args(Mode)

#: What to do about a gradient with NaN or infinity; see `constrained.constrain`.
OnNonfinite = Literal["raise", "skip"]

ON_NONFINITE: tuple[OnNonfinite, ...] = get_args(OnNonfinite)

# Pickles of modules contain this name.
_ATTRIBUTE = "_attached_constraints"


class AttachedConstraint:
    """The constraint of a plain parameter of a module.

    Args:
        module: the module that has the parameter.
        name: its name there.
        constraint: its constraint.
        mode: ``"project"`` or ``"penalize"``.
        moved: how far the tensor went when it was constrained, relative to its norm.
        on_nonfinite: what to do about a gradient with NaN or infinity.
        path: what messages call the tensor.

    Attributes:
        steps: how many optimizer steps have moved the parameter.
        group: the processes among which the work of its steps is divided; see
            `constrained.share_projections`.
        has_warned: whether a warning has told that the parameter is no longer there.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        constraint: Constraint,
        *,
        mode: Mode = "project",
        moved: float | None = None,
        on_nonfinite: OnNonfinite = "raise",
        path: str = "",
    ) -> None:
        self._module = weakref.ref(module)
        self.name, self._constraint, self.path = name, constraint, path or name
        self.mode: Mode = mode
        self.moved, self.on_nonfinite, self.steps = moved, on_nonfinite, 0
        self.has_warned = False
        self.group: Any = None
        self._clean: tuple[int, int] | None = None
        self._key = _batch_key(constraint)
        _index(self)

    def parameter(self) -> nn.Parameter | None:
        """The parameter, as the module has it now; None if it has none of this name."""
        module = self._module()
        return None if module is None else module._parameters.get(self.name)

    def constraint(self) -> Constraint:
        """The constraint of the tensor."""
        return self._constraint

    def settings(self) -> dict[str, str]:
        """The mode, and what else a spec says about how the constraint is kept."""
        more = {} if self.on_nonfinite == "raise" else {"on_nonfinite": self.on_nonfinite}
        return {"mode": self.mode, **more}

    def spec(self) -> dict[str, Any]:
        """The constraint as plain data, with its mode."""
        return {**self._constraint.spec(), **self.settings()}

    def described(self) -> str:
        """The constraint and the mode, as they are written."""
        return f"{self._constraint!r} by mode={self.mode!r}"

    def is_pure(self) -> bool:
        """Whether reading the tensor changes nothing. It always does not."""
        return True

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter."""
        return self().shape

    def forward(self) -> Tensor:
        """The value of the tensor: the parameter itself."""
        found = self.parameter()
        if found is None:
            raise RuntimeError(self.why_lost(self.path))
        return found

    __call__ = forward

    def why_lost(self, path: str) -> str:
        """What to say if the module has no parameter of this name any more.

        Args:
            path: of the tensor.
        """
        return (
            f"'{path}' is constrained by {self.described()}, which needs a parameter, and its "
            "module has none of this name any more, as after pruning or another parametrization: "
            f"undo that, or release '{path}'."
        )

    def is_gathered(self) -> bool:
        """Whether FSDP2 has put the whole tensor in the place of a shard for the time being."""
        module, parameter = self._module(), self.parameter()
        if module is None or parameter is None or is_shard(parameter):
            return False
        return is_managed(module) and not is_flat(parameter)

    def batch_key(self) -> Hashable | None:
        """Equal for tensors whose constraint treats them alike; None for one that is alone."""
        return self._key

    def is_clean(self, parameter: Tensor) -> bool:
        """Whether nobody has written the parameter since `mark_clean`."""
        return self._clean == (id(parameter), version(parameter))

    def mark_clean(self, parameter: Tensor) -> None:
        """Note that the parameter, as it is now, lies in its set."""
        self._clean = id(parameter), version(parameter)

    def __getstate__(self) -> dict[str, Any]:
        # With the module itself: a copy of both then belongs together.
        return {**self.__dict__, "_module": self._module(), "_clean": None, "group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._module = weakref.ref(state["_module"])
        _index(self)


def _batch_key(constraint: Constraint) -> Hashable | None:
    parts: list[Constraint] = [m for m in constraint.modules() if isinstance(m, Constraint)]
    if constraint.event_dim is None or isinstance(constraint, View):
        # The whole tensor is the element: there are no batches of it.
        return None
    if any(p.remembers or p._parameters or p._buffers for p in parts):
        return None
    try:
        return json.dumps(constraint.spec(), sort_keys=True)
    except (TypeError, ValueError):
        # Arguments that JSON cannot hold, such as tensors, are not compared.
        return None


# ------------------------------------------------------------------------- in a module, in a model


def attached(module: nn.Module) -> dict[str, AttachedConstraint]:
    """The attached constraints of a module itself, by the names of their tensors."""
    return module.__dict__.get(_ATTRIBUTE, {})


def attach(module: nn.Module, found: AttachedConstraint) -> None:
    """Attach a constraint to a parameter of a module."""
    module.__dict__.setdefault(_ATTRIBUTE, {})[found.name] = found


def detach(module: nn.Module, name: str) -> None:
    """Leave a parameter of a module unconstrained."""
    found = module.__dict__[_ATTRIBUTE]
    del found[name]
    if not found:
        del module.__dict__[_ATTRIBUTE]
    note_change()


def attached_constraints(model: nn.Module) -> Iterator[tuple[str, AttachedConstraint]]:
    """Every attached constraint of a model, once, with its first path.

    Raises:
        RuntimeError: if a module has no parameter any more where a constraint is attached.
    """
    seen: set[int] = set()
    for path, tensor in _records(model):
        parameter = tensor.parameter()
        if parameter is None:
            raise RuntimeError(tensor.why_lost(path))
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield path, tensor


def lost_parameters(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where a constraint is attached, and the module has no parameter any more, by the paths."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, tensor in _records(model):
        module = tensor._module()
        if module is not None and tensor.parameter() is None:
            found[path] = module, tensor.name
    return found


def _records(model: nn.Module) -> Iterator[tuple[str, AttachedConstraint]]:
    for prefix, module in submodules(model):
        for name, tensor in attached(module).items():
            yield f"{prefix}.{name}" if prefix else name, tensor


# -------------------------------------------------------------- in the process, for the optimizers

_all: weakref.WeakSet[AttachedConstraint] = weakref.WeakSet()

_lock = threading.Lock()

_revision = 0


def _index(tensor: AttachedConstraint) -> None:
    note_use()
    with _lock:
        _all.add(tensor)
    note_change()


def note_change() -> None:
    """Have optimizers look anew for the constraints of their parameters."""
    global _revision
    with _lock:
        _revision += 1


def revision() -> int:
    """A number that grows whenever there is another attached constraint, or one less."""
    return _revision


def are_there_any() -> bool:
    """Whether the process has any attached constraint."""
    return len(_all) > 0


def projected_by_parameter() -> dict[int, AttachedConstraint]:
    """The constraints of the process with ``mode="project"`` by the ids of their parameters."""
    with _lock:
        everything = [tensor for tensor in _all if tensor.mode == "project"]
    found: dict[int, AttachedConstraint] = {}
    for tensor in everything:
        module = tensor._module()
        # A record that `release` has detached may still be alive in a traceback.
        if module is None or attached(module).get(tensor.name) is not tensor:
            continue
        parameter = tensor.parameter()
        if parameter is not None:
            found.setdefault(id(parameter), tensor)
        elif not tensor.has_warned:
            tensor.has_warned = True
            warnings.warn(f"{tensor.why_lost(tensor.path)} No step keeps it.", stacklevel=2)
    return found
