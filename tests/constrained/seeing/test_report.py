"""`report`, `violations` and `assert_feasible` on whole models."""

import json
import math

import pytest
import torch
from torch import nn

from constrained import (
    InfeasibleError,
    assert_feasible,
    baked_state_dict,
    constrain,
    parametrize,
    release,
    report,
    violations,
)
from constrained.seeing import table


def model():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return constrain(module, {"0.weight": "orthogonal", "1.bias": "positive"})


def broken(module):
    """A model whose originals no training would leave like this: the value is infeasible."""
    layer = module[0]
    layer.parametrizations.weight[0].forward = lambda x: 2 * x
    return module


def test_violations_by_path():
    found = violations(model())
    assert list(found) == ["0.weight", "1.bias"]
    assert all(isinstance(v, float) and 0 <= v < 1e-6 for v in found.values())


def test_an_unconstrained_model():
    assert violations(nn.Linear(2, 2)) == {}
    assert str(report(nn.Linear(2, 2))) == "No tensor is constrained."
    assert_feasible(nn.Linear(2, 2))


def test_the_largest_violation_of_a_batch():
    layer = constrain(nn.Linear(2, 3), "weight", "sphere")
    value = layer.weight.detach().clone()
    value[1] *= 3
    layer.parametrizations.weight[0].forward = lambda x: value
    each = layer.parametrizations.weight[0].violation(value)
    assert each.argmax() == 1
    assert violations(layer)["weight"] == float(each[1]) > 1


def test_the_table():
    text = str(report(model()))
    for word in ("0.weight", "orthogonal()", "3 x 3", "1.bias", "positive()", "yes", "moved"):
        assert word in text
    assert "NO" not in text
    assert "NO" in str(report(broken(model())))


def test_assert_feasible_names_the_tensor():
    assert_feasible(model())
    with pytest.raises(InfeasibleError, match=r"'0.weight' violates orthogonal\(\) by 3"):
        assert_feasible(broken(model()))


def test_nan_is_not_feasible():
    module = model()
    with torch.no_grad():
        module[1].parametrizations.bias.original[0] = float("nan")
    assert violations(module)["1.bias"] == float("inf")
    with pytest.raises(InfeasibleError, match="1.bias"):
        assert_feasible(module)


def test_not_finite_is_said_in_words():
    module = model()
    with torch.no_grad():
        module[1].parametrizations.bias.original[0] = float("nan")
    with pytest.raises(InfeasibleError, match=r"'1.bias' under positive\(\) holds NaN"):
        assert_feasible(module)


def test_what_a_foreign_module_does_is_not_known():
    layer = constrain(nn.Linear(2, 2), "weight", nn.Identity())
    (row,) = report(layer).rows
    assert (row.constraint, row.violation, row.holds) == ("Identity", None, None)
    assert "Identity" in str(report(layer))
    assert violations(layer) == {}
    assert_feasible(layer)


def test_reading_a_report_leaves_no_graph_behind():
    module = model()
    report(module)
    assert module[0].weight.requires_grad


def test_plain_data():
    module = broken(model())
    with torch.no_grad():
        module[1].parametrizations.bias.original[0] = float("nan")
    found = report(module).to_dict()
    assert list(found) == ["0.weight", "1.bias"]
    assert found["0.weight"] == {
        "constraint": "orthogonal()",
        "shape": [3, 3],
        "violation": violations(module)["0.weight"],
        "tolerance": report(module).rows[0].tolerance,
        "moved": report(module).rows[0].moved,
        "flat": 0.0,
        "module": "Linear",
        "slack": None,
        "at_boundary": None,
        "condition": pytest.approx(1.0),
        "rank": 3,
        "drift": None,
        "cost": "elementwise",
        "holds": False,
    }
    assert found["1.bias"]["violation"] == float("inf") and found["1.bias"]["holds"] is False
    json.dumps(found)
    with torch.device("meta"):
        nothing = report(model()).to_dict()["1.bias"]
    assert math.isnan(nothing["violation"]) and nothing["holds"] is None
    assert report(nn.Linear(2, 2)).to_dict() == {}


