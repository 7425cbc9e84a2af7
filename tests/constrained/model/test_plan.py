"""`plan`: the dry run of a config."""

import json

import pytest
import torch
from torch import nn

from constrained import ConfigErrors, constrain, plan, report, spec
from constrained.parametrized.tensor_locations import is_parametrized


def model():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(7, 4),
            "conv": nn.Conv2d(2, 6, 3),
            "fc": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7)),
        }
    )
    net["fc"][2].weight = net["embedding"].weight
    net["fc"][0].weight.requires_grad_(False)
    return net


CONFIG = {
    "**.weight": {"name": "orthogonal", "where": "matrices"},
    "fc.*.weight": {"name": "sphere", "where": "matrices"},
    "conv.weight": {"name": "spectral_norm", "view": "conv", "init": "sample"},
    "fc.1.bias": None,
}


def test_a_plan_tells_what_constrain_does_and_changes_nothing():
    net = model()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = plan(net, CONFIG)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(is_parametrized(module) for module in net.modules())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    rows = {row.path: row for row in found.rows}
    assert list(rows) == ["embedding.weight", "conv.weight", "fc.0.weight"]
    tied, conv, frozen = rows.values()
    assert (tied.rule, tied.overridden) == ("fc.*.weight", ("**.weight",))
    assert tied.tied == ("fc.2.weight",) and not tied.frozen
    assert frozen.frozen and frozen.parameters == 16 and frozen.elements == (4, (4,))
    assert conv.elements == (1, (6, 18)) and conv.parameters == 6 * 18
    assert found.skipped["**.weight"].keys() == {"conv.weight", "fc.1.weight"}
    assert found.exceptions == ("fc.1.bias",)
    assert found.unconstrained == 8 - 3 and not found.errors
    # The moves are those of the model that is constrained then.
    applied = constrain(net, found)
    moved = {row.path: row.moved for row in report(applied).rows}
    assert moved["embedding.weight"] == tied.moved and moved["fc.0.weight"] == frozen.moved
    assert spec(applied) == spec(constrain(model(), CONFIG))


def test_what_a_plan_shows():
    found = plan(model(), CONFIG)
    text = str(found)
    for part in ("overrides", "tied with", "frozen", "1 of 6 x 18"):
        assert part in text
    assert "Skipped by '**.weight': 'conv.weight' and 1 more (it has 4 dimensions)." in text
    assert "Left unconstrained by a rule: 'fc.1.bias'." in text
    assert "5 parameters of the model are not constrained." in text
    page = plan(model(), {"fc.0.weight": "sphere", "<b>": "ball"})._repr_html_()
    assert "<td>fc.0.weight</td>" in page and "<b>" not in page and "&lt;b&gt;" in page
    assert json.loads(json.dumps(found.to_dict()))["tensors"][1]["elements"] == [1, [6, 18]]
    assert str(plan(nn.ReLU(), {})) == "No tensor would be constrained."


def test_a_plan_finds_all_errors_and_constrain_raises_them():
    config = {
        "fc.0.weight": "orthogonl",
        "fc.1.wieght": "sphere",
        "embedding.weight": "low_rank(rank=9)",
        "conv.bias": "sphere",
    }
    net = model()
    found = plan(net, config)
    assert len(found.errors) == 3
    assert [row.path for row in found.rows] == ["conv.bias"]
    assert str(found).count("ERROR") == 3
    for target in (found, config):
        with pytest.raises(ConfigErrors) as caught:
            constrain(net, target)
        assert [str(e) for e in caught.value.exceptions] == [str(e) for e in found.errors]
    assert not any(is_parametrized(module) for module in net.modules())


def test_a_tensor_that_is_constrained_already_or_belongs_to_others():
    net = constrain(model(), "fc.0.weight", "sphere")
    (error,) = plan(net, "fc.0.weight", "ball").errors
    assert "is constrained already" in str(error)
    outer = model()
    (error,) = plan(outer["fc"], "2.weight", "ball").errors
    assert "'2.weight'" in str(error) or "2.weight" in str(error)
    with pytest.raises(ValueError):
        constrain(outer["fc"], "2.weight", "ball")


def test_a_plan_shows_what_would_be_warned_of():
    found = plan(nn.Conv2d(2, 6, 3), "weight", "orthogonal")
    assert "give view='conv'" in found.warnings[0]
    with pytest.warns(UserWarning, match="give view='conv'"):
        constrain(nn.Conv2d(2, 6, 3), "weight", "orthogonal")


def test_rules_without_effect():
    found = plan(model(), {"fc.0.*": "ball", "fc.0.weight": "sphere", "fc.0.b*": "sphere"})
    assert found.unused == ("fc.0.*",)
    assert "Without effect" in str(found)


def test_lazy_layers_and_foreign_modules():
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2))
    found = plan(net, {"0.weight": "orthogonal", "1.weight": nn.Tanh()})
    lazy, foreign = found.rows
    assert lazy.shape == () and lazy.elements is None and "once it has a shape" in lazy.constraint
    assert foreign.cost is None and foreign.parameters is None and "Tanh" in foreign.constraint
    assert str(found)


@pytest.mark.parametrize(
    ("constraint", "cost"),
    [
        ("positive", "elementwise"),
        ("sphere", "elementwise"),
        ("orthogonal", "products"),
        ("low_rank(rank=2)", "products"),
        ("positive_definite", "products"),
        ("orthogonal(map='exp')", "decompositions"),
        ("circulant", "elementwise"),
        ("hurwitz", "decompositions"),
    ],
)
def test_the_cost_of_a_constraint(constraint, cost):
    (row,) = plan(nn.Linear(16, 16), "weight", constraint).rows
    assert row.cost == cost


def test_the_arguments_of_a_plan():
    net = nn.Linear(4, 4)
    found = plan(net, "weight", "sphere", radius=2.0, init="strict")
    assert "'weight'" in str(found.errors[0])
    found = plan(net, "weight", "sphere", radius=2.0)
    assert "radius=2.0" in found.rows[0].constraint
    with pytest.raises(ValueError, match="A plan holds the constraints"):
        constrain(net, found, "sphere")
    with pytest.raises(ValueError, match="with their settings"):
        constrain(net, found, init="sample")
    other = constrain(nn.Linear(4, 4), plan(net, "weight", "sphere", init="sample"))
    assert report(other).rows[0].holds


def test_a_plan_is_applied_with_the_start_it_was_made_with():
    outside = nn.Linear(4, 4)
    found = plan(outside, {"weight": "sphere"}, init="strict")
    with pytest.raises(ValueError, match="'weight'"):
        constrain(outside, found)


def test_equal_layers_share_a_row_and_the_columns_are_explained():
    layers = [nn.Linear(4, 4, bias=False) for _ in range(300)]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    config = {"**.weight": "orthogonal", "300.bias": "positive"}
    found = plan(model, config)
    text = str(found)
    assert "{0..299}.weight" in text and "7.weight" not in text
    assert "300.weight" in text and " 2 numbers" in text
    assert "\nelements: how many" in text and "\nmoves: how far" in text
    assert len(found.rows) == 302 and len(found._repr_html_()) < 2000
    assert repr(found) == "<Plan of 302 tensors, with 0 errors; print it for the table>"
