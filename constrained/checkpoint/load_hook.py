"""How the keys of any checkpoint become those of a model with parametrized tensors.

A checkpoint may hold a tensor's plain value, or what another parametrization made of it. Either
way the value is found first, and mapped to the tensor's own originals then. The state dict is
translated while ``load_state_dict`` goes through the modules: what it says and raises is torch's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from constrained.atomic.contents import is_finite
from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.atomic.shards import is_shard, whole, write
from constrained.checkpoint.foreign_formats import OLD_ENDINGS, agree, read
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError
from constrained.model.lazy import materialize_from
from constrained.parametrized.checkpoint_metadata import SavedChain, recorded_chain
from constrained.parametrized.locations import is_parametrized
from constrained.parametrized.module_class import contribute
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.right_inverse import invert
from constrained.torch_internals.tensors import has_values

#: "error" or "project": what becomes of a plain value outside of its constraint set.
on_infeasible: ContextVar[str] = ContextVar("on_infeasible", default="error")


_CURE = (
    "build the model that wrote the checkpoint, load it there, and load "
    "constrained.baked_state_dict(of that model) here, with everything=True if it was "
    "parametrized by others."
)


@contribute
def loading_members(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """How a module of a class with parametrized tensors loads its part of a state dict."""
    del base, names
    return {"_load_from_state_dict": _load_from_state_dict}


def _load_from_state_dict(
    self: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    with defer_interrupts():
        materialize_from(self, state_dict, prefix, local_metadata)
        known = len(unexpected_keys)
        super(self._parametrized, self)._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if is_parametrized(self):
            translate(self, state_dict, prefix, local_metadata, error_msgs)
            unexpected_keys[known:] = [k for k in unexpected_keys[known:] if k in state_dict]


@torch.no_grad()
def translate(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    error_msgs: list[str],
) -> None:
    """Put the keys of a module's parametrized tensors in the place of others that hold the values.

    The arguments are those of ``nn.Module._load_from_state_dict``, which has run the hooks of the
    module by now. (As one of these this would have to be registered for the time of loading, when
    another thread may be copying the module.)
    """
    assign = local_metadata.get("assign_to_params_buffers", False)
    for name, parametrizations in module.parametrizations.items():  # type: ignore[operator]
        if not isinstance(parametrizations, ParametrizationList):
            continue
        allow_interrupt()
        said = recorded_chain(local_metadata, name)
        tensor = _Saved(module, name, parametrizations, state_dict, prefix, said)
        try:
            tensor.translate(assign)
        except Exception as error:  # As nn.Module does: all errors are reported together.
            # A foreign module may put a whole tensor into its message.
            reason = str(error) if isinstance(error, ValueError | TypeError) else repr(error)
            reason = reason if len(reason) <= 700 else reason[:697] + "..."
            error_msgs.append(f"'{tensor.path}': {reason}")
            tensor.leave()


class _Found(NamedTuple):
    """A value in a checkpoint, and the keys that hold it."""

    value: Any
    keys: tuple[str, ...]
    origin: str = "a plain model"
    others: tuple[str, ...] = ()


class _Saved:
    """What a state dict holds of one parametrized tensor."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        parametrizations: ParametrizationList,
        state_dict: dict[str, Any],
        prefix: str,
        said: list[Any] | None,
    ) -> None:
        self.module = module
        self.name = name
        self.path = prefix + name
        self.inner = f"{prefix}parametrizations.{name}."
        self.parametrizations = parametrizations
        self.constraint = parametrizations.constraint()
        self.state_dict = state_dict
        self.own = _own(parametrizations)
        self.saved = {
            key.removeprefix(self.inner): value
            for key, value in state_dict.items()
            if key.startswith(self.inner)
        }
        if self._is_filled_up() and any((*self._plain(), *self._old())):
            self._drop(self.inner + key for key in self.saved)
            self.saved = {}
        #: What else the entries are known to be written for, or whether it was the tensor itself.
        self.writer = None
        if said and self.saved:
            chain, shape = parametrizations.chain(), parametrizations.shape
            self.writer = SavedChain.other(said, chain, shape)
        self.is_signed = bool(said) and self.writer is None

    def translate(self, assign: bool) -> None:
        """Put the tensor's own keys in the place of others that hold its value.

        Keys that repeat the value are dropped; keys that contradict it stay, as unexpected ones.
        """
        if self.writer is None and self._is_own():
            self._check_own()
            entries, repeated = {}, [*self._plain(), *self._old()]
            # Several originals of the same shapes mean little: a step and its base, two factors.
            unsure = self.constraint and len(self.saved) == 1 and not self.is_signed
            alike = list(self._foreign()) if unsure else []
            if not repeated and not alike:
                return
            value = self._own_value()
            for other in alike:
                if not _agree(value, other.value):
                    self._warn(repr(self.constraint), other.origin)
        else:
            known = list(self._of_writer())
            foreign = [] if known or self.is_signed else self._foreign()
            found = [*known, *self._plain(), *foreign, *self._old()]
            if not found:
                self._check_known()
                if not self.saved and not self.parametrizations.persistent:
                    # A plain model saves nothing of this tensor.
                    self._put(self.own)
                return
            first, *repeated = found
            value, entries = first.value, self._mapped(first, assign)
            if first.others:
                self._warn(first.origin, " or ".join(first.others))
            self._drop(first.keys)
        for other in repeated:
            if _agree(value, other.value):
                self._drop(other.keys)
        self._put(entries)

    def leave(self) -> None:
        """Let the tensor be loaded as it is."""
        old = [self.path + ending for endings in OLD_ENDINGS for ending in self._complete(endings)]
        self._drop((self.path, *(self.inner + key for key in self.saved), *old))
        self._put(self.own)

    def _put(self, entries: Mapping[str, Any]) -> None:
        self.state_dict.update({self.inner + key: value for key, value in entries.items()})

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.state_dict.pop(key, None)

    # ------------------------------------------------------------------ where a value may stand

    def _is_own(self) -> bool:
        return self.saved.keys() == self.own.keys() and all(
            _shape(self.saved[key]) == _shape(value) for key, value in self.own.items()
        )

    def _is_filled_up(self) -> bool:
        """Whether the entries are the tensor's own originals, and not out of a checkpoint.

        With full_state_dict=True, torch.distributed.checkpoint adds those that it misses.
        """
        own = {key: value for key, value in self.own.items() if isinstance(value, Tensor)}
        return self._is_own() and all(_is_same(self.saved[k], value) for k, value in own.items())

    def _plain(self) -> Iterator[_Found]:
        if self.path in self.state_dict and self.parametrizations.persistent:
            yield _Found(self.state_dict[self.path], (self.path,))

    def _foreign(self) -> Iterator[_Found]:
        yield from self._read(self.saved, tuple(self.inner + key for key in self.saved))

    def _of_writer(self) -> Iterator[_Found]:
        """The value under the other constraint that the entries were written for."""
        if self.writer is None:
            return
        try:
            value, keys = self.writer.value(self.saved)
        except ValueError as error:
            # Of a module that is no constraint, such as torch's own, the keys may tell more.
            if not self.writer.has_only_constraints() and any(self._foreign()):
                return
            raise ValueError(
                f"the checkpoint was written for {self.writer!r}, and here is "
                f"{self.parametrizations.described()}: {str(error).rstrip('.')}; {_CURE}"
            ) from None
        yield _Found(value, tuple(self.inner + key for key in keys), repr(self.writer))

    def _old(self) -> Iterator[_Found]:
        for endings in OLD_ENDINGS:
            keys = {self.path + ending: new for ending, new in self._complete(endings).items()}
            yield from self._read({n: self.state_dict[k] for k, n in keys.items()}, tuple(keys))

    def _complete(self, endings: Mapping[str, str]) -> Mapping[str, str]:
        """The endings, if the state dict has them all and they name no tensors of the module."""
        known = {*self.module._parameters, *self.module._buffers}
        complete = all(
            self.path + ending in self.state_dict and self.name + ending not in known
            for ending in endings
        )
        return endings if complete else {}

    def _read(self, entries: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[_Found]:
        # A view is named after what it views.
        named: Any = getattr(self.constraint, "constraint", self.constraint)
        names = (str(named.name), *named.aliases) if isinstance(named, Constraint) else ()
        reading = read(entries, self.parametrizations.shape, names)
        if reading is None:
            return
        yield _Found(reading.value, keys, reading.origin, reading.others)

    def _warn(self, origin: str, others: str) -> None:
        warnings.warn(
            f"'{self.path}': its keys in the checkpoint are read as those of {origin}. The same "
            f"keys with another meaning come from {others}; if these do: {_CURE}",
            UserWarning,
            stacklevel=2,
        )

    def _own_value(self) -> Tensor:
        twin = copy.deepcopy(self.parametrizations).eval()
        # A twin on the meta device has no memory to copy to.
        twin.load_state_dict(self.saved, assign=True)
        return twin()

    # -------------------------------------------------------------------------- what is checked

    def _check_own(self) -> None:
        for key in self.parametrizations.names():
            value = self.saved.get(key)
            # Of shards each process has seen its own only, and they could not raise together.
            if self.constraint is None or not isinstance(value, Tensor) or is_shard(value):
                continue
            if not is_finite(value):
                raise ValueError(
                    f"{self.constraint!r}: '{self.inner}{key}' of the checkpoint holds NaN or "
                    "infinite values."
                )

    def _check_known(self) -> None:
        if self.constraint is None:
            return
        wrong = {
            key: value
            for key, value in self.saved.items()
            if key not in self.own or _shape(value) != _shape(self.own[key])
        }
        if wrong:
            raise ValueError(
                f"under '{self.inner}' the checkpoint has {_listed(wrong)}, where "
                f"{self.constraint!r} has {_listed(self.own)}: they are of another constraint or "
                f"of another size, and do not tell the value; {_CURE}"
            )

    # ------------------------------------------------------------------ from a value to originals

    def _mapped(self, found: _Found, assign: bool) -> dict[str, Any]:
        """The tensor's own entries at a value, or an error that says whose value it was."""
        if self.writer is None or found.origin != repr(self.writer):
            return self._entries(found, assign)
        try:
            return self._entries(found, assign)
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError | TypeError) else repr(error)
            raise ValueError(f"the checkpoint was written for {found.origin}: {reason}") from error

    def _entries(self, found: _Found, assign: bool) -> dict[str, Any]:
        """The tensor's own entries at a value. Nothing of the model is written."""
        value, target = found.value, self.parametrizations
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor in the checkpoint, got {type(value).__name__}.")
        if value.shape != target.shape and not target.unsafe:
            raise ValueError(
                f"size mismatch for {self.path}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {target.shape}."
            )
        value, known = whole(value.detach()), target.originals()[0]
        anew = assign or known.is_meta
        wanted = value if anew else value.to(known.device, known.dtype)
        return _entries(target, self._member(value, wanted), anew)

    def _member(self, value: Tensor, wanted: Tensor) -> Tensor:
        """``wanted``, which is ``value`` in the model's precision, or the member it stands for."""
        constraint = self.constraint
        if constraint is None:
            return wanted
        constraint.check_tensor(wanted)
        if not has_values(wanted):
            return wanted
        if on_infeasible.get() == "project":
            # An open set's projection leaves its interior alone, and moves what is on the boundary.
            # Not farther: what was trained shall compute what it did.
            is_member = constraint.closed and bool(constraint.contains(wanted).all())
            return wanted if is_member else constraint.project(wanted)
        try:
            constraint.check_member(wanted)
        except InfeasibleError as error:
            if _is_coarser(value.dtype, wanted.dtype) and bool(constraint.contains(value).all()):
                # A member, but for the rounding of the checkpoint's own precision.
                return constraint.project(wanted)
            raise InfeasibleError(
                f"{error} constrained.load_state_dict(model, state_dict, on_infeasible='project') "
                "loads that."
            ) from None
        return wanted


