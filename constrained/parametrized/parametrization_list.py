"""Where the originals of a parametrized tensor live, and how they become its value."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.atomic.contents import attributes, own, store
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, tensors_of
from constrained.constraint.arguments import check_when_set
from constrained.constraint.base import Constraint
from constrained.evaluation.evaluated_tensor import EvaluatedTensor, chain_repr
from constrained.evaluation.inplace_writes import ValueWrittenError
from constrained.evaluation.value_store import ValueStore
from constrained.parametrized import right_inverse as inversion
from constrained.parametrized.append import prepare
from constrained.parametrized.assignment import check_not_sparsifying
from constrained.parametrized.call_stack import path_for_the_caller
from constrained.parametrized.changed_arguments import check_constants, check_fit
from constrained.parametrized.checkpoint_metadata import sign
from constrained.parametrized.consistency_checks import (
    check_elements,
    check_records,
    check_single,
    check_value,
    check_writable_now,
    initial_right_inverse,
    register_tensor,
)
from constrained.parametrized.originals_index import all_holders, holders, note
from constrained.torch_internals.graphs import traced_value

_is_watched = torch.compiler.is_dynamo_compiling


class ParametrizationList(EvaluatedTensor):
    """The parametrizations of one tensor, in the order of application, and their originals.

    It is the type of ``module.parametrizations[tensor_name]``. A ``right_inverse`` that gives one
    tensor puts it under the name ``original``; one that gives several, under ``original0``,
    ``original1``, ... Several modules may hold the same list: that is how tied tensors stay tied.

    Args:
        modules: the parametrizations, at least one.
        original: the parameter or buffer that is parametrized. It keeps its identity if there is
            just one original, or just one that is trained.
        unsafe: leave out the checks that the value keeps the shape and dtype of ``original``.
        start: the value to start from, of the shape of ``original``; that of ``original`` if None.
        deferred: leave ``original`` as it is until `take` is called.

    Attributes:
        shape: the shape of the parametrized tensor.
        is_tensor: whether there is one original, called ``original``.
        ntensors: how many originals there are.
        is_parameter: whether the tensor was a parameter; else a buffer.
        persistent: whether the buffer was a part of state dicts.
        moved: how far the tensor moved when it was constrained, or None if nobody measured it.

    Raises:
        ValueError: if what the parametrizations return cannot be used. ``original`` is then as
            it was.
    """

    persistent: bool
    moved: float | None
    _store: ValueStore
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
        check_writable_now(original)
        check_records(original, modules)
        nn.ModuleList.__init__(self, modules)
        self.unsafe = unsafe
        self.shape = original.shape
        self.persistent = True
        self.moved = None
        self._start()

        # In plain words: the tensor must keep its dtype and shape, and its value. With
        #    X = original,  Y = right_inverse(X),  Z = forward(Y) or forward(*Y)
        # Y must be a tensor or a sequence of tensors, Z a tensor of the dtype and shape of X, and
        # a single tensor Y of the dtype and device of X, because X itself becomes Y in place:
        # its identity is what an optimizer knows it by. Nothing is written before all is checked.
        with torch.no_grad():
            value = (original if start is None else start).detach().clone()
            new: Any = value
            for module in reversed(self.chain()):
                new = initial_right_inverse(module, new)
        if not isinstance(new, (Tensor, Sequence)):
            raise ValueError(
                "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
                f"Got {type(new).__name__}"
            )
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if isinstance(new, Tensor) else len(new)
        if isinstance(new, Tensor):
            check_single(original, new)
        else:
            check_elements(new)
        inversion.check_finite(self, value, (new,) if isinstance(new, Tensor) else new)
        if not unsafe:
            # The derivative is not asked for, but whether there is one decides what is trained.
            result = self.evaluator()(*((new,) if isinstance(new, Tensor) else new))
            check_value(result, original)
            inversion.check_finite(self, value, (result,))
        self.__dict__["_pending"] = new
        if not deferred:
            self.take(original)

    def append(self, module: nn.Module) -> ParametrizationList:
        """Add a parametrization at the end, which gets the value as it is now.

        Raises:
            ValueError: if it cannot take what the others give.
            TypeError: if it is one of ``torch.ao.pruning``.
        """
        check_not_sparsifying(self, module)
        prepare(self, module)
        self.add_module(str(len(self.chain())), module)
        return self

    def __setitem__(self, idx: int, module: nn.Module) -> None:
        """Put another parametrization in the place of one; the originals stay.

        Raises:
            ValueError: if it is a constraint that does not go with the originals. The one that was
                there is back then.
        """
        with defer_interrupts(), all_or_nothing([self]):
            super().__setitem__(idx, module)
            self._notes.clear()
            index = range(len(self))[idx]
            check_fit(self, index, "put this one there")
            if index == 0:
                check_constants(self, "put this one there")

    # ------------------------------------------------------------------------------ reading

    def value(self) -> Tensor:
        """The value of the parametrized tensor, evaluated only when something has changed.

        Raises:
            RuntimeError: if the value that was handed out before has been written in place.
        """
        return traced_value(self) if torch.compiler.is_compiling() else self._store.read(self)

    # ------------------------------------------------------------------------------ writing

    def right_inverse(self, value: Tensor) -> None:
        """Store the originals whose value is ``value``; ``module.weight = value`` comes here.

        The values are copied: the originals share no memory with ``value``.

        Args:
            value: of the shape of the parametrized tensor, or one that broadcasts to it, on its
                device, and of its dtype or one that it holds without rounding; or a number. Of a
                tensor with a graph the numbers are taken, with a warning: nothing is trained
                through them.

        Raises:
            RuntimeError: if a parametrization has no ``right_inverse``.
            ValueError: if the value, or what it is mapped to, has the wrong shape, dtype or
                device, or lies outside the constraint set. Nothing is written then.
        """
        with defer_interrupts():
            modules = [] if self.is_pure() else list(self.modules())
            # The right inverse of a foreign module may write into it, and fail then.
            with torch.no_grad(), all_or_nothing(modules, tensors_of(modules)):
                self.put(inversion.invert(self, inversion.expanded(self, value)))
        inversion.warn_of_graph(self, value)

    def put(self, new: Sequence[Tensor]) -> None:
        """Store originals that `invert` gave. Call it under ``torch.no_grad()``."""
        self._store.clear()
        nested: Any = self._modules.get("parametrizations", ())
        for name, tensor in zip(self.names(), new, strict=True):
            if name in nested:
                setattr(self, name, tensor)
            else:
                store(getattr(self, name), tensor)

    def check_argument(self, changed: nn.Module) -> None:
        """Raise if the originals do not go with a constraint of which an argument is another now.

        Args:
            changed: the constraint. It may have nothing to do with this tensor.
        """
        for i, module in enumerate(self.chain()):
            if module is changed or any(m is changed for m in module.modules()):
                check_fit(self, i)

    def take(self, original: Tensor) -> None:
        """Become the owner of ``original``, which turns into what the right inverse gave."""
        self.begin_with(original, self.__dict__.pop("_pending"))

    def begin_with(self, original: Tensor, new: Tensor | Sequence[Tensor]) -> None:
        """Register the originals ``new``, of which ``original`` becomes one where it can."""
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if isinstance(new, Tensor) else len(new)
        self.is_parameter = isinstance(original, nn.Parameter)
        with torch.no_grad():
            self._write(original, new)
        note(self)

    def _write(self, original: Tensor, new: Tensor | Sequence[Tensor]) -> None:
        if isinstance(new, Tensor):
            store(original, new)
            register_tensor(self, "original", original)
        else:
            first = self.chain()[0]
            frozen = first.frozen if isinstance(first, Constraint) else ()
            trained = [i for i in range(len(new)) if i not in frozen]
            for i, tensor in enumerate(new):
                name = f"original{i}"
                if i in frozen:
                    self.register_buffer(name, own(tensor))
                elif trained == [i] and frozen and tensor.dtype == original.dtype:
                    # The one tensor that is trained stays the one that an optimizer knows.
                    store(original, tensor)
                    register_tensor(self, name, original)
                else:
                    mine = own(tensor)
                    if self.is_parameter:
                        mine = nn.Parameter(mine, original.requires_grad)
                    vars(mine).update(attributes([original]))
                    register_tensor(self, name, mine.requires_grad_(original.requires_grad))

    def preview(self) -> Tensor:
        """The value that the tensor will have once `take` is called."""
        new: Tensor | Sequence[Tensor] = self.__dict__["_pending"]
        with torch.no_grad():
            return self.evaluator()(*((new,) if isinstance(new, Tensor) else new))

    # ---------------------------------------------------------------------- life as a module

    def _start(self) -> None:
        # Everything here is made anew in a copy, and stays out of pickles.
        self.__dict__["_store"] = ValueStore()
        self.__dict__["_notes"] = {}
        self.__dict__["_owners"] = weakref.WeakSet()
        self.__dict__["_watched"] = tuple(self.modules())[1:]
        # A leaf to torch.fx, as torch's. Of the instance: a pickle finds the class by its own.
        self.__dict__["__module__"] = torch_parametrize.__name__
        note(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Make a parameter one of the originals, as which an optimizer's step finds it."""
        super().register_parameter(name, param)
        note(self)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Where loading swaps tensors, no graph may hold them.
        self.forget()
        with defer_interrupts():
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        note(self)
        if all(prefix + name in state_dict for name in self.names()):
            self._store.clear()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.check_written(prefix.rstrip(".").replace("parametrizations.", ""))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        sign(destination, prefix, self.chain())

    def check_written(self, name: str) -> None:
        """Raise a RuntimeError if a value that was handed out has been written in place."""
        if self._store.is_lost():
            self._store.clear()
            raise _written(self, name)

    def check_traced(self, name: str) -> None:
        """The same, and warn of hooks on the value, for a tracer that sees neither."""
        self.check_written(name)
        if self._store.hooks.wait():
            warnings.warn(
                f"'{name}' is computed by {chain_repr(self)}, and code that is compiled does not "
                "call the hooks on its value: register them on its free parameters, under "
                f"`module.parametrizations.{name}`, or leave the module out of what is compiled.",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Forget stored values, whose graphs hold the originals, and what is noted about these.

        Needed only before somebody swaps the contents of an original, as by
        ``torch.utils.swap_tensors``, which no other reference to it may forbid.
        """
        self._store.drop()
        self._notes.clear()

    def forget_step(self) -> None:
        """Forget stored values, when an optimizer has moved the originals."""
        self._store.drop(stepped=True)

    def __getstate__(self) -> dict[str, Any]:
        self.check_written("weight")
        state = dict(self.__dict__)
        for name in ("_store", "_notes", "_owners", "_watched", "__module__"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParametrizationList:
        # Conversions replace or swap the originals, which no graph may hold at that time, and their
        # gradients, which no weak reference may.
        self.forget()
        super()._apply(functools.partial(_converted, fn, len(self.shape)), recurse)
        self.forget()
        note(self)
        return self


@check_when_set
def _check_originals(changed: nn.Module) -> None:
    """Raise if the originals of a tensor do not go with an argument that was set."""
    for found in all_holders():
        found.check_argument(changed)


def list_with_original(tensor: Tensor) -> ParametrizationList | None:
    """The list whose original this very parameter is, if there is one."""
    return next(reversed([*holders(tensor)]), None)


def read(parametrizations: nn.Module, name: str) -> Tensor:
    """The value of a parametrized tensor, with the errors that its user should see.

    Raises:
        RuntimeError: chained to the AttributeError that a parametrization raised (``getattr``
            would take that for a missing attribute), or if the value was written in place.
    """
    try:
        # Torch's own, or of a class that somebody has derived, to be called as torch's is.
        if type(parametrizations) is not ParametrizationList:
            return parametrizations()
        # Each read of a tensor comes here, and to ask this is cheaper than `is_compiling`.
        if _is_watched():
            return parametrizations.value()
        return parametrizations._store.read(parametrizations)
    except ValueWrittenError:
        raise _written(parametrizations, name) from None
    except AttributeError as error:
        raise RuntimeError(
            f"Evaluating '{name}' by {chain_repr(parametrizations)} failed: {error}"
        ) from error


def _written(parametrizations: nn.Module, name: str) -> RuntimeError:
    path = name if "." in name else path_for_the_caller(parametrizations, name)
    return RuntimeError(
        f"'{path}' is computed by {chain_repr(parametrizations)}, and its value was written "
        "in place since it was last read, which has no lasting effect: it is computed anew "
        "from its originals, and is as it was. Assign instead: "
        f"`module.{name.rpartition('.')[2]} = new_value`, or write inside of "
        "`with constrained.writable(module):`."
    )


def _converted(fn: Callable[[Tensor], Tensor], rank: int, tensor: Tensor) -> Tensor:
    """What a conversion makes of a tensor behind one with so many axes.

    A memory format, such as ``torch.channels_last``, is one of that many axes; torch tries it on
    all tensors of four or five, and fails on one too many. Of these the numbers alone are
    converted, in a row.
    """
    has_format = tensor.ndim in (4, 5) and tensor.ndim != rank
    if not has_format or type(tensor) not in (Tensor, nn.Parameter):
        return fn(tensor)
    flat = tensor.detach().reshape(-1)
    new = fn(flat)
    # What is there already stays, but not where it had to be copied.
    return tensor if new is flat and tensor.is_contiguous() else new.view(tensor.shape)
