"""Targets: names, paths and globs that select tensors of a model."""

import pytest
import torch
from torch import nn

from constrained.model import targets
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


def select(model, rules, *why_not):
    """What is selected, by the first path of each tensor; or the first error."""
    found = targets.select(model, rules, *why_not)
    if found.errors:
        raise found.errors[0]
    return {choice.path: choice for choice in found.choices}


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
    ((path, found),) = selection.items()
    assert path == "encoder.0.weight"
    assert [place.path for place in found.places] == ["encoder.0.weight", "head.weight"]


def test_a_path_outranks_a_glob():
    selection = select(Model(), {"**.weight": "glob", "norm.weight": "path"})
    assert selection["norm.weight"].value == "path"
    assert selection["norm.weight"].overridden == ("**.weight",)
    assert selection["weight"].value == "glob"


def test_a_later_pattern_overrides_an_earlier_one():
    first, second = "**.weight", "encoder.**"
    found = targets.select(Model(), {first: "a", second: "b"})
    values = {choice.path: (choice.value, choice.overridden) for choice in found.choices}
    assert values["encoder.0.weight"] == ("b", (first,))
    assert values["norm.weight"] == ("a", ())
    found = targets.select(Model(), {second: "b", first: "a"})
    values = {choice.path: (choice.value, choice.overridden) for choice in found.choices}
    assert values["encoder.0.weight"] == ("a", (second,))
    assert values["encoder.0.bias"] == ("b", ())
    assert not found.errors and not found.unused


def test_targets_without_effect_are_told_of():
    rules = {"norm.*": "a", "*.weight": "b", "**": "c", "norm.weight": "c"}
    assert targets.select(Model(), rules).unused == ["norm.*", "*.weight"]
    # Two that say the same do not override each other.
    assert targets.select(Model(), {"**.weight": "a", "*.weight": "a"}).unused == []


def test_two_paths_of_one_tied_tensor_are_an_error_unless_they_agree():
    paths = ("encoder.0.weight", "head.weight")
    with pytest.raises(
        ValueError, match="matches two targets, 'encoder.0.weight' and 'head.weight'"
    ):
        select(Model(), dict(zip(paths, "ab", strict=True)))
    assert len(select(Model(), dict.fromkeys(paths, "the same"))) == 1


def test_all_errors_are_found():
    found = targets.select(Model(), {"a.*": 1, "norm.weight": 2, "norm.wait": 3})
    assert [str(error).partition(".")[0] for error in found.errors] == [
        "No tensor of Model matches 'a",
        "No tensor of Model matches 'norm",
    ]
    assert [choice.path for choice in found.choices] == ["norm.weight"]


def test_what_a_target_does_not_take_is_listed_and_left_to_earlier_targets():
    def why_not(value, place):
        return "" if value in place.path else f"no {value}"

    found = targets.select(Model(), {"**.weight": "weight", "**": "bias"}, why_not)
    values = {choice.path: choice.value for choice in found.choices}
    assert values["norm.weight"] == "weight" and values["norm.bias"] == "bias"
    assert found.skipped["**"]["norm.weight"] == "no bias"
    with pytest.raises(ValueError, match="'norm.*' does not take 'norm.weight': no x, nor"):
        select(Model(), {"norm.*": "x"}, why_not)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("encoder.0.wieght", "Did you mean 'encoder.0.weight'?"),
        ("head.weights", "Did you mean 'head.weight'?"),
        ("bias", "Did you mean"),
        ("decoder.**", "matches 'decoder.**'. Did you mean 'encoder.**'?"),
        ("encodr.*.{wieght,bias}", "Did you mean 'encoder.*.weight'?"),
        ("encoder.*.ffn.weight", "matches 'encoder.*.ffn.weight'. Under 'encoder.*' there are "),
        ("encoder.0.ffn", "matches 'encoder.0.ffn'. Under 'encoder.0' there are weight"),
        ("encoder.*", "'*' is one part of a path, and '**' any number of them; 'encoder.*.**' is"),
        ("[0-1].bias", "Did you mean '**.[0-1].bias'?"),
        ("xyz.*", "matches 'xyz.*'. Its tensors are 'weight', "),
        (".".join(["*"] * 31) + ".xyz", "Under '*.*' there are weight, bias."),
        ("", "matches ''"),
        (
            "encoder.2",
            "matches 'encoder.2'. It is a module; its tensors are 'encoder.2.weight'; "
            "'encoder.2.**' is all of its parameters.",
        ),
        ("encoder.1", "matches 'encoder.1'. It is a module without tensors."),
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
