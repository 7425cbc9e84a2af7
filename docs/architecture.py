"""Draw the rooms of both packages, and the imports between them, into docs/architecture.svg.

The rooms are listed here from top to bottom; the boxes' texts are the docstrings of the rooms, and
the arrows are the imports as they stand in the files. A test asks the same functions whether all
imports run downwards.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

#: The rooms of each package from the top down. "" stands for the files beside the rooms.
ROOMS = {
    "constrained": (
        "command_line",
        "testing",
        "experiments",
        "",
        "interop",
        "checkpoint",
        "seeing",
        "minimizing",
        "model",
        "optim",
        "training",
        "registration",
        "parametrized",
        "attached",
        "evaluation",
        "constraint",
        "atomic",
        "torch_internals",
    ),
    "constraints": (
        "",
        "adapters",
        "composite",
        "kernels",
        "matrices",
        "vectors",
        "scalars",
        "bases",
        "math",
    ),
}

#: The most lines that a file of each package may have.
LONGEST = {"constrained": 400, "constraints": 350}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by their dotted names."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """The room that a file stands in."""
    package, *rest = module.split(".")
    if rest == ["__main__"]:
        # What `python -m` runs imports from all rooms.
        return ROOMS[package][0]
    return rest[0] if rest and rest[0] in ROOMS[package] else ""


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, but those for type checkers only."""
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows(package: str) -> dict[str, set[str]]:
    """Which files of a package each of its files imports."""
    known = modules(package)
    return {
        name: {other for other in imports(path, known) if other in known} - {name}
        for name, path in known.items()
    }


def circle(package: str) -> list[str]:
    """Files that import each other in a circle, if there are some."""
    # The face of a package is what its own files name it by: `from constrained import Constraint`.
    graph = {
        name: {other for other in others if "." in other}
        for name, others in arrows(package).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def between_rooms(package: str) -> dict[str, set[str]]:
    """Which rooms of a package each of its rooms imports from."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS[package]}
    for name, others in arrows(package).items():
        found[room_of(name)] |= {room_of(other) for other in others if "." in other}
    return {room: others - {room} for room, others in found.items()}


def needed(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no way through other rooms makes superfluous."""

    def reached(room: str) -> set[str]:
        return graph[room].union(*map(reached, graph[room]))

    return {room: others - set().union(*map(reached, others)) for room, others in graph.items()}


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms lie below each one, on the longest way down."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[other] for other in graph[room]), default=-1)
    return found


def purpose(package: str, room: str) -> str:
    """The first sentence of a room's docstring."""
    path = ROOT / package / room / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def draw(path: Path = PICTURE) -> None:
    """Draw both packages side by side, each with its rooms on floors."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams |= {"svg.hashsalt": "architecture", "svg.fonttype": "none"}
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 11), layout="constrained")
    for axis, package in zip(axes, ROOMS, strict=True):
        graph = between_rooms(package)
        height = floors(graph)
        levels = sorted(set(height.values()))
        here: dict[str, tuple[float, float]] = {}
        for level in levels:
            row = [room for room in ROOMS[package] if height[room] == level]
            for i, room in enumerate(row):
                here[room] = (i - (len(row) - 1) / 2, float(level))
        width, tall = 0.94, 0.66
        widest = max(abs(x) for x, _ in here.values()) + 0.6
        for room, (x, y) in here.items():
            box = FancyBboxPatch(
                (x - width / 2, y - tall / 2), width, tall, boxstyle="round,pad=0,rounding_size=.06"
            )
            box.set(facecolor="#eef2fb", edgecolor="#3f51b5", linewidth=1.2, zorder=2)
            axis.add_patch(box)
            title = f"{package}/{room}" if room else package
            axis.text(x, y + 0.2, title, ha="center", va="center", weight="bold", size=10, zorder=3)
            text = textwrap.fill(purpose(package, room), int(50 / widest), max_lines=4)
            axis.text(x, y + 0.09, text, ha="center", va="top", size=7.5, zorder=3)
        for room, others in needed(graph).items():
            for other in others:
                (x, y), (u, v) = here[room], here[other]
                bend = 0.0 if y - v < 1.5 else 0.35
                axis.annotate(
                    "",
                    (u, v + tall / 2),
                    (x, y - tall / 2),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": "#5c6bc0",
                        "connectionstyle": f"arc3,rad={bend}",
                        "linewidth": 1.1,
                    },
                    zorder=1,
                )
        axis.set(xlim=(-widest, widest), ylim=(-0.6, max(levels) + 0.6))
        axis.axis("off")
        count = len(modules(package))
        axis.set_title(f"{package}: {count} files in {len(graph) - 1} rooms", size=12)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
