"""Which class of cost a constraint has, and that finding out leaves no trace."""

import copy

import pytest
import torch

from constrained import get, names
from constrained.constraint.spec import parse
from constrained.constraint.view import View
from constrained.model.cost import COSTS, cost_of


@pytest.mark.parametrize(
    "spec, shape, expected",
    [
        ("positive", (7,), "elementwise"),
        ("sphere", (100, 100), "elementwise"),
        ("symmetric", (100, 100), "elementwise"),
        ("simplex", (3, 50_000), "elementwise"),
        ("orthogonal", (4096, 4096), "products"),
        ("positive_definite", (100, 100), "products"),
        ("low_rank(rank=8)", (1024, 512), "products"),
        ("low_rank(rank=64)", (1024, 512), "products"),
        ("doubly_stochastic", (64, 64), "products"),
        ("invertible", (100, 100), "decompositions"),
        ("spectral_norm", (100, 100), "decompositions"),
        ("hurwitz", (100, 100), "decompositions"),
        ("symmetric | spectral_norm", (100, 100), "decompositions"),
        ("spectral_norm_conv", (8, 8, 3, 3), "decompositions"),
    ],
    ids=str,
)
def test_the_class(spec, shape, expected):
    assert cost_of(parse(spec).build(), shape) == expected


def test_a_view_costs_what_its_constraint_costs():
    view = View(get("orthogonal")(), "o i h w -> o (i h w)", (64, 8, 3, 3))
    assert cost_of(view, (64, 8, 3, 3)) == "products"


@pytest.mark.parametrize("name", names())
def test_every_entry_of_the_catalogue_has_one(name):
    cls = get(name)
    for kwargs, event in cls.examples:
        assert cost_of(cls(**kwargs), event) in COSTS


def test_it_is_found_where_gradients_are_off():
    with torch.no_grad():
        assert cost_of(get("simplex")(), (3, 5)) == "elementwise"


def test_it_leaves_no_trace():
    constraint = get("spectral_norm")()
    state, before = torch.random.get_rng_state(), copy.deepcopy(vars(constraint))
    cost_of(constraint, (16, 16))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert vars(constraint) == before


def test_one_that_cannot_be_tried_has_none():
    class Never(get("ball")):
        def draw(self, shape, random):
            raise NotImplementedError

    assert cost_of(Never(), (3,)) is None
