"""Targets: names, paths and globs that select tensors of a model."""

import pytest
import torch
from torch import nn

from constrained.model.targets import select
from constrained.parametrized.tensor_locations import locations
from constrained.registration.add import register_parametrization


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
        self.norm = nn.BatchNorm1d(4)
        self.weight = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(4, 4)
        self.head.weight = self.encoder[0].weight


def chosen(target):
    return list(select(Model(), {target: None}))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("weight", ["weight"]),
        ("encoder.0.weight", ["encoder.0.weight"]),
        ("encoder.*.weight", ["encoder.0.weight", "encoder.2.weight"]),
        ("*.weight", ["norm.weight", "encoder.0.weight"]),
        ("**.bias", ["encoder.0.bias", "norm.bias", "head.bias"]),
        ("**.weight", ["weight", "encoder.0.weight", "encoder.2.weight", "norm.weight"]),
        ("encoder.**", ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight"]),
        ("enc*.0.w*", ["encoder.0.weight"]),
        ("norm.running_mean", ["norm.running_mean"]),
        ("**weight", ["weight", "encoder.0.weight", "encoder.2.weight", "norm.weight"]),
    ],
)
def test_targets(target, expected):
    assert sorted(chosen(target)) == sorted(expected)


def test_globs_leave_buffers_alone():
    assert not any("running" in path for path in chosen("**"))


def test_a_tied_tensor_comes_once_with_all_its_places():
    selection = select(Model(), {"head.weight": "spec"})
    ((path, (found, _)),) = selection.items()
    assert path == "encoder.0.weight"
    assert [place.path for place in found] == ["encoder.0.weight", "head.weight"]


def test_a_path_outranks_a_glob():
    selection = select(Model(), {"**.weight": "glob", "norm.weight": "path"})
    assert selection["norm.weight"][1] == "path"
    assert selection["weight"][1] == "glob"


@pytest.mark.parametrize(
    "targets", [("**.weight", "encoder.**"), ("encoder.0.weight", "head.weight")]
)
def test_two_targets_for_one_tensor_are_an_error(targets):
    with pytest.raises(ValueError, match="matches two targets"):
        select(Model(), dict(zip(targets, "ab", strict=True)))
    assert len(select(Model(), dict.fromkeys(targets, "the same"))) >= 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("encoder.0.wieght", "Did you mean 'encoder.0.weight'?"),
        ("head.weights", "Did you mean 'head.weight'?"),
        ("bias", "Did you mean"),
        ("decoder.**", "matches 'decoder.**'"),
        ("", "matches ''"),
        ("encoder", "matches 'encoder'"),
    ],
)
def test_a_target_that_matches_nothing(target, message):
    with pytest.raises(ValueError) as caught:
        select(Model(), {target: None})
    assert message in str(caught.value)


def test_no_parameters_and_none_parameters():
    assert locations(nn.ReLU()) == {}
    with pytest.raises(ValueError, match="no tensors"):
        select(nn.ReLU(), {"weight": None})
    assert "encoder.2.bias" not in locations(Model())


def test_parametrized_tensors_are_found_under_their_plain_names():
    model = Model()
    register_parametrization(model.norm, "weight", torch.exp)
    assert "norm.weight" in locations(model)
    assert not any("parametrizations" in path for path in locations(model))
    assert "norm.weight" in select(model, {"*.weight": None})


def test_a_tensor_that_is_a_plain_attribute_is_told_of_as_such():
    model = Model()
    model.encoder[0].scale = torch.ones(3)
    sentence = r"'scale' is a tensor that Linear has as a plain attribute: .*register_buffer"
    with pytest.raises(ValueError, match=sentence):
        select(model, {"encoder.0.scale": None})
    with pytest.raises(ValueError, match=sentence):
        register_parametrization(model.encoder[0], "scale", nn.Tanh())
