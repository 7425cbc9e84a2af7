"""Time contenders in turn, so that a drift of the machine's speed meets all of them."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """The times of one contender in one row.

    Attributes:
        row: what was done.
        contender: by whom.
        milliseconds: median over the rounds.
        quartiles: first and third quartile over the rounds, in milliseconds.
        ratio: median over the rounds of this contender's time over that of the first one.
        ratio_quartiles: first and third quartile of that.
    """

    row: str
    contender: str
    milliseconds: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]


def compare(
    row: str, contenders: Mapping[str, Callable[[], object]], rounds: int = 15, repeat: int = 1
) -> list[Timing]:
    """Time each contender once per round, A B C A B C ..., the first being the measure of all.

    Args:
        row: the name of the row.
        contenders: what to call.
        rounds: how many rounds are counted, after one that is not.
        repeat: how many calls make one measurement.
    """
    timers = {name: Timer("f()", globals={"f": f}) for name, f in contenders.items()}
    for timer in timers.values():
        timer.timeit(repeat)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(1e3 * timer.timeit(repeat).mean)
    reference = next(iter(times.values()))
    result = []
    for name, measured in times.items():
        ratios = [t / r for t, r in zip(measured, reference, strict=True)]
        result.append(
            Timing(
                row,
                name,
                statistics.median(measured),
                _quartiles(measured),
                statistics.median(ratios),
                _quartiles(ratios),
            )
        )
    return result


def save(name: str, timings: list[Timing]) -> Path:
    """Write timings, with the machine and the versions they hold for, as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(), "timings": [asdict(t) for t in timings]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def environment() -> dict[str, object]:
    """What results hold for."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, third = statistics.quantiles(values, n=4)
    return first, third
