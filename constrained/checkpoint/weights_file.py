"""A file of tensors and a record: safetensors, with the record as JSON in the file's metadata.

Nothing in such a file is executed, whoever wrote it. It is written beside its place and then moved
there, so that whatever happens meanwhile leaves the file that was there before.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from constrained.atomic.interrupts import allow_interrupt, defer_interrupts
from constrained.constraint.plain_data import is_list, is_mapping, short

#: The number of the record's format: a reader refuses those that are larger than its own.
FORMAT = 1

#: The file in a folder, where Hugging Face's libraries look for it.
NAME = "model.safetensors"

#: The key of the record in the metadata of the file.
_KEY = "constrained"


@dataclass
class Record:
    """What a file knows beyond its tensors: plain data that JSON can hold.

    Attributes:
        format: see `FORMAT`.
        versions: of this package and of torch, when the file was written.
        constraints: the spec of each constrained tensor, by its path.
        shapes: of these tensors.
        foreign: what parametrizes other tensors, in words, by their paths.
        tied: keys of the state dict that stand for the memory of another key, which has it.
        complex: keys of complex tensors, which the file has as real ones of shape (..., 2).
        other: entries of the state dict that are no tensors.
        modules: torch's version of each module, which stands beside a state dict.
    """

    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=dict[str, str])
    constraints: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])
    shapes: dict[str, list[int]] = field(default_factory=dict[str, "list[int]"])
    foreign: dict[str, str] = field(default_factory=dict[str, str])
    tied: dict[str, str] = field(default_factory=dict[str, str])
    complex: list[str] = field(default_factory=list[str])
    other: dict[str, Any] = field(default_factory=dict[str, Any])
    modules: dict[str, int] = field(default_factory=dict[str, int])


def place_of(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, which may be a folder; links are followed.

    Raises:
        TypeError: if it is no path.
        ValueError: if it holds a NUL.
        OSError: if something is there that is no file, as a device.
    """
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"The path of a file is a string or a pathlib.Path, got {short(path)}.")
    if "\0" in os.fspath(path):
        raise ValueError(f"No file is called {short(path)}, which holds a NUL.")
    found = Path(os.path.realpath(path))
    found = Path(os.path.realpath(found / NAME)) if found.is_dir() else found
    if found.exists() and not found.is_file():
        raise OSError(f"'{found}' is no file.")
    return found


# ---------------------------------------------------------------------------------------- writing


