"""A stored value, and everything that must still hold for it to be reused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from constrained.constraint.precision import is_autocast
from constrained.evaluation.backward import (
    Kept,
    KeptArguments,
    replay,
)
from constrained.evaluation.cached import active_context
from constrained.evaluation.evaluated_tensor import EvaluatedTensor
from constrained.evaluation.fingerprint import Fingerprint
from constrained.evaluation.inplace_writes import shares_memory
from constrained.evaluation.tensor_state import TensorState
from constrained.torch_internals.moments import (
    is_transformed,
    stream_of,
    unseen,
)
from constrained.torch_internals.tensors import version

# Each read of a value asks these.
_is_inference, _is_recording = torch.is_inference_mode_enabled, torch.is_grad_enabled


class StoredValue:
    """A value, and everything that must still be so for it to be valid.

    Attributes:
        value: what it is; nobody gets this very tensor.
        plain: without a graph, once somebody has read it so.
        tracked: with the graph, where one was recorded.
        is_pure: whether evaluating again would give the same.
        node: the end of that graph, which somebody may cut off by ``detach_()``.
        records: whether a read that records gradients may be served.
    """

    __slots__ = (
        "_context",
        "_holds",
        "_inference",
        "_is_source",
        "_kept",
        "_surroundings",
        "is_pure",
        "node",
        "plain",
        "records",
        "tracked",
        "value",
    )

    def __init__(
        self,
        kept: Kept,
        inputs: Sequence[Tensor],
        originals: Sequence[Tensor],
        fingerprint: Fingerprint,
        context: object | None,
    ) -> None:
        self.value = TensorState(kept.value.detach())
        self._kept = kept
        self.is_pure = kept.is_repeatable
        self._holds = fingerprint.holds
        sources = fingerprint.states
        differentiable = [seen.tensor for seen in sources if seen.requires_grad]
        # A constraint may hand out its argument: then a write is a write of the original.
        self._is_source = shares_memory(kept.value, [seen.tensor for seen in sources])
        self.records = torch.is_grad_enabled() or not differentiable
        self.tracked = kept.value.detach()
        self.plain: Tensor | None = self.tracked
        # Where nothing is recorded, a value that requires a gradient is one of the originals.
        is_recorded = kept.value.requires_grad and _is_recording()
        if is_recorded or isinstance(kept, KeptArguments):
            # Those of a constraint's own.
            more = [t for t in differentiable if not any(t is x for x in originals)]
            kept.fingerprint, kept.state = fingerprint, self.value
            self.tracked, self.plain = replay(kept, *inputs, *more), None
        self.node = self.tracked.grad_fn
        self._context = context
        self._inference = torch.is_inference_mode_enabled()
        self._surroundings = self._look_around()

    def served(self) -> Tensor:
        """The tensor that is handed out in the present gradient mode."""
        if _is_recording():
            return self.tracked
        if self.plain is None:
            self.plain = self.value.tensor.detach()
        return self.plain

    def is_valid(self, on: EvaluatedTensor) -> bool:
        """Whether the value is what an evaluation would give now."""
        if self._inference is not _is_inference() or self._kept.is_spent:
            return False
        if self._surroundings is not None and self._surroundings != self._look_around():
            return False
        return self._holds(on.__dict__)

    def read(self, on: EvaluatedTensor) -> Tensor | None:
        """The value for the present gradient mode, if it may be served.

        It may not if it was written, if it is not what an evaluation would give, if it was not
        recorded and is to be, or was cut off from its graph, and where values are bypassed.
        """
        if _is_recording():
            served = self.tracked
            node = self.node
            if (
                not self.records
                or served.grad_fn is not node
                or (node is None and served.requires_grad)
            ):
                return None
        else:
            served = self.plain
            if served is not None and served.requires_grad:
                return None
        # This is most of what a read takes: what else there are functions for is spelled out.
        value = self.value
        if (
            is_transformed()
            or self._inference is not _is_inference()
            or self._kept.is_spent
            or (self._surroundings is not None and self._surroundings != self._look_around())
            or self.tracked.data_ptr() != value.address
            or (self.plain is not None and self.plain.data_ptr() != value.address)
            or (value.version is not None and value.version != version(value.tensor))
            or not value.matches()
            or not self._holds(on.__dict__)
        ):
            return None
        return self.served() if served is None else served

    def is_written(self) -> bool:
        """Whether somebody wrote into the value, or put other numbers in its place."""
        if not self.value.is_untouched():
            return True
        # The same numbers in other memory are no write: such is a change of the memory format.
        value = self.value.tensor
        handed_out = [t for t in (self.tracked, self.plain) if t is not None]
        address, is_ordinary = self.value.address, not is_transformed()
        # Not under a tracer, which would record the question for the size. Another shape with as
        # many entries is no write.
        moved = [
            t
            for t in handed_out
            if t.data_ptr() != address or (is_ordinary and t.numel() != value.numel())
        ]
        compare = _are_equal if is_ordinary else partial(unseen, _are_equal)
        return not all(compare(t, value) for t in moved)

    def is_lost(self) -> bool:
        """Whether somebody did so without autograd recording it."""
        if self._is_source or self.value.is_moved() or not self.is_written():
            return False
        return self.tracked.grad_fn is self.node and not (
            self.plain is not None and self.plain.requires_grad
        )

    def _look_around(self) -> tuple[Any, ...] | None:
        """What else an evaluation depends on: the stream of a device, the context it is stored in.

        A `Constraint` computes with autocast off; a foreign module heeds it.
        """
        tensor = self.value.tensor
        device = tensor.device
        if self._context is None and device.type != "cuda":
            return None
        stream = device.type == "cuda" and stream_of(device)
        if self._context is None:
            return (stream,)
        autocast = is_autocast(tensor) and torch.get_autocast_dtype(device.type)
        return stream, autocast, self._context is active_context()


def _are_equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.equal(tensor.detach(), value)
