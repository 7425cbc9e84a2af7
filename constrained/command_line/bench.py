"""``bench``: what a constraint costs on this machine, beside a tensor without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.benchmark import Timer

from constrained import constrain
from constrained.command_line.models import Imports, import_all
from constrained.command_line.output import Json, fail, print_json
from constrained.constraint.spec import parse
from constrained.model.tables import as_text

#: How long each row is measured, in seconds.
_SECONDS = 0.1

#: What torch has for the same.
_OF_TORCH: dict[str, Callable[[Any], Any]] = {
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
}


@dataclass(frozen=True)
class Timing:
    """A row of the benchmark.

    Attributes:
        what: how the tensor is kept.
        step: the median time in seconds of a training step: read, backward, one step of SGD.
        ratio: the same beside that of a tensor without a constraint.
        read: the median time of a read in evaluation mode, under no_grad.
    """

    what: str
    step: float
    ratio: float
    read: float


class _Holder(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.clone())

    def forward(self) -> Tensor:
        return self.weight


def bench(
    constraint: Annotated[str, typer.Argument(help="A name, or text such as 'ball(radius=2)'.")],
    shape: Annotated[str, typer.Option(help="Of the tensor, such as 64x3x3x3.")] = "256x256",
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operation.")] = 1,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Time what a constraint costs on this machine.

    A training step of one tensor is timed, with the constraint and without. In a whole model, which
    does more in a step, the ratio is smaller.
    """
    import_all(imports)
    sizes = _sizes(shape)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        request = parse(constraint)
        sample = getattr(request.constraint, "sample", None)
        value = sample(sizes) if sample else torch.randn(sizes)
        kept = constrain(_Holder(value), "weight", constraint)
    except (ValueError, TypeError) as error:
        fail(str(error))
    rows = [_timed("no constraint", _Holder(value), None)]
    rows.append(_timed(repr(request.constraint), kept, rows[0]))
    torchs = _OF_TORCH.get(getattr(request.constraint, "name", None) or "")
    if torchs is not None and len(sizes) == 2:
        rows.append(_timed(f"torch's {torchs.__name__}", torchs(_Holder(value)), rows[0]))
    if as_json:
        setting = {"shape": list(sizes), "threads": threads, "torch": torch.__version__}
        print_json({**setting, "rows": [asdict(row) for row in rows]})
        return
    cells = [(r.what, _time(r.step), f"{r.ratio:.1f}", _time(r.read)) for r in rows]
    size = " x ".join(map(str, sizes))
    note = f"{size}, float32, CPU, threads: {threads}, torch {torch.__version__}"
    typer.echo(as_text(("tensor", "training step", "ratio", "read"), cells, [note]))


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.lower().replace("×", "x").split("x")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        fail(f"A shape is written as 256x256, got {text!r}.")
    sizes = tuple(map(int, parts))
    if torch.Size(sizes).numel() > 2**28:
        fail(f"A tensor of the shape {text} is too large to be timed.")
    return sizes


def _timed(what: str, module: Any, plain: Timing | None) -> Timing:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    gradient = torch.randn_like(module.weight)

    def step() -> None:
        optimizer.zero_grad()
        module.weight.backward(gradient)
        optimizer.step()

    def read() -> None:
        with torch.no_grad():
            module.weight  # noqa: B018 - the read is what is timed

    step()
    times: list[float] = []
    for function in (step, read):
        module.train(function is step)
        timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
        times.append(timer.blocked_autorange(min_run_time=_SECONDS).median)
    return Timing(what, times[0], times[0] / (plain.step if plain else times[0]), times[1])


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
