"""The notebooks are committed with their outputs; the functions for their figures are right."""

import math
import re
from pathlib import Path

import nbformat
import pytest
import torch

from benchmarks import copying, gallery, pictures, problems, quality, sweep, targets
from benchmarks.quality import Curve
from constrained import names

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_all_five_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_executed(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert len(notebook.cells[0].source.split()) > 40
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.output_type in ("display_data", "execute_result") for output in outputs)
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text())


def curve(losses, name="x", rate=0.1, problem="p"):
    return Curve(problem, name, rate, 0, 0.1, losses, [0.5 * i for i in range(len(losses))])


def test_the_summary_of_curves():
    slow, fast, never = curve([1, 0.5, 0.1]), curve([1, 0.05], rate=0.3), curve([1, 0.2], "y")
    assert (slow.steps_to_target(), slow.seconds_to_target()) == (2, 1.0)
    assert never.steps_to_target() == never.seconds_to_target() == math.inf
    assert quality.best([slow, fast, never]) is fast
    assert quality.best([curve([1, 0.4]), never]) is never
    assert quality.summary([fast, never]).splitlines()[2:] == [
        "| p (0.1) | x | 0.3 | 1 | 0.5 | 5.0e-02 |",
        "| p (0.1) | y | 0.1 | inf | inf | 2.0e-01 |",
    ]


@pytest.mark.parametrize("make", quality.PROBLEMS)
def test_a_problem_begins_at_one_and_ends_at_its_optimum(make):
    problem = make(0)
    assert float(problem.loss(problem.start)) == pytest.approx(1, abs=1e-5)
    contenders = quality._contenders(problem)
    prepare, optimizer, _ = contenders["constrained, L-BFGS"]
    found = quality._descend(problem, "ours", prepare, optimizer, 0.0, 0, 60)
    assert -1e-4 < found.losses[-1] <= problem.target


def test_every_contender_starts_where_the_problem_does():
    for make in (problems.procrustes, problems.completion, problems.covariance):
        problem = make(1)
        for prepare, _, _ in quality._contenders(problem).values():
            torch.testing.assert_close(
                prepare(problem).weight.detach(), problem.start, atol=1e-4, rtol=1e-3
            )


def test_contenders_of_the_copying_problem_start_alike():
    losses = [copying._train(name, 1e-3, 5, 1, 0).losses[0] for name in copying._CONTENDERS]
    assert max(losses) - min(losses) < 1e-3


def test_a_sweep_over_strings():
    found = sweep.sweep((None, "orthogonal"), epochs=1)
    assert [r.spec for r in found] == ["none", "orthogonal"]
    assert all(r.accuracies[0] > 0.3 and r.violation < 1e-5 for r in found)
    assert "| `orthogonal` |" in sweep.table(found)
    sweep.picture(found)


def test_every_constraint_has_a_picture():
    figure = gallery.wall()
    shown = {axes.get_title() for axes in figure.axes if axes.get_visible()}
    assert shown == set(names())


def test_targets_are_read_from_the_results():
    rows = targets.measured()
    found = list(targets.verdicts(rows))
    assert len(found) == len(targets.TARGETS) + 1
    assert all(math.isfinite(v.here) for v in found)
    pictures.against_targets()
