"""Whether tensors and modules are what they were when somebody looked at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

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
        self.version = None if tensor.is_inference() else tensor._version
        self.address = tensor.data_ptr()
        self.requires_grad = tensor.requires_grad
        self._marks: Tensor | None = None
        self.look = _look_at_memory(tensor)
        self.entries = self.look and self.look()

    def is_unchanged(self) -> bool:
        """Whether the tensor is as it was."""
        return (
            self.address == self.tensor.data_ptr()
            and self.requires_grad is self.tensor.requires_grad
            and self.is_untouched()
            and not self.is_marked_otherwise()
        )

    def is_untouched(self) -> bool:
        """Whether nobody wrote into the tensor."""
        return (self.version is None or self.version == self.tensor._version) and (
            self.look is None or self.entries == self.look()
        )

    def is_moved(self) -> bool:
        """Whether the tensor's memory has gone elsewhere as a whole, into shared memory, say."""
        return self.tensor.data_ptr() != self.address

    def mark(self) -> None:
        """Note some entries, after a backward pass, where memory cannot be looked at for free."""
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


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape, dtype and device hold the same numbers, bit for bit."""
    size = a.numel() * a.element_size()
    if not (a.is_cpu and a.is_contiguous() and b.is_contiguous()) or size % 8:
        return torch.equal(a, b)
    # Torch compares number by number: five times slower.
    x, y = (t.detach().reshape(-1).view(torch.int64).numpy() for t in (a, b))
    return numpy.array_equal(x, y)


def is_dense(tensor: Tensor) -> bool:
    """Whether the entries of a tensor fill a stretch of memory, each in a place of its own."""
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


class SeenModule:
    """What a watched module looked like: its tensors, submodules, training flag, arguments.

    Args:
        module: as it is now.
        known: tensors that were looked at before, by their ``id``.
    """

    __slots__ = ("_children", "_own", "_revision", "_tensors")

    def __init__(self, module: nn.Module, known: Mapping[int, SeenTensor]) -> None:
        now = module.__dict__
        self._revision = now.get("_revision")
        self._children = dict(module._modules)
        # A list computes nothing by itself.
        self._own = None if isinstance(module, nn.ModuleList) else _what_it_is(now)
        self._tensors = [
            (container, name, known.get(id(tensor)) or SeenTensor(tensor))
            for container in ("_parameters", "_buffers", None)
            for name, tensor in (now[container] if container else now).items()
            if isinstance(tensor, Tensor)
        ]

    def tensors(self) -> list[SeenTensor]:
        """Its tensors."""
        return [seen for _, _, seen in self._tensors]

    def is_unchanged(self, now: Mapping[str, Any]) -> bool:
        """Whether the module is as it was, if this is its dictionary."""
        if self._revision is not None:
            # A Constraint counts every attribute that is set, `training` and modules among them.
            if now.get("_revision") != self._revision:
                return False
        elif now["_modules"] != self._children:
            return False
        elif self._own is not None and self._own != _what_it_is(now):
            return False
        for container, name, seen in self._tensors:
            tensor = (now if container is None else now[container]).get(name)
            # `SeenTensor.is_unchanged` is spelled out: each read of a value comes here.
            if (
                tensor is not seen.tensor
                or seen.address != tensor.data_ptr()
                or seen.requires_grad is not tensor.requires_grad
                or (seen.version is not None and seen.version != tensor._version)
                or (seen.entries != seen.look() if seen.look else seen.is_marked_otherwise())
            ):
                return False
        return True


def _what_it_is(now: Mapping[str, Any]) -> tuple[bool, int, int]:
    return now["training"], len(now["_parameters"]), len(now["_buffers"])
