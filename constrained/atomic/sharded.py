"""Originals that FSDP keeps in shards: how they are read and written as whole tensors.

Inside of a forward or backward pass FSDP has gathered them, and there is nothing to do. Outside,
FSDP2 (``fully_shard``) replaces each by a ``DTensor``: all processes together can make the whole
tensor of it, and each can write its own shard. FSDP1 (``FullyShardedDataParallel``) replaces each
by a flat piece, from which nothing can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.torch_internals import shards


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``: a shard of a larger one, or a replica of one."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, of which ``tensor`` may be a shard; differentiable.

    For a shard this is a collective: every process that holds one must call it.
    """
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def write(shard: Any, source: Tensor) -> None:
    """Write this process's part of ``source``, a tensor that all processes have, into a shard.

    Raises:
        ValueError: if the shapes differ.
    """
    if shard.shape != source.shape:
        raise ValueError(
            f"A tensor of shape {tuple(source.shape)} cannot be written into a sharded one of "
            f"shape {tuple(shard.shape)}."
        )
    shard.copy_(shards.own_part(source, shard))


def evaluate(
    function: Callable[..., Tensor],
    originals: Sequence[Tensor],
    others: Iterable[Tensor],
    shape: torch.Size | None,
) -> Tensor:
    """Evaluate a parametrization whose originals FSDP manages, gathered or not.

    Args:
        function: computes the value from whole originals.
        originals: the originals as they are now, whole or not.
        others: further tensors that ``function`` uses.
        shape: the shape of the value, if it is known.

    Raises:
        RuntimeError: if the value cannot be computed from what this process has.
    """
    if any(map(is_shard, others)):
        raise RuntimeError(
            "a parametrization has parameters of its own, which FSDP has sharded; call unshard() "
            "of the wrapped module before the read."
        )
    if not any(shards.is_flat(t) for t in originals):
        return function(*map(whole, originals))
    try:
        value = function(*originals)
    except (RuntimeError, ValueError, IndexError) as error:
        raise RuntimeError(_FLAT) from error
    if shape is not None and value.shape != shape:
        raise RuntimeError(_FLAT)
    return value


def check_writable(originals: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Raise if FSDP would lose what is written into these originals.

    Raises:
        RuntimeError: says what to do instead.
    """
    for old, tensor in zip(originals, new, strict=True):
        if shards.is_flat(old):
            if old.shape != tensor.shape:
                raise RuntimeError(_FLAT)
        elif isinstance(old, nn.Parameter) and not is_shard(old):
            raise RuntimeError(
                "FSDP has gathered the original of a parametrized tensor, and what is written "
                "into it now is lost; call reshard() of the wrapped module before the assignment."
            )


_FLAT = (
    "FullyShardedDataParallel has left this process a part of the originals of a parametrized "
    "tensor only; read and assign it inside of `FullyShardedDataParallel.summon_full_params(model)`"
    ", or use fully_shard."
)
