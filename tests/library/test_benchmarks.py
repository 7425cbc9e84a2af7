"""The benchmark harness measures what it should; the documents show the measured numbers."""

import time

import torch

import constrained
from benchmarks import layers, memory, models, report, targets, training
from benchmarks.harness import compare


def test_ratios_are_to_the_first_contender():
    first, second = compare(
        "row", {"a": lambda: time.sleep(0.002), "b": lambda: time.sleep(0.006)}, rounds=3
    )
    assert first.ratio == 1 and 1.5 < second.ratio < 6
    assert second.quartiles[0] <= second.milliseconds <= second.quartiles[1]


def test_figures_of_targets():
    row = {"plain": (1.0, 1.0), "one matrix product": (2.0, 2.0), "constrained": (9.0, 9.0)}
    assert targets._products(row, "constrained") == 4.0
    assert targets._beyond({"plain": (1.0, 1.0), "x": (1.06, 1.06)}, "x") - 10.0 < 1e-9
    rows = {"orthogonal 64 x 64, batch 32": {**row, "geoopt RSGD": (3.0, 3.0)}}
    (found,) = targets.verdicts(rows)
    assert not found.is_met and (found.peer, found.best) == ("geoopt RSGD", 3.0)


def test_the_documents_show_the_results():
    for path in report.SHOWN_IN:
        text = path.read_text()
        assert text == report.with_tables(text), f"{path.name} is stale: run `make bench`"


def test_a_training_step_descends():
    step = training.step(training.constrained("orthogonal", (8, 8)), 16)
    first = float(step().detach())
    for _ in range(20):
        last = float(step().detach())
    assert last < first


def test_the_convolutional_network_is_constrained_and_stays_so():
    model = models.constrained("spectral_norm_conv")
    step = models.step(model)
    for _ in range(3):
        step()
    found = constrained.violations(model)
    assert len(found) == 3 and max(found.values()) < 1e-5


def test_memory_counts_weights():
    plain = memory._held(lambda: training.plain((64, 64)), memory.MOMENTS[0])
    assert plain == 4 * 64 * 64


def test_a_transformer_of_the_benchmark_is_constrained():
    model = layers.constrain(layers._Transformer(), "blocks.*.heads.*.weight", "orthogonal")
    W = model.blocks[3].heads["o"].weight
    torch.testing.assert_close(W @ W.T, torch.eye(len(W)), atol=1e-5, rtol=0)


def test_every_target_of_mode_project_has_been_measured():
    rows = targets.measured()
    found = list(targets.verdicts(rows, targets.PROJECTED))
    assert [v.target for v in found] == list(targets.PROJECTED)
    table = targets.projected_markdown(rows)
    assert table.count("\n") == len(found) + 2
    for v in found:
        assert ("| met |" if v.is_met else "| **missed** |") in table
        assert {"plain", "project"} <= rows[v.target.row].keys()
