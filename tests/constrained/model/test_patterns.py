"""Patterns over paths: wildcards, alternatives, types of modules."""

import fnmatch
import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constrained import constrain
from constrained.model.patterns import is_pattern, match, match_type
from constrained.parametrized.tensor_locations import locations


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.k_proj = nn.Linear(4, 4)
        self.norm1 = nn.LayerNorm(4)


class Gated(nn.Linear):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(12))
        self.head = Gated(4, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(1))


MODEL = Model()

BIASES = ["layers.3.q_proj.bias", "layers.3.k_proj.bias"]


def matched(pattern, model=MODEL):
    find = match if is_pattern(pattern) else match_type
    return [place.path for place in find(model, pattern, locations(model))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.?.q_proj.bias", [f"layers.{i}.q_proj.bias" for i in range(10)]),
        ("layers.??.q_proj.bias", ["layers.10.q_proj.bias", "layers.11.q_proj.bias"]),
        ("layers.[02].q_proj.bias", ["layers.0.q_proj.bias", "layers.2.q_proj.bias"]),
        ("layers.[!1-9]*.q_proj.bias", ["layers.0.q_proj.bias"]),
        ("layers.1.{q,k}_proj.bias", ["layers.1.q_proj.bias", "layers.1.k_proj.bias"]),
        ("layers.{9..11}.q_proj.bias", [f"layers.{i}.q_proj.bias" for i in (9, 10, 11)]),
        ("{scale,head.*}", ["head.weight", "scale"]),
        ("layers.{1,1{0,1}}.norm1.bias", [f"layers.{i}.norm1.bias" for i in (1, 10, 11)]),
        ("layers.1.norm?.b*", ["layers.1.norm1.bias"]),
        ("Gated.weight", ["head.weight"]),
        ("type=Gated", ["head.weight"]),
        ("layers.0.**.type=nn.Linear.bias", ["layers.0.q_proj.bias", "layers.0.k_proj.bias"]),
        ("layers.0.type=torch.nn.LayerNorm", ["layers.0.norm1.weight", "layers.0.norm1.bias"]),
        ("layers.3.type=torch.nn.modules.linear.Linear.bias", BIASES),
        ("layers.3.**.type=torch.nn.modules.linear.Linear.bias", BIASES),
        ("**.3.**.{q,k}_proj.bias", BIASES),
        ("layers.**.3.{q,k}_proj.bias", BIASES),
        ("Block.norm1.weight", [f"layers.{i}.norm1.weight" for i in range(12)]),
    ],
)
def test_patterns(pattern, expected):
    assert sorted(matched(pattern)) == sorted(expected)


def test_a_type_takes_what_is_derived_from_it_in_constrained_models_too():
    weights = [path for path in locations(MODEL) if "proj.weight" in path]
    assert matched("Linear.weight") == [*weights, "head.weight"]
    model = constrain(Model(), "head.weight", "sphere")
    assert matched("Gated.weight", model) == ["head.weight"]


def test_a_path_counts_before_a_type():
    model = nn.ModuleDict({"Linear": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    constrain(model, "Linear.weight", "sphere")
    assert hasattr(model["Linear"], "parametrizations")
    assert not hasattr(model["other"], "parametrizations")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers.[0.q_proj.bias", "opening bracket without a closing one"),
        ("layers.{0,1.q_proj", "opening brace without a closing one"),
        ("{0..9}{0..9}{0..9}", "too many patterns"),
        ("{0..100000}", "more than 256 numbers"),
        ("{" * 400 + "}" * 400, "braces inside of more than"),
        ("*" + "a" * 2000, "more than 1000 characters"),
        ("?a" * 40, "too many wildcards"),
        ("type=nn.Linaer.weight", "Did you mean 'Linear'?"),
        ("type=", "No module of the model has the type"),
    ],
)
def test_a_malformed_pattern(pattern, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        matched(pattern)


@given(
    st.text("ab.*?", min_size=1, max_size=8).filter(lambda p: "**" not in p),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_pattern_matches_segment_by_segment_as_fnmatch_does(pattern, segments):
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(1))
    path = ".".join(segments)
    place = next(iter(locations(model).values()))
    parts = pattern.split(".")
    expected = len(parts) == len(segments) and all(
        fnmatch.fnmatchcase(segment, part) for segment, part in zip(segments, parts, strict=True)
    )
    assert bool(match(model, pattern, {path: place})) == expected


def test_alternatives_are_those_of_a_product():
    model = nn.Module()
    place = next(iter(locations(nn.Linear(1, 1)).values()))
    names = ["".join(word) for word in itertools.product("ab", "cd", ["", "e"])]
    available = dict.fromkeys([*names, "ab", "cd"], place)
    found = match(model, "{a,b}{c,d}{,e}", available)
    assert len(found) == len(names)
