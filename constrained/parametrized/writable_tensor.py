"""Parametrized tensors that can be written in place for a while, like plain ones.

Meanwhile a plain tensor replaces the parametrized one. Afterwards the right inverse gives the
originals for what was written, and these are stored.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from constrained.atomic.contents import own
from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.parametrized.assignment import check_assigned, expanded, raise_named
from constrained.parametrized.originals import copy_like
from constrained.parametrized.override import Override, overriding
from constrained.parametrized.parametrization_list import ParametrizationList, read
from constrained.parametrized.right_inverse import invert
from constrained.torch_internals.tensors import has_values, version


class WritableTensor(Override):
    """A parametrized tensor that is being written: a plain tensor, made when it is first read.

    Args:
        name: the name of the tensor, or its path.
        parametrizations: its list.
        is_listed: whether the plain tensor is listed among the parameters of its module.
    """

    def __init__(self, name: str, parametrizations: ParametrizationList, is_listed: bool) -> None:
        super().__init__(name, parametrizations, is_listed)
        self._tensor: Tensor | None = None

    def read(self) -> Tensor:
        """The tensor that may be written; the same one each time."""
        if self._tensor is None or (not self.is_written() and self._originals_moved()):
            parametrizations = self.parametrizations
            originals = parametrizations.originals()
            with torch.no_grad():
                self._before = read(parametrizations, self.name).detach().clone()
                tensor = copy_like(self._before, originals, parametrizations.is_parameter)
            self._versions = [_version(t) for t in originals]
            self._requires_grad = tensor.requires_grad
            self._tensor = tensor
        return self._tensor

    def is_read(self) -> bool:
        """Whether there is a plain tensor."""
        return self._tensor is not None

    def tensor_and_list(self) -> tuple[Tensor, ParametrizationList]:
        """The plain tensor, and the parametrizations of the tensor that it replaces."""
        return self.read(), self.parametrizations

    def assign(self, value: Tensor) -> None:
        """Write a copy of a whole value."""
        tensor = self.read()
        value = expanded(self.parametrizations, value)
        check_assigned(self.parametrizations, value)
        tensor.data = own(value)

    def is_written(self) -> bool:
        """Whether the tensor no longer has the value that it started with."""
        tensor, before = self._tensor, self._before
        if tensor.shape != before.shape or tensor.dtype != before.dtype:  # type: ignore[union-attr]
            return True
        if not has_values(tensor):  # type: ignore[arg-type]
            # The code that is being compiled will write it when it runs.
            return torch.compiler.is_compiling()
        same = torch.isclose(tensor.detach(), before, rtol=0, atol=0, equal_nan=True)  # type: ignore[union-attr]
        return not bool(same.all())

    def new_originals(self) -> tuple[Tensor, ...] | None:
        """The originals for what was written, not yet stored; None if nothing was written."""
        if self._tensor is None or not self.is_written():
            return None
        if self._originals_moved():
            raise RuntimeError(
                f"'{self.name}', parametrized by {self.parametrizations.described()}, was written, "
                "and so were its originals, through which its value changed too; write one or the "
                "other."
            )
        value = self._tensor.detach()
        constraint = self.parametrizations.constraint()
        if constraint is not None:
            check_assigned(self.parametrizations, value)
            value = constraint.start(value)
        return invert(self.parametrizations, value)

    def copy_requires_grad(self) -> None:
        """Set ``requires_grad`` of the originals, if it was changed on the plain tensor."""
        if self._tensor is not None and self._tensor.requires_grad is not self._requires_grad:
            for original in self.parametrizations.parameters(recurse=False):
                original.requires_grad_(self._tensor.requires_grad)

    def forget(self) -> None:
        """Drop the plain tensor; the next read makes a new one."""
        self._tensor = None

    def _originals_moved(self) -> bool:
        return [_version(t) for t in self.parametrizations.originals()] != self._versions


def flush_writes(module: nn.Module, name: str) -> None:
    """Store what was written into a tensor, before its parametrizations change."""
    target = overriding(module, name)
    if isinstance(target, WritableTensor):
        store_written([target])


@torch.no_grad()
def store_written(targets: Iterable[WritableTensor]) -> None:
    """Store what was written into each of these tensors; if one fails, store none."""
    read = [target for target in targets if target._tensor is not None]
    # The right inverse of a module that is no Constraint may write into the module.
    changed = [module for target in read for module in target.parametrizations.modules()]
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)):
        found: list[tuple[WritableTensor, tuple[Tensor, ...]]] = []
        for target in read:
            allow_interrupt()
            try:
                new = target.new_originals()
            except (ValueError, TypeError) as error:
                raise_named(target.parametrizations, target.name, error)
            if new is not None:
                found.append((target, new))
        for target, new in found:
            target.parametrizations.store_originals(new)
        for target in read:
            target.copy_requires_grad()
            target.forget()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else version(tensor)
