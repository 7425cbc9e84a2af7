"""The gate that compares benchmarks with the committed ones: when a row counts as slower."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks import gate
from benchmarks.harness import RESULTS, Timing


def timing(ratio: float, spread: float = 0.02, contender: str = "constrained", row: str = "step"):
    quartiles = (ratio - spread, ratio + spread)
    return Timing(
        row, contender, 10 * ratio, (10 * quartiles[0], 10 * quartiles[1]), ratio, quartiles
    )


@pytest.mark.parametrize(
    ("before", "now", "spread", "slower"),
    [
        (2.0, 2.0, 0.02, False),
        (2.0, 1.0, 0.02, False),
        (2.0, 2.19, 0.02, False),
        (2.0, 2.21, 0.02, True),
        # As much slower, but the rounds differ by more than that.
        (2.0, 2.21, 0.2, False),
        (2.0, 4.0, 0.2, True),
    ],
)
def test_a_row_is_slower_beyond_a_tenth_and_beyond_the_noise(before, now, spread, slower):
    (found,) = gate.compare([timing(before, spread)], [timing(now, spread)])
    assert found.is_slower is slower
    assert found.change == pytest.approx(now / before - 1)


def test_the_allowance_can_be_chosen():
    (found,) = gate.compare([timing(2.0)], [timing(2.21)], allowed=0.2)
    assert not found.is_slower
    (found,) = gate.compare([timing(2.0)], [timing(2.11)], allowed=0.05)
    assert found.is_slower


def test_other_libraries_and_new_rows_are_left_out():
    measured = [
        timing(1.0, contender="plain"),
        timing(9.0, contender="torch cayley"),
        timing(9.0, contender="geoopt RSGD"),
        timing(9.0, contender="sphere"),
        timing(9.0, row="a new row"),
    ]
    before = [timing(1.0, contender=t.contender) for t in measured]
    assert [c.contender for c in gate.compare(before, measured)] == ["sphere"]


def test_a_slow_row_is_measured_again_and_the_fastest_counts():
    ratios = iter([3.0, 2.05, 9.0])
    (found,) = gate.check([timing(2.0)], lambda: [timing(next(ratios))])
    assert not found.is_slower and found.measured[0] == 2.05
    assert next(ratios) == 9.0
    (found,) = gate.check([timing(2.0)], lambda: [timing(3.0)], tries=2)
    assert found.is_slower


def test_every_group_of_the_gate_has_committed_results():
    for group in gate.DEFAULT:
        rows = gate.load(group)
        ours = gate.compare(rows, rows)
        assert ours and not any(c.is_slower for c in ours)
        # Every row has a contender of ours.
        assert {c.row for c in ours} >= {t.row for t in rows if not t.row.endswith("torch")}


def test_the_status_and_the_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gate, "GROUPS", {"reading": (lambda: [timing(2.5)],)})
    monkeypatch.setattr(gate.load, "__defaults__", (tmp_path,))
    (tmp_path / "reading.json").write_text(json.dumps({"timings": [asdict(timing(2.0))]}))
    assert gate.main(["reading", "--tries", "1"]) == 1
    shown = capsys.readouterr().out
    assert "+25.0 %" in shown and "slower" in shown
    assert shown.endswith("1 of 1 rows are slower by more than 10%.\n")
    assert gate.main(["reading", "--slower", "0.3"]) == 0
    with pytest.raises(SystemExit):
        gate.main(["nonsense"])
    assert RESULTS != tmp_path
