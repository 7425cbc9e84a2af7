"""Views by name: what they mean for the tensor of a module, as einops patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean

#: The names, as they are written.
NAMES = ("conv", "gates", "gates(n)", "heads(n)", "qkv", "qkv(n)")

_SPELLING = re.compile(r"\s*(?P<name>\w+)\s*(?:\(\s*(?P<number>\d{1,9})\s*\))?\s*")

#: What is one of them, as a regular expression of JSON schema.
_NUMBER = r"\(\s*0*[1-9]\d{0,8}\s*\)"
PATTERN = rf"\s*(conv|(gates|qkv)\s*({_NUMBER})?|heads\s*{_NUMBER})\s*"

#: How many gates are stacked in the weights of each recurrent layer.
GATES: dict[type[nn.Module], int] = {
    nn.LSTM: 4,
    nn.LSTMCell: 4,
    nn.GRU: 3,
    nn.GRUCell: 3,
    nn.RNN: 1,
    nn.RNNCell: 1,
}

TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d

#: The layers whose weight is the kernel of a convolution; lazy ones are of these classes too.
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED

#: The spatial axes of a kernel, by how many there are.
_SPACE = {1: "w", 2: "h w", 3: "d h w"}


def is_named(view: str) -> bool:
    """Whether a view is a name, such as ``"conv"``, and not an einops pattern."""
    return "->" not in view


def check_name(view: str) -> None:
    """Raise a `SpecError` unless the name of a named view is known."""
    _parsed(view)


def named_view(
    view: str, module: nn.Module, name: str, shape: Sequence[int]
) -> tuple[str, dict[str, int]]:
    """The einops pattern that a named view means for a tensor, and the lengths of its axes.

    - ``conv``: a kernel as the matrix whose rows are its filters, one matrix for each group;
    - ``gates``, ``gates(n)``: the weight, or the bias, of each gate of an LSTM (4) or a GRU (3);
    - ``heads(n)``: the rows of a projection, which are those of ``n`` heads;
    - ``qkv``: the three projections of fused attention; ``qkv(n)``: those of its ``n`` heads.

    Args:
        view: the name.
        module: the owner of the tensor.
        name: the tensor's name there.
        shape: the tensor's shape.

    Raises:
        SpecError: if the name is unknown, or has no meaning for this tensor.
    """
    kind, number = _parsed(view)
    if kind == "conv":
        return _conv(view, module, shape), {}
    if kind == "gates":
        number = number or next(
            (gates for cls, gates in GATES.items() if isinstance(module, cls)), None
        )
        if number is None:
            raise SpecError(
                f"The view 'gates' is known for LSTM, GRU and RNN, and {type(module).__name__} is "
                "none of them; give the number of gates, as in 'gates(4)'."
            )
        if name.startswith("weight_hr"):
            raise SpecError(f"The view {view!r} does not fit '{name}', which has no gates.")
        return _rows(view, module, shape, {"g": number})
    if kind == "heads":
        if number is None:
            raise SpecError("The view 'heads' needs the number of heads, as in 'heads(8)'.")
        return _rows(view, module, shape, {"n": number})
    # qkv: s are the three projections, n the heads, h the rows of one.
    if number is None:
        return _rows(view, module, shape, {"s": 3})
    return _rows(view, module, shape, {"s": 3, "n": number})


def _parsed(view: str) -> tuple[str, int | None]:
    match = _SPELLING.fullmatch(view) if len(view) <= 100 else None
    known = sorted({name.partition("(")[0] for name in NAMES})
    if match is None or match["name"] not in known or (match["name"] == "conv" and match["number"]):
        guess = did_you_mean(match["name"], known) if match else ""
        raise SpecError(
            f"The view {short(view)} must read 'from -> to', with all axes named, as in "
            f"'o i h w -> o (i h w)', or be one of {', '.join(NAMES)}.{guess}"
        )
    number = None if match["number"] is None else int(match["number"])
    if number == 0:
        raise SpecError(f"The number in the view {view!r} must be positive.")
    return match["name"], number


def _conv(view: str, module: nn.Module, shape: Sequence[int]) -> str:
    space = _SPACE.get(len(shape) - 2)
    if space is None:
        raise _unfit(view, shape, "a kernel has 3, 4 or 5 dimensions")
    # A transposed convolution stores its input channels first.
    first, second = "io" if isinstance(module, TRANSPOSED) else "oi"
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    if groups == 1:
        return f"{first} {second} {space} -> o (i {space})"
    # Each group of channels is a convolution of its own.
    return f"({groups} {first}) {second} {space} -> {groups} o (i {space})"


def _rows(
    view: str, module: nn.Module, shape: Sequence[int], sizes: dict[str, int]
) -> tuple[str, dict[str, int]]:
    """The pattern that splits the outputs of a linear map, or its bias, into parts."""
    if len(shape) not in (1, 2):
        raise _unfit(view, shape, "it is for matrices and biases")
    # The linear layer of GPT-2 in transformers stores its inputs first.
    is_transposed = any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)
    outputs, count = shape[-1 if is_transposed else 0], math.prod(sizes.values())
    if outputs % count:
        raise _unfit(view, shape, f"its {outputs} outputs are not {count} equal parts")
    parts = " ".join([*sizes, "h"])
    if len(shape) == 1:
        return f"({parts}) -> {parts}", sizes
    stored = f"i ({parts})" if is_transposed else f"({parts}) i"
    return f"{stored} -> {parts} i", sizes


def _unfit(view: str, shape: Sequence[int], reason: str) -> SpecError:
    return SpecError(f"The view {view!r} does not fit a tensor of shape {tuple(shape)}: {reason}.")
