"""Formulas of LaTeX as text of Unicode, for a terminal."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

#: Where a part stood that is text already: characters that no formula has.
_PLACES = 0xE000

#: What encloses something: no space stands inside of it.
_LEFT = {r"\lVert": "‖", r"\lvert": "|", r"\langle": "⟨", r"\lfloor": "⌊", r"\lceil": "⌈"}
_RIGHT = {r"\rVert": "‖", r"\rvert": "|", r"\rangle": "⟩", r"\rfloor": "⌋", r"\rceil": "⌉"}

#: What only says how large the sign beside it is, or where its limits stand.
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|limits|nolimits|displaystyle)(?![A-Za-z])\s*\.?"
)

#: Other spellings of the same.
_SPELLINGS = {
    r"\|": "‖",
    r"\tfrac": r"\frac",
    r"\dfrac": r"\frac",
    r"\operatorname*": r"\operatorname",
}

_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)


def as_text(formula: str) -> str:
    r"""A formula as one line of text.

    Superscripts and subscripts become characters of their own where Unicode has them.

    Args:
        formula: what stands between dollars in LaTeX.

    Example:
        >>> as_text(r"\{W \in \mathbb{R}^{n \times p} : W^\top W = I\}")
        '{W ∈ ℝⁿˣᵖ : Wᵀ W = I}'
    """
    found: list[str] = []
    text = _SIZES.sub("", formula)
    for other, spelling in _SPELLINGS.items():
        text = text.replace(other, spelling)
    text = _with_scripts(text, found)
    for command, sign in _LEFT.items():
        text = re.sub(re.escape(command) + r"(?![A-Za-z])\s*", sign, text)
    for command, sign in _RIGHT.items():
        text = re.sub(r"\s*" + re.escape(command) + r"(?![A-Za-z])", sign, text)
    # The space after a command belongs to the command, and is wanted here.
    text = _COMMAND.sub(_keep_space, text)
    text = _converter().latex_to_text(text.replace("-", "−"))
    for i, part in enumerate(found):
        text = text.replace(chr(_PLACES + i), part)
    return " ".join(text.split())


def _keep_space(command: re.Match[str]) -> str:
    after = command.string[command.end() : command.end() + 1]
    spec: Any = _commands().get_macro_spec(command[0][1:])
    if getattr(getattr(spec, "args_parser", None), "argspec", ""):
        return command[0]
    if after == "\\" and len(_converter().latex_to_text(command[0])) > 1:
        # Between two words, such as log and det.
        return f"{command[0]}{{}} "
    return f"{command[0]}{{}}" if after.isspace() else command[0]


def _with_scripts(formula: str, found: list[str]) -> str:
    """A formula with places for what stood above and below the line; ``found`` gets the texts."""
    parts: list[str] = []
    i = 0
    while i < len(formula):
        command = _COMMAND.match(formula, i)
        if command:
            parts.append(command[0])
            i = command.end()
        elif formula[i] in "^_":
            end = _end(formula, i + 1)
            script = as_text(formula[i + 1 : end].strip().removeprefix("{").removesuffix("}"))
            parts.append(chr(_PLACES + len(found)))
            found.append(_script(formula[i], script))
            i = end
        else:
            parts.append(formula[i])
            i += 1
    return "".join(parts)


def _end(formula: str, start: int) -> int:
    """Where the argument ends that begins there: a group, a command with its group, a letter."""
    while formula[start : start + 1].isspace():
        start += 1
    command = _COMMAND.match(formula, start)
    if command:
        after = command.end()
        return _end(formula, after) if formula[after : after + 1] == "{" else after
    if formula[start : start + 1] != "{":
        return min(start + 1, len(formula))
    depth = 0
    for i in range(start, len(formula)):
        depth += (formula[i] == "{") - (formula[i] == "}")
        if depth == 0:
            return i + 1
    return len(formula)


def _script(kind: str, text: str) -> str:
    """A text above or below the line, as characters that stand there if there are any."""
    # Above the line, only a transposed matrix has this sign.
    letters = unicodedata.normalize("NFKC", text).replace("\u22a4", "T").replace("∗", "*")
    table = _scripts()[kind]
    packed = letters.replace(" ", "")
    if packed in ("'", "′"):
        return "′"
    if all(letter in table for letter in packed):
        return "".join(table[letter] for letter in packed)
    return f"{kind}{letters}" if len(letters) == 1 or letters.isalnum() else f"{kind}({letters})"


@functools.cache
def _scripts() -> dict[str, Mapping[str, str]]:
    """The characters above and below the line, as the database of Unicode tells them."""
    found: dict[str, dict[str, str]] = {"^": {"×": "ˣ"}, "_": {}}
    # Letters of phonetics, digits, signs.
    for code in (*range(0xB2, 0xBA), *range(0x2B0, 0x2C0), *range(0x1D2C, 0x1D6B), 0x2C7C):
        _add(found, chr(code))
    for code in range(0x2070, 0x209D):
        _add(found, chr(code))
    return dict(found)


def _add(found: dict[str, dict[str, str]], character: str) -> None:
    kind, _, code = unicodedata.decomposition(character).partition(" ")
    table = {"<super>": "^", "<sub>": "_"}.get(kind)
    if table and " " not in code:
        found[table].setdefault(chr(int(code, 16)), character)


@functools.cache
def _commands() -> Any:
    from pylatexenc.latexwalker import get_default_latex_context_db

    return get_default_latex_context_db()


@functools.cache
def _converter() -> Any:
    from pylatexenc import latex2text

    commands = latex2text.get_default_latex_context_db()
    texts: dict[str, Any] = {"ne": "≠", "frac": _fraction, "sqrt": _root}
    # What follows it is the name.
    texts["operatorname"] = ""
    commands.add_context_category(
        "formulas",
        prepend=True,
        macros=[latex2text.MacroTextSpec(name, text) for name, text in texts.items()],
    )
    # Such as \det and \diag: what has no sign is called by its name.
    commands.set_unknown_macro_spec(latex2text.MacroTextSpec("", _name))
    return latex2text.LatexNodes2Text(commands, math_mode="text")


def _fraction(node: Any, l2tobj: Any) -> str:
    return "/".join(_enclosed(l2tobj.nodelist_to_text([each])) for each in node.nodeargs)


def _root(node: Any, l2tobj: Any) -> str:
    above = [node.nodeoptarg] if node.nodeoptarg else []
    degree, radicand = l2tobj.nodelist_to_text(above), l2tobj.nodelist_to_text(node.nodeargs)
    return f"{_script('^', degree)}√{_enclosed(radicand)}"


def _name(node: Any, l2tobj: Any) -> str:
    del l2tobj
    return node.macroname


def _enclosed(text: str) -> str:
    """A part of a formula, in parentheses unless it is a number or a letter."""
    text = text.strip()
    return text if text.isalnum() or len(text) == 1 else f"({text})"
