"""What the originals in a checkpoint were written for: said on saving, read on loading.

Many constraints have originals of the same names and shapes, of which their maps make different
values. So a state dict says what each tensor was parametrized by: in the metadata that torch keeps
beside the entries, where it keeps the versions of modules. It is plain data. Nothing that stands in
a checkpoint is executed, and the names in it are looked up in the registry only.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained.atomic.shards import whole
from constrained.constraint.base import Constraint
from constrained.constraint.description import built, described, same, words
from constrained.torch_internals.modules import versions_in
from constrained.torch_internals.tensors import has_values

#: Under which the metadata of a module says it, by the names of the module's tensors.
_KEY = "constraints"


_INSIDE = re.compile(r"(?:(?P<owner>.*)\.)?parametrizations\.(?P<name>[^.]+)\.", re.DOTALL)


def sign(state_dict: Any, prefix: str, chain: Sequence[nn.Module]) -> None:
    """Let a state dict say what a tensor is parametrized by, if a constraint is among it.

    Of other modules there would be nothing to say but their classes.

    Args:
        state_dict: what is being written; nothing is said in a mapping without metadata.
        prefix: of the keys of the tensor's entries, such as ``"0.parametrizations.weight."``.
        chain: the parametrizations, in the order of application.
    """
    if not any(isinstance(module, Constraint) for module in chain):
        return
    found = _INSIDE.fullmatch(prefix)
    metadata: Any = versions_in(state_dict)
    # Of a module that is saved on its own there is no owner that could say it.
    owner = metadata.get(found["owner"] or "") if found and metadata else None
    if found and owner is not None:
        owner.setdefault(_KEY, {})[found["name"]] = described(chain)


def signature(metadata: Mapping[str, Any], name: str) -> list[Any] | None:
    """What the metadata of a module says that one of its tensors was written for, if it does."""
    said = metadata.get(_KEY)
    found = said.get(name) if isinstance(said, Mapping) else None
    return found if isinstance(found, list) and found else None


def unsigned(metadata: Mapping[str, Any], owner: str, plain: Container[str]) -> dict[str, Any]:
    """The metadata of a module some of whose tensors have become plain ones.

    Args:
        metadata: that of the module.
        owner: the path of the module.
        plain: the paths of these tensors.
    """
    left = dict(metadata)
    said = {
        name: signature
        for name, signature in left.pop(_KEY, {}).items()
        if (f"{owner}.{name}" if owner else name) not in plain
    }
    return {**left, _KEY: said} if said else left


class Writer:
    """The parametrizations that the entries of a tensor were written for.

    Args:
        signature: what the checkpoint says.
        shape: the shape of the tensor here, which a view needs; None if it is not known yet.

    Attributes:
        signature: what the checkpoint says.
    """

    def __init__(self, signature: list[Any], shape: Sequence[int] | None) -> None:
        self.signature = signature
        self._shape = shape

    @classmethod
    def other(
        cls, signature: list[Any], chain: Sequence[nn.Module], shape: Sequence[int] | None
    ) -> Writer | None:
        """The writer, unless it is these very parametrizations.

        Of modules that are no constraints nothing is known but their classes, which may have been
        renamed: any are taken for the same.
        """
        mine, writer = described(chain), cls(signature, shape)
        if same(signature, mine) or not any(isinstance(e, Mapping) for e in (*signature, *mine)):
            return None
        try:
            return None if same(described(writer._build()), mine) else writer
        except (ValueError, TypeError):
            return writer

    def has_only_constraints(self) -> bool:
        """Whether all of them are constraints; of other modules nothing but the class is known."""
        return all(isinstance(entry, Mapping) for entry in self.signature)

    def value(self, entries: Mapping[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
        """The value that the entries of the tensor stand for, and which of them it is made of.

        Args:
            entries: what stands under ``parametrizations.<tensor>.`` in the checkpoint.

        Raises:
            ValueError: if the value cannot be told.
        """
        return value_from_entries(self._build(), entries)

    def _build(self) -> list[Constraint]:
        return [built(entry, self._shape) for entry in self.signature]

    def __repr__(self) -> str:
        return " then ".join(words(entry, self._shape) for entry in self.signature)


def value_from_entries(
    chain: Sequence[nn.Module], entries: Mapping[str, Any]
) -> tuple[Tensor, tuple[str, ...]]:
    """The value that a tensor's entries in a checkpoint stand for under some parametrizations.

    Args:
        chain: new modules in the order of application; they load their parameters and buffers.
        entries: what stands under ``parametrizations.<tensor>.`` in the checkpoint.

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
        # Whatever is wrong with the entries, torch says it in many lines.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"its entries do not give a value ({reason[:200]}).") from error
    return value, (*names, *own)
