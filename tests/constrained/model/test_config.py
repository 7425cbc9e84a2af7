"""Configs, however they are written: YAML, JSON, TOML, Hydra, dataclasses."""

import dataclasses
import datetime
import json
import tomllib

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

import constrained
from constrained import ConfigErrors, constrain, spec
from constrained.model.config import read_rules


def model():
    return nn.ModuleDict(
        {
            "rnn": nn.LSTM(3, 4),
            "fc": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        }
    )


CONFIG = """
rnn:
  weight_hh_l0: {name: orthogonal, view: gates}
fc:
  0.weight: [symmetric, spectral_norm(bound=2)]
  2: {weight: {name: spectral_norm, bound: 0.5}, bias: 'interval(-1, 1)'}
"""

SPEC = {
    "rnn.weight_hh_l0": {"name": "orthogonal", "view": "(g h) i -> g h i", "g": 4},
    "fc.0.weight": {"name": "chain", "parts": ["symmetric", "spectral_norm(bound=2)"]},
    "fc.2.weight": {"name": "spectral_norm", "bound": 0.5},
    "fc.2.bias": {"name": "interval", "low": -1.0, "high": 1.0},
}


def found(config):
    return spec(constrain(model(), config))


def test_yaml_json_toml_and_omegaconf_mean_the_same():
    config = yaml.safe_load(CONFIG)
    expected = found(config)
    assert expected == SPEC
    assert found(SPEC) == SPEC
    text = json.dumps(config)
    assert found(json.loads(text)) == expected
    toml = """
    [rnn.weight_hh_l0]
    name = "orthogonal"
    view = "gates"
    [fc]
    0.weight = ["symmetric", "spectral_norm(bound=2)"]
    2 = {weight = {name = "spectral_norm", bound = 0.5}, bias = "interval(-1, 1)"}
    """
    assert found(tomllib.loads(toml)) == expected
    assert found(OmegaConf.create(CONFIG)) == expected


def test_omegaconf_interpolations_and_missing_values():
    config = OmegaConf.create(
        {"size": 2.0, "constraints": {"fc.0.weight": {"name": "sphere", "radius": "${size}"}}}
    )
    assert found(config.constraints) == {"fc.0.weight": {"name": "sphere", "radius": 2.0}}
    for broken in ("???", "${nowhere}"):
        config.constraints["fc.0.weight"].radius = broken
        with pytest.raises(ValueError, match="The config cannot be read: .*radius"):
            found(config.constraints)


def test_dataclasses():
    @dataclasses.dataclass
    class Sphere:
        name: str = "sphere"
        radius: float = 2.0

    @dataclasses.dataclass
    class Layers:
        weight: Sphere = dataclasses.field(default_factory=Sphere)
        bias: str | None = None

    @dataclasses.dataclass
    class Config:
        fc: dict = dataclasses.field(default_factory=lambda: {"0": Layers()})

    assert found(Config()) == {"fc.0.weight": {"name": "sphere", "radius": 2.0}}
    with pytest.raises(ValueError, match="none may be given beside it"):
        constrain(model(), Config(), "sphere")


@pytest.mark.parametrize("key", [True, None, 1.5, datetime.date(2001, 1, 1)])
def test_what_yaml_reads_as_no_text_is_no_target(key):
    with pytest.raises(ValueError, match=r"a string, got .*; put it in quotes, since YAML reads"):
        constrain(model(), {key: "sphere"})


@pytest.mark.parametrize("nothing", [None, "none"])
def test_an_exception_leaves_a_tensor_as_it_is(nothing):
    config = {"fc.*.weight": "ball", "fc.1.*": nothing, "fc.2.weight": nothing}
    assert list(found(config)) == ["fc.0.weight"]
    # A path counts before a pattern, wherever it stands.
    assert list(found(dict(reversed(config.items())))) == ["fc.0.weight", "fc.1.weight"]
    with pytest.raises(ValueError, match=r"No tensor of ModuleDict matches 'fc\.9\.weight'"):
        found({"fc.9.weight": nothing})


def test_a_later_rule_overrides_an_earlier_one():
    assert found({"fc.**.weight": "ball", "**.0.weight": "sphere"}) == {
        "fc.0.weight": {"name": "sphere"},
        "fc.1.weight": {"name": "ball"},
        "fc.2.weight": {"name": "ball"},
    }


def test_where_leaves_out_what_cannot_carry_the_constraint():
    for where in ("matrices", "fits"):
        rule = {"name": "orthogonal", "where": where}
        assert list(found({"fc.**": rule})) == ["fc.0.weight", "fc.2.weight"]
    assert list(found({"fc.**": {"name": "symmetric", "where": "matrices"}})) == ["fc.0.weight"]
    vectors = {"name": "sphere", "where": "vectors"}
    assert list(found({"fc.*.weight": vectors})) == ["fc.1.weight"]
    # What a rule leaves out is left to the rules before it.
    both = found({"fc.*.weight": "ball", "fc.**": {"name": "orthogonal", "where": "matrices"}})
    assert both["fc.1.weight"] == {"name": "ball"} and both["fc.2.weight"] == {"name": "orthogonal"}
    assert spec(constrain(nn.Linear(3, 3), "*", "orthogonal", where="fits")) == {
        "weight": {"name": "orthogonal"}
    }


