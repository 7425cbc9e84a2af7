"""`report`, `spec`, `violations` and `assert_feasible` on whole models."""

import pytest
import torch
from torch import nn

from constrained import InfeasibleError, assert_feasible, constrain, report, violations


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
