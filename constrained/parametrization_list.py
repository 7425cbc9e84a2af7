"""Where the originals of a parametrized tensor live, and how they become its value."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained import inversion, sharded
from constrained.appending import prepare
from constrained.cache import ValueStore, ValueWrittenError
from constrained.caller import path_for_the_caller
from constrained.constraint import Constraint, is_autocast
from constrained.fingerprint import happened
from constrained.fit import check_constants, check_fit
from constrained.holders import holders
from constrained.linear import Unread, has_factors, has_thin_pullback
from constrained.originals import (
    attributes,
    check_elements,
    check_records,
    check_single,
    check_value,
    check_writable_now,
    initial_right_inverse,
    own,
    register_tensor,
    store,
)
from constrained.replay import Pullback, with_dense_gradient
from constrained.restore import watch
from constrained.tools import check_not_sparsifying
from constrained.torch_internals.graphs import traced_value
from constrained.torch_internals.modules import is_replica
from constrained.torch_internals.moments import has_saving_hooks, is_transformed
from constrained.torch_internals.shards import is_flat
from constrained.torch_internals.tensors import version
from constrained.transaction import all_or_nothing, tensors_of
from constrained.undisturbed import Undisturbed
from constrained.wrapped import is_sharded
from constrained.writer import sign

_is_watched = torch.compiler.is_dynamo_compiling

#: Tensors of so many entries are small, and as many are restored at once.
_SMALL, _BATCH = 2**16, 2**22

#: A gradient is thin if a layer of this many times as many rows would have it.
_THIN = 4
#: Multiplications that are worth a second product, and what it takes to call it.
_SAVED = 2**19
#: What a constraint keeps beside its arguments, and what follows from them.
_OF_EVERY_CONSTRAINT = frozenset({*vars(nn.Module()), "_revision", "_map_revision"})

_HALF = (torch.float16, torch.bfloat16)

#: Of a list whose gradient no step has been made of.
_NOT_PREPARED: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)


class ParametrizationList(torch_parametrize.ParametrizationList):
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

    shape: torch.Size
    is_tensor: bool
    ntensors: int
    is_parameter: bool
    persistent: bool
    moved: float | None
    _store: ValueStore
    _owners: weakref.WeakSet[Any]
    _watched: tuple[nn.Module, ...]

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
        self.check_finite(value, (new,) if isinstance(new, Tensor) else new)
        if not unsafe:
            # The derivative is not asked for, but whether there is one decides what is trained.
            result = self.evaluator()(*((new,) if isinstance(new, Tensor) else new))
            check_value(result, original)
            self.check_finite(value, (result,))
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
        before = self[idx]
        with Undisturbed():
            super().__setitem__(idx, module)
            try:
                index = range(len(self))[idx]
                check_fit(self, index, "put this one there")
                if index == 0:
                    check_constants(self, "put this one there")
            except Exception:
                super().__setitem__(idx, before)
                raise

    # ------------------------------------------------------------------------------ reading

    def forward(self) -> Tensor:
        """Evaluate the parametrizations, without looking at stored values."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            raise RuntimeError("Parametrization is not working with scripting.")
        if is_sharded(self):
            others = (p for module in self.chain() for p in module.parameters())
            shape = None if self.unsafe else self.shape
            return sharded.evaluate(self.evaluator(), self.originals(), others, shape)
        value = self.evaluator()(*self.originals())
        # Where a value is stored, `replay` sees to it.
        if not value.requires_grad or torch.compiler.is_compiling() or is_transformed():
            return value
        is_ours = any(isinstance(module, Constraint) for module in self.chain())
        return with_dense_gradient(value) if is_ours else value

    def value(self) -> Tensor:
        """The value of the parametrized tensor, evaluated only when something has changed.

        Raises:
            RuntimeError: if the value that was handed out before has been written in place.
        """
        return traced_value(self) if torch.compiler.is_compiling() else self._store.read(self)

    def originals(self) -> tuple[Tensor, ...]:
        """The tensors that the value is computed from, in the order of ``forward``'s arguments."""
        if self.is_tensor:
            return (self.original,)
        return tuple(getattr(self, name) for name in self.names())

    def names(self) -> tuple[str, ...]:
        """The names of the originals here."""
        if self.is_tensor:
            return ("original",)
        return tuple(f"original{i}" for i in range(self.ntensors))

    def constraint(self) -> Constraint | None:
        """The constraint that the value satisfies: the last parametrization, if it is one."""
        last = self.chain()[-1]
        return last if isinstance(last, Constraint) else None

    def is_constrained(self) -> bool:
        """Whether `constrain` put this list here; else a `register_parametrization` did."""
        return self.moved is not None

    def described(self) -> str:
        """The parametrizations in words, for messages."""
        return _chain_repr(self)

    def chain(self) -> list[nn.Module]:
        """The parametrizations, in the order of application."""
        # Keys that are no numbers belong to whoever put them there: a nested parametrization of
        # an original, for one.
        return [module for key, module in self._modules.items() if key.isdigit() and module]

    # What a ValueStore asks.

    def watched(self) -> tuple[nn.Module, ...]:
        """This list and the modules in it, as they were when `look` was called."""
        return (self, *self._watched)

    def look(self) -> None:
        """Look anew at which modules the value depends on."""
        self.__dict__["_watched"] = tuple(self.modules())[1:]

    def is_managed(self) -> bool:
        """Whether somebody swaps and writes the originals without a trace."""
        return any(map(is_sharded, self.watched()))

    def is_pure(self) -> bool:
        """Whether the value depends on tensors and arguments of the watched modules alone."""
        return not hasattr(self, "parametrizations") and all(
            isinstance(m, Constraint) and m.deterministic for m in self.chain()
        )

    def pullback(self) -> Pullback | None:
        """How the one constraint here has its gradient without a graph, if it can."""
        first, *rest = self.chain()
        if rest or not isinstance(first, Constraint) or not first.has_pullback():
            return None
        if not first.has_own_map():
            return None
        return first.pullback

    def factors(self, rows: int) -> tuple[Tensor, Tensor] | None:
        """Thin factors of the value, where a product by them says all that the value would say.

        Args:
            rows: of what is multiplied.
        """
        first, *rest = self.chain()
        if rest or not has_factors(first) or not self._may_be_applied_unread():
            return None
        originals = self.originals()
        # In half precision a product of factors is rounded in between.
        if originals[0].dtype in _HALF or is_autocast(originals[0]):
            return None
        found = first.factors(*originals)
        if found is None:
            return None
        (m, r), n = found[0].shape, found[1].shape[-1]
        # However often it is called: what is computed twice must not differ by rounding.
        return found if rows * (m * n - r * (m + n)) > _SAVED else None

    def unread(self, input: Tensor) -> Unread | None:
        """The value, where a linear layer may have its gradient without anybody reading it."""
        first, *rest = self.chain()
        if rest or not torch.is_grad_enabled() or not has_thin_pullback(first):
            return None
        if not self._may_be_applied_unread() or not self.is_pure():
            return None
        originals = self.originals()
        ours, kind = originals[0], type(input)
        if (
            kind not in (Tensor, nn.Parameter)
            or (input.dtype, input.device) != (ours.dtype, ours.device)
            or ours.dtype in _HALF
            or input.layout is not torch.strided
            or len(self.shape) != 2
            or input.ndim < 1
            or input.shape[-1] != self.shape[1]
            or not any(t.requires_grad for t in originals)
            or is_autocast(ours)
        ):
            return None
        rows = input.shape[:-1].numel()
        total = self._count_rows(rows)
        # Many thin gradients cost more than the one gradient of a value that all calls share.
        if total > rows and total > min(self.shape) // _THIN:
            return None
        found = self._store.precomputed(self)
        if found is None:
            with torch.no_grad():
                value = self.evaluator()(*originals)
            self._store.precompute(self, value, None)
            found = self._store.precomputed(self)
            if found is None:
                return None
        value, copied, fingerprint = found
        return Unread(first, value, originals, copied, fingerprint, self._store)  # type: ignore[arg-type]

    def _may_be_applied_unread(self) -> bool:
        """Whether nobody listens, traces, or saves what autograd saves elsewhere."""
        # A list of a class that somebody has derived is to be called.
        if type(self) is not ParametrizationList:
            return False
        # What is run once more, to save the same tensors, must not find another way then.
        return (
            not has_saving_hooks()
            and not is_transformed()
            and not is_replica(self)
            and self._store.recipe(self) is not None
        )

    def _count_rows(self, rows: int) -> int:
        """How many rows the layer was applied to since a step, or a backward pass."""
        since, before = self.__dict__.get("_rows", (None, 0))
        now = happened()
        total = rows + (before if since == now else 0)
        self.__dict__["_rows"] = now, total
        return total

    def evaluator(self) -> Callable[..., Tensor]:
        """A function from originals to the value, which does not hold on to this list."""
        return functools.partial(_evaluate, self.chain())

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
        with Undisturbed():
            modules = [] if self.is_pure() else list(self.modules())
            # The right inverse of a foreign module may write into it, and fail then.
            with torch.no_grad(), all_or_nothing(modules, tensors_of(modules)):
                self.put(self.invert(inversion.expanded(self, value)))
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

    def check_assigned(self, value: Tensor, *, anew: bool = False) -> None:
        """Raise unless a tensor of this type, shape and device can be assigned."""
        inversion.check_assigned(self, value, anew=anew)

    def invert(self, value: Tensor, *, anew: bool = False) -> tuple[Tensor, ...]:
        """The originals whose value is ``value``, checked and not yet stored.

        Args:
            value: of the shape of the parametrized tensor.
            anew: the originals are to take the place of those here, which may be of another dtype
                or on another device.
        """
        return inversion.invert(self, value, anew=anew)

    def check_finite(self, value: Tensor, new: Sequence[Tensor]) -> None:
        """Raise if what was made of a finite value is not finite, unless ``unsafe``."""
        inversion.check_finite(self, value, new)

    def check_argument(self, changed: nn.Module) -> None:
        """Raise if the originals do not go with a constraint of which an argument is another now.

        Args:
            changed: the constraint. It may have nothing to do with this tensor.
        """
        for i, module in enumerate(self.chain()):
            if module is changed or any(m is changed for m in module.modules()):
                check_fit(self, i)

    def place(self) -> str:
        """The name of the tensor in a module that has it, for messages."""
        found = (k for owner in list(self._owners) for k, v in owner.items() if v is self)
        return next(found, "tensor")

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
        watch(self)

    def _write(self, original: Tensor, new: Tensor | Sequence[Tensor]) -> None:
        if isinstance(new, Tensor):
            store(original, new)
            register_tensor(self, "original", original)
        else:
            frozen = self._frozen()
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

    def _frozen(self) -> tuple[int, ...]:
        """Which originals the constraint that takes them declares to be constants."""
        first = self.chain()[0]
        return first.frozen if isinstance(first, Constraint) else ()

    # ---------------------------------------------------------------------- life as a module

    def _start(self) -> None:
        # Everything here is made anew in a copy, and stays out of pickles.
        self.__dict__["_store"] = ValueStore()
        self.__dict__["_owners"] = weakref.WeakSet()
        self.__dict__["_watched"] = tuple(self.modules())[1:]
        # A leaf to torch.fx, as torch's. Of the instance: a pickle finds the class by its own.
        self.__dict__["__module__"] = torch_parametrize.__name__
        first = self.chain()[0] if len(self) else None
        watch(self)
        if has_factors(first) or has_thin_pullback(first):
            # A linear layer asks at each call.
            self.__dict__["_is_applied_unread"] = True

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Make a parameter one of the originals, as which an optimizer's step finds it."""
        super().register_parameter(name, param)
        watch(self)

    def has_step_gradient(self) -> bool:
        """Whether a step is made of something else than the gradient of the first original."""
        first = self.chain()[0]
        return (
            len(self.chain()) == 1
            and isinstance(first, Constraint)
            and first.has_step_gradient()
            and first.has_own_map()
        )

    def prepare_step(self) -> None:
        """Make of the gradient of the first original what a step is made of."""
        mine = self.originals()
        before = mine[0].grad
        if before is None or before.layout is not torch.strided or any(map(is_flat, mine)):
            return
        # A step may run in another one, and the gradient must not be made anew in both.
        made, made_version = self.__dict__.get("_prepared", _NOT_PREPARED)
        if made() is before and version(before) == made_version:
            return
        with torch.no_grad():
            found = self.chain()[0].step_gradient(  # type: ignore[operator]
                sharded.whole(before), *map(sharded.whole, mine)
            )
            now = before
            if found is not before and _has_memory_of_its_own(before):
                mine[0].grad = now = found
            elif found is not before:
                store(before, found)
        self.__dict__["_prepared"] = weakref.ref(now), version(now)

    def restore(self, trained: Collection[int] | None = None) -> None:
        """Bring the originals to the canonical form of the first constraint; the value stays.

        Shards of originals are restored together with the other processes. The pieces that the
        first FSDP leaves a process are not restored.

        Args:
            trained: the ids of the parameters that may be written; all if None.
        """
        first = self.chain()[0]
        if not _has_canonical(first):
            return
        mine = self.originals()
        if any(map(is_flat, mine)):
            return
        groups = first.restored_together(len(mine))
        places = {i for group in groups if self._may_write(group, trained) for i in group}
        if not places:
            return
        with torch.no_grad():
            originals = tuple(map(sharded.whole, mine))
            canonical = first.canonical(*originals)
            for i, (here, old, new) in enumerate(zip(mine, originals, canonical, strict=True)):
                if i in places and new is not old:
                    store(here, new)
            if first.ambient is not None and len(places) == len(mine):
                self._settle(first, canonical[first.ambient])

    def restart(self, trained: Collection[int] | None = None) -> None:
        """Bring the originals to where `right_inverse` puts the value, all of the way.

        To the canonical form there may be several restorations to go.

        Args:
            trained: the ids of the parameters that may be written; all if None.
        """
        first = self.chain()[0]
        if not _has_canonical(first):
            return
        mine = self.originals()
        if not any(map(is_flat, mine)) and self._may_write(range(len(mine)), trained):
            with torch.no_grad():
                self.put(self.invert(self()))

    def _may_write(self, places: Iterable[int], trained: Collection[int] | None) -> bool:
        """Whether these originals are constants, or trained: others keep every bit."""
        names = self.names()
        return all(
            name in self._buffers
            or ((p := self._parameters.get(name)) is not None and _is_among(p, trained))
            for name in (names[i] for i in places)
        )

    def likeness(self) -> Hashable | None:
        """What tensors have in common that may be restored as one batch; None for a large one."""
        first = self.chain()[0]
        if not (isinstance(first, Constraint) and first.ambient is not None and self.is_tensor):
            return None
        if not _has_canonical(first):
            return None
        if first.remembers or first._parameters or first._buffers or first._modules:
            # What it has of its own is no argument, and may differ.
            return None
        here = self.original
        if type(here) is not nn.Parameter or not 0 < here.numel() <= _SMALL:
            return None
        arguments = {k: v for k, v in vars(first).items() if k not in _OF_EVERY_CONSTRAINT}
        if not all(isinstance(v, (str, int, float)) for v in arguments.values()):
            return None
        return type(first), frozenset(arguments.items()), here.shape, here.dtype, here.device

    def restore_all(self, alike: Sequence[ParametrizationList]) -> None:
        """Restore lists of one `likeness`, this one among them, in batches."""
        count = max(1, _BATCH // self.original.numel())
        for start in range(0, len(alike), count):
            some = alike[start : start + count]
            if len(some) == 1:
                some[0].restore()
                continue
            with torch.no_grad():
                (canonical,) = some[0].chain()[0].canonical(torch.stack([a.original for a in some]))  # type: ignore[operator]
                for item, new in zip(some, canonical, strict=True):
                    # A value must not share its memory with others, nor its version.
                    new = new.clone()
                    item.original.copy_(new)
                    item._settle(item.chain()[0], new)

    def _settle(self, first: Any, canonical: Tensor) -> None:
        """Remember the value, which an ambient constraint has as its parameter."""
        here = self.originals()
        value = here[first.ambient]
        # A half-precision value is rounded from an evaluation in single precision, and a shard is
        # not the value.
        exact = value.shape == canonical.shape and value.dtype not in _HALF
        if exact and len(self.chain()) == 1 and not torch.compiler.is_compiling():
            # A value must not share its memory with others, nor its version.
            apart = canonical.clone() if canonical is value else canonical
            self._store.precompute(self, apart, first.ambient)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Where loading swaps tensors, no graph may hold them.
        self.forget()
        with Undisturbed():
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        watch(self)
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
        if self._store.is_hooked():
            warnings.warn(
                f"'{name}' is computed by {_chain_repr(self)}, and code that is compiled does not "
                "call the hooks on its value: register them on its free parameters, under "
                f"`module.parametrizations.{name}`, or leave the module out of what is compiled.",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Forget stored values, whose graphs hold the originals.

        Needed only before somebody swaps the contents of an original, as by
        ``torch.utils.swap_tensors``, which no other reference to it may forbid.
        """
        self._store.drop()

    def forget_step(self) -> None:
        """Forget stored values, when an optimizer has moved the originals."""
        self._store.drop(stepped=True)

    def __getstate__(self) -> dict[str, Any]:
        self.check_written("weight")
        state = dict(self.__dict__)
        for name in ("_store", "_owners", "_watched", "_prepared", "_rows", "__module__"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParametrizationList:
        # Conversions replace or swap the originals, which no graph may hold at that time, and their
        # gradients, which no weak reference may.
        self.forget()
        self.__dict__.pop("_prepared", None)
        super()._apply(functools.partial(_converted, fn, len(self.shape)), recurse)
        self.forget()
        watch(self)
        return self


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
            f"Evaluating '{name}' by {_chain_repr(parametrizations)} failed: {error}"
        ) from error


def _written(parametrizations: nn.Module, name: str) -> RuntimeError:
    path = name if "." in name else path_for_the_caller(parametrizations, name)
    return RuntimeError(
        f"'{path}' is computed by {_chain_repr(parametrizations)}, and its value was written "
        "in place since it was last read, which has no lasting effect: it is computed anew "
        "from its originals, and is as it was. Assign instead: "
        f"`module.{name.rpartition('.')[2]} = new_value`, or write inside of "
        "`with constrained.writable(module):`."
    )


def _chain_repr(parametrizations: nn.Module) -> str:
    return " then ".join(
        repr(m) if isinstance(m, Constraint) else type(m).__name__
        for m in parametrizations.children()
    )


def _evaluate(chain: Sequence[nn.Module], *originals: Tensor) -> Tensor:
    first, *rest = chain
    value = first(*originals)
    for module in rest:
        value = module(value)
    return value


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


def _has_canonical(module: nn.Module) -> TypeGuard[Constraint]:
    """Whether a constraint says of the map that it has which parameters are canonical."""
    return isinstance(module, Constraint) and module.has_canonical() and module.has_own_map()


def _is_among(parameter: Tensor, ids: Collection[int] | None) -> bool:
    return ids is None or id(parameter) in ids


def _has_memory_of_its_own(tensor: Tensor) -> bool:
    """Whether nobody has a tensor of which this one is a part, as the buckets of DDP."""
    own = tensor.numel() * tensor.element_size()
    return type(tensor) is Tensor and tensor.untyped_storage().nbytes() == own
