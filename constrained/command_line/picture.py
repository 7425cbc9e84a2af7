"""The picture of ``show``: random members of a set, and what is typical of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained.command_line.output import fail
from constrained.constraint.base import Constraint
from constrained.torch_internals import linalg

#: How many members are drawn for the statistics.
_MEMBERS = 500

#: Of an element with more entries, another example is drawn if there is one.
_ENTRIES = 64

_MAIN = "#1f5fa8"


def draw(cls: type[Constraint], path: Path) -> None:
    """Draw members of a set: one as an image, and the spectra or the entries of many.

    Args:
        cls: the class of a constraint with examples, one of which is drawn.
        path: of the file, whose ending says in which format.
    """
    try:
        import matplotlib
    except ImportError:
        fail("A picture needs matplotlib: pip install matplotlib.")
    if not cls.examples:
        fail(f"{cls.name} has no examples to draw.")
    matplotlib.use("agg")
    from matplotlib import pyplot

    arguments, event = max(cls.examples, key=lambda example: _legible(example[1]))
    constraint = cls(**arguments)
    numbers = torch.Generator().manual_seed(0)
    is_complex = cls.complex and not _takes_real(constraint, event)
    dtype = torch.complex64 if is_complex else torch.float32
    members = constraint.sample((_MEMBERS, *event), generator=numbers, dtype=dtype)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    figure.suptitle(repr(constraint))
    _one_member(figure, left, members)
    if len(event) == 2 and event[0] == event[1] > 1:
        _eigenvalues(right, members)
    elif len(event) == 2 and min(event) > 1:
        _singular_values(right, members)
    else:
        _entries(right, members)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        fail(f"{path}: {getattr(error, 'strerror', None) or error}.")
    finally:
        pyplot.close(figure)


def _legible(event: tuple[int, ...]) -> int:
    """How many entries an element has, unless they are too many to be seen."""
    count = torch.Size(event).numel()
    return count if count <= _ENTRIES else -count


def _takes_real(constraint: Constraint, event: tuple[int, ...]) -> bool:
    try:
        constraint.check_tensor(torch.zeros(event))
    except (ValueError, TypeError):
        return False
    return True


def _one_member(figure: Any, axis: Any, members: Tensor) -> None:
    """A member as an image; of numbers and vectors a few of them, one in each row."""
    event = members.shape[1:]
    few = members[:10] if len(event) < 2 else members[0]
    image = few.reshape(-1, few.shape[-1] if event else 1).real.numpy()
    limit = float(abs(image).max()) or 1.0
    shown = axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(shown, ax=axis, shrink=0.8)
    real = "the real part of " if members.is_complex() else ""
    axis.set_title(f"{real}{'ten members, one a row' if len(event) < 2 else 'a member'}")
    axis.set(xticks=[], yticks=[])


def _eigenvalues(axis: Any, members: Tensor) -> None:
    found = linalg.eigvals(members).flatten()
    axis.axhline(0, color="#d0d0d0", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#d0d0d0", linewidth=0.8, zorder=0)
    axis.scatter(found.real.numpy(), found.imag.numpy(), s=4, color=_MAIN, alpha=0.4, linewidths=0)
    axis.set_title(f"eigenvalues of {_MEMBERS} members")
    axis.set(xlabel="real part", ylabel="imaginary part")
    axis.set_aspect("equal", adjustable="datalim")


def _singular_values(axis: Any, members: Tensor) -> None:
    _histogram(axis, linalg.svdvals(members))
    axis.set_title(f"singular values of {_MEMBERS} members")
    axis.set(xlabel="singular value", yticks=[])


def _entries(axis: Any, members: Tensor) -> None:
    _histogram(axis, members.real)
    axis.set_title(f"entries of {_MEMBERS} members")
    axis.set(xlabel="entry", yticks=[])


def _histogram(axis: Any, numbers: Tensor) -> None:
    low, high = float(numbers.min()), float(numbers.max())
    # Of equal numbers too, as the singular values of orthogonal matrices.
    margin = 0.05 * max(high - low, abs(high), 1e-3)
    axis.hist(numbers.flatten().numpy(), bins=50, range=(low - margin, high + margin), color=_MAIN)
