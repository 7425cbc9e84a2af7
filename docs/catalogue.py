"""Writes docs/catalogue/ from what the constraints say of themselves: `make catalogue`."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from torch import nn

from constrained import Constraint, get, names, plan

DOCS = Path(__file__).parent
FOLDER = DOCS / "catalogue"
MEASURED = DOCS.parent / "benchmarks" / "results" / "catalogue.json"


@dataclass(frozen=True)
class Family:
    """A page.

    Attributes:
        file: its name, without the ending.
        title: its title.
        text: which of its sets to take when.
        sets: their names, in a reader's order.
        boost: how far the search prefers it: what is searched for to what mentions it.
    """

    file: str
    title: str
    text: str
    sets: str
    boost: int = 2

    @property
    def members(self) -> list[str]:
        """The names of its sets."""
        return self.sets.split()


FAMILIES = (
    Family(
        "scalars",
        "Numbers",
        "Each entry of the tensor is an element. Open sets (`positive`, `interval`) never reach "
        "their bound; closed ones (`nonnegative`, `box`) do, and training comes to rest there.",
        "positive nonnegative negative nonpositive greater_than at_least less_than at_most "
        "interval box angle real",
    ),
    Family(
        "vectors",
        "Vectors",
        "The last dimension of the tensor is one element, all before it are batches: the rows of "
        "the weight of `nn.Linear` are constrained one by one. A `view` takes other dimensions.",
        "simplex sphere oblique frobenius_norm weight_norm ball l1_ball max_norm min_max_norm "
        "ordered positive_ordered sum_to_zero affine poincare_ball lorentz",
    ),
    Family(
        "definite",
        "Symmetric and positive definite matrices",
        "Covariances and what is like them. `positive_definite` is open, `positive_semidefinite` "
        "closed: its optima may be singular. With few factors take `psd_low_rank`.",
        "positive_definite positive_semidefinite psd_low_rank psd_fixed_rank cholesky_factor "
        "correlation correlation_cholesky symmetric skew hermitian",
    ),
    Family(
        "orthogonal",
        "Orthogonal matrices and other groups",
        "Matrices that keep something: lengths (`orthogonal`, `unitary`), orientation as well "
        "(`special_orthogonal`), volumes (`special_linear`), the laws of mechanics (`symplectic`), "
        "or at least the possibility to go back (`invertible`).",
        "orthogonal special_orthogonal unitary grassmann invertible special_linear traceless "
        "symplectic hamiltonian",
    ),
    Family(
        "spectrum",
        "Bounded norm and low rank",
        "What the singular values of a weight may be: bounded from above (`spectral_norm`), on "
        "both sides (`singular_values`, `almost_orthogonal`), or zero but for a few (`low_rank`).",
        "spectral_norm singular_values almost_orthogonal low_rank fixed_rank rank_one",
    ),
    Family(
        "stability",
        "Stable dynamics",
        "Linear systems whose states do not explode, whatever training does: `hurwitz` for "
        "differential equations, `schur` for recurrences.",
        "hurwitz schur",
    ),
    Family(
        "stochastic",
        "Stochastic matrices",
        "Non-negative weights whose sums are one: in each row, in each column, or in both.",
        "row_stochastic column_stochastic doubly_stochastic soft_permutation",
    ),
    Family(
        "structured",
        "Structured and sparse matrices",
        "Linear spaces, given by zeros at fixed places or by entries that are equal. The gradient "
        "is projected, and nothing else changes.",
        "diagonal banded block_diagonal lower_triangular upper_triangular masked toeplitz "
        "circulant hankel",
    ),
    Family(
        "kernels",
        "Convolution kernels",
        "Constraints of the convolution itself, a linear map of images, rather than of the kernel "
        "flattened to a matrix. Stride, groups and padding are taken from the layer.",
        "orthogonal_conv spectral_norm_conv",
        boost=1,
    ),
    Family(
        "composite",
        "Several constraints together",
        "One after another on the same tensor, or side by side on slices of it.",
        "chain product",
        boost=1,
    ),
)

#: What people look for, and what they find.
WISHES = (
    ("positive numbers: scales, variances, rates", "positive", "nonnegative"),
    ("a number between two bounds", "interval", "box"),
    ("weights that sum to one, probabilities", "simplex", "row_stochastic"),
    ("vectors of unit length, normalized embeddings", "sphere", "oblique"),
    ("a covariance matrix", "positive_definite", "correlation"),
    ("a layer that keeps lengths, a rotation", "orthogonal", "special_orthogonal"),
    ("a bounded Lipschitz constant", "spectral_norm", "spectral_norm_conv"),
    ("a layer that can be inverted", "invertible", "singular_values"),
    ("few parameters, low-rank adapters", "low_rank", "rank_one"),
    ("stable dynamics", "schur", "hurwitz"),
    ("a transition matrix, mixing that keeps the mean", "row_stochastic", "doubly_stochastic"),
    ("an order, a permutation", "ordered", "soft_permutation"),
    ("many zeros, found in training", "l1_ball", "nonnegative"),
    ("zeros at known places", "masked", "banded"),
    ("a tree in hyperbolic space", "poincare_ball", "lorentz"),
    ("different constraints on parts of a tensor", "product", "chain"),
)

COSTS = {
    "elementwise": "work on each entry",
    "products": "matrix products",
    "decompositions": "matrix decompositions",
}

SIZES = ("64 x 64", "256 x 256", "1024 x 1024")

HEAD = """# The catalogue

