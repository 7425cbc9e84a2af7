"""What a constraint's docstring says, in parts, and as text that a terminal shows."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from constrained.constraint import registry
from constrained.constraint.argument_schema import (
    argument_schemas,
    argument_types,
    in_words,
    parameters,
)
from constrained.constraint.arguments import as_data
from constrained.constraint.base import Constraint
from constrained.constraint.latex import as_text

#: As wide as text is read with ease, unless the terminal is narrower.
WIDTH = 100

#: The headings that constraints of the catalogue have.
_HEADINGS = ("Use", "Set", "Map", "Right inverse", "Reference")

#: All headings of the text.
HEADINGS = (*_HEADINGS, "Notes", "Arguments", "Shape", "In a config", "Example")

_HEADING = re.compile(rf"\*\*({'|'.join(_HEADINGS)})\*\*:\s*")

_SECTION = re.compile(
    r"^(Args|Shape|Raises|Example|Examples|Reference|Note):\n((?:    .*\n?|\n)*)", re.MULTILINE
)

_ITEM = re.compile(r"^(\*?\w+(?:, \*?\w+)*):\s*")


@dataclass(frozen=True)
class Argument:
    """An argument of a constraint.

    Attributes:
        name: its name.
        values: what values it may have, as a phrase.
        required: whether it must be given.
        default: what it is if it is left out.
        text: what it means.
    """

    name: str
    values: str
    required: bool
    default: Any
    text: str


@dataclass(frozen=True)
class Documentation:
    """What the docstring and the signature of a constraint say; formulas are text of Unicode.

    Attributes:
        name: the name in the registry.
        aliases: its other names.
        family: where its class stands in its package: ``"matrices"``, say.
        summary: one sentence.
        use, set, map, right_inverse, reference: the paragraphs under these headings.
        notes: the other paragraphs.
        arguments: those of its constructor.
        shape: of tensors that it takes; "" if it is not said.
        raises: what it raises, and when; likewise.
        example: a doctest; likewise.
        spec: how a config may write it, with example arguments.
    """

    name: str
    aliases: tuple[str, ...]
    family: str
    summary: str
    use: tuple[str, ...]
    set: tuple[str, ...]
    map: tuple[str, ...]
    right_inverse: tuple[str, ...]
    reference: tuple[str, ...]
    notes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    shape: str
    raises: str
    example: str
    spec: str

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, which JSON can hold."""
        return asdict(self)


def documentation(cls: type[Constraint]) -> Documentation:
    """What is known of a registered constraint, in parts.

    Args:
        cls: its class.
    """
    text = _with_formulas(inspect.getdoc(cls) or "")
    sections = {match[1]: textwrap.dedent(match[2]).strip() for match in _SECTION.finditer(text)}
    paragraphs = _paragraphs(_SECTION.sub("", text))
    found: dict[str, list[str]] = {heading: [] for heading in (*_HEADINGS, "")}
    heading = ""
    for paragraph in paragraphs[1:]:
        start = _HEADING.match(paragraph)
        if start:
            heading = start[1]
            paragraph = paragraph[start.end() :]
        elif heading == "Reference":
            # What follows the last heading belongs to none of them.
            heading = ""
        found[heading].append(paragraph)
    texts = dict(_items(sections.get("Args", "")))
    hints = argument_types(cls)
    arguments = tuple(
        Argument(
            name,
            in_words(hints.get(name, Any)),
            parameter.default is inspect.Parameter.empty,
            None if parameter.default is inspect.Parameter.empty else as_data(parameter.default),
            texts.get(name, ""),
        )
        for name, parameter in parameters(cls).items()
    )
    return Documentation(
        cls.name or cls.__name__,
        cls.aliases,
        family(cls),
        paragraphs[0] if paragraphs else "",
        tuple(found["Use"]),
        tuple(found["Set"]),
        tuple(found["Map"]),
        tuple(found["Right inverse"]),
        tuple(found["Reference"]) or tuple(filter(None, [sections.get("Reference", "")])),
        tuple(found[""]),
        arguments,
        " ".join(sections.get("Shape", "").split()),
        " ".join(sections.get("Raises", "").split()),
        _example(cls, sections.get("Example", sections.get("Examples", ""))),
        _spec(cls),
    )


