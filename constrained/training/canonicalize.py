"""What an optimizer step does to the originals of one tensor: before it, and after it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from constrained.atomic import sharded
from constrained.atomic.contents import store
from constrained.constraint.base import Constraint
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.right_inverse import invert
from constrained.torch_internals.shards import is_flat
from constrained.torch_internals.tensors import version

#: Tensors of so many entries are small, and as many are restored at once.
_SMALL, _BATCH = 2**16, 2**22

#: What a constraint keeps beside its arguments, and what follows from them.
_OF_EVERY_CONSTRAINT = frozenset({*vars(nn.Module()), "_revision", "_map_revision"})

_HALF = (torch.float16, torch.bfloat16)

#: Of a tensor whose gradient no step has been made of.
_NOT_PREPARED: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)


def has_step_gradient(tensor: ParametrizationList) -> bool:
    """Whether a step is made of something else than the gradient of the first original."""
    first = tensor.chain()[0]
    return (
        len(tensor.chain()) == 1
        and isinstance(first, Constraint)
        and first.has_step_gradient()
        and first.has_own_map()
    )


def prepare_step(tensor: ParametrizationList) -> None:
    """Make of the gradient of the first original what a step is made of."""
    mine = tensor.originals()
    before = mine[0].grad
    if before is None or before.layout is not torch.strided or any(map(is_flat, mine)):
        return
    # A step may run in another one, and the gradient must not be made anew in both.
    made, made_version = tensor._notes.get("prepared", _NOT_PREPARED)
    if made() is before and version(before) == made_version:
        return
    with torch.no_grad():
        found = tensor.chain()[0].step_gradient(  # type: ignore[operator]
            sharded.whole(before), *map(sharded.whole, mine)
        )
        now = before
        if found is not before and _has_memory_of_its_own(before):
            mine[0].grad = now = found
        elif found is not before:
            store(before, found)
    tensor._notes["prepared"] = weakref.ref(now), version(now)


def restore(tensor: ParametrizationList, trained: Collection[int] | None = None) -> None:
    """Bring the originals to the canonical form of the first constraint; the value stays.

    Shards of originals are restored together with the other processes. The pieces that the
    first FSDP leaves a process are not restored.

    Args:
        trained: the ids of the parameters that may be written; all if None.
    """
    first = tensor.chain()[0]
    if not _has_canonical(first):
        return
    mine = tensor.originals()
    if any(map(is_flat, mine)):
        return
    groups = first.restored_together(len(mine))
    places = {i for group in groups if _may_write(tensor, group, trained) for i in group}
    if not places:
        return
    with torch.no_grad():
        originals = tuple(map(sharded.whole, mine))
        canonical = first.canonical(*originals)
        for i, (here, old, new) in enumerate(zip(mine, originals, canonical, strict=True)):
            if i in places and new is not old:
                store(here, new)
        if first.value_index is not None and len(places) == len(mine):
            _remember_value(tensor, first, canonical[first.value_index])


def restart(tensor: ParametrizationList, trained: Collection[int] | None = None) -> None:
    """Bring the originals to where `right_inverse` puts the value, all of the way.

    To the canonical form there may be several restorations to go.

    Args:
        trained: the ids of the parameters that may be written; all if None.
    """
    first = tensor.chain()[0]
    if not _has_canonical(first):
        return
    mine = tensor.originals()
    if not any(map(is_flat, mine)) and _may_write(tensor, range(len(mine)), trained):
        with torch.no_grad():
            tensor.store_originals(invert(tensor, tensor()))


def _may_write(
    tensor: ParametrizationList, places: Iterable[int], trained: Collection[int] | None
) -> bool:
    """Whether these originals are constants, or trained: others keep every bit."""
    names = tensor.names()
    return all(
        name in tensor._buffers
        or ((p := tensor._parameters.get(name)) is not None and _is_among(p, trained))
        for name in (names[i] for i in places)
    )


def batch_key(tensor: ParametrizationList) -> Hashable | None:
    """What tensors have in common that may be restored as one batch; None for a large one."""
    first = tensor.chain()[0]
    if not (isinstance(first, Constraint) and first.value_index is not None and tensor.is_tensor):
        return None
    if not _has_canonical(first):
        return None
    if first.remembers or first._parameters or first._buffers or first._modules:
        # What it has of its own is no argument, and may differ.
        return None
    here = tensor.original
    if type(here) is not nn.Parameter or not 0 < here.numel() <= _SMALL:
        return None
    arguments = {k: v for k, v in vars(first).items() if k not in _OF_EVERY_CONSTRAINT}
    if not all(isinstance(v, (str, int, float)) for v in arguments.values()):
        return None
    return type(first), frozenset(arguments.items()), here.shape, here.dtype, here.device


def restore_batch(alike: Sequence[ParametrizationList]) -> None:
    """Restore lists that have one `batch_key`, many at once."""
    count = max(1, _BATCH // alike[0].original.numel())
    for start in range(0, len(alike), count):
        some = alike[start : start + count]
        if len(some) == 1:
            restore(some[0])
            continue
        with torch.no_grad():
            (canonical,) = some[0].chain()[0].canonical(torch.stack([a.original for a in some]))  # type: ignore[operator]
            for item, new in zip(some, canonical, strict=True):
                # A value must not share its memory with others, nor its version.
                new = new.clone()
                item.original.copy_(new)
                _remember_value(item, item.chain()[0], new)


def _remember_value(tensor: ParametrizationList, first: Any, canonical: Tensor) -> None:
    """Remember the value, which an ambient constraint has as its parameter."""
    here = tensor.originals()
    value = here[first.value_index]
    # A half-precision value is rounded from an evaluation in single precision, and a shard is
    # not the value.
    exact = value.shape == canonical.shape and value.dtype not in _HALF
    if exact and len(tensor.chain()) == 1 and not torch.compiler.is_compiling():
        # A value must not share its memory with others, nor its version.
        apart = canonical.clone() if canonical is value else canonical
        tensor._store.precompute(tensor, apart, first.value_index)


def _has_canonical(module: nn.Module) -> TypeGuard[Constraint]:
    """Whether a constraint says of the map that it has which parameters are canonical."""
    return isinstance(module, Constraint) and module.has_canonical() and module.has_own_map()


def _is_among(parameter: Tensor, ids: Collection[int] | None) -> bool:
    return ids is None or id(parameter) in ids


def _has_memory_of_its_own(tensor: Tensor) -> bool:
    """Whether nobody has a tensor of which this one is a part, as the buckets of DDP."""
    own = tensor.numel() * tensor.element_size()
    return type(tensor) is Tensor and tensor.untyped_storage().nbytes() == own