def write(place: Path, state: Mapping[str, Any], record: Record) -> None:
    """Write a state dict and its record into a file, completely or not at all.

    Args:
        place: of the file; see `place_of`.
        state: whole tensors, and other entries that JSON can hold.
        record: what is known already. The rest, how the entries lie in the file, is added.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if the file cannot be written.
        TypeError: for an entry that the file cannot hold.
    """
    tensors = _packed(state, record)
    text = json.dumps(asdict(record), allow_nan=False)
    if not place.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{place.parent}' to write '{place.name}' in.")
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Not by the module `tempfile`: the file shall have the permissions of any other.
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = (place if place.exists() else beside).stat().st_mode
        _write(beside, place, tensors, {"format": "pt", _KEY: text})
        beside.chmod(mode)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def _write(beside: Path, place: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError, safe_open
    from safetensors import torch as safetensors

    save: Callable[..., None] = cast(Any, safetensors).save_file
    try:
        save(tensors, beside, metadata)
        # A header may be too long for readers, which not every version notices.
        with safe_open(beside, "pt"):
            pass
    except SafetensorError as error:
        raise OSError(f"'{place}' could not be written: {_reason(error)}.") from None
    except KeyError as error:
        # Which types it knows depends on its version.
        unknown = error.args[0]
        key = next((key for key, t in tensors.items() if t.dtype == unknown), "")
        raise TypeError(
            f"'{key}' is of {unknown}, which files of safetensors {_version()} cannot hold: "
            "convert it first."
        ) from None


def _version() -> str:
    from importlib.metadata import version

    return version("safetensors")


def _packed(state: Mapping[str, Any], record: Record) -> dict[str, Tensor]:
    """The tensors of a state dict as safetensors takes them; what that hides is recorded."""
    packed: dict[str, Tensor] = {}
    known: dict[Any, str] = {}
    memory: set[Any] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if not _is_json(value):
                raise TypeError(
                    f"'{key}' is of type {type(value).__name__}: a file of safetensors holds "
                    "tensors, and beside them what JSON can hold; use torch.save, or let "
                    "get_extra_state give one of these."
                )
            record.other[key] = value
            continue
        _check(key, value)
        tensor = value.detach()
        where = tensor.device, tensor.untyped_storage().data_ptr()
        what = (*where, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        what = (*what, tensor.is_conj(), tensor.is_neg())
        if tensor.numel() and what in known:
            record.tied[key] = known[what]
            continue
        known[what] = key
        tensor = tensor.resolve_conj().resolve_neg()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
            record.complex.append(key)
        if not tensor.is_contiguous() or where in memory:
            # No two entries of a file share memory.
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        memory.add(where)
        packed[key] = tensor
    return packed


def _check(key: str, tensor: Tensor) -> None:
    """Raise a `TypeError` unless a tensor is one that a file can hold."""
    if torch.nn.parameter.is_lazy(tensor):
        raise TypeError(
            f"'{key}' has no shape yet: call the model once on an example before it is saved."
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"'{key}' is sparse ({tensor.layout}), which a file of safetensors cannot hold: make "
            "it dense first, by to_dense()."
        )
    if tensor.is_meta:
        raise TypeError(f"'{key}' is on the meta device: it holds no numbers to be saved.")


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it is."""
    try:
        return _same(json.loads(json.dumps(value, allow_nan=False)), value)
    except (TypeError, ValueError, RecursionError):
        return False


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if is_mapping(one):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if is_list(one):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------------------------- reading


def read(place: Path) -> tuple[dict[str, Any], Record | None]:
    """The state dict in a file, whose tensors may lie in the file, and its record.

    Args:
        place: of the file; see `place_of`.

    Returns:
        The record is None if the file was not written by `write`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of safetensors, or damaged.
    """
    from safetensors import safe_open

    if not place.exists():
        raise FileNotFoundError(f"There is no file '{place}'.")
    state: dict[str, Any] = {}
    try:
        opened: Any = safe_open(place, "pt")
        # It calls Python, and makes an error of its own of Ctrl-C in there.
        with defer_interrupts(), opened as file:
            metadata: Any = file.metadata() or {}
            for key in file.keys():
                state[key] = file.get_tensor(key)
                allow_interrupt()
    except Exception as error:
        # Of whatever type: the file may be anything.
        raise ValueError(
            f"'{place}' is no file of safetensors, or damaged: {_reason(error)}.{_hint(place)}"
        ) from None
    if _KEY not in metadata:
        return state, None
    try:
        record = _record(metadata[_KEY])
        _unpack(state, record)
    except _RecordError as error:
        raise ValueError(f"The record of constraints in '{place}' {error}.") from None
    return state, record


class _RecordError(Exception):
    """What is the matter with a record."""


def _record(text: str) -> Record:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _RecordError(f"is no JSON: {_reason(error)}") from None
    written = data.get("format") if is_mapping(data) else None
    is_number = type(written) is int
    if is_number and written > FORMAT:
        versions: Any = data.get("versions")
        by = versions.get(_KEY) if is_mapping(versions) else None
        raise _RecordError(
            f"has the format {short(written)}, and this version reads {FORMAT}: install "
            f"constrained {short(by)[1:-1] if _is_text(by) else 'in a later version'}"
        )
    names = {f.name for f in fields(Record)}
    if not is_mapping(data) or set(data) != names or not is_number or written < 1:
        raise _RecordError(f"is damaged: it must be a mapping of {', '.join(sorted(names))}")
    found = Record(**cast("dict[str, Any]", data))
    for name, is_right in _ITEMS.items():
        values = getattr(found, name)
        if not is_mapping(values) or not all(map(is_right, values.values())):
            raise _RecordError(f"is damaged: '{name}' holds something else than it should")
    if not is_list(found.complex) or not all(map(_is_text, found.complex)):
        raise _RecordError("is damaged: 'complex' must be a list of keys")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return is_list(value) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_anything(value: Any) -> bool:
    del value
    return True


#: What the mappings of a record hold.
_ITEMS: Mapping[str, Any] = {
    "versions": _is_text,
    "constraints": is_mapping,
    "shapes": _is_shape,
    "foreign": _is_text,
    "tied": _is_text,
    "other": _is_anything,
    "modules": _is_whole,
}


def _unpack(state: dict[str, Any], record: Record) -> None:
    """Give the tensors of a file the form that they had in the state dict."""
    for key in record.complex:
        tensor = state.get(key)
        fits = tensor is not None and tensor.is_floating_point() and tensor.shape[-1:] == (2,)
        if tensor is None or not fits or tensor.dtype == torch.bfloat16:
            raise _RecordError(f"is damaged: {short(key)} cannot be complex")
        # Copied, since files align tensors to 8 bytes, and vectorised code wants complex numbers in
        # double precision to be aligned to 16.
        state[key] = torch.view_as_complex(tensor.clone())
    for key, other in record.tied.items():
        if key in state or not isinstance(state.get(other), Tensor):
            raise _RecordError(f"is damaged: {short(key)} cannot be tied to {short(other)}")
    state.update({key: state[other] for key, other in record.tied.items()})
    if record.other.keys() & state.keys():
        raise _RecordError(
            f"is damaged: {short(min(record.other.keys() & state.keys()))} is there twice"
        )
    state.update(record.other)
    if record.constraints.keys() != record.shapes.keys():
        raise _RecordError("is damaged: 'constraints' and 'shapes' are of other tensors")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


#: How the files begin that `torch.save` writes: those of zip, and pickles.
_OF_TORCH = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")


def _hint(place: Path) -> str:
    with place.open("rb") as file:
        start = file.read(4)
    if not start.startswith(_OF_TORCH):
        return ""
    return (
        " It looks like one of torch.save: give what torch.load(path, weights_only=True) reads to "
        "constrained.load_state_dict."
    )