def family(cls: type[Constraint]) -> str:
    """Where the class of a constraint stands: the folder in the catalogue, or else its package."""
    package, *rest = cls.__module__.split(".")
    return rest[0] if package == "constraints" and len(rest) > 1 else package


def describe(name: str) -> str:
    """The set, map, right inverse, arguments and an example of a constraint, for a terminal.

    Args:
        name: a registered name or an alias.

    Raises:
        KeyError: if there is none, with a guess at what was meant.

    Example:
        >>> import constrained
        >>> print(constrained.describe("simplex").partition("Use")[0].rstrip())
        simplex()
        aliases: probability_simplex
        <BLANKLINE>
        Vectors of nonnegative numbers that sum to one: weights and probabilities.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    return "\n".join(lines(documentation(registry.get(name)), min(width, WIDTH)))


def lines(what: Documentation, width: int) -> Iterator[str]:
    """The text of `describe`, in lines; those with `HEADINGS` have nothing else.

    Args:
        what: of which constraint.
        width: the most characters of a line, examples aside.
    """
    given = (a.name if a.required else f"{a.name}={a.default!r}" for a in what.arguments)
    yield from _filled(f"{what.name}({', '.join(given)})", width, "", "    ")
    if what.aliases:
        yield from _filled(f"aliases: {', '.join(what.aliases)}", width, "", "    ")
    yield ""
    yield from _filled(what.summary, width)
    for heading, paragraphs in zip(
        _HEADINGS, (what.use, what.set, what.map, what.right_inverse, what.reference), strict=True
    ):
        yield from _section(heading, paragraphs, width)
    yield from _section("Notes", what.notes, width)
    if what.arguments:
        yield from ("", "Arguments")
        for argument in what.arguments:
            default = "" if argument.required else f"; {argument.default!r} by default"
            values = argument.values or "anything"
            text = f"{argument.name}: {values}{default}. {_sentence(argument.text)}"
            yield from _filled(text, width, "  ", "      ")
    yield from _section("Shape", [what.shape] if what.shape else [], width)
    yield from ("", "In a config")
    yield f"  layer.weight: {what.spec}"
    if what.example:
        yield from ("", "Example")
        yield from (f"  {line}".rstrip() for line in what.example.splitlines())


def _section(heading: str, paragraphs: Sequence[str], width: int) -> Iterator[str]:
    if not paragraphs:
        return
    yield from ("", heading)
    for i, paragraph in enumerate(paragraphs):
        if i and not paragraph.startswith("- "):
            yield ""
        further = "    " if paragraph.startswith("- ") else "  "
        yield from _filled(paragraph, width, "  ", further)


def _filled(text: str, width: int, first: str = "", further: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_formulas(text: str) -> str:
    """A docstring with its formulas, and the names in it, as plain text."""
    text = re.sub(r"\$([^$`]+)\$|:math:`([^`]*)`", lambda m: as_text(m[1] or m[2]), text)
    return re.sub(r"``([^`]+)``", r"\1", text)


def _paragraphs(text: str) -> list[str]:
    """Paragraphs in one line each, and each item of a list as one."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        for item in re.split(r"\n(?=- )", block.strip()):
            if item.strip():
                found.append(" ".join(item.split()))
    return found


def _items(text: str) -> Iterator[tuple[str, str]]:
    """The names and the texts of a section such as ``Args``."""
    for item in re.split(r"\n(?=\S)", text):
        start = _ITEM.match(item)
        if start:
            for name in start[1].split(", "):
                yield name.lstrip("*"), " ".join(item[start.end() :].split())


def _spec(cls: type[Constraint]) -> str:
    """How a config may write a constraint: with the arguments of an example, if it needs any."""
    if not argument_schemas(cls)[1] or not cls.examples:
        return cls.name or cls.__name__
    given = ", ".join(f"{key}={value!r}" for key, value in cls.examples[0][0].items())
    return f'"{cls.name}({given})"'


def _example(cls: type[Constraint], text: str) -> str:
    """The example of a docstring, with the imports that its module has done."""
    if not text:
        return ""
    package = cls.__module__.partition(".")[0]
    is_in_catalogue = getattr(sys.modules[package], cls.__name__, None) is cls
    imports = [f">>> from {package if is_in_catalogue else cls.__module__} import {cls.__name__}"]
    if "torch." in text and "import torch" not in text:
        imports.insert(0, ">>> import torch")
    return "\n".join([*imports, text])
