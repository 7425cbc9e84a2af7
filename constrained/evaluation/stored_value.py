"""When a cached value may be reused: what `StoredValue.read` asks before it returns one.

* The tensors and modules that it was computed from are as they were: that is the largest part, and
  `constrained.evaluation.fingerprint` compares them.
* What surrounds the read is what surrounded the evaluation: inference mode, the stream of a GPU,
  for a foreign module autocast and the `cached` block; and no transform or tracer is at work.
* Nobody has written into the value: see `constrained.evaluation.inplace_writes`.
* If the read records gradients, the value was recorded.

``docs/evaluation.md`` says the same to users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.precision import is_autocast
from constrained.evaluation.backward import Kept, KeptArguments, replay
from constrained.evaluation.cached import active_context
from constrained.evaluation.fingerprint import Fingerprint
from constrained.evaluation.inplace_writes import ReturnedValue, ValueWrittenError, shares_memory
from constrained.torch_internals.modes import is_transformed, stream_of

# Each read of a value asks these.
_is_inference, _is_recording = torch.is_inference_mode_enabled, torch.is_grad_enabled


class StoredValue(ReturnedValue):
    """A value that is reused.

    Args:
        kept: the evaluation, kept for its gradient.
        inputs: the tensors from which the graph of the value starts: aliases of the originals.
        originals: the same, as the module knows it.
        fingerprint: all that it was computed from.
        context: the `cached` block that it is reused in; None if it is reused everywhere.
    """

    __slots__ = (
        *("_context", "_fingerprint", "_inference", "_kept", "_records"),
        "_surroundings",
    )

    def __init__(
        self,
        kept: Kept,
        inputs: Sequence[Tensor],
        originals: Sequence[Tensor],
        fingerprint: Fingerprint,
        context: object | None,
    ) -> None:
        super().__init__(kept.value.detach())
        self._kept, self._fingerprint, self._context = kept, fingerprint, context
        self.is_pure = kept.is_repeatable
        sources = [state.tensor for state in fingerprint.states]
        # A constraint may return its argument: then a write is a write of the original.
        self.is_source = shares_memory(kept.value, sources)
        trained = [state.tensor for state in fingerprint.states if state.requires_grad]
        self._records = _is_recording() or not trained
        # Without gradient recording, only an original that is returned as it is requires one.
        if (kept.value.requires_grad and _is_recording()) or isinstance(kept, KeptArguments):
            # The constraint may have parameters of its own.
            more = [t for t in trained if not any(t is x for x in originals)]
            kept.fingerprint, kept.state = fingerprint, self.state
            self.tracked = replay(kept, *inputs, *more)
            self.node = self.tracked.grad_fn
        else:
            self.plain = self.tracked
        self._inference = _is_inference()
        self._surroundings = self._look_around()

    def read(self, on: nn.Module) -> Tensor | None:
        """The value for the present gradient mode, if it may be reused; else None.

        Raises:
            ValueWrittenError: if it may, but somebody wrote into it.
        """
        plain, address = self.plain, self.state.address
        if (
            is_transformed()
            or self._inference is not _is_inference()
            or self._kept.is_spent
            or (self._surroundings is not None and self._surroundings != self._look_around())
            or not self._fingerprint.holds(on.__dict__)
        ):
            return None
        if (
            self.tracked.data_ptr() != address
            or (plain is not None and plain.data_ptr() != address)
            or not self.state.has_same_numbers()
        ):
            if self.is_written() and not self.state.is_moved():
                raise ValueWrittenError
            return None
        if not _is_recording():
            value = self.returned() if plain is None else plain
            return None if value.requires_grad else value
        value, node = self.tracked, self.node
        # Not if it was computed without a graph, or cut off from it, or made a leaf.
        is_whole = self._records and value.grad_fn is node
        return value if is_whole and (node is not None or not value.requires_grad) else None

    def returned(self) -> Tensor:
        """The tensor that a reader gets in the present gradient mode."""
        if _is_recording():
            return self.tracked
        plain = self.plain
        if plain is None:
            self.plain = plain = self.state.tensor.detach()
        return plain

    def is_lost(self) -> bool:
        """Whether somebody wrote into the value, which the next evaluation would undo."""
        return not self.is_source and super().is_lost()

    def _look_around(self) -> tuple[Any, ...] | None:
        """What else an evaluation depends on: the stream of a device, the context it is stored in.

        A `Constraint` computes with autocast off; a foreign module heeds it.
        """
        tensor = self.state.tensor
        device = tensor.device
        if self._context is None and device.type != "cuda":
            return None
        stream = device.type == "cuda" and stream_of(device)
        if self._context is None:
            return (stream,)
        autocast = is_autocast(tensor) and torch.get_autocast_dtype(device.type)
        return stream, autocast, self._context is active_context()
