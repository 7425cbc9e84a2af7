"""How the entries of a state dict for one parametrized tensor are translated before torch loads it.

The value may be stored in several ways: under the plain name of the tensor, under the keys of
another constraint that the metadata names, or under the keys of another library. The first that is
found is loaded. Keys that repeat its value are dropped, and keys that contradict it are left, so
that torch reports them as unexpected.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from constrained.atomic.contents import is_finite
from constrained.atomic.sharded import is_shard
from constrained.checkpoint.entries import entries_for, own_entries
from constrained.checkpoint.foreign_formats import OLD_ENDINGS, agree, read
from constrained.constraint.base import Constraint
from constrained.parametrized.checkpoint_metadata import SavedChain
from constrained.parametrized.parametrization_list import ParametrizationList

_CURE = (
    "build the model that wrote the checkpoint, load it there, and load "
    "constrained.baked_state_dict(of that model) here, with everything=True if it was "
    "parametrized by others."
)


class FoundValue(NamedTuple):
    """A value in a state dict.

    Attributes:
        keys: the keys that hold it.
        value: a tensor, unless the checkpoint is corrupt.
        origin: what is assumed to have written these keys.
        others: what else may have written the same keys for another value.
    """

    keys: tuple[str, ...]
    value: Any
    origin: str = "a plain model"
    others: tuple[str, ...] = ()


class SavedTensor:
    """The entries of a state dict for one parametrized tensor.

    Args:
        module: the module that has the tensor.
        name: the tensor's name in it.
        parametrizations: the list of the tensor in this model.
        state_dict: the state dict, in which entries are replaced.
        prefix: the beginning of the module's keys.
        written_for: the parametrizations that the metadata names for the tensor, if it names some.

    Attributes:
        path: the key under which a plain model would have the tensor.
        is_of_others: whether the metadata shows that no constraint of this package wrote the
            entries; see `is_without_record`.
    """

    is_of_others: bool = False

    def __init__(
        self,
        module: nn.Module,
        name: str,
        parametrizations: ParametrizationList,
        state_dict: dict[str, Any],
        prefix: str,
        written_for: list[Any] | None,
    ) -> None:
        self.path = prefix + name
        self._module = module
        self._name = name
        self._prefix = f"{prefix}parametrizations.{name}."
        self._parametrizations = parametrizations
        self._constraint = parametrizations.constraint()
        self._state_dict = state_dict
        self._own = own_entries(parametrizations)
        self._saved = {
            key.removeprefix(self._prefix): value
            for key, value in state_dict.items()
            if key.startswith(self._prefix)
        }
        if self._is_filled_in() and any((*self._plain(), *self._old())):
            self._drop(self._prefix + key for key in self._saved)
            self._saved = {}
        #: What the entries were written for, if the metadata says that it is not what is here.
        self._writer = None
        if written_for and self._saved:
            chain, shape = parametrizations.chain(), parametrizations.shape
            self._writer = SavedChain.other(written_for, chain, shape)
        #: Whether the metadata says that the entries were written for these parametrizations.
        self._is_declared_own = bool(written_for) and self._writer is None

    def translate(self, assign: bool) -> None:
        """Replace entries of any other format by those that this model has for the same value.

        Args:
            assign: as in ``load_state_dict``.

        Raises:
            ValueError: if the value does not follow from the entries, or does not fit the tensor.
            TypeError: if the value is not a tensor.
        """
        if self._writer is None and self._is_own() and not self._may_mean_else():
            self._check_own()
            entries, repeated = {}, [*self._plain(), *self._old()]
            # Another library may use the key of a single original for another value. Several
            # originals (a step and its base, or two factors) may fit its formulas by chance.
            unsure = self._constraint and len(self._saved) == 1 and not self._is_declared_own
            alike = list(self._foreign()) if unsure else []
            if not repeated and not alike:
                return
            value = self._own_value()
            for other in alike:
                if not _agree(value, other.value):
                    self._warn(repr(self._constraint), other.origin)
        else:
            known = list(self._of_writer())
            foreign: Iterable[FoundValue] = (
                [] if known or self._is_declared_own else self._foreign()
            )
            found = [*known, *self._plain(), *foreign, *self._old()]
            if not found:
                self._check_known()
                if not self._saved and not self._parametrizations.persistent:
                    # A plain model saves nothing of this tensor.
                    self._put(self._own)
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
        """Make torch load the tensor's present originals, so that nothing changes."""
        old = [self.path + ending for endings in OLD_ENDINGS for ending in self._complete(endings)]
        self._drop((self.path, *(self._prefix + key for key in self._saved), *old))
        self._put(self._own)

    def _put(self, entries: Mapping[str, Any]) -> None:
        self._state_dict.update({self._prefix + key: value for key, value in entries.items()})

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._state_dict.pop(key, None)

    # ------------------------------------------------------------- the ways to store the value

    def _is_own(self) -> bool:
        return self._saved.keys() == self._own.keys() and all(
            _shape(self._saved[key]) == _shape(value) for key, value in self._own.items()
        )

    def _may_mean_else(self) -> bool:
        """Whether the entries, which have the keys and shapes of this model's, are of another map.

        Torch's own parametrizations, and those that users write, call their free parameter
        ``original`` too.
        """
        return self.is_of_others and self._constraint is not None and not self._is_filled_in()

    def _is_filled_in(self) -> bool:
        """Whether the entries are this model's originals, and come from no checkpoint.

        With full_state_dict=True, torch.distributed.checkpoint adds the model's own tensors where
        the checkpoint has none.
        """
        own = {key: value for key, value in self._own.items() if isinstance(value, Tensor)}
        return self._is_own() and all(_is_same(self._saved[k], value) for k, value in own.items())

    def _plain(self) -> Iterator[FoundValue]:
        if self.path in self._state_dict and self._parametrizations.persistent:
            yield FoundValue((self.path,), self._state_dict[self.path])

    def _foreign(self) -> Iterator[FoundValue]:
        yield from self._read(self._saved, tuple(self._prefix + key for key in self._saved))

    def _of_writer(self) -> Iterator[FoundValue]:
        """The value that the entries have under the parametrizations that wrote them."""
        if self._writer is None:
            return
        try:
            value, keys = self._writer.value(self._saved)
        except ValueError as error:
            # Of a foreign module, such as torch's own, the keys may be known to a reader.
            if not self._writer.has_only_constraints() and any(self._foreign()):
                return
            raise ValueError(
                f"the checkpoint was written for {self._writer!r}, and here is "
                f"{self._parametrizations.described()}: {str(error).rstrip('.')}; {_CURE}"
            ) from None
        yield FoundValue(tuple(self._prefix + key for key in keys), value, repr(self._writer))

    def _old(self) -> Iterator[FoundValue]:
        """The value under the keys of the hooks that torch used before its parametrizations."""
        for endings in OLD_ENDINGS:
            keys = {self.path + ending: new for ending, new in self._complete(endings).items()}
            yield from self._read({n: self._state_dict[k] for k, n in keys.items()}, tuple(keys))

    def _complete(self, endings: Mapping[str, str]) -> Mapping[str, str]:
        """The endings, if the state dict has all of these keys and the module no such tensors."""
        known = {*self._module._parameters, *self._module._buffers}
        complete = all(
            self.path + ending in self._state_dict and self._name + ending not in known
            for ending in endings
        )
        return endings if complete else {}

    def _read(self, entries: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[FoundValue]:
        # For a view, the name of the constraint in it counts.
        named: Any = getattr(self._constraint, "constraint", self._constraint)
        names = (str(named.name), *named.aliases) if isinstance(named, Constraint) else ()
        reading = read(entries, self._parametrizations.shape, names)
        if reading is not None:
            yield FoundValue(keys, *reading)

    def _warn(self, origin: str, others: str) -> None:
        warnings.warn(
            f"'{self.path}': its keys in the checkpoint are read as those of {origin}. The same "
            f"keys with another meaning come from {others}; if these do: {_CURE}",
            UserWarning,
            stacklevel=2,
        )

    def _own_value(self) -> Tensor:
        fresh = copy.deepcopy(self._parametrizations).eval()
        # A copy on the meta device has no memory that the entries could be copied to.
        fresh.load_state_dict(self._saved, assign=True)
        return fresh()

    def _mapped(self, found: FoundValue, assign: bool) -> dict[str, Any]:
        """The entries that this model has for a value. An error says what wrote the value."""
        try:
            return entries_for(self._parametrizations, found.value, self.path, assign)
        except Exception as error:
            if self._writer is None or found.origin != repr(self._writer):
                raise
            raise ValueError(
                f"the checkpoint was written for {found.origin}: {reason_of(error)}"
            ) from error

    # -------------------------------------------------------------------------- what is checked

    def _check_own(self) -> None:
        for key in self._parametrizations.names():
            value = self._saved.get(key)
            # A process sees only its own shards, and must not raise alone.
            if self._constraint is None or not isinstance(value, Tensor) or is_shard(value):
                continue
            if not is_finite(value):
                raise ValueError(
                    f"{self._constraint!r}: '{self._prefix}{key}' of the checkpoint holds NaN or "
                    "infinite values."
                )

    def _check_known(self) -> None:
        if self._constraint is None:
            return
        wrong = {
            key: value
            for key, value in self._saved.items()
            if key not in self._own or _shape(value) != _shape(self._own[key])
        }
        if wrong:
            raise ValueError(
                f"under '{self._prefix}' the checkpoint has {_listed(wrong)}, where "
                f"{self._constraint!r} has {_listed(self._own)}: they are of another constraint or "
                f"of another size, and do not tell the value; {_CURE}"
            )
        if self._saved and self._may_mean_else():
            raise ValueError(
                f"the checkpoint has {_listed(self._saved)} under '{self._prefix}', as "
                f"{self._constraint!r} has, but was written by another parametrization: its "
                f"metadata names no constraint. So the value is unknown; {_CURE} (If a model with "
                "this constraint did write it, load dict(state_dict), which has no metadata.)"
            )


def reason_of(error: Exception) -> str:
    """The sentence of an error, with the type where the sentence alone may say nothing."""
    return str(error) if isinstance(error, ValueError | TypeError) else repr(error)


def _agree(value: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and agree(value, other, value.dtype)


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shape(value) or ''}".strip() for key, value in entries.items())


def _is_same(value: Any, original: Tensor) -> bool:
    """Whether a tensor in the state dict is the model's own, or both are on the meta device."""
    if not {type(value), type(original)} <= {Tensor, nn.Parameter}:
        return False
    if value.is_meta or original.is_meta:
        return value.is_meta and original.is_meta
    return value.data_ptr() == original.data_ptr()


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
