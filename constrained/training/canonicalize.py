"""What is done to the originals of one tensor before and after an optimizer step.

* `prepare_step`, before the step: the constraint may replace the gradient by a better direction;
* `canonicalize`, after it: the originals are replaced by canonical ones, by `Constraint.canonical`.
  They give the same value, and the map is cheapest there;
* `canonicalize_batch`: the same for many small tensors of a kind at once;
* `reset_originals`, for L-BFGS instead: the originals are replaced by those that
  `Constraint.right_inverse` gives for the value.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.constraint.base import Constraint
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.right_inverse import invert
from constrained.torch_internals.shards import is_flat
from constrained.torch_internals.tensors import version
from constrained.training.tasks import Task

#: Tensors of at most ``_SMALL`` entries are canonicalized in batches of at most ``_BATCH`` entries.
_SMALL, _BATCH = 2**16, 2**22

#: Attributes that every constraint has beside its arguments.
_OF_EVERY_CONSTRAINT = frozenset({*vars(nn.Module()), "_revision", "_map_revision"})

_HALF = (torch.float16, torch.bfloat16)

#: What is noted for a tensor before its gradient is replaced for the first time: no gradient, and
#: version 0 of it.
_NOT_PREPARED: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)


# ------------------------------------------------------------------------------ before the step


def replaces_gradient(tensor: ParametrizationList) -> bool:
    """Whether `prepare_step` replaces the gradient of a tensor's first original.

    Args:
        tensor: the list of the tensor.
    """
    first = tensor.chain()[0]
    return (
        len(tensor.chain()) == 1
        and isinstance(first, Constraint)
        and first.has_step_gradient()
        and first.has_own_map()
    )


def prepare_step(tensor: ParametrizationList) -> Task | None:
    """Replace the gradient of the first original by the `step_gradient` of the constraint.

    Nothing happens if there is no dense gradient, or if FSDP1 has cut the originals.

    Args:
        tensor: a list for which `replaces_gradient` is true.

    Returns:
        The task that does so, if the originals are shards; the processes divide such tasks. None if
        it is done.
    """
    originals = tensor.originals()
    before = originals[0].grad
    if before is None or before.layout is not torch.strided or any(map(is_flat, originals)):
        return None
    # A step may run inside of another one. The gradient must not be replaced twice.
    prepared, prepared_version = tensor._notes.get("prepared", _NOT_PREPARED)
    if prepared() is before and version(before) == prepared_version:
        return None
    constraint: Any = tensor.chain()[0]
    if all(map(sharded.is_shard, (before, *originals))):
        # What is written into the shards below does not show in the version.
        tensor._notes["prepared"] = weakref.ref(before), version(before)
        given = [before, *originals]
        return Task(constraint, repr(constraint), _step_gradient, given, [before])
    with torch.no_grad():
        params = map(sharded.whole, originals)
        found: Tensor = constraint.step_gradient(sharded.whole(before), *params)
        now = before
        if found is not before and _has_memory_of_its_own(before):
            originals[0].grad = now = found
        elif found is not before:
            store(before, found)
    tensor._notes["prepared"] = weakref.ref(now), version(now)
    return None


def _step_gradient(constraint: Constraint, gradient: Tensor, *params: Tensor) -> list[Tensor]:
    constraint_: Any = constraint
    return [constraint_.step_gradient(gradient, *params)]


# ------------------------------------------------------------------------------- after the step


def canonicalize(
    tensor: ParametrizationList, trained: Collection[int] | None = None
) -> Task | None:
    """Replace the originals by canonical ones, with the same value.

    The flat pieces that FSDP1 leaves to a process stay as they are.

    Args:
        tensor: the list of the tensor.
        trained: the ids of the parameters that may be written; all if None.

    Returns:
        The task that does so, if the originals are shards; the processes divide such tasks. None if
        it is done.
    """
    first = tensor.chain()[0]
    if not _has_canonical(first):
        return None
    originals = tensor.originals()
    if any(map(is_flat, originals)):
        return None
    groups = first.restored_together(len(originals))
    written = {i for group in groups if _may_write(tensor, group, trained) for i in group}
    if not written:
        return None
    if all(map(sharded.is_shard, originals)):
        shards = [originals[i] for i in sorted(written)]
        return Task(first, repr(first), _Canonical(tuple(sorted(written))), originals, shards)
    with torch.no_grad():
        params = tuple(map(sharded.whole, originals))
        canonical = first.canonical(*params)
        for i, (original, old, new) in enumerate(zip(originals, params, canonical, strict=True)):
            if i in written and new is not old:
                store(original, new)
        if first.value_index is not None and len(written) == len(originals):
            _remember_value(tensor, first, canonical[first.value_index])
    return None


@dataclass(frozen=True)
class _Canonical:
    """The function of the tasks that replace some of the originals by canonical ones."""

    indices: tuple[int, ...]

    def __call__(self, constraint: Constraint, *params: Tensor) -> list[Tensor]:
        canonical = constraint.canonical(*params)
        return [canonical[i] for i in self.indices]


def reset_originals(tensor: ParametrizationList, trained: Collection[int] | None = None) -> None:
    """Replace the originals by those that the right inverse gives for the value.

    These are canonical. One call of `canonicalize` may get only closer to the canonical form.

    Args:
        tensor: the list of the tensor.
        trained: the ids of the parameters that may be written; all if None.
    """
    first = tensor.chain()[0]
    if not _has_canonical(first):
        return
    originals = tensor.originals()
    if not any(map(is_flat, originals)) and _may_write(tensor, range(len(originals)), trained):
        with torch.no_grad():
            tensor.store_originals(invert(tensor, tensor()))


def _may_write(
    tensor: ParametrizationList, indices: Iterable[int], trained: Collection[int] | None
) -> bool:
    """Whether each of these originals is a constant or is trained. Others must not change."""
    names = tensor.names()
    return all(
        name in tensor._buffers
        or ((p := tensor._parameters.get(name)) is not None and _is_among(p, trained))
        for name in (names[i] for i in indices)
    )


def batch_key(tensor: ParametrizationList) -> Hashable | None:
    """A key that is equal for tensors which may be canonicalized as one batch.

    Args:
        tensor: the list of the tensor.

    Returns:
        None for a tensor that must be canonicalized alone: it is large, it has several originals,
        or its constraint holds tensors of its own or arguments that cannot be compared.
    """
    first = tensor.chain()[0]
    if not (isinstance(first, Constraint) and first.value_index is not None and tensor.is_tensor):
        return None
    if not _has_canonical(first):
        return None
    if first.remembers or first._parameters or first._buffers or first._modules:
        # Constraints with equal arguments may have different tensors of their own.
        return None
    here = tensor.original
    if type(here) is not nn.Parameter or not 0 < here.numel() <= _SMALL:
        return None
    arguments = {k: v for k, v in vars(first).items() if k not in _OF_EVERY_CONSTRAINT}
    if not all(isinstance(v, (str, int, float)) for v in arguments.values()):
        return None
    return type(first), frozenset(arguments.items()), here.shape, here.dtype, here.device


def canonicalize_batch(alike: Sequence[ParametrizationList]) -> None:
    """`canonicalize` for lists with the same `batch_key`, many at once.

    Args:
        alike: the lists, at least one.
    """
    count = max(1, _BATCH // alike[0].original.numel())
    for start in range(0, len(alike), count):
        some = alike[start : start + count]
        if len(some) == 1:
            canonicalize(some[0])
            continue
        with torch.no_grad():
            first = cast(Any, some[0].chain()[0])
            canonicals: tuple[Tensor] = first.canonical(torch.stack([a.original for a in some]))
            (canonical,) = canonicals
            for item, new in zip(some, canonical, strict=True):
                # A value must not share its memory or its version counter with others.
                new = new.clone()
                item.original.copy_(new)
                _remember_value(item, item.chain()[0], new)


def _remember_value(tensor: ParametrizationList, first: Any, canonical: Tensor) -> None:
    """Store the value, which is equal to one of the canonical originals."""
    here = tensor.originals()
    index: int = first.value_index
    value = here[index]
    # In half precision an evaluation computes in single precision and rounds the value, so that it
    # may differ from the original. And a shard is not the whole value.
    exact = value.shape == canonical.shape and value.dtype not in _HALF
    if exact and len(tensor.chain()) == 1 and not torch.compiler.is_compiling():
        # A value must not share its memory or its version counter with the original.
        apart = canonical.clone() if canonical is value else canonical
        tensor._store.precompute(tensor, apart, first.value_index)


def _has_canonical(module: nn.Module) -> TypeGuard[Constraint]:
    """Whether a constraint defines canonical parameters for the map that it has now."""
    return isinstance(module, Constraint) and module.has_canonical() and module.has_own_map()


def _is_among(parameter: Tensor, ids: Collection[int] | None) -> bool:
    return ids is None or id(parameter) in ids


def _has_memory_of_its_own(tensor: Tensor) -> bool:
    """Whether the tensor is no view of a larger one, such as a bucket of DDP."""
    own = tensor.numel() * tensor.element_size()
    return type(tensor) is Tensor and tensor.untyped_storage().nbytes() == own
