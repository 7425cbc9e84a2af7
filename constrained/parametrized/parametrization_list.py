"""The parametrizations and originals of one tensor: stored, evaluated and assigned."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.atomic.contents import store
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.constraint.elements import unpack
from constrained.constraint.moved import renamed_method
from constrained.evaluation.evaluated_tensor import EvaluatedTensor, chain_repr
from constrained.evaluation.inplace_writes import ValueWrittenError
from constrained.evaluation.value_store import ValueStore
from constrained.parametrized.assignment import expanded, warn_of_graph
from constrained.parametrized.changed_arguments import check_replaced
from constrained.parametrized.checkpoint_metadata import record_chain
from constrained.parametrized.consistency_checks import check_can_follow, check_original
from constrained.parametrized.memory_format import convert_original
from constrained.parametrized.originals import register_originals
from constrained.parametrized.originals_index import index_list
from constrained.parametrized.right_inverse import invert, new_originals
from constrained.parametrized.unsupported import (
    lost_write_error,
    warn_of_earlier_write,
    warn_of_hooks,
)
from constrained.torch_internals.compiled_graphs import traced_value

_is_tracing = torch.compiler.is_dynamo_compiling


class ParametrizationList(EvaluatedTensor):
    """The parametrizations of one tensor, in the order of application, and their originals.

    It is the type of ``module.parametrizations[tensor_name]``. If the ``right_inverse`` gives one
    tensor, that is called ``original``; if it gives several, they are called ``original0``,
    ``original1``, ... Tied tensors stay tied because their modules hold the same list.

    Args:
        modules: the parametrizations, at least one.
        original: the parameter or buffer that is parametrized. It keeps its identity if there is
            just one original, or just one that is trained.
        unsafe: leave out the checks that the value keeps the shape and dtype of ``original``.
        start: the value to start from, of the shape of ``original``; if None, ``original`` itself.
        deferred: leave ``original`` as it is until `attach` is called.

    Attributes:
        persistent: whether the buffer was a part of state dicts.
        unsafe, shape, is_tensor, ntensors, is_parameter, moved: see `EvaluatedTensor`.

    Raises:
        ValueError: if what the parametrizations return cannot be used. ``original`` is then as
            it was.
    """

    persistent: bool
    _store: ValueStore
    #: What other files remember about this list, each under its own key, until its modules change.
    _notes: dict[str, Any]

    def __init__(
        self,
        modules: Sequence[nn.Module],
        original: Tensor,
        unsafe: bool = False,
        *,
        start: Tensor | None = None,
        deferred: bool = False,
    ) -> None:
        if len(modules) == 0:
            raise ValueError("ParametrizationList requires one or more modules.")
        check_original(original, modules)
        nn.ModuleList.__init__(self, modules)
        self.unsafe, self.shape = unsafe, original.shape
        self.persistent, self.moved = True, None
        self._set_up()
        # Everything is checked before `original` is written.
        value = original if start is None else start
        self.__dict__["_pending"] = new_originals(self, value.detach().clone(), original)
        if not deferred:
            self.attach(original)

    def append(self, module: nn.Module) -> ParametrizationList:
        """Add a parametrization at the end, which is applied to the result of the others.

        Raises:
            ValueError: if it cannot be applied to that result.
            TypeError: if it is one of ``torch.ao.pruning``.
        """
        check_can_follow(self, module)
        self.add_module(str(len(self.chain())), module)
        return self

    def __setitem__(self, idx: int, module: nn.Module) -> None:
        """Replace one of the parametrizations; the originals stay.

        Raises:
            ValueError: if it is a constraint that does not match the originals. Nothing has changed
                then.
        """
        with defer_interrupts(), all_or_nothing([self]):
            super().__setitem__(idx, module)
            self._notes.clear()
            check_replaced(self, range(len(self))[idx])

    # ------------------------------------------------------------------------------ reading

    def value(self) -> Tensor:
        """The value of the parametrized tensor, evaluated only when something has changed.

        Raises:
            RuntimeError: if the value that was returned before has been written in place.
        """
        return traced_value(self) if torch.compiler.is_compiling() else self._store.read(self)

    # ------------------------------------------------------------------------------ writing

    def right_inverse(self, value: Tensor) -> None:
        """Store the originals whose value is ``value``; ``module.weight = value`` comes here.

        The numbers are copied: the originals share no memory with ``value``.

        Args:
            value: a number, or a tensor on the device of the parametrized tensor. Its shape must be
                the same or broadcast to it, its dtype the same or one that converts without
                rounding. If the tensor has a graph, there is a warning: only the numbers are taken,
                and nothing is trained through them.

        Raises:
            RuntimeError: if a parametrization has no ``right_inverse``.
            ValueError: if the value, or what it is mapped to, has the wrong shape, dtype or
                device, or lies outside the constraint set. Nothing is written then.
        """
        with defer_interrupts():
            modules = [] if self.is_pure() else list(self.modules())
            # The right inverse of a foreign module may write into it, and fail then.
            with all_or_nothing(modules, tensors_of(modules)):
                with torch.no_grad():
                    new = invert(self, expanded(self, value))
                # The warning comes before anything is stored, since it may be turned into an error.
                warn_of_graph(self, value)
                with torch.no_grad():
                    self.store_originals(new)

    def store_originals(self, new: Sequence[Tensor]) -> None:
        """Store originals that `invert` gave. Call it under ``torch.no_grad()``."""
        self._store.clear()
        nested: Any = self._modules.get("parametrizations", ())
        for name, tensor in zip(self.names(), new, strict=True):
            if name in nested:
                setattr(self, name, tensor)
            else:
                store(getattr(self, name), tensor)

    def attach(self, original: Tensor) -> None:
        """Register the originals. ``original`` becomes one of them where that is possible."""
        self.replace_originals(original, self.__dict__.pop("_pending"))

    def replace_originals(self, original: Tensor, new: Tensor | Sequence[Tensor]) -> None:
        """Register the originals ``new``; ``original`` becomes one of them if it can."""
        self.is_tensor, self.ntensors = isinstance(new, Tensor), len(unpack(new))
        self.is_parameter = isinstance(original, nn.Parameter)
        with torch.no_grad():
            register_originals(self, original, new)
        index_list(self)

    def pending(self) -> tuple[Tensor, ...]:
        """The originals that there will be once `attach` is called."""
        return unpack(self.__dict__["_pending"])

    def preview(self) -> Tensor:
        """The value that the tensor will have once `attach` is called."""
        with torch.no_grad():
            return self.evaluator()(*self.pending())

    # Names before version 0.2.
    put = renamed_method("put", "store_originals")
    take = renamed_method("take", "attach")
    begin_with = renamed_method("begin_with", "replace_originals")

    # ---------------------------------------------------------------------- life as a module

    def _set_up(self) -> None:
        # None of this is copied or pickled: each copy gets new ones.
        self.__dict__.update(_store=ValueStore(), _notes={}, _owners=weakref.WeakSet())
        self.look()
        # torch.fx does not trace into modules with this ``__module__``. It is set on the instance,
        # because pickle needs that of the class.
        self.__dict__["__module__"] = torch_parametrize.__name__
        index_list(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register an original, and enter it into the index of originals."""
        super().register_parameter(name, param)
        index_list(self)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Loading may swap tensors, which fails for tensors that a graph holds.
        self.forget()
        with defer_interrupts():
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        index_list(self)
        if all(prefix + name in state_dict for name in self.names()):
            self._store.clear()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.check_written(prefix.rstrip(".").replace("parametrizations.", ""))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        record_chain(destination, prefix, self.chain())

    def check_written(self, name: str) -> None:
        """Raise a RuntimeError if a value that was returned to a reader was written in place.

        If another value had replaced it by then, warn only: a reader may have used it up.
        """
        if self._store.is_lost():
            self._store.clear()
            raise lost_write_error(self, name)
        if self._store.take_written_earlier():
            self.warn_of_earlier_write()

    def warn_of_earlier_write(self) -> None:
        """Warn that an earlier value was written in place, which has no effect."""
        warn_of_earlier_write(self)

    def check_traced(self, name: str) -> None:
        """`check_written`, and warn of hooks on the value: a tracer sees neither."""
        self.check_written(name)
        if self._store.hooks.has_lasting():
            warn_of_hooks(self, name)

    def forget(self) -> None:
        """Drop stored values, whose graphs hold the originals, and `_notes`, which may hold them.

        This is needed before the contents of an original are swapped, as by
        ``torch.utils.swap_tensors``, which raises if the original has other references.
        """
        self._store.drop()
        self._notes.clear()

    def __getstate__(self) -> dict[str, Any]:
        self.check_written("weight")
        own = ("_store", "_notes", "_owners", "_watched", "__module__")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_up()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParametrizationList:
        # Conversions swap the originals, which fails if a graph holds them, and their gradients,
        # which fails if there are weak references to them.
        self.forget()
        super()._apply(functools.partial(convert_original, fn, len(self.shape)), recurse)
        self.forget()
        index_list(self)
        return self


def read(parametrizations: nn.Module, name: str) -> Tensor:
    """The value of a parametrized tensor, with the errors that its user should see.

    Raises:
        RuntimeError: chained to the AttributeError that a parametrization raised (``getattr``
            would take that for a missing attribute), or if the value was written in place.
    """
    try:
        # A list of torch's, or of a derived class, is called, so that its hooks run.
        if type(parametrizations) is not ParametrizationList:
            return parametrizations()
        # Each read of a tensor comes here, and this is cheaper than `is_compiling`.
        if _is_tracing():
            return parametrizations.value()
        return parametrizations._store.read(parametrizations)
    except ValueWrittenError:
        raise lost_write_error(parametrizations, name) from None
    except AttributeError as error:
        raise RuntimeError(
            f"Evaluating '{name}' by {chain_repr(parametrizations)} failed: {error}"
        ) from error
