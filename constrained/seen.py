"""Whether tensors are what they were when somebody looked at them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from constrained.torch_internals.tensors import version

#: A small tensor is compared entry by entry, a large one at this many places.
_SMALL, _PLACES = 1024, 32

#: By the size of an entry in bytes, as what numpy reads it.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SeenTensor:
    """What a tensor looked like when a value was computed from it, or handed out.

    A version counter misses what is written through ``tensor.data``, as in hand-written steps and
    in the soft updates of target networks. So the memory of a tensor on the CPU is looked at too:
    all of a small tensor, a few entries, evenly spread, of a large one. On other devices that
    would mean to wait for the device, and some entries are compared once after each backward
    pass, where steps are made.
    """

    __slots__ = ("_marks", "address", "entries", "look", "requires_grad", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Inference tensors keep no count, and serve inference mode only.
        self.version = None if tensor.is_inference() else version(tensor)
        self.address = tensor.data_ptr()
        self.requires_grad = tensor.requires_grad
        self._marks: Tensor | None = None
        self.look = _look_at_memory(tensor)
        self.entries = self.look and self.look()

    def again(self) -> SeenTensor | None:
        """The tensor as it is now; None if more than its numbers have changed, or may have."""
        tensor, look = self.tensor, self.look
        if (
            look is None
            or self.address != tensor.data_ptr()
            or self.requires_grad is not tensor.requires_grad
            or self.version is None
        ):
            return None
        seen = SeenTensor.__new__(SeenTensor)
        seen.tensor, seen.address, seen.requires_grad = tensor, self.address, self.requires_grad
        seen.version, seen.look, seen.entries, seen._marks = version(tensor), look, look(), None
        return seen

    def is_unchanged(self) -> bool:
        """Whether the tensor is as it was."""
        return (
            self.address == self.tensor.data_ptr()
            and self.requires_grad is self.tensor.requires_grad
            and self.is_untouched()
            and not self.is_marked_otherwise()
        )

    def is_same(self, other: SeenTensor) -> bool:
        """Whether another look, at the same tensor, found the same."""
        return (
            self.tensor is other.tensor
            and self.address == other.address
            and self.version == other.version
            and self.entries == other.entries
            and not self.is_marked_otherwise()
        )

    def is_untouched(self) -> bool:
        """Whether nobody wrote into the tensor."""
        return (self.version is None or self.version == version(self.tensor)) and (
            self.look is None or self.entries == self.look()
        )

    def is_moved(self) -> bool:
        """Whether the tensor's memory has gone elsewhere as a whole, into shared memory, say."""
        return self.tensor.data_ptr() != self.address

    def mark(self) -> None:
        """Note some entries, at times, where memory cannot be looked at for free."""
        if self.look is None:
            self._marks = self._spread()

    def is_marked_otherwise(self) -> bool:
        """Whether what was noted by `mark` differs; it is looked at once."""
        marks, self._marks = self._marks, None
        return marks is not None and not torch.equal(marks, self._spread())

    def _spread(self) -> Tensor:
        with torch.no_grad():
            flat = self.tensor.detach().reshape(-1)
            return flat[:: 1 + flat.numel() // _SMALL].clone()


def _look_at_memory(tensor: Tensor) -> Callable[[], bytes] | None:
    """A function that gives the bytes of some entries, for a dense tensor on the CPU."""
    if not tensor.is_cpu or tensor.numel() == 0 or not is_dense(tensor):
        return None
    if tensor.is_conj() or tensor.is_neg():
        return None
    # Strides do not matter here, nor do the numbers: the memory of any dense tensor is flat.
    size = tensor.element_size()
    as_integers = _INTEGERS.get(size)
    if as_integers is not None and tensor.is_contiguous():
        entries = tensor.detach().view(as_integers).numpy().reshape(-1)
    else:
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        entries = flat.view(torch.uint8).numpy().view(f"V{size}")
    step = 1 if tensor.numel() <= _SMALL else tensor.numel() // _PLACES
    return entries[::step].tobytes


def is_dense(tensor: Tensor) -> bool:
    """Whether the entries of a tensor fill a stretch of memory, each in a place of its own."""
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(tensor)
