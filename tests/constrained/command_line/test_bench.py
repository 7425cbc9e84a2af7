"""``bench``: a timing, beside the same without a constraint."""

from __future__ import annotations

import json

import pytest

from constrained.command_line import bench


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "_SECONDS", 0.01)


def test_rows(run):
    found = json.loads(run("bench", "orthogonal", "--shape", "16x16", "--json").stdout)
    assert [row["what"] for row in found["rows"]] == [
        "no constraint", "orthogonal()", "torch's orthogonal"
    ]  # fmt: skip
    assert (found["shape"], found["threads"]) == ([16, 16], 1)
    plain = found["rows"][0]
    assert plain["ratio"] == 1
    for row in found["rows"]:
        assert 0 < row["read"] < 1 and 0 < row["step"] < 1
        assert row["ratio"] == pytest.approx(row["step"] / plain["step"])


def test_the_table(run):
    result = run("bench", "ball(radius=2)", "--shape", "4x3x3")
    assert result.exit_code == 0, result.output
    assert "\nball(radius=2.0) " in result.stdout
    assert "4 x 3 x 3, float32, CPU, threads: 1, torch" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nope",), "Unknown constraint 'nope'. 'constrained list' lists them all."),
        (("low_rank",), "low_rank needs the argument 'rank'"),
        (("orthogonal", "--shape", "64"), "needs a tensor of at least 2 dimensions"),
        (("orthogonal", "--shape", "3x"), "A shape is written as 256x256, got '3x'."),
        (("orthogonal", "--shape", "0x3"), "A shape is written as 256x256, got '0x3'."),
        (("sphere", "--shape", "99999x99999"), "is too large to be timed"),
        (("sphere", "--threads", "0"), "Invalid value for '--threads'"),
    ],
)
def test_input_that_cannot_be_timed(problem, arguments, sentence):
    assert sentence in problem("bench", *arguments)