def test_a_table_in_a_notebook():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Tag())
    found = report(layer)._repr_html_()
    assert found.count("<tr>") == 2 and found.count("<td") == found.count("<th>") == 4
    assert "<td>weight</td><td>&lt;Tag&gt;</td>" in found
    assert report(nn.Linear(2, 2))._repr_html_() == "<p>No tensor is constrained.</p>"
    assert '<td style="white-space: nowrap">3 x 3</td>' in found


def test_a_scalar_and_a_short_repr():
    module = nn.Module()
    module.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    found = report(constrain(module, "scale", "positive"))
    assert " scalar " in str(found) and "Lipschitz" not in str(found)
    assert repr(found).startswith("<Report of 1 tensors, 0 of them outside of their sets")


class Tag(nn.Module):
    def forward(self, x):
        return x


Tag.__name__ = "<Tag>"


# ------------------------------------------------------------------------------- what rows tell


def rows_of(model, **keywords):
    return {row.path: row for row in report(model, **keywords).rows}


def test_slack_and_the_share_at_the_boundary():
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.9], [0.6, 0.8]]))
    row = rows_of(constrain(layer, "weight", "ball"))["weight"]
    assert row.at_boundary == 0.5
    assert abs(row.slack) <= row.tolerance
    assert rows_of(constrain(nn.Linear(2, 4), "weight", "sphere"))["weight"].slack is None


def test_slack_counts_elements_that_a_view_sees():
    layer = nn.Conv2d(1, 4, (1, 2))
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[0.3, 0.4], [3, 4], [0, 0.9], [0.6, 0.8]]).view(4, 1, 1, 2)
        )
    constrain(layer, "weight", "ball", view="o i h w -> o (i h w)")
    assert rows_of(layer)["weight"].at_boundary == 0.5


def test_flat_members():
    layer = constrain(nn.Linear(2, 2), "weight", "positive")
    with torch.no_grad():
        layer.parametrizations.weight.original[0].fill_(-40.0)
        layer.parametrizations.weight.original[1].fill_(1.0)
    found = report(layer)
    assert found.rows[0].flat == 0.5
    assert "flat" in str(found) and "50%" in str(found)


@pytest.mark.parametrize(
    "spec, value, condition, rank",
    [
        ("singular_values(low=0.5, high=4)", [[4.0, 0.0], [0.0, 0.5]], 8.0, 2),
        ("low_rank(rank=1)", [[3.0, 0.0], [0.0, 0.0]], 1.0, 1),
        ("positive", [[4.0, 1.0], [1.0, 0.5]], None, None),
    ],
)
def test_condition_and_rank(spec, value, condition, rank):
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(torch.tensor(value))
    row = rows_of(constrain(layer, "weight", spec))["weight"]
    assert (row.condition, row.rank) == (condition and pytest.approx(condition, rel=1e-5), rank)


def test_the_condition_of_a_large_matrix_is_told_on_request():
    layer = nn.Linear(1025, 1026, bias=False)
    constrain(layer, "weight", "low_rank(rank=2)")
    assert rows_of(layer)["weight"].condition is None
    row = rows_of(layer, spectrum=True)["weight"]
    assert row.condition >= 1 and row.rank == 2


def test_the_drift_since_the_start():
    layer = constrain(nn.Linear(3, 2), "weight", "positive", init="sample")
    start = baked_state_dict(layer)
    layer.weight = 3 * layer.weight.detach()
    row = rows_of(layer, start=start)["weight"]
    assert row.drift == pytest.approx(2.0, rel=1e-5)
    assert "drift" in str(report(layer, start=start)) and "drift" not in str(report(layer))
    with pytest.raises(ValueError, match=r"'weight' has the shape \(2, 3\).*\(5,\)"):
        report(layer, start={"weight": torch.ones(5)})


def test_a_tensor_with_nan_still_has_a_row():
    module = model()
    with torch.no_grad():
        module[0].parametrizations.weight.original[0, 0] = float("nan")
    row = rows_of(module)["0.weight"]
    assert row.violation == math.inf and row.holds is False
    assert math.isnan(row.condition)
    assert "nan" in str(report(module))


# ------------------------------------------------------------------------------------- the table


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)


def deep(count=12):
    module = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(count))})
    module["head"] = nn.Linear(4, 2)
    return module


