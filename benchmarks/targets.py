"""What was aimed at, and whether it was met: read from the results of the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from benchmarks import projecting
from benchmarks.batches import SHAPES
from benchmarks.calling import CALLS, SPECS, WAYS, row
from benchmarks.harness import RESULTS
from benchmarks.models import BY_VIEW, CONVOLUTIONAL
from benchmarks.training import REBASED, SCALE

#: By row, then by contender: median milliseconds and median ratio to the first contender.
Measured = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Target:
    """A figure that is to be no larger than a limit.

    Attributes:
        what: what is measured.
        row: the row of the results.
        limit: the largest figure that meets the target.
        unit: what the figure is.
        figure: from the row's contenders and one of their names to the figure.
        ours: the name of our contender.
        helpers: contenders of the row that are no peers.
    """

    what: str
    row: str
    limit: float
    unit: str
    figure: Callable[[Mapping[str, tuple[float, float]], str], float]
    ours: str = "constrained"
    helpers: tuple[str, ...] = (
        "plain",
        "one matrix product",
        "one batched product",
        "constrained",
        REBASED,
        SCALE,
    )


def _ratio(row: Mapping[str, tuple[float, float]], name: str) -> float:
    return row[name][1]


def _products(row: Mapping[str, tuple[float, float]], name: str) -> float:
    return (row[name][0] - row["plain"][0]) / row["one matrix product"][0]


def _microseconds(row: Mapping[str, tuple[float, float]], name: str) -> float:
    return 1e3 * row[name][0]


def _beyond(row: Mapping[str, tuple[float, float]], name: str) -> float:
    """Microseconds beyond 1.05 times the plain evaluation."""
    return 1e3 * (row[name][0] - 1.05 * row["plain"][0])


def _worst(row: Mapping[str, tuple[float, float]], _: str) -> float:
    return max(row[spec][1] for spec in SPECS)


def _train(spec: str, shape: str, limit: float, batch: int = 32) -> Target:
    row = f"{spec} {shape}, batch {batch}"
    return Target(row, row, limit, "ratio", _ratio)


def _projected(what: str, row: str, limit: float, unit: str = "ratio") -> Target:
    """A target of a plain parameter that steps leave in its set; the other mode is no peer."""
    return Target(
        what,
        row,
        limit,
        unit,
        _ratio if unit != "us beyond" else _beyond_plain,
        ours=projecting.PROJECT,
        helpers=("plain", "one batched product", projecting.PARAMETRIZE),
    )


def _beyond_plain(row: Mapping[str, tuple[float, float]], name: str) -> float:
    """Microseconds beyond the plain one."""
    return 1e3 * (row[name][0] - row["plain"][0])


#: With ``mode="project"``: constraint, shape, the largest ratio to the plain step.
_PROJECTED = (
    ("orthogonal", (64, 64), 1.5),
    ("orthogonal", (1024, 64), 1.8),
    ("orthogonal", (256, 256), 2.6),
    ("orthogonal", (1024, 1024), 4.5),
    *((spec, shape, 1.25) for spec, shape in projecting.ROWS if spec != "orthogonal"),
)

SMALL = ("4096 x 4 x 4", "2048 x 8 x 8", "1024 x 16 x 16", "256 x 32 x 32", "64 x 64 x 64")
EVALUATED = ("orthogonal", "positive_definite", "low_rank(rank=8)", "spectral_norm")

TARGETS = (
    _train("orthogonal", "1024 x 1024", 2.6, batch=1024),
    *(
        Target(
            f"orthogonal{words} 1024 x 1024, batch 32, beyond the plain step",
            "orthogonal 1024 x 1024, batch 32",
            3.4,
            "matrix products",
            _products,
            ours=ours,
        )
        for ours, words in (("constrained", ""), (REBASED, "(map='rebased')"))
    ),
    _train("orthogonal", "256 x 256", 6.2),
    _train("orthogonal", "64 x 64", 1.7),
    _train("orthogonal", "1024 x 64", 2.6),
    *(
        Target(
            f"orthogonal, batch of {shape}",
            f"orthogonal {shape}",
            5.0,
            "batched products",
            _ratio,
        )
        for shape in SMALL
    ),
    _train("positive_definite", "1024 x 1024", 24),
    _train("low_rank(rank=64)", "1024 x 1024", 2.0),
    _train("doubly_stochastic", "1024 x 1024", 4.0),
    *(
        replace(
            _train(f"spectral_norm(bound={bound})", "1024 x 1024", limit),
            what=f"spectral_norm 1024 x 1024, batch 32, {count} singular values at the bound",
        )
        for bound, count, limit in ((1.091, 16, 3.0), (0.9913, 64, 3.0), (0.7334, 256, 8.0))
    ),
    replace(
        _train("spectral_norm", "1024 x 1024", 2.0),
        what="spectral_norm(map='scale') 1024 x 1024, batch 32",
        ours=SCALE,
    ),
    _train("correlation", "1024 x 1024", 23),
    _train("sphere", "1024 x 1024", 2.0),
    Target(
        f"spectral_norm_conv, {CONVOLUTIONAL}",
        CONVOLUTIONAL,
        2.0,
        "ratio",
        _ratio,
        helpers=("plain", BY_VIEW, f"{BY_VIEW}, scale"),
    ),
    Target(
        "500-step RNN, hidden 128, orthogonal kernel",
        "train, 500 reads of 128 x 128",
        1.05,
        "ratio",
        _ratio,
        ours="polar",
        helpers=("plain", "cayley", "exp"),
    ),
    *(
        Target(
            f"evaluation under {name}, 1024 x 1024, batch 1, beyond 1.05 of the plain one",
            "eval, batch 1, 1024 x 1024",
            5.0,
            "us",
            _beyond,
            ours=name,
            helpers=("plain", "polar", *EVALUATED),
        )
        for name in EVALUATED
    ),
    Target(
        "4-layer encoder, width 256, 128 tokens, Adam, spectral_norm on its MLPs",
        "encoder of 4 layers, width 256, 128 tokens, step",
        2.0,
        "ratio",
        _ratio,
    ),
    Target(
        "reading a stored weight",
        "read the weight again",
        3.0,
        "us",
        _microseconds,
        ours="polar, stored value",
    ),
    *(
        Target(
            f"linear layer called {CALLS} times, {way}, worst of {len(SPECS)} sets",
            row(way),
            1.15,
            "ratio",
            _worst,
            ours=SPECS[0],
            helpers=("plain", *SPECS),
        )
        for way in WAYS
    ),
)


#: Targets of `benchmarks.projecting`.
PROJECTED = (
    *(
        _projected(f"{spec} {shape[0]} x {shape[1]}", projecting.layer_row(spec, shape), limit)
        for spec, shape, limit in _PROJECTED
    ),
    *(
        _projected(
            f"orthogonal, batch of {count} x {size} x {size}",
            projecting.small_row(count, size),
            5.0,
            "batched products",
        )
        for count, size in SHAPES
    ),
    _projected("evaluation, 1024 x 1024, batch 1", projecting.EVALUATION, 1.05),
    _projected("reading a weight, beyond a plain one", projecting.READING, 0.1, "us beyond"),
    *(
        _projected(
            f"{count}-layer encoder, width 256, 128 tokens, Adam, orthogonal q, k, v, o",
            projecting.encoder_row(count),
            1.3,
        )
        for count in (4, 12)
    ),
    _projected("embedding 20000 x 128, sphere, 64 rows read", projecting.EMBEDDING, 1.2),
    *(
        _projected(
            f"three orthogonal layers 256 x 256, backward passes a step: {passes}",
            projecting.accumulating_row(passes),
            limit,
        )
        for passes, limit in ((1, 2.2), (4, 1.4))
    ),
    _projected("step of 200 plain tensors, none projected", projecting.IDLE, 1.05),
)


def measured() -> dict[str, dict[str, tuple[float, float]]]:
    """All results that are there."""
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        for t in json.loads(path.read_text()).get("timings", []):
            rows.setdefault(t["row"], {})[t["contender"]] = t["milliseconds"], t["ratio"]
    return rows


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured: here, and by the best peer of the same row."""

    target: Target
    here: float
    peer: str
    best: float | None

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the limit."""
        return self.here <= self.target.limit


def verdicts(rows: Measured, targets: Sequence[Target] = TARGETS) -> Iterator[Verdict]:
    """The targets whose rows have been measured."""
    for target in targets:
        row = rows.get(target.row, {})
        if target.ours not in row:
            continue
        others = {
            name: target.figure(row, name)
            for name in row
            if name != target.ours and name not in target.helpers
        }
        best = min(others, key=lambda name: others[name], default="")
        here = target.figure(row, target.ours)
        yield Verdict(target, here, best, others.get(best))
    if targets is TARGETS:
        yield from _per_layer(rows)


def _per_layer(rows: Measured) -> Iterator[Verdict]:
    """One of many layers must cost less than a single one."""
    alone = rows.get("orthogonal 256 x 256, layers: 1", {})
    many = rows.get("orthogonal 256 x 256, layers: 64", {})
    if not (alone and many):
        return
    limit = 1e3 * (alone["constrained"][0] - alone["plain"][0])
    here = 1e3 * (many["constrained"][0] - many["plain"][0]) / 64
    target = Target(
        "one of 64 orthogonal layers 256 x 256, beyond the plain step; the limit: a single one",
        "",
        limit,
        "us",
        _microseconds,
    )
    yield Verdict(target, here, "", None)


def markdown(rows: Measured, targets: Sequence[Target] = TARGETS) -> str:
    """The table for documents."""
    lines = [
        "| row | unit | target | here | best peer of the row | |",
        "|---|---|---|---|---|---|",
    ]
    for v in verdicts(rows, targets):
        peer = "" if v.best is None else f"{v.best:.3g} ({v.peer})"
        met = "met" if v.is_met else "**missed**"
        lines.append(
            f"| {v.target.what} | {v.target.unit} | {v.target.limit:.3g} | {v.here:.3g} "
            f"| {peer} | {met} |"
        )
    return "\n".join(lines) + "\n"


def projected_markdown(rows: Measured) -> str:
    """The table of ``mode="project"``, with the other mode beside it."""
    lines = [
        '| row | unit | target | `mode="project"` | `mode="parametrize"` | geoopt | |',
        "|---|---|---|---|---|---|---|",
    ]
    for v in verdicts(rows, PROJECTED):
        row, target = rows[v.target.row], v.target
        other, peer = (
            f"{target.figure(row, name):.3g}" if name in row else ""
            for name in (projecting.PARAMETRIZE, projecting.GEOOPT)
        )
        met = "met" if v.is_met else "**missed**"
        lines.append(
            f"| {target.what} | {target.unit} | {target.limit:.3g} | {v.here:.3g} "
            f"| {other} | {peer} | {met} |"
        )
    return "\n".join(lines) + "\n"


def show_targets() -> None:
    """Print the tables."""
    for title, targets in (("Targets", TARGETS), ('Targets of mode="project"', PROJECTED)):
        table = Table(title=f"{title}; every figure from the results of this machine")
        for heading in ("row", "unit", "target", "here", "best peer", ""):
            table.add_column(heading)
        for v in verdicts(measured(), targets):
            peer = "" if v.best is None else f"{v.best:.3g} ({v.peer})"
            met = "met" if v.is_met else "missed"
            table.add_row(
                v.target.what, v.target.unit, f"{v.target.limit:.3g}", f"{v.here:.3g}", peer, met
            )
        Console().print(table)
