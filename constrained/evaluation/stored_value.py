"""When a stored value may be reused: what `StoredValue.read` asks before it returns one.

* The tensors and modules that the value was computed from are as they were. This is the largest
  part; `constrained.evaluation.fingerprint` compares them.
* The surroundings are those of the evaluation: inference mode, the stream of a GPU, and for a
  foreign module autocast and the `cached` block. No transform or tracer is at work.
* Autograd has not been given the graph of the evaluation, which it might have freed (`is_spent`).
* Nobody has written into the value: see `constrained.evaluation.inplace_writes`.
* If gradients are recorded now, they were recorded when the value was evaluated.

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
        originals: the originals themselves.
        fingerprint: all that the value was computed from.
        context: the `cached` block that it is reused in; None if it is reused everywhere.
    """

    __slots__ = (
        *("_context", "_fingerprint", "_inference", "_kept", "_was_recording"),
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
        # A constraint may return its argument. Whoever writes into that value writes the original,
        # and the write is not lost.
        self.is_alias = shares_memory(kept.value, sources)
        trained = [state.tensor for state in fingerprint.states if state.requires_grad]
        # If nothing is trained, there is nothing to record.
        self._was_recording = _is_recording() or not trained
        # Under no_grad, a value that requires a gradient is one of the originals.
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
        # A value without the graph of its evaluation is not reused: gradients were not recorded, or
        # a reader has called `detach_()` on it, or `requires_grad_()`.
        has_its_graph = self._was_recording and value.grad_fn is node
        return value if has_its_graph and (node is not None or not value.requires_grad) else None

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
        return not self.is_alias and super().is_lost()

    def _look_around(self) -> tuple[Any, ...] | None:
        """What else an evaluation depends on: the stream of the GPU, autocast, the `cached` block.

        Autocast matters for foreign modules only: a `Constraint` computes with autocast off.
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