Every set by its name, as `constrain(model, "weight", "name(argument=...)")` takes it, or a config.
An alias does as well. These pages are generated from the docstrings (`make catalogue`), which
`constrained.describe(name)` shows too.

## What are you looking for?

| you want | take | or |
|---|---|---|
{wishes}

## All sets

**Notation**: $x$ is an element of a set of numbers or vectors and $y$ its free parameter; of
matrices $W$ and $X$. $\\lVert x \\rVert$ is the Euclidean norm, $\\lVert W \\rVert_F$ the Frobenius
norm and $\\lVert W \\rVert_2$ the spectral norm. $\\sigma_i$ are singular values from the largest
one on, and $\\lambda$ eigenvalues. $W^\\top$ is the transpose and $W^*$ the conjugate transpose.
$\\operatorname{{polar}}(X)$ is the nearest matrix with orthonormal columns or rows.
$\\varepsilon$ is the machine epsilon of the dtype.

**Cost** is the class of the dearest operation of a training step of the example: {costs}.
The factor is the time of a step of SGD on `nn.Linear(256, 256)` with 32 rows of input, in steps
without a constraint ({environment}; `make bench`).
"""


def render() -> dict[str, str]:
    """The pages as Markdown, by the names of their files."""
    # A constraint that somebody registered while this ran is no part of the catalogue.
    ours = {name for name in names() if get(name).__module__.partition(".")[0] == "constraints"}
    placed = [name for family in FAMILIES for name in family.members]
    assert not (astray := ours.symmetric_difference(placed)), f"in FAMILIES: {sorted(astray)}"
    assert len(placed) == len(ours), "a set is on one page only"
    pages = {f"{family.file}.md": _page(family) for family in FAMILIES}
    return {"index.md": _index(), **pages}


def _index() -> str:
    wishes = [f"| {wish} | " + " | ".join(map(_link, taken)) + " |" for wish, *taken in WISHES]
    environment = json.loads(MEASURED.read_text("utf-8"))["environment"]
    head = HEAD.format(
        wishes="\n".join(wishes),
        costs=",\n".join(f"*{kind}* ({words})" for kind, words in COSTS.items()),
        environment=f"torch {environment['torch']}, {environment['threads']} thread, "
        f"{environment['dtype'].removeprefix('torch.')}",
    )
    parts = [head]
    for family in FAMILIES:
        parts += ["", f"### [{family.title}]({family.file}.md) {{ data-search-exclude }}", ""]
        parts += ["| set | formula | elements | use | cost |", "|---|---|---|---|---|"]
        parts += [_row(name) for name in family.members]
    return "\n".join(parts) + "\n"


def _row(name: str) -> str:
    parts = _paragraphs(get(name))
    formula = re.match(r"\$[^$]*\$", parts["Set"])
    assert formula, f"{name}: the paragraph Set starts with a formula"
    ratio = _measured().get(name, {}).get("256 x 256")
    cost = Example(name).cost + (f", {_rounded(ratio)}×" if ratio else "")
    cells = (_link(name), formula[0], _summary(get(name)), parts["Use"], cost)
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def _link(name: str) -> str:
    (family,) = (family for family in FAMILIES if name in family.members)
    return f"[`{name}`]({family.file}.md#{_anchor(name)})"


def _page(family: Family) -> str:
    head = f"---\nsearch:\n  boost: {family.boost}\n---\n\n"
    links = ", ".join(f"[`{name}`](#{_anchor(name)})" for name in family.members)
    head += f"# {family.title}\n\n{_wrapped(_linked(family.text))}\n\n{_wrapped(links)}\n"
    return "\n".join([head, *map(_section, family.members)])


def _section(name: str) -> str:
    cls, parts = get(name), _paragraphs(get(name))
    example = Example(name)
    lines = [
        f"## `{name}` <small>{_summary(cls)}</small> {{ #{_anchor(name)} data-toc-label='{name}' }}"
    ]
    if cls.aliases:
        lines.append("Aliases: " + ", ".join(f"`{alias}`" for alias in cls.aliases))
    caption = _captions()[name]
    lines.append(f"![{caption}](pictures/{name}.png){{ width=360 loading=lazy }}\n\n*{caption}*")
    lines.append(f"**Use**: {parts.pop('Use')}")
    lines.append(f"```python\n{example.code}```")
    lines += [f"**{title}**: {text}" for title, text in parts.items() if title in PROPERTIES]
    lines.append(_arguments(cls))
    lines.append(_cost(name, example))
    lines += [text for title, text in parts.items() if title == "Notes"]
    lines += [f"**{title}**\n\n{text}" for title, text in parts.items() if title in SECTIONS]
    reasons: dict[str, list[str]] = {}
    for law, reason in cls.expected_failures.items():
        reasons.setdefault(reason, []).append(f"`{law}`")
    for reason, laws in reasons.items():
        lines.append(f"*Laws that cannot hold*, since {reason}: {', '.join(laws)}.")
    return "\n\n".join(filter(None, lines)) + "\n"


def _cost(name: str, example: Example) -> str:
    ratios = _measured().get(name, {})
    text = f"**Cost**: *{example.cost}* ({COSTS[example.cost]})."
    if ratios:
        sizes, times = (
            _listed(list(ratios)),
            _listed([_rounded(ratio) for ratio in ratios.values()]),
        )
        given = _first_that_fits(name, (64, 64))
        told = f", with `{_spec(name, given)}`" if given else ""
        text += (
            f" A training step of `nn.Linear` takes {times} times one without the constraint, for "
            f"a weight of {sizes} and 32 rows{told}."
        )
    return _wrapped(text)


def _arguments(cls: type[Constraint]) -> str:
    signature = inspect.signature(cls, eval_str=True)
    described = _described_arguments(cls)
    lines = ["**Arguments**", ""] if signature.parameters else []
    for key, parameter in signature.parameters.items():
        default = parameter.default
        told = "required" if default is inspect.Parameter.empty else f"by default `{default!r}`"
        lines.append(f"- `{key}` ({_kind(parameter.annotation)}, {told}): {described[key]}")
    return "\n".join(lines)


#: The names that the package annotated-types gives to bounds.
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _kind(annotation: Any) -> str:
    """A type as a reader sees it, with its range if it has one."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value!r}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if origin is Annotated:
        ranges = [
            f" {sign} {getattr(bound, key):g}"
            for bound in inner[1:]
            for key, sign in _BOUNDS.items()
            if getattr(bound, key, None) is not None
        ]
        return _kind(inner[0]) + ",".join(ranges)
    if inner:
        held = ", ".join(_kind(each).replace("`", "") for each in inner)
        return f"`{_name(origin)}[{held}]`"
    return f"`{_name(annotation)}`"


