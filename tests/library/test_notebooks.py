"""The notebooks are committed with their outputs; the functions for their figures are right."""

import math
import re
import runpy
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks import copying, first, pictures, problems, quality, sweep, targets
from benchmarks.quality import Curve
from benchmarks.sweep import Trained
from constrained import get, names

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


#: Those that teach; the others are benchmarks.
TEACHING = ("01", "06", "07", "08")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_eight_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{i}" for i in range(1, 9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_executed(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert len(notebook.cells[0].source.split()) > 40
    assert all(cell.execution_count for cell in code_of(notebook))
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # What goes to stderr are warnings, which nobody has looked at.
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    assert {o.output_type for o in outputs} <= {"display_data", "execute_result", "stream"}
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_links_to_notebooks_that_are_there(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert {*re.findall(r"\]\(([^)]*\.ipynb)\)", text)} <= {each.name for each in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_teaches_or_says_who_was_first(path):
    source = "\n".join(cell.source for cell in code_of(nbformat.read(path, as_version=4)))
    if path.name[:2] in TEACHING:
        assert "constrain(" in source
        assert "benchmarks" not in source
    else:
        assert "Markdown(first." in source


def test_notebooks_run_where_jupyter_runs_them(tmp_path):
    source = "import os\nos.path.basename(os.getcwd())"
    path = tmp_path / "where.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    runpy.run_path(str(NOTEBOOKS[0].with_name("run.py")))["execute"](path, tmp_path / "into")
    (cell,) = nbformat.read(tmp_path / "into" / "where.ipynb", as_version=4).cells
    assert cell.outputs[0].data["text/plain"] == "'notebooks'"


def test_every_set_of_the_catalogue_is_on_the_pictures():
    cells = code_of(nbformat.read(NOTEBOOKS[5], as_version=4))
    captions = "\n".join(
        output.data["text/markdown"]
        for cell in cells
        if cell.source.startswith("captions(")
        for output in cell.outputs
    )
    ours = [name for name in names() if get(name).__module__.startswith("constraints.")]
    assert sorted(re.findall(r"^- `(\w+)`: .", captions, re.M)) == ours


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


def test_the_first_is_the_least_of_either_side():
    figures = {"plain": 1.0, "constrained": 3.0, "constrained, scale": 2.0, "torch": 4.0}
    found = first.race("row", figures)
    assert (found.ours, found.peer, found.first) == (
        "constrained, scale",
        "torch",
        "constrained, scale",
    )
    assert (found.is_ours, found.ahead) == (True, 2.0)
    behind = first.race("other", {**figures, "geoopt": 0.5})
    assert (behind.first, behind.is_ours, behind.ahead) == ("geoopt", False, 4.0)
    assert first.race("without peers", {"plain": 1.0, "constrained": 2.0}) is None
    even = first.race("even", {"constrained": 1.0, "torch": 1.0})
    assert (even.first, even.is_ours) == ("constrained and torch", False)
    assert first.in_words([found, behind, even]).split("\n") == [
        "A peer takes part in 3 rows. Ours is first in 1 of them, a peer in 1; in 1 they are even.",
        "",
        "A peer is first in:",
        "",
        "- other: geoopt, 4.00 times ahead of constrained, scale",
    ]
    assert first.in_words([found]) == (
        "A peer takes part in 1 rows. Ours is first in 1 of them, a peer in 0."
    )


def test_the_first_on_a_problem_is_the_median_over_seeds():
    ours, lost = curve([1, 0.5, 0.05], "constrained"), curve([1, 0.9], "torch cayley")
    luck = curve([0.05], "torch cayley")
    assert first.of_curves([ours, luck, lost, lost]).splitlines()[2:] == [
        "| p | **constrained**: 2 steps (torch cayley: did not arrive) "
        "| **constrained**: 1 s (torch cayley: did not arrive) |"
    ]
    assert "**torch cayley**: 0 steps (constrained: 2 steps)" in first.of_curves([ours, luck])
    never = curve([1, 0.9], "constrained")
    assert "| nobody arrived | nobody arrived |" in first.of_curves([never, lost])


def test_the_words_on_a_sweep():
    def trained(spec, *accuracies):
        return Trained(spec, accuracies, 1.0, 0.0)

    none, up, down = trained("none", 0.8, 1.0), trained("up", 0.9), trained("down", 0.5, 0.7)
    assert first.of_sweep([down, none, up]) == (
        "Without a constraint 90.0% of the held-out digits are right. No worse are `up`. "
        "Farthest below is `down`, by 30.0%."
    )
    assert "Every constraint is below." in first.of_sweep([none, down])


def test_a_small_run_tries_the_rates_that_were_best():
    rates = quality.best_rates([curve([1], rate=0.3), curve([1], rate=0.1), curve([1], "y", 1.0)])
    assert rates == {("p", "x"): [0.1, 0.3], ("p", "y"): [1.0]}


def test_no_label_of_a_picture_lies_on_another():
    for draw in (pictures.against_peers, pictures.against_targets, pictures.catalogue_costs):
        figure = draw()
        FigureCanvasAgg(figure).draw()
        (axes,) = figure.axes
        for texts in (axes.get_yticklabels(), axes.texts):
            boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
            assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
        assert all(
            figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            for text in (*axes.texts, *axes.get_yticklabels(), axes.xaxis.label)
            for box in [text.get_window_extent()]
        )


def test_every_set_is_on_the_picture_of_costs_or_named_beside_it():
    shown = pictures.costs()
    assert sorted([*shown, *pictures.not_measured()]) == names()
    assert {"orthogonal", "sphere", "low_rank", "spectral_norm"} <= shown.keys()


def test_targets_are_read_from_the_results():
    rows = targets.measured()
    found = list(targets.verdicts(rows))
    assert len(found) == len(targets.TARGETS) + 1
    assert all(math.isfinite(v.here) for v in found)
    pictures.against_targets()
