"""Writes docs/catalogue.md from what the constraints say of themselves: `make catalogue`."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from itertools import groupby
from pathlib import Path

from constrained import Constraint, get, names
from constrained.constraint.documentation import documentation, lines

PAGE = Path(__file__).with_name("catalogue.md")

HEAD = """# The catalogue

Every constraint by its name, as `constrain(model, "weight", "name(argument=...)")` takes it. This
page is generated from their docstrings (`make catalogue`).
"""


def render() -> str:
    """The page as Markdown."""
    classes = sorted(map(get, names()), key=lambda cls: (cls.__module__, cls.name or ""))
    # A constraint that somebody registered while this ran is no part of the catalogue.
    classes = [cls for cls in classes if cls.__module__.partition(".")[0] == "constraints"]
    parts = [HEAD, *_overview(classes)]
    for module, members in groupby(classes, key=lambda cls: cls.__module__):
        title = (inspect.getdoc(sys.modules[module]) or module).splitlines()[0].rstrip(".")
        parts.append(f"\n## {title}")
        parts += [_section(cls) for cls in members]
    return "\n".join(parts) + "\n"


def _overview(classes: list[type[Constraint]]) -> list[str]:
    lines = ["| name | aliases | set |", "|---|---|---|"]
    for cls in sorted(classes, key=lambda cls: cls.name or ""):
        summary = _text(cls).splitlines()[0].rstrip(".").replace("|", "\\|")
        aliases = ", ".join(f"`{alias}`" for alias in cls.aliases)
        lines.append(f"| [`{cls.name}`](#{_anchor(cls)}) | {aliases} | {summary} |")
    return lines


def _section(cls: type[Constraint]) -> str:
    call = next(lines(documentation(cls), sys.maxsize))
    found = [f"\n### `{cls.name}` {{ #{_anchor(cls)} }}", ""]
    found += [f"`{call}`", "", _text(cls)]
    reasons: dict[str, list[str]] = {}
    for law, reason in cls.expected_failures.items():
        reasons.setdefault(reason, []).append(f"`{law}`")
    for reason, laws in reasons.items():
        found += ["", f"*Laws that cannot hold*, since {reason}: {', '.join(laws)}."]
    return "\n".join(found)


def _text(cls: type[Constraint]) -> str:
    """The docstring as Markdown."""
    text = inspect.getdoc(cls) or ""
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${' '.join(m[1].split())}$", text)
    return _SECTION.sub(_section_of_docstring, text)


_SECTION = re.compile(
    r"^(Args|Shape|Raises|Example|Reference|Note):\n((?:    .*\n?|\n)*)", re.MULTILINE
)


def _section_of_docstring(match: re.Match[str]) -> str:
    title, body = match[1], textwrap.dedent(match[2]).strip("\n")
    if title == "Example":
        return f"**{title}**\n\n```pycon\n{body}\n```\n"
    if title in ("Args", "Raises"):
        body = re.sub(r"^(\w+): ", r"* `\1`: ", body, flags=re.MULTILINE)
    return f"**{title}**\n\n{body}\n\n"


def _anchor(cls: type[Constraint]) -> str:
    return (cls.name or cls.__name__).replace("_", "-")


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