def _entries(parametrizations: ParametrizationList, value: Tensor, anew: bool) -> dict[str, Any]:
    chain, nested = parametrizations.chain(), parametrizations._modules.get("parametrizations", {})
    if nested or not all(isinstance(m, Constraint) for m in chain):
        # The right inverse of a foreign module may write into it.
        parametrizations = copy.deepcopy(parametrizations)
        nested = parametrizations._modules.get("parametrizations", {})
    originals = invert(parametrizations, value, anew=anew)
    first = chain[0]
    if isinstance(first, Constraint) and first.has_own_map() and has_values(value):
        originals = first.canonical(*originals)
    entries = _own(parametrizations)
    known = parametrizations.originals()
    for name, original, old in zip(parametrizations.names(), originals, known, strict=True):
        if name in nested:  # type: ignore[operator]
            inner = _entries(nested[name], original, anew)  # type: ignore[index]
            entries.update({f"parametrizations.{name}.{key}": t for key, t in inner.items()})
        elif is_shard(old):
            entries[name] = torch.empty_like(old)
            write(entries[name], original)
        else:
            entries[name] = original
    return entries


def _own(parametrizations: ParametrizationList) -> dict[str, Any]:
    """What a list would save, the very tensors, whatever became of its values."""
    entries: dict[str, Any] = {}
    for path, module in parametrizations.named_modules(remove_duplicate=False):
        is_list = isinstance(module, ParametrizationList)
        save = nn.Module._save_to_state_dict if is_list else type(module)._save_to_state_dict
        save(module, entries, f"{path}." if path else "", True)
    return entries


def _agree(value: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and agree(value, other, value.dtype)


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shape(value) or ''}".strip() for key, value in entries.items())


def _is_same(value: Any, original: Tensor) -> bool:
    """Whether a tensor of the checkpoint is one that is here already, or both hold no numbers."""
    if not {type(value), type(original)} <= {Tensor, nn.Parameter}:
        return False
    if value.is_meta or original.is_meta:
        return value.is_meta and original.is_meta
    return value.data_ptr() == original.data_ptr()


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _is_coarser(a: torch.dtype, b: torch.dtype) -> bool:
    inexact = a.is_floating_point or a.is_complex
    return inexact and torch.finfo(a).eps > torch.finfo(b).eps
