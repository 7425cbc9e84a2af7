"""The rooms of the two packages from top to bottom, and the imports between their files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Each package: its rooms, from the top down. "" are the files beside the rooms.
ROOMS = {
    "constrained": (
        "testing",
        "",
        "libraries",
        "checkpoint",
        "model",
        "training",
        "registration",
        "parametrized",
        "evaluation",
        "constraint",
        "atomic",
        "torch_internals",
    ),
    "constraints": (
        "",
        "libraries",
        "composite",
        "kernels",
        "matrices",
        "vectors",
        "scalars",
        "bases",
        "math",
    ),
}

#: The most lines that a file may have.
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
    return rest[0] if rest and rest[0] in ROOMS[package] else ""


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The files of the package that a file imports, anywhere in it, but for type checkers only."""
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from (name for name in [full if full in known else node.module])
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
    graph = {
        name: {other for other in others if not _is_face(other)}
        for name, others in arrows(package).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _is_face(module: str) -> bool:
    # The face of a package is what others import of it, its own files too where they name what is
    # public: `from constrained import Constraint`.
    return "." not in module
