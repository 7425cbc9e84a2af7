"""Constraints behind a view, which names, permutes, splits and joins the axes of a tensor."""

import math
import re

import pytest
import torch
from torch import nn

from constrained import assert_feasible, baked_state_dict, constrain, get, names, spec, violations
from constrained.constraint.view import View
from constraints import Orthogonal


def test_a_convolution_kernel_as_a_matrix():
    layer = constrain(nn.Conv2d(3, 8, 3), "weight", "orthogonal", view="o i h w -> o (i h w)")
    matrix = layer.weight.reshape(8, 27)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), atol=1e-5, rtol=0)
    assert layer.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize(
    ("pattern", "sizes"), [("(g h) k -> g h k", {"g": 4}), ("(4 h) k -> 4 h k", {})]
)
def test_the_gates_of_an_lstm(pattern, sizes):
    layer = constrain(nn.LSTM(3, 5), "weight_hh_l0", "orthogonal", view=pattern, **sizes)
    gates = layer.weight_hh_l0.reshape(4, 5, 5)
    torch.testing.assert_close(gates @ gates.mT, torch.eye(5).expand(4, 5, 5), atol=1e-5, rtol=0)
    again = constrain(nn.LSTM(3, 5), spec(layer))
    assert spec(again) == spec(layer)


@pytest.mark.parametrize("name", ["orthogonal", "almost_orthogonal(radius=0.1)"])
@pytest.mark.parametrize(
    ("kind", "path", "gates"),
    [
        (nn.LSTM, "weight_hh_l0", 4),
        (nn.LSTMCell, "weight_hh", 4),
        (nn.GRU, "weight_hh_l0", 3),
        (nn.GRUCell, "weight_hh", 3),
    ],
)
def test_gates_that_are_taken_as_one_matrix_are_told_of_with_the_view(kind, path, gates, name):
    match = f"'{path}' holds the kernels of {gates} gates.* {gates} matrices of 5 x 5, one for each"
    with pytest.warns(UserWarning, match=match) as caught:
        constrain(kind(3, 5), path, name)
    assert len(caught) == 1 and caught[0].filename == __file__
    meant, whole = re.findall("view='(.*?)'", str(caught[0].message))
    # Warnings are errors in tests.
    layer = constrain(kind(3, 5), path, name, view=meant)
    values = torch.linalg.svdvals(getattr(layer, path).detach().unflatten(0, (gates, 5)))
    assert (values - 1).abs().max() < 0.11
    layer = constrain(kind(3, 5), path, name, view=whole)
    assert (torch.linalg.svdvals(getattr(layer, path).detach()) - 1).abs().max() < 0.11


def test_gates_under_other_constraints_and_other_tensors_are_not_told_of():
    for name in ("spectral_norm", "low_rank(rank=2)", "frobenius_norm", "interval(-1, 1)", "ball"):
        constrain(nn.LSTM(3, 5), "weight_hh_l0", name)
    constrain(nn.LSTM(3, 5), "weight_ih_l0", "orthogonal")
    constrain(nn.LSTM(3, 5, proj_size=2), "weight_hr_l0", "orthogonal")
    constrain(nn.RNN(3, 5), "weight_hh_l0", "orthogonal")
    constrain(nn.RNNCell(3, 5), "weight_hh", "orthogonal")


def test_the_heads_of_fused_attention():
    layer = nn.MultiheadAttention(8, 2)
    constrain(
        layer,
        {
            "in_proj_weight": {
                "name": "orthogonal",
                "view": "(s h d) m -> s h d m",
                "s": 3,
                "h": 2,
            }
        },
    )
    heads = layer.in_proj_weight.reshape(6, 4, 8)
    torch.testing.assert_close(heads @ heads.mT, torch.eye(4).expand(6, 4, 4), atol=1e-5, rtol=0)
    x = torch.randn(5, 1, 8)
    layer(x, x, x)[0].sum().backward()
    assert layer.parametrizations.in_proj_weight.original.grad is not None


def test_a_view_is_a_constraint_on_the_whole_tensor():
    view = View(Orthogonal(), "(g h) k -> g h k", (6, 3), {"g": 2})
    assert view.event_dim == 2
    value = view.sample((6, 3))
    assert view.violation(value).shape == ()
    assert bool(view.contains(value))
    torch.testing.assert_close(view(view.right_inverse(value)), value)
    assert view.dimension((6, 3)) == 2 * Orthogonal().dimension((3, 3))
    outside = value.clone()
    outside[5, 0] += 1
    assert not bool(view.contains(outside))
    with pytest.raises(ValueError, match="at index"):
        view.right_inverse(outside)
    assert bool(view.contains(view.project(outside)))


def test_several_parameters_and_constants_behind_a_view():
    layer = nn.Conv2d(2, 4, 3)
    weight = layer.weight
    constrain(layer, "weight", "orthogonal", map="cayley", view="o i h w -> o (i h w)")
    assert list(layer.parametrizations.weight.parameters()) == [weight]
    assert max(violations(layer).values()) < 1e-5


def behind_a_view(name, dtype, *, after):
    """A tensor under a view that changes the order of its axes, in half precision."""
    arguments, event = max(get(name).examples, key=lambda example: math.prod(example[1]))
    axes = [f"a{i}" for i in range(len(event))]
    shape, pattern = (*event, 2), f"{' '.join([*axes, 'b'])} -> {' '.join(['b', *axes])}"
    if get(name)(**arguments).event_dim is None:
        # The whole of what is seen is one element.
        shape, pattern = event, f"{' '.join(axes)} -> {' '.join(axes)}"
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape))
    if after:
        constrain(module, "weight", get(name)(**arguments), view=pattern)
    module.to(dtype)
    if not after:
        constrain(module, "weight", get(name)(**arguments), view=pattern)
    return module


@pytest.mark.parametrize("name", names())
def test_half_precision(name):
    for dtype in (torch.bfloat16, torch.float16):
        for after in (False, True):
            module = behind_a_view(name, dtype, after=after)
            assert module.weight.dtype == dtype
            assert_feasible(module)
            # Its own value is one that it can have.
            module.load_state_dict(baked_state_dict(module))
            module.weight = module.weight.detach()
            assert_feasible(module)


def test_outsiders_are_told_from_rounding_in_half_precision():
    layer = constrain(nn.Linear(4, 6).bfloat16(), "weight", "orthogonal", view="o i -> i o")
    value = layer.weight.detach().clone()
    value[3, 2] += 0.1
    with pytest.raises(ValueError, match="at most 0.0"):
        layer.weight = value


@pytest.mark.parametrize(
    ("pattern", "sizes", "message"),
    [
        ("(g h) k -> g h k", {}, "Give their lengths beside the view"),
        ("a b c -> a (b c)", {}, "does not fit"),
        ("a b -> a c", {}, "does not fit"),
        ("a b", {}, "must read 'from -> to'"),
        ("... b -> b ...", {}, "must read 'from -> to'"),
        ("a b -> a b)", {}, "does not fit"),
        ("(g h) k -> g h k", {"g": 5}, "does not fit"),
        ("(g h) k -> g h k", {"g": 0}, "positive whole number"),
        ("(g h) k -> g h k", {"g": 2.0}, "positive whole number"),
    ],
)
def test_patterns_that_do_not_fit(pattern, sizes, message):
    layer = nn.Linear(3, 8)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError) as caught:
        constrain(layer, "weight", "orthogonal", view=pattern, **sizes)
    assert message in str(caught.value)
    assert "'weight'" in str(caught.value)
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, before)
