"""Products and chains: the parts, their specs, their order, and wrong input."""

import json

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain
from constrained.constraint.spec import parse
from constraints import Ball, Chain, Product, Sphere


def train(module, weight, steps=50):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        getattr(module, weight).square().sum().backward()
        optimizer.step()
    return getattr(module, weight).detach()


class TestProduct:
    def test_the_gates_of_an_lstm(self):
        rnn = nn.LSTM(4, 5)
        parts = ["orthogonal", "spectral_norm", "orthogonal", "low_rank(rank=2)"]
        constrain(rnn, "weight_hh_l0", {"name": "product", "parts": parts, "dim": 0})
        train(rnn, "weight_hh_l0")
        for name, gate in zip(parts, rnn.weight_hh_l0.detach().chunk(4), strict=True):
            assert parse(name).constraint.contains(gate)
        rnn(torch.zeros(3, 1, 4))[0].sum().backward()
        constrained.assert_feasible(rnn)

    def test_a_mean_and_a_scale(self):
        head = nn.Linear(3, 6)
        spec = {"name": "product", "parts": ["sum_to_zero", "positive"], "sizes": [2, 4], "dim": -1}
        constrain(head, "bias", spec)
        bias = train(head, "bias")
        assert bias[:2].sum().abs() < 1e-6 and (bias[2:] > 0).all()

    def test_specs_are_plain_data_and_rebuild(self):
        product = Product(parts=[Sphere(radius=2.0), "box(low=0, high=1)"], sizes=[2, 1], dim=-1)
        spec = json.loads(json.dumps(product.spec()))
        assert spec["parts"] == [{"name": "sphere", "radius": 2.0}, "box(low=0, high=1)"]
        module = constrain(nn.Linear(2, 3), "bias", spec)
        assert constrained.spec(module)["bias"] == spec

    def test_products_of_products(self):
        inner = {"name": "product", "parts": ["positive", "negative"], "dim": -1}
        outer = Product(parts=[inner, "simplex"], sizes=[2, 3], dim=-1)
        value = outer.sample((4, 5), generator=torch.Generator().manual_seed(0))
        assert (value[:, 0] > 0).all() and (value[:, 1] < 0).all()
        torch.testing.assert_close(outer(*outer.right_inverse(value)), value)

    @pytest.mark.parametrize("name", ["orthogonal", "orthogonal(map='exp')", "hurwitz"])
    def test_constant_parameters_stay_buffers(self, name):
        module = constrain(nn.Linear(3, 6), "weight", "product", parts=[name, "symmetric"], dim=0)
        part = parse(name).constraint
        buffers = [n for n, _ in module.named_buffers()]
        assert len(buffers) == len(part.frozen)
        constrained.assert_feasible(module)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"parts": []}, "list of constraints"),
            ({"parts": "sphere"}, "list of constraints"),
            ({"parts": ["sphere", "shpere"]}, "part 1.*[Dd]id you mean"),
            ({"parts": ["low_rank"]}, "part 0.*rank"),
            ({"parts": ["sphere"], "sizes": [1, 2]}, "as many sizes"),
            ({"parts": ["sphere"], "sizes": [0]}, "from 1 on"),
            ({"parts": ["__import__('os')"]}, "part 0"),
            ({"parts": [{"name": "sphere", "view": "a b -> b a"}]}, "view"),
            ({"parts": [nn.ReLU()]}, "no Constraint"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Product(**arguments)

    def test_wrong_shapes_name_the_slice(self):
        for parts, sizes, message in (
            (["sphere", "sphere"], [2, 2], "must have 4 entries"),
            (["sphere", "symmetric"], [3, 2], "slice 1"),
            (["sphere", "sphere"], None, "multiple of 2"),
        ):
            layer = nn.Linear(3, 5)
            before = layer.weight.detach().clone()
            with pytest.raises(ValueError, match=message):
                constrain(layer, "weight", Product(parts=parts, sizes=sizes, dim=-2))
            assert torch.equal(layer.weight, before) and type(layer) is nn.Linear

    def test_an_outsider_in_one_slice_is_refused(self):
        product = Product(parts=["sphere", "nonnegative"], sizes=[2, 2], dim=-1)
        with pytest.raises(ValueError, match="violates"):
            product.right_inverse(torch.tensor([1.0, 0.0, 1.0, -0.5]))


class TestChain:
    def test_a_string_with_bars(self):
        layer = constrain(nn.Linear(4, 4), "weight", "symmetric | spectral_norm(bound=0.5)")
        W = train(layer, "weight", 5)
        assert torch.equal(W, W.mT) and torch.linalg.matrix_norm(W, 2) <= 0.5 + 1e-6
        spec = constrained.spec(layer)["weight"]
        assert spec == {"name": "chain", "parts": ["symmetric", "spectral_norm(bound=0.5)"]}
        again = constrain(nn.Linear(4, 4), "weight", json.loads(json.dumps(spec)))
        constrained.assert_feasible(again)

    def test_g20_positive_definite_with_determinant_one(self):
        layer = constrain(nn.Linear(4, 4), "weight", "positive_definite | special_linear")
        target = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.125]))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            (layer.weight - target).square().sum().backward()
            optimizer.step()
        W = layer.weight.detach()
        assert torch.linalg.eigvalsh((W + W.mT) / 2).min() > 0
        torch.testing.assert_close(torch.linalg.det(W), torch.tensor(1.0), rtol=0, atol=1e-4)
        torch.testing.assert_close(W, target, rtol=0, atol=1e-2)

    @pytest.mark.parametrize(
        "text",
        [
            "spectral_norm | symmetric",
            "orthogonal | low_rank(rank=1)",
            "symmetric | orthogonal",
            "sum_to_zero | simplex",
        ],
    )
    def test_the_wrong_order_is_refused_with_a_reason(self, text):
        layer = nn.Linear(4, 4)
        with pytest.raises(ValueError, match="does not keep the set of"):
            constrain(layer, "weight", text)
        assert type(layer) is nn.Linear

    @pytest.mark.parametrize("text", ["symmetric |", "| symmetric", "|", "symmetric || ball"])
    def test_empty_links(self, text):
        with pytest.raises(ValueError, match="part"):
            constrain(nn.Linear(4, 4), "weight", text)

    def test_bars_in_arguments_are_no_links(self):
        with pytest.raises(ValueError, match="'map' must be"):
            constrain(nn.Linear(4, 4), "weight", "orthogonal(map='a|b')")

    def test_one_part_is_no_chain(self):
        with pytest.raises(ValueError, match="two parts"):
            Chain(parts=[Ball()])