def _name(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    return getattr(annotation, "__name__", str(annotation)).rpartition(".")[2]


# What the docstrings say.

#: In this order after the example.
PROPERTIES = ("Set", "Map", "Right inverse", "Reference")
SECTIONS = ("Shape", "Raises", "Example")

_SECTION = re.compile(
    r"^(Args|Shape|Raises|Example|Reference|Note):\n((?:    .*\n?|\n)*)", re.MULTILINE
)


def _summary(cls: type[Constraint]) -> str:
    return _linked((inspect.getdoc(cls) or "").splitlines()[0].rstrip("."), cls)


def _paragraphs(cls: type[Constraint]) -> dict[str, str]:
    """The parts of a docstring by their headings; what follows the reference is ``Notes``."""
    text = inspect.getdoc(cls) or ""
    prose = _SECTION.split(text)[0].partition("\n")[2].strip()
    found: dict[str, str] = {}
    title = "Notes"
    for paragraph in re.split(r"\n\n+", prose):
        heading = re.match(r"\*\*([\w ]+)\*\*: ", paragraph)
        if heading:
            title, paragraph = heading[1], paragraph[heading.end() :]
        elif title == "Reference":
            title = "Notes"
        paragraph = _linked(paragraph, cls)
        found[title] = f"{found[title]}\n\n{paragraph}" if title in found else paragraph
    for match in _SECTION.finditer(text):
        body = textwrap.dedent(match[2]).strip("\n")
        if match[1] == "Raises":
            body = re.sub(r"^(\w+): ", r"* `\1`: ", body, flags=re.MULTILINE)
        found[match[1]] = _session(cls, body) if match[1] == "Example" else _linked(body, cls)
    return found


def _session(cls: type[Constraint], lines: str) -> str:
    """The example of a docstring, with what it imports."""
    imports = "" if ">>> import torch" in lines or "torch." not in lines else ">>> import torch\n"
    imports += f">>> from constraints import {cls.__name__}\n" if cls.__name__ in lines else ""
    return f"```pycon\n{imports}{lines}\n```"


def _linked(text: str, at: type[Constraint] | None = None) -> str:
    """A text in which the names of other sets, and those of their classes, are links."""

    def link(match: re.Match[str]) -> str:
        name = _classes().get(match[1], match[1])
        known = name in _classes().values() and (at is None or name != at.name)
        return _link(name) if known else match[0]

    return re.sub(r"(?<!`)`(\w+)`(?!`)", link, text)


@cache
def _classes() -> dict[str, str]:
    return {get(name).__name__: name for family in FAMILIES for name in family.members}


def _described_arguments(cls: type[Constraint]) -> dict[str, str]:
    lines = _paragraphs(cls).get("Args", "")
    pairs = re.findall(r"^(\w+): (.*(?:\n +.*)*)", lines, re.MULTILINE)
    return {key: " ".join(text.split()) for key, text in pairs}


# The examples.


class Example:
    """A layer whose weight a set can hold, of a usual size if possible, and the call.

    Attributes:
        code: the program.
        cost: the class of what a training step of it spends on the constraint.
    """

    #: Weights, with the layers that have them.
    LAYERS = (
        ((32, 64), "nn.Linear(64, 32)"),
        ((64, 64), "nn.Linear(64, 64)"),
        ((32, 16, 3, 3), 'nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular")'),
    )

    def __init__(self, name: str) -> None:
        cls = get(name)
        for shape, layer in self.LAYERS:  # noqa: B007
            arguments = _first_that_fits(name, shape)
            # A kernel is not shown as many small matrices.
            if arguments is not None and (len(shape) == 2 or cls(**arguments).event_dim is None):
                break
        else:
            arguments, event = max(_simple(cls), key=lambda pair: torch.Size(pair[1]).numel())
            rows, columns = event if len(event) == 2 else (8, *event)
            layer = f"nn.Linear({columns}, {rows})"
        if cls.complex:
            layer = layer.replace(")", ", dtype=torch.complex64)")
        self.code = (
            ("import torch\n" if cls.complex else "")
            + f"from torch import nn\nfrom constrained import constrain\n\nlayer = {layer}\n"
            + f'constrain(layer, "weight", "{_spec(name, arguments)}")\n'
        )
        self.cost = _planned(layer, _spec(name, arguments))


@cache
def _planned(layer: str, spec: str) -> str:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = eval(layer, {"nn": nn, "torch": torch})
    found = plan(module, {"weight": spec})
    assert not found.errors, found.errors
    return found.rows[0].cost or "unknown"


def _first_that_fits(name: str, shape: Sequence[int]) -> dict[str, Any] | None:
    """Arguments for a weight of this shape: none if none are required, or those of an example."""
    cls = get(name)
    required = any(p.default is p.empty for p in inspect.signature(cls).parameters.values())
    for arguments in [given for given, _ in _simple(cls)] if required else [{}]:
        try:
            cls(**arguments).check_shape(shape)
        except ValueError:
            continue
        return arguments
    return None


def _simple(cls: type[Constraint]) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Its examples, without those that hold mappings of their own."""
    return [
        (dict(given), event) for given, event in cls.examples if "{" not in str([*given.values()])
    ]


def _spec(name: str, arguments: dict[str, Any]) -> str:
    if name == "chain":
        return " | ".join(arguments["parts"])
    told = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({told})" if told else name


# The measurements.


@cache
def _measured() -> dict[str, dict[str, float]]:
    """For each set: how many plain steps a step takes, by the size of the weight."""
    found: dict[str, dict[str, float]] = {}
    for timing in json.loads(MEASURED.read_text("utf-8"))["timings"]:
        name, _, row = timing["row"].partition(" ")
        size, _, batch = row.partition(", ")
        if timing["contender"] == "constrained" and batch == "batch 32" and size in SIZES:
            found.setdefault(name, {})[size] = timing["ratio"]
    return found


@cache
def _captions() -> dict[str, str]:
    return runpy.run_path(str(DOCS / "pictures.py"))["captions"]()


def _rounded(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def _anchor(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    for name, text in render().items():
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text, "utf-8")