def test_where_that_takes_nothing_is_an_error():
    rule = {"name": "symmetric", "where": "fits"}
    with pytest.raises(ValueError, match="'fc.2.weight' does not take 'fc.2.weight': symmetric"):
        found({"fc.2.weight": rule})
    with pytest.raises(ValueError, match="where must be one of .* Did you mean 'matrices'"):
        found({"fc.2.weight": {**rule, "where": "matrix"}})
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="has no shape yet"):
        constrain(lazy, "*.weight", "sphere", where="fits")


def test_a_tensor_that_is_not_finite_is_not_left_out_in_silence():
    broken = model()
    with torch.no_grad():
        broken["fc"][0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'fc.0.weight': .* needs finite values"):
        constrain(broken, {"fc.*.weight": {"name": "orthogonal", "where": "matrices"}})


def test_a_pattern_that_matches_what_does_not_fit_is_an_error_with_the_cure():
    with pytest.raises(ValueError, match="'fc.1.weight': .*where='fits' would leave out"):
        found({"fc.*.weight": "orthogonal"})


def test_all_errors_come_together_and_the_model_is_as_it_was():
    module = model()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    config = {
        "fc.0.weight": "orthogonl",
        "fc.0.wieght": "sphere",
        "fc.2.weight": "low_rank(rnk=2)",
        "rnn.bias_hh_l0": "orthogonal",
        "rnn.weight_ih_l0": "sphere",
    }
    with pytest.raises(ConfigErrors) as caught:
        constrain(module, config)
    text = str(caught.value)
    assert "ModuleDict cannot be constrained: 4 errors." in text
    assert text.count("Did you mean") == 3
    assert isinstance(caught.value, ValueError)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(ValueError) as one:
        constrain(module, {"fc.0.weight": "orthogonl"})
    assert not isinstance(one.value, ConfigErrors)


def test_an_error_that_is_not_about_the_config_is_raised_alone():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        constrain(model(), {"fc.0.weight": "orthogonl", "fc.2.weight": Broken()})


def test_one_reason_is_given_once():
    norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(50))
    with pytest.raises(ConfigErrors) as caught:
        constrain(norms, {"*.weight": "orthogonal"})
    assert "'0.weight' and 49 more tensors: orthogonal() needs" in str(caught.value)
    assert len(caught.value.exceptions) == 50
    matched, rest = caught.value.split(lambda e: isinstance(e, ValueError))
    assert isinstance(matched, ConfigErrors) and rest is None


def test_the_same_target_twice():
    with pytest.raises(ValueError, match="'fc.0.weight' is given twice"):
        found({"fc": {"0.weight": "sphere"}, "fc.0.weight": "ball"})


def test_a_spec_whose_name_was_forgotten():
    with pytest.raises(ValueError, match="'fc.0.weight': .*needs the key 'name'"):
        found({"fc.0.weight": {"radius": 2}})
    with pytest.raises(ValueError, match="'fc.0.weight': .*needs the key 'name'"):
        found({"fc.0.weight": {"map": "cayley"}})


def test_what_is_no_config():
    for config in (3, ["sphere"], object()):
        with pytest.raises(TypeError, match="must be a path, a pattern, or a mapping"):
            constrain(model(), config)
    rules, errors = read_rules({})
    assert not rules and not errors
    assert found({}) == {}


def test_a_comma_in_yaml():
    broken = yaml.safe_load("{fc.2.bias: interval(-1, 1)}")
    with pytest.raises(ConfigErrors) as caught:
        found(broken)
    assert "YAML ends text at a comma: put it in quotes" in str(caught.value)


def test_axes_are_not_confused_with_arguments():
    conv = nn.Conv2d(3, 4, 3)
    rule = {"name": "low_rank", "rank": 2, "view": "rank i h w -> rank (i h w)"}
    with pytest.raises(ValueError, match="'rank' is an argument of the constraint and an axis"):
        constrain(conv, {"weight": rule})
    layer = constrain(conv, {"weight": {**rule, "axes": {"rank": 4}}})
    assert torch.linalg.matrix_rank(layer.weight.flatten(1)) == 2
    assert constrain(nn.Conv2d(3, 4, 3), spec(layer)) is not None
    assert spec(layer)["weight"]["axes"] == {"rank": 4}
    for axes in ({"q": 2}, [2], 3):
        with pytest.raises(ValueError, match="The axes must be a mapping from axes of the view"):
            constrain(nn.Conv2d(3, 4, 3), {"weight": {**rule, "axes": axes}})


def test_a_spec_is_read_again_from_json_whatever_the_config_was():
    plain = json.loads(json.dumps(found(yaml.safe_load(CONFIG))))
    assert found(plain) == plain
    assert constrained.report(constrain(model(), plain)).rows


@pytest.mark.parametrize(
    ("config", "guess"),
    [
        ({"fc.0.weight": {"ball": {"radius": 2}}}, "Did you mean {'name': 'ball', 'radius': 2}?"),
        ({"fc.0.weight": {"orthogonal": {}}}, "Did you mean {'name': 'orthogonal'}?"),
        ({"fc.*.weight": {"orthogonal": {}}}, "Did you mean {'name': 'orthogonal'}?"),
        ({"fc.*.weight": {"ball": {"radius": 2}}}, "Did you mean {"),
        ({"fc.0.weight": {"nme": "positive"}}, "Did you mean 'name' for 'nme'?"),
    ],
)
def test_the_name_in_the_wrong_place_is_found(config, guess):
    rules, errors = read_rules(config, ["fc.0.weight"])
    assert not rules
    assert [guess in str(error) for error in errors] == [True]
