"""Where a monitor writes: CSV files, TensorBoard, loggers, functions, a line on the terminal."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from constrained.seeing.measured import excess, holds
from constrained.seeing.reading import QUANTITIES, Reading


@dataclass(frozen=True)
class Record:
    """What a monitor read at one step.

    Attributes:
        step: the step.
        tensors: the readings by the paths of the tensors.
    """

    step: int
    tensors: Mapping[str, Reading]

    def metrics(self) -> dict[str, float]:
        """The numbers by names such as ``constrained/violation/fc.weight``, as loggers take them.

        ``constrained/violation`` is the largest violation of all tensors.
        """
        known = [r.violation for r in self.tensors.values() if r.violation is not None]
        found: dict[str, float] = {}
        if known:
            found["constrained/violation"] = math.nan if any(map(math.isnan, known)) else max(known)
        for path, reading in self.tensors.items():
            for quantity, number in asdict(reading).items():
                if number is not None:
                    found[f"constrained/{quantity}/{path}"] = number
        return found


Sink = Callable[[Record], object]

_HEADER = ["step", "tensor", *QUANTITIES]


def sinks_of(to: Any) -> list[Sink]:
    """The functions that write where ``to`` says.

    Raises:
        TypeError: if it says nothing that can be written to.
        ValueError: if it names a file of another kind.
    """
    if to is None:
        return []
    if isinstance(to, (list, tuple)):
        return [sink for each in cast("Iterable[Any]", to) for sink in sinks_of(each)]
    if isinstance(to, (str, os.PathLike)):
        return [_csv(Path(to))]  # pyright: ignore[reportUnknownArgumentType] - a path of text
    if callable(getattr(to, "add_scalar", None)):
        return [_to_tensorboard(to)]
    if callable(getattr(to, "log_metrics", None)):
        return [lambda record: to.log_metrics(record.metrics(), step=record.step)]
    if callable(to):
        return [lambda record: to(record.step, record.metrics())]
    raise TypeError(
        f"A monitor writes to the path of a CSV file, to an object with add_scalar (a "
        f"SummaryWriter of TensorBoard) or log_metrics (a logger of Lightning), to a function of "
        f"the step and a dict of numbers, or to a list of these, got {type(to).__name__}."
    )


def _to_tensorboard(writer: Any) -> Sink:
    def write(record: Record) -> None:
        for name, number in record.metrics().items():
            writer.add_scalar(name, number, record.step)

    return write


# ------------------------------------------------------------------------------------------- CSV


def _csv(path: Path) -> Sink:
    """Append to a CSV file, with one line for each step and tensor; it is made if need be."""
    if path.is_dir():
        raise ValueError(f"A monitor writes a file, but '{path}' is a folder.")
    if path.exists() and path.stat().st_size:
        with _lines_of(path) as file:
            _check_header(path, file.readline(1000))

    def write(record: Record) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or not path.stat().st_size
        with path.open("a", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            if is_new:
                lines.writerow(_HEADER)
            for tensor, reading in record.tensors.items():
                numbers = asdict(reading).values()
                cells = ["" if number is None else repr(number) for number in numbers]
                lines.writerow([record.step, tensor, *cells])

    return write


def _lines_of(path: str | os.PathLike[str]) -> TextIO:
    # What is no text is none of a monitor, and the line that says so shows it.
    return Path(path).open(newline="", encoding="utf-8", errors="replace")


def _check_header(path: str | os.PathLike[str], line: str) -> None:
    line = line.rstrip("\r\n")
    if line != ",".join(_HEADER):
        raise ValueError(
            f"'{path}' was not written by a monitor: its first line is {line[:80]!r}. Give another "
            "path, or remove the file."
        )


def read_csv(path: str | os.PathLike[str]) -> list[Record]:
    """The records in a CSV file that a monitor wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another kind, or damaged.
    """
    found: dict[int, dict[str, Reading]] = {}
    with _lines_of(path) as file:
        _check_header(path, file.readline(1000))
        lines = csv.reader(file)
        for line in lines:
            try:
                step, tensor, *cells = line
                numbers = [float(cell) if cell else None for cell in cells]
                reading = Reading(**dict(zip(QUANTITIES, numbers, strict=True)))
                found.setdefault(int(step), {})[tensor] = reading
            except ValueError:
                raise ValueError(
                    f"Line {lines.line_num + 1} of '{path}' is not one of a monitor: "
                    f"{','.join(line)[:80]!r}."
                ) from None
    return [Record(step, tensors) for step, tensors in found.items()]


# ------------------------------------------------------------------------------------ a terminal


def progress_line() -> Sink:
    """Tell the worst of each quantity in one line, which on a terminal is written over."""
    # Imported here, so that `import constrained` stays fast.
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def write(record: Record) -> None:
        line = Text(summary(record))
        if console.is_terminal:
            line.truncate(console.width - 1, overflow="ellipsis", pad=True)
        console.print(line, soft_wrap=True, end="\r" if console.is_terminal else "\n")

    return write


def summary(record: Record) -> str:
    """A record in one line."""
    readings = record.tensors
    parts = [f"step {record.step}"]
    if readings:
        path, worst = max(
            readings.items(), key=lambda item: excess(item[1].violation, item[1].tolerance or 0.0)
        )
        if worst.violation is not None:
            state = holds(worst.violation, worst.tolerance or 0.0)
            told = {True: "holds", False: "DOES NOT HOLD", None: "?"}[state]
            parts.append(f"violation {worst.violation:.1e} ({told}) in {path}")
    for quantity in ("drift", "condition", "gradient_norm"):
        known = [n for r in readings.values() if (n := getattr(r, quantity)) is not None]
        if known:
            most = math.nan if any(map(math.isnan, known)) else max(known)
            parts.append(f"{quantity.replace('_', ' ')} {most:.2g}")
    return "  ".join(parts)
