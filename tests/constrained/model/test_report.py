"""`report`, `spec`, `violations` and `assert_feasible` on whole models."""

import json
import math

import pytest
import torch
from torch import nn

from constrained import (
    InfeasibleError,
    assert_feasible,
    constrain,
    parametrize,
    report,
    violations,
)


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
    assert found.count("<tr>") == 2 and found.count("<td>") == found.count("<th>") == 7
    assert "<td>weight</td><td>&lt;Tag&gt;</td><td>3 x 3</td>" in found
    assert report(nn.Linear(2, 2))._repr_html_() == "<p>No tensor is constrained.</p>"


class Tag(nn.Module):
    def forward(self, x):
        return x


Tag.__name__ = "<Tag>"
