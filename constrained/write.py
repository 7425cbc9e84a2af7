"""Writing into parametrized tensors, as initialisation does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint import has_values
from constrained.inversion import expanded
from constrained.originals import attributes, own
from constrained.override import lists, override, overriding
from constrained.parametrization_list import ParametrizationList, read
from constrained.places import check_model
from constrained.torch_internals.modules import INITIALISING, is_normalization
from constrained.torch_internals.tensors import version


@contextmanager
def writable(module: nn.Module) -> Generator[None]:
    """Inside, the parametrized tensors below ``module`` may be written like plain ones.

    Each of them reads as one plain parameter (or buffer) that holds its value, and
    ``module.parameters()`` lists that instead of the originals. It may be written in any way: by
    ``torch.nn.init``, in place, through ``.data``, by assignment. On leaving, every tensor that
    was written is assigned: where its last parametrization is a `Constraint`, a value outside of
    the set goes to the nearest point that ``project`` finds, as when it was constrained.

    ``reset_parameters()`` and ``apply(function)`` of a parametrized module do this by themselves.
    It is meant for writing values, not for training: gradients do not reach the originals. A module
    below ``module`` that is given such a parameter, ``a.weight = b.weight``, is tied to the tensor.

    Args:
        module: a module, or a model that has parametrized tensors.

    Raises:
        RuntimeError: on leaving, if a tensor that was written has a parametrization without
            ``right_inverse``, or if its originals were written too.
        ValueError: on leaving, if a value is not finite, or cannot be assigned for another reason.
            After either error all parametrized tensors are as they were before.

    Example:
        >>> import torch, constrained
        >>> layer = constrained.constrain(torch.nn.Linear(4, 4), "weight", "orthogonal")
        >>> with constrained.writable(layer):
        ...     _ = torch.nn.init.normal_(layer.weight)
        >>> constrained.assert_feasible(layer)
    """
    check_model(module)
    with writing(module, is_listed=True):
        yield


@contextmanager
def writing(
    module: nn.Module, is_listed: bool, only: Callable[[ParametrizationList], bool] | None = None
) -> Generator[None]:
    """As `writable`.

    Args:
        module: the tensors below it are meant.
        is_listed: whether ``parameters()`` lists the values; else the originals, as usual.
        only: which of the tensors; all by default.
    """
    targets: dict[int, Target] = {}
    places = []
    listed = []
    for owner, name, parametrizations in list(_places(module)):
        existing = overriding(owner, name)
        if isinstance(existing, Target):
            # Of a block around this one, which stores it.
            listed.append((existing, existing.is_listed))
            existing.is_listed |= is_listed
        elif existing is None and (only is None or only(parametrizations)):
            target = targets.setdefault(
                id(parametrizations), Target(name, parametrizations, is_listed)
            )
            override(owner, name, target)
            places.append((owner, name))
    try:
        yield
    finally:
        for target, before in listed:
            target.is_listed = before
        for owner, name in places:
            override(owner, name, None)
    stood_in = [t.stood_in() for t in targets.values() if t.is_listed and t.is_read()]
    store_all(targets.values())
    if stood_in:
        # Imported here, since it is built on what uses this.
        from constrained.ties import tie

        tie(module, stood_in)


class Target:
    """A parametrized tensor that is being written: a plain one in its place, made when it is read.

    Args:
        name: the tensor's.
        parametrizations: the tensor's.
        is_listed: whether it is listed among the parameters of its module.
    """

    def __init__(self, name: str, parametrizations: ParametrizationList, is_listed: bool) -> None:
        self.name = name
        self.parametrizations = parametrizations
        self.is_listed = is_listed
        self._tensor: Tensor | None = None

    def read(self) -> Tensor:
        """The tensor that may be written; the same one each time."""
        if self._tensor is None or (not self.is_written() and self._originals_moved()):
            parametrizations = self.parametrizations
            with torch.no_grad():
                self._before = read(parametrizations, self.name).detach().clone()
                tensor = own(self._before)
            originals = parametrizations.originals()
            self._versions = [_version(t) for t in originals]
            self._requires_grad = any(t.requires_grad for t in originals)
            tensor.requires_grad_(self._requires_grad)
            if parametrizations.is_parameter:
                tensor = nn.Parameter(tensor.detach(), self._requires_grad)
            vars(tensor).update(attributes(originals))
            self._tensor = tensor
        return self._tensor

    def is_read(self) -> bool:
        """Whether there is a plain tensor."""
        return self._tensor is not None

    def stood_in(self) -> tuple[Tensor, ParametrizationList]:
        """The plain tensor, and the parametrizations that it stood in for."""
        return self.read(), self.parametrizations

    def assign(self, value: Tensor) -> None:
        """Write a whole value, which is copied."""
        tensor = self.read()
        value = expanded(self.parametrizations, value)
        self.parametrizations.check_assigned(value)
        tensor.data = own(value)

    def is_written(self) -> bool:
        """Whether the tensor no longer has the value that it started with."""
        tensor, before = self._tensor, self._before
        if tensor.shape != before.shape or tensor.dtype != before.dtype:  # type: ignore[union-attr]
            return True
        if not has_values(tensor):  # type: ignore[arg-type]
            return False
        same = torch.isclose(tensor.detach(), before, rtol=0, atol=0, equal_nan=True)  # type: ignore[union-attr]
        return not bool(same.all())

    def found(self) -> tuple[Tensor, ...] | None:
        """The originals of what was written, not yet stored; None if nothing was."""
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
            self.parametrizations.check_assigned(value)
            value = constraint.start(value)
        return self.parametrizations.invert(value)

    def freeze(self) -> None:
        """Pass on to the originals whether the tensor was made to require a gradient, or not to."""
        if self._tensor is not None and self._tensor.requires_grad is not self._requires_grad:
            for original in self.parametrizations.parameters(recurse=False):
                original.requires_grad_(self._tensor.requires_grad)

    def forget(self) -> None:
        """Start anew at the next reading."""
        self._tensor = None

    def _originals_moved(self) -> bool:
        return [_version(t) for t in self.parametrizations.originals()] != self._versions


def settle(module: nn.Module, name: str) -> None:
    """Store what was written into a tensor, before its parametrizations change."""
    target = overriding(module, name)
    if isinstance(target, Target):
        store_all([target])


@torch.no_grad()
def store_all(targets: Any) -> None:
    """Store what was written into each of these; if one fails, into none."""
    found = []
    read = [target for target in targets if target._tensor is not None]
    undo = [_state(target.parametrizations) for target in read]
    try:
        for target in read:
            new = target.found()
            if new is not None:
                found.append((target, new))
    except BaseException:
        # A foreign right inverse may write into its own module.
        for restore in undo:
            restore()
        raise
    for target, new in found:
        target.parametrizations.put(new)
    for target in read:
        target.freeze()
        target.forget()


def _state(parametrizations: nn.Module) -> Callable[[], None]:
    """A function that undoes what happens to the buffers of foreign modules."""
    saved = [
        (
            module,
            dict(module._buffers),
            [b if b is None else b.clone() for b in module._buffers.values()],
        )
        for module in parametrizations.modules()
        if module._buffers and module is not parametrizations
    ]

    def restore() -> None:
        for module, buffers, values in saved:
            module._buffers.clear()
            module._buffers.update(buffers)
            for buffer, value in zip(buffers.values(), values, strict=True):
                if buffer is not None and value is not None:
                    buffer.copy_(value)

    return restore


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, ParametrizationList]]:
    for owner in module.modules():
        if hasattr(type(owner), "_overridable"):
            for name, parametrizations in lists(owner).items():
                if isinstance(parametrizations, ParametrizationList):
                    yield owner, name, parametrizations


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else version(tensor)


# -------------------------------------------------- methods of a class with parametrized tensors


def initialising_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """The methods of ``base`` that write into its tensors, made to write through."""
    methods: dict[str, Callable[..., Any]] = {"apply": _apply}
    for name in INITIALISING:
        if hasattr(base, name):
            methods[name] = _writing_method(name)
    statistics = {"running_mean", "running_var"}.intersection(names)
    if statistics and is_normalization(base):
        methods["forward"] = _forward
    return methods


def _writing_method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with writing(self, is_listed=True):
            return getattr(super(self._parametrized, self), name)(*args, **kwargs)

    method.__name__ = name
    return method


def _apply(self: Any, fn: Callable[[nn.Module], None]) -> Any:
    # Not listed: a function that gathers parameters, say for an optimizer, wants the originals.
    with writing(self, is_listed=False):
        return super(self._parametrized, self).apply(fn)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    # In training, normalisation updates its statistics in place.
    if not self.training:
        return super(self._parametrized, self).forward(*args, **kwargs)
    with writing(self, is_listed=False, only=lambda p: not p.is_parameter):
        return super(self._parametrized, self).forward(*args, **kwargs)
