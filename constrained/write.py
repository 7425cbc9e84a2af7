"""Writing into parametrized tensors, as initialisation does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint import has_values
from constrained.inversion import expanded, raise_named
from constrained.originals import attributes, own
from constrained.override import lists, override, overriding
from constrained.parametrization_list import ParametrizationList, read
from constrained.places import check_model
from constrained.torch_internals.modules import INITIALISING, is_normalization
from constrained.torch_internals.tensors import version
from constrained.transaction import all_or_nothing, tensors_of
from constrained.undisturbed import Undisturbed, let_through


def writable(module: nn.Module) -> AbstractContextManager[None]:
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
    return writing(module, is_listed=True)


class writing(AbstractContextManager[None]):
    """As `writable`.

    Args:
        module: the tensors below it are meant.
        is_listed: whether ``parameters()`` lists the values; else the originals, as usual.
        only: which of the tensors; all by default.
    """

    # No generator: Ctrl-C that comes before its first line, or after its last, leaves it where it
    # is, and what it has put in the place of the tensors with it.

    def __init__(
        self,
        module: nn.Module,
        is_listed: bool,
        only: Callable[[ParametrizationList], bool] | None = None,
    ) -> None:
        self._module, self._is_listed, self._only = module, is_listed, only
        self._targets: dict[int, Target] = {}
        self._places: list[tuple[nn.Module, str]] = []
        self._listed: list[tuple[Target, bool]] = []
        # In the last of these gradients are off for a while, and would stay so.
        always_in = (writing.__enter__, writing.__exit__, Target.read)
        self._undisturbed = Undisturbed(always_in)

    def __enter__(self) -> None:
        self._undisturbed.__enter__()
        try:
            self._begin()
            let_through()
        except BaseException:
            self._end()
            self._undisturbed.__exit__()
            raise
        self._undisturbed.waits = False

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        self._undisturbed.waits = True
        try:
            self._end()
            self._store(is_whole=error is None)
        finally:
            self._undisturbed.__exit__()

    def _store(self, is_whole: bool) -> None:
        # Imported here, since it is built on what uses this.
        from constrained.ties import tie, ties

        targets = self._targets.values()
        stood_in = [t.stood_in() for t in targets if t.is_listed and t.is_read()]
        tied = ties(self._module, stood_in) if stood_in else []
        try:
            if is_whole:
                store_all(targets)
        finally:
            # A plain parameter would stay tied, too, whatever else goes wrong.
            tie(tied)

    def _begin(self) -> None:
        for path, owner, name, parametrizations in list(_places(self._module)):
            existing = overriding(owner, name)
            if isinstance(existing, Target):
                # Of a block around this one, which stores it.
                self._listed.append((existing, existing.is_listed))
                existing.is_listed |= self._is_listed
            elif existing is None and (self._only is None or self._only(parametrizations)):
                target = self._targets.setdefault(
                    id(parametrizations), Target(path, parametrizations, self._is_listed)
                )
                self._places.append((owner, name))
                override(owner, name, target)

    def _end(self) -> None:
        for target, before in self._listed:
            target.is_listed = before
        for owner, name in self._places:
            override(owner, name, None)


class Target:
    """A parametrized tensor that is being written: a plain one in its place, made when it is read.

    Args:
        name: the tensor's, or its path.
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
            # A compiler has no dictionary of a tensor.
            if not torch.compiler.is_compiling():
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
            # What is compiled now will be written when it runs.
            return torch.compiler.is_compiling()
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
    read = [target for target in targets if target._tensor is not None]
    # A foreign right inverse may write into its own module.
    changed = [module for target in read for module in target.parametrizations.modules()]
    with Undisturbed(), all_or_nothing(changed, tensors_of(changed)):
        found = []
        for target in read:
            let_through()
            try:
                new = target.found()
            except (ValueError, TypeError) as error:
                raise_named(target.parametrizations, target.name, error)
            if new is not None:
                found.append((target, new))
        for target, new in found:
            target.parametrizations.put(new)
        for target in read:
            target.freeze()
            target.forget()


def _places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, ParametrizationList]]:
    for prefix, owner in module.named_modules():
        if hasattr(type(owner), "_overridable"):
            for name, parametrizations in lists(owner).items():
                if isinstance(parametrizations, ParametrizationList):
                    path = f"{prefix}.{name}" if prefix else name
                    yield path, owner, name, parametrizations


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
