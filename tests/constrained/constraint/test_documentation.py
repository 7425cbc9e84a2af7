"""What `describe` says of a constraint."""

from __future__ import annotations

import json

import pytest
import yaml

import constrained
from constrained import constrain, get, names
from constrained.constraint.documentation import HEADINGS, documentation, lines
from tests.healthy import Sphere


def test_an_alias_is_described_as_its_constraint():
    text = constrained.describe("stiefel")
    first, second, empty, summary = text.splitlines()[:4]
    assert first == "orthogonal(map='polar')"
    assert second.startswith("aliases: stiefel")
    assert empty == ""
    assert summary.startswith("Orthogonal matrices")
    assert "{W ∈ ℝⁿˣᵖ : Wᵀ W = I}" in text
    assert "math:" not in text
    assert "map: 'polar' or 'rebased' or 'cayley' or 'exp'; 'polar' by default." in text


def test_ranges_and_defaults_of_arguments():
    radius, p = documentation(get("ball")).arguments
    assert (radius.name, radius.values) == ("radius", "a number greater than 0")
    assert (radius.required, radius.default) == (False, 1.0)
    assert (p.values, p.text.split(",")[0]) == ("a number at least 1", "the order p of the norm")
    (rank,) = documentation(get("low_rank")).arguments
    assert rank.required


@pytest.mark.parametrize("name", names())
def test_every_constraint(name):
    found = documentation(get(name))
    assert found.summary
    assert found.set and found.map and found.right_inverse and found.reference
    assert all(argument.text and argument.values for argument in found.arguments)
    json.dumps(found.to_dict())
    for width in (60, 140):
        text = list(lines(found, width))
        # An example and a word may be longer.
        end = text.index("Example") if "Example" in text else len(text)
        assert all(
            len(line) <= width or " " not in line.strip() or ":" in line for line in text[:end]
        )
        assert [line for line in text if line in HEADINGS][:4] == list(HEADINGS[:4])


@pytest.mark.parametrize("name", names())
def test_the_line_for_a_config_is_one(name):
    import torch

    cls = get(name)
    config = yaml.safe_load(f"weight: {documentation(cls).spec}")
    arguments, event = cls.examples[0]
    constraint = cls(**arguments) if "(" in config["weight"] else cls()
    shape = event if "(" in config["weight"] else max((s for _, s in cls.examples[:2]), key=len)
    dtype = torch.complex64 if name in ("unitary", "hermitian") else torch.float32
    holder = torch.nn.Module()
    holder.weight = torch.nn.Parameter(constraint.sample(shape, dtype=dtype))
    assert constrain(holder, config) is holder


def test_a_constraint_of_somebody_else():
    found = documentation(Sphere)
    assert found.name
    assert found.family == Sphere.__module__.partition(".")[0]
    assert "\n".join(lines(found, 80))