def labels(module):
    return [label for label, _ in table.grouped(report(module).rows)]


def test_equal_layers_share_a_row():
    module = constrain(deep(), {"layers.*.*.weight": "orthogonal", "head.weight": "sphere"})
    assert labels(module) == ["layers.{0..11}.q.weight", "layers.{0..11}.k.weight", "head.weight"]
    text = str(report(module))
    assert text.count("orthogonal()") == 2 and "layers.{0..11}.q.weight" in text
    assert len(report(module).to_dict()) == 25


def test_layers_that_differ_have_rows_of_their_own():
    module = constrain(
        deep(4), dict.fromkeys([f"layers.{i}.q.weight" for i in (0, 1, 3)], "orthogonal")
    )
    constrain(module, {"layers.2.q.weight": "sphere"})
    module["layers"].append(nn.Module())
    module["layers"][4].q = nn.Bilinear(1, 4, 4)
    constrain(module, "layers.4.q.weight", "ball")
    assert labels(module) == ["layers.{0,1,3}.q.weight", "layers.2.q.weight", "layers.4.q.weight"]


def test_two_numbers_stand_for_all_their_combinations():
    module = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(3)) for _ in range(2))
    constrain(module, "*.*.weight", "orthogonal")
    assert labels(module) == ["{0..1}.{0..2}.weight"]
    release(module, "1.2.weight")
    assert labels(module) == ["0.{0..2}.weight", "1.{0..1}.weight"]


def test_names_with_leading_zeros_stay():
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a01", "a1", "a2")})
    constrain(module, "*.weight", "orthogonal")
    assert labels(module) == ["a01.weight", "a{1..2}.weight"]


def test_a_shared_row_has_the_worst_of_each_column():
    module = constrain(deep(3), {"layers.*.q.weight": "interval(-1, 1)"}, init="sample")
    start = baked_state_dict(module)
    with torch.no_grad():
        module["layers"][0].q.weight = module["layers"][0].q.weight.detach() * 0.5
        module["layers"][1].q.weight = torch.full((4, 4), 0.999)
        module["layers"][2].q.parametrizations.weight.original[0, 0] = float("nan")
    found = report(module, start=start)
    ((_, rows),) = table.grouped(found.rows)
    cells = {column.heading: column.cell(rows) for column in table._COLUMNS}
    assert cells["violation"] == "inf" and cells["holds"] == "NO"
    assert cells["slack"] == "nan" and cells["drift"] == "nan"
    ((_, rows),) = table.grouped(found.rows[:2])
    cells = {column.heading: column.cell(rows) for column in table._COLUMNS}
    assert cells["holds"] == "yes" and cells["slack"] == "0.001"
    assert cells["drift"] == f"{max(row.drift for row in rows):.2g}"


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_it_fits_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    module = constrain(deep(), {"layers.*.*.weight": "orthogonal", "head.weight": "simplex"})
    text = str(report(module))
    assert max(map(len, text.splitlines())) <= width
    for word in ("violation", "slack", "condition", "moved", "cost"):
        assert word in text
    # What does not fit beside the others is below them, with the names of the tensors again.
    assert (len([line for line in text.splitlines() if line.startswith("tensor")]) > 1) == (
        width < 100
    )


def test_columns_that_say_nothing_are_left_out():
    text = str(report(constrain(nn.Linear(3, 3), "weight", "orthogonal")))
    for word in ("slack", "at bound", "flat", "rank", "drift"):
        assert word not in text
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    assert "slack" in str(report(constrain(layer, "weight", "simplex")))


def test_brackets_are_no_markup():
    module = constrain(nn.Linear(2, 2), "weight", "masked(mask=[[1, 0], [1, 1]])")
    assert "mask=" in str(report(module)).replace("\n", "")


def test_a_report_leaves_the_model_and_the_random_numbers_alone():
    module = constrain(deep(2), "layers.*.*.weight", "spectral_norm")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.random.get_rng_state()
    weight = module["layers"][0].q.weight
    report(module)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module["layers"][0].q.weight is weight
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        module = constrain(nn.Linear(3, 3), "weight", "spectral_norm")
    (row,) = report(module).rows
    assert row.slack is None and row.condition is None and row.cost == "decompositions"
    assert "?" in str(report(module))
