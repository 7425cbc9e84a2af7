"""The schema accepts what `constrain` accepts, and the reverse."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

import constrained
from constrained import constrain, get, names
from constrained.constraint.argument_schema import argument_schemas
from constrained.constraint.arguments import as_data
from constrained.constraint.spec import parse

#: What several arguments must be beside each other, as the documentation of `schema` lists it.
RELATIONS = re.compile(
    r"low must be|does not keep the set|need as many sizes|takes the whole tensor|"
    r"A must have the shape|no solution|nested lists|zeros and ones|event_dim|"
    r"size, that of the images|: part \d+|"
    # A whole number with a point is one for JSON schema.
    r"whole number.*got -?\d+(\.0|e\+\d+) \(float\)"
)

#: Arguments that a constraint may take, and what people write instead.
VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, -1.5, 0.0, 0.5, 0.999, 1.0001, 1e-3, 2.5, 1e6, 1e300),
    *("", "x", "1e-3", "polar", "cayley", "scale", "clip", "zeros", "circular", "orthogonal"),
    *([], [1], [1, 2], [0, 1], [1.5], ["x"], [True], [[1.0, 2.0]], [[1, 0], [0, 1]], [[]], [None]),
    *(["symmetric"], ["symmetric", "spectral_norm"], ["sphere", "nope"], ["low_rank"], [[["x"]]]),
    *([{"name": "ball"}, "sphere"], [{"name": "ball", "radius": -1}], {}, {"name": "ball"}),
]


class Holder(nn.Module):
    def __init__(self, shape, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))


@pytest.fixture(scope="module")
def accepts():
    schema = constrained.schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(json.loads(json.dumps(schema)))
    return lambda config: validator.is_valid(config)


def refusal(spec) -> str:
    try:
        parse(spec)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def carried(name, spec, config) -> None:
    """Constrain a tensor of each shape among the examples that fits."""
    constraint = parse(spec).constraint
    for dtype in (torch.float64, torch.complex128):
        for shape in {event for _, event in get(name).examples}:
            holder = Holder(shape, dtype)
            try:
                constraint.check_tensor(holder.weight)
            except (ValueError, TypeError):
                continue
            with warnings.catch_warnings():
                # Such as that of a start next to the boundary.
                warnings.simplefilter("ignore", UserWarning)
                constrain(holder, config, init="sample")


@pytest.mark.parametrize("name", names())
def test_schema_and_constrain_agree_on_arguments(accepts, name):
    arguments = argument_schemas(get(name))[0]
    tried = [{}, {"unknown": 1}, *(as_data(dict(given)) for given, _ in get(name).examples)]
    for argument in arguments:
        tried += [{**tried[2], argument: value} for value in VALUES]
    for given in tried:
        spec = {"name": name, **given}
        reason = refusal(spec)
        if accepts({"weight": spec}):
            assert not reason or RELATIONS.search(reason), (spec, reason)
        else:
            assert reason, spec
        if not reason and max(map(abs, _numbers(given)), default=0) <= 1e6:
            carried(name, spec, {"weight": spec})


def _numbers(data) -> list[float]:
    if isinstance(data, (int, float)):
        return [data]
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [number for part in parts for number in _numbers(part)]


@pytest.mark.parametrize("name", names())
def test_names_and_aliases_as_strings(accepts, name):
    required = argument_schemas(get(name))[1]
    for spelling in (name, *get(name).aliases):
        for text in (spelling, f" {spelling} ", f"{spelling}x", spelling.title()):
            assert accepts({"weight": text}) == (not refusal(text)), text
        assert accepts({"weight": spelling}) == (not required)
        # Inside of the parentheses nothing is checked, here or in a chain.
        assert accepts({"weight": f"{spelling}(1)"})
        assert accepts({"weight": f"{spelling} | symmetric"})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, True),
        ("none", True),
        (7, False),
        (True, False),
        ([], False),
        ({}, False),
        ({"radius": 2}, False),
        (["orthogonal"], True),
        ([["orthogonal"]], True),
        (["symmetric", "spectral_norm(bound=2)"], True),
        ([{"name": "symmetric"}, {"name": "spectral_norm", "bound": 2}], True),
        ([{"name": "orthogonal", "init": "sample", "where": "fits"}], True),
        (["symmetric", {"name": "spectral_norm", "init": "keep"}], False),
        (["symmetric", None], False),
        ({"name": "ball(radius=2)", "p": 1}, True),
        ({"name": ["symmetric"]}, False),
        ({"name": None}, False),
        ({"name": "orthogonal", "init": "smaple"}, False),
        ({"name": "orthogonal", "init": None}, True),
        ({"name": "orthogonal", "where": "fits"}, True),
        ({"name": "orthogonal", "where": None}, False),
        ({"name": "orthogonal", "view": None}, True),
        ({"name": "orthogonal", "view": "(g h) k -> g h k", "g": 2}, True),
        ({"name": "orthogonal", "view": "(g h) k -> g h k", "axes": {"g": 2}}, True),
        ({"name": "orthogonal", "view": "(g h) k -> g h k", "axes": {"g": "2"}}, False),
        ({"name": "orthogonal", "view": "heads(2)"}, True),
        ({"name": "orthogonal", "view": "heads(0)"}, False),
        ({"name": "orthogonal", "view": "heads"}, False),
        ({"name": "orthogonal", "view": "hades(2)"}, False),
        ({"name": "orthogonal", "axes": {"g": 2}}, False),
        ({"name": "orthogonal", "g": 2}, False),
        ({"name": "geotorch:Sphere", "radius": 1.0}, True),
    ],
)
def test_other_spellings(accepts, spec, expected):
    assert accepts({"weight": spec}) == expected
    try:
        constrain(Holder((4, 4), torch.float64), {"weight": spec}, init="sample")
        accepted = True
    except (ValueError, TypeError):
        accepted = False
    assert accepted == expected


def test_nested_targets(accepts):
    model = nn.ModuleDict({"a": nn.ModuleDict({"name": nn.Linear(3, 3)}), "b": nn.Linear(3, 3)})
    for config, expected in [
        ({"a": {"name": {"weight": "orthogonal"}}, "b": {"weight": None}}, True),
        ({"a": {"name": {"weight": "orthogonl"}}}, False),
        ({"b": {"weight": {"name": "sphere", "radius": 0}}}, False),
        ({"b": {}}, False),
        ({}, True),
    ]:
        assert accepts(config) == expected
        assert (not constrained.plan(model, config).errors) == expected, config
    for config in ([], "orthogonal", None, 3):
        assert not accepts(config)


def test_a_third_party_constraint_is_in_it(monkeypatch):
    from constrained.constraint import registry
    from tests.healthy import Sphere

    monkeypatch.setitem(registry._constraints, "others", Sphere)
    monkeypatch.setattr(Sphere, "name", "others", raising=False)
    monkeypatch.setattr(Sphere, "aliases", (), raising=False)
    schema = constrained.schema()
    assert Draft202012Validator(schema).is_valid({"w": "others"})
    assert schema["$defs"]["constraint-others"]["description"]


def test_words_are_those_of_the_docstring():
    low_rank = constrained.schema()["$defs"]["constraint-low_rank"]
    assert low_rank["description"] == "Matrices of at most a given rank."
    assert low_rank["properties"]["rank"] == {
        "type": "integer",
        "minimum": 1,
        "description": "the largest rank r, from 1 to min(m, n).",
    }
    assert low_rank["required"] == ["rank"]
