"""Tables as text: no word is cut, and nothing is lost, whatever the width."""

from __future__ import annotations

import pytest

from constrained.model import tables

HEADINGS = ("tensor", "constraint", "empty", "cost")
ROWS = [
    ("encoder.layers.0.weight", "orthogonal() viewed as 'o i h w -> o (i h w)'", "", "products"),
    ("bias", "ball(radius=2.0)", "", "elementwise"),
]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
def test_no_word_is_cut(monkeypatch, width):
    monkeypatch.setattr(tables, "WIDTH", width)
    text = tables.as_text(HEADINGS, ROWS, ["A note about all of these tensors, which is long."])
    words = text.replace("│", " ").replace("┃", " ").split()
    for cell in (cell for row in ROWS for cell in row):
        assert set(cell.split()) <= {word.rstrip(";") for word in words}
    assert "empty" not in words
    longest = max(map(len, words)) + 4
    assert max(map(len, text.splitlines())) <= max(width, longest)
    assert ("━" in text) == (width >= 60)


def test_without_rows_there_are_only_notes():
    assert tables.as_text(HEADINGS, [], ["Nothing."]) == "Nothing."
