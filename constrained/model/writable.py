"""Writing into parametrized tensors, as initialisation does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.parametrized.module_class import contribute
from constrained.parametrized.override import lists_below, override, overriding
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import check_model
from constrained.parametrized.writable_tensor import WritableTensor, store_written
from constrained.registration.install import install
from constrained.registration.ties import find_ties
from constrained.torch_internals.modules import INITIALISING, is_normalization


def writable(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, the parametrized tensors of ``module`` may be written like plain ones.

    Each of them reads as one plain parameter (or buffer) that holds its value, and
    ``module.parameters()`` lists that instead of the originals. It may be written in any way: by
    ``torch.nn.init``, in place, through ``.data``, by assignment. On leaving, every tensor that was
    written is assigned. If its last parametrization is a `Constraint`, a value outside of the set
    is projected.

    ``reset_parameters()`` and ``apply(function)`` of a parametrized module do this by themselves.
    It is meant for writing values, not for training: gradients do not reach the originals. If such
    a parameter is assigned to another submodule, as in ``a.weight = b.weight``, the two are tied
    from then on.

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
    """The context manager that `writable` returns, with two more arguments.

    Args:
        module: the module whose tensors may be written, those of its submodules included.
        is_listed: whether ``parameters()`` lists the values; else the originals, as usual.
        only: tells which of the tensors may be written; all by default.
    """

    # This is not a generator function: Ctrl-C may come before the first line of a generator or
    # after its last, and the plain tensors would stay in the place of the parametrized ones.

    def __init__(
        self,
        module: nn.Module,
        is_listed: bool,
        only: Callable[[ParametrizationList], bool] | None = None,
    ) -> None:
        self._module, self._is_listed, self._only = module, is_listed, only
        self._targets: dict[int, WritableTensor] = {}
        self._places: list[tuple[nn.Module, str]] = []
        self._listed: list[tuple[WritableTensor, bool]] = []
        # The last of these switches gradients off for a while. Interrupted, they would stay off.
        always_in = (writing.__enter__, writing.__exit__, WritableTensor.read)
        self._undisturbed = defer_interrupts(always_in)

    def __enter__(self) -> None:
        self._undisturbed.__enter__()
        try:
            self._begin()
            allow_interrupt()
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
        targets = self._targets.values()
        tensor_and_list = [t.tensor_and_list() for t in targets if t.is_listed and t.is_read()]
        tied = find_ties(self._module, tensor_and_list) if tensor_and_list else []
        try:
            if is_whole:
                store_written(targets)
        finally:
            # As a plain parameter would, the tensor stays tied whatever else goes wrong.
            for tie in tied:
                install(*tie)

    def _begin(self) -> None:
        for path, owner, name, parametrizations in list(lists_below(self._module)):
            if not isinstance(parametrizations, ParametrizationList):
                continue
            existing = overriding(owner, name)
            if isinstance(existing, WritableTensor):
                # A block around this one has made it writable, and will assign it.
                self._listed.append((existing, existing.is_listed))
                existing.is_listed |= self._is_listed
            elif existing is None and (self._only is None or self._only(parametrizations)):
                target = self._targets.setdefault(
                    id(parametrizations), WritableTensor(path, parametrizations, self._is_listed)
                )
                self._places.append((owner, name))
                override(owner, name, target)

    def _end(self) -> None:
        for target, before in self._listed:
            target.is_listed = before
        for owner, name in self._places:
            override(owner, name, None)


# -------------------------------------------------- methods of a class with parametrized tensors


@contribute
def initialising_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """The methods of ``base`` that write into its tensors, made to write in a `writable` block."""
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
            return getattr(super(self._parametrized, self), name)(*args, **kwargs)  # pyright: ignore[reportUnknownArgumentType] - the class is known at run time only

    method.__name__ = name
    return method


def _apply(self: Any, fn: Callable[[nn.Module], None]) -> Any:
    # Not listed, since a function that collects parameters for an optimizer needs the originals.
    with writing(self, is_listed=False):
        return super(self._parametrized, self).apply(fn)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Normalisation updates its statistics in place, in training only.
    if not self.training:
        return super(self._parametrized, self).forward(*args, **kwargs)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only
    with writing(self, is_listed=False, only=lambda p: not p.is_parameter):
        return super(self._parametrized, self).forward(*args, **kwargs)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only
