"""The parametrizations of each tensor, recorded in the metadata of a state dict.

The originals of many constraints have the same names and shapes, while their maps give different
values. So a state dict records the parametrizations of each tensor, in the metadata where torch
keeps the versions of modules. The record is plain data: nothing in a checkpoint is executed, and
the names in it are looked up in the registry only.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from constrained.atomic.sharded import whole
from constrained.constraint.base import Constraint
from constrained.constraint.description import built, described, same, words
from constrained.torch_internals.modules import versions_in
from constrained.torch_internals.tensors import has_values

#: The key of the records in the metadata of a module. They are a mapping by the tensors' names.
_KEY = "constraints"

#: The prefix of the entries of a parametrized tensor.
_PREFIX = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<name>[^.]+)\.", re.DOTALL)


def record_chain(state_dict: Any, prefix: str, chain: Sequence[nn.Module]) -> None:
    """Record the parametrizations of a tensor, if one of them is a constraint.

    Of other modules only the class could be recorded, which does not help when it is loaded.

    Args:
        state_dict: what is being written; a mapping without metadata gets no record.
        prefix: of the keys of the tensor's entries, such as ``"0.parametrizations.weight."``.
        chain: the parametrizations, in the order of application.
    """
    if not any(isinstance(module, Constraint) for module in chain):
        return
    found = _PREFIX.fullmatch(prefix)
    metadata: Any = versions_in(state_dict)
    # A `ParametrizationList` that is saved on its own has no owner with metadata.
    owner = metadata.get(found["owner"] or "") if found and metadata else None
    if found and owner is not None:
        owner.setdefault(_KEY, {})[found["name"]] = described(chain)


def recorded_chain(metadata: Mapping[str, Any], name: str) -> list[Any] | None:
    """The record of a tensor in the metadata of its module; None if there is none."""
    records: Any = metadata.get(_KEY)
    if not isinstance(records, Mapping):
        return None
    record: Any = cast("Mapping[str, Any]", records).get(name)
    return cast("list[Any]", record) if isinstance(record, list) and record else None


def is_without_record(metadata: Mapping[str, Any], name: str) -> bool:
    """Whether the metadata of a module shows that no constraint of this package wrote a tensor.

    That is so if torch has written its version of the module there, and no record stands beside it.
    Some file formats drop all metadata, which shows nothing.
    """
    return "version" in metadata and recorded_chain(metadata, name) is None


def without_tensors(
    metadata: Mapping[str, Any], owner: str, plain: Container[str]
) -> dict[str, Any]:
    """The metadata of a module without the records of tensors that have become plain.

    Args:
        metadata: the metadata of the module.
        owner: the path of the module.
        plain: the paths of these tensors.
    """
    left = dict(metadata)
    records = {
        name: record
        for name, record in left.pop(_KEY, {}).items()
        if (f"{owner}.{name}" if owner else name) not in plain
    }
    return {**left, _KEY: records} if records else left


class SavedChain:
    """Parametrizations that a checkpoint records, and the value of a tensor under them.

    Args:
        record: see `recorded_chain`.
        shape: the shape of the tensor here, which a view needs; None if it is not known yet.

    Attributes:
        record: see `recorded_chain`.
    """

    def __init__(self, record: list[Any], shape: Sequence[int] | None) -> None:
        self.record = record
        self._shape = shape

    @classmethod
    def other(
        cls, record: list[Any], chain: Sequence[nn.Module], shape: Sequence[int] | None
    ) -> SavedChain | None:
        """The recorded parametrizations, or None if they are the same as ``chain``.

        Of a module that is not a constraint only the class is recorded, and that may have been
        renamed. So any two such modules count as the same.
        """
        mine, saved = described(chain), cls(record, shape)
        if same(record, mine) or not any(isinstance(e, Mapping) for e in (*record, *mine)):
            return None
        try:
            return None if same(described(saved._build()), mine) else saved
        except (ValueError, TypeError):
            return saved

    def has_only_constraints(self) -> bool:
        """Whether all of them are constraints. Of other modules only the class is recorded."""
        return all(isinstance(entry, Mapping) for entry in self.record)

    def value(self, entries: Mapping[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
        """The value of the tensor, and the names of the entries that it was computed from.

        Args:
            entries: the entries of the checkpoint under ``parametrizations.<tensor>.``.

        Raises:
            ValueError: if the value cannot be computed.
        """
        return value_from_entries(self._build(), entries)

    def _build(self) -> list[Constraint]:
        return [built(entry, self._shape) for entry in self.record]

    def __repr__(self) -> str:
        return " then ".join(words(entry, self._shape) for entry in self.record)


def value_from_entries(
    chain: Sequence[nn.Module], entries: Mapping[str, Any]
) -> tuple[Tensor, tuple[str, ...]]:
    """The value that parametrizations compute from a tensor's entries in a checkpoint.

    Args:
        chain: new modules in the order of application; they load their parameters and buffers.
        entries: the entries of the checkpoint under ``parametrizations.<tensor>.``.

    Returns:
        The value, and the keys of the entries that it was computed from.

    Raises:
        ValueError: if entries are missing, hold NaN or infinity, or do not fit the modules.
    """
    modules = nn.ModuleList(chain).eval()
    own = {key: entries[key] for key in modules.state_dict() if key in entries}
    count = sum(re.fullmatch(r"original\d+", key) is not None for key in entries)
    names = [f"original{i}" for i in range(count)] if count else ["original"]
    originals: list[Tensor] = []
    for name in names:
        tensor = entries.get(name)
        if not isinstance(tensor, Tensor):
            written_for = " then ".join(map(repr, chain))
            raise ValueError(f"{written_for} has no tensor '{name}' in the checkpoint.")
        tensor = whole(tensor.detach())
        if has_values(tensor) and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"'{name}' of the checkpoint holds NaN or infinite values.")
        originals.append(tensor)
    try:
        modules.load_state_dict(own, assign=True)
        value = chain[0](*originals)
        for module in chain[1:]:
            value = module(value)
    except Exception as error:
        # Torch's messages have many lines.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"its entries do not give a value ({reason[:200]}).") from error
    return value, (*names, *own)
