"""One NaN or infinite number stops neither a step nor a read nor a report of the whole model."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from constrained import (
    Constraint,
    InfeasibleError,
    assert_feasible,
    constrain,
    get,
    rebase,
    report,
    violations,
)
from tests.promises.catalogue import every_constraint, linear

NUMBERS = torch.nan, torch.inf, -torch.inf


@every_constraint((4, 4))
def test_one_number_of_the_originals(name, arguments, shape):
    layer = linear(name, arguments, shape)
    module = nn.ModuleDict({"bad": layer, "good": nn.Linear(3, 3)})
    constrain(module, "good.weight", "orthogonal")
    before = copy.deepcopy(layer.state_dict())
    parameters = [*layer.parametrizations.weight.parameters()]
    for parameter, number in itertools.product(parameters, NUMBERS):
        layer.load_state_dict(before)
        parameter.grad = torch.zeros_like(parameter)
        # Put where no triangular set ignores it: on the diagonal, in the last row.
        parameter.grad.view(-1)[-1] = number
        torch.optim.SGD([parameter], lr=1.0).step()
        value = layer.weight
        is_finite = bool(torch.isfinite(value).all())
        found = violations(module)
        assert found["good.weight"] < 1e-5
        assert [row.holds for row in report(module).rows] == [is_finite, True]
        if is_finite:
            # Softplus has a limit at infinity, and a mask ignores some numbers.
            assert found["bad.weight"] < 1e-5
            assert_feasible(module)
        else:
            assert found["bad.weight"] == torch.inf
            with pytest.raises(InfeasibleError, match=r"'bad.weight' under .* holds NaN"):
                assert_feasible(module)
        layer.weight.square().sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer.load_state_dict(before)
    assert torch.isfinite(layer.weight).all()


class Orthogonal(Constraint):
    """Orthogonal matrices, by a decomposition that raises on NaN."""

    event_dim = 2
    value_index = 0

    def forward(self, X):
        U, _, Vh = torch.linalg.svd(X)
        return U @ Vh

    def right_inverse(self, value):
        return value

    def canonical(self, X):
        return (self.forward(X),)

    def violation(self, value):
        return torch.linalg.matrix_norm(value @ value.mT - torch.eye(value.shape[-1]))

    def project(self, value):
        return self.forward(value)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.forward(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape):
        return shape[-1] * (shape[-1] - 1) // 2


@pytest.mark.parametrize("constraint", ["orthogonal", "special_linear", Orthogonal()], ids=repr)
def test_layers_that_are_restored_together_do_not_see_each_other(constraint):
    layers = [constrain(nn.Linear(4, 4, bias=False), "weight", constraint) for _ in range(3)]
    alone = constrain(nn.Linear(4, 4, bias=False), "weight", constraint)
    alone.load_state_dict(layers[0].state_dict())
    for layer in [*layers, alone]:
        layer.parametrizations.weight.original.grad = torch.ones(4, 4)
    layers[1].parametrizations.weight.original.grad[2, 2] = torch.nan
    together = [p for layer in layers for p in layer.parameters()]
    torch.optim.SGD(together, lr=0.1).step()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    restored = [layer.parametrizations.weight.original for layer in (layers[0], alone)]
    torch.testing.assert_close(*restored)
    assert not torch.isfinite(layers[1].weight).all()
    layers[1].weight.sum().backward()
    assert layers[1].parametrizations.weight.original.grad.isnan().all()


@every_constraint((4, 4))
def test_no_answer_says_that_it_is_inside(name, arguments, shape):
    constraint = get(name)(**arguments)
    value = constraint.sample(shape, generator=torch.Generator().manual_seed(0))
    for number in NUMBERS:
        value.view(-1)[0] = number
        assert constraint.violation(value).max() == torch.inf
        assert not constraint.contains(value).all()
        with pytest.raises(ValueError, match="NaN or infinite"):
            constraint.check_member(value)


@pytest.mark.parametrize("name", ["nonnegative", "at_least(bound=0.5)", "greater_than(bound=1)"])
def test_infinity_in_a_set_of_numbers(name):
    layer = constrain(nn.Linear(3, 3), "weight", name)
    with torch.no_grad():
        layer.parametrizations.weight.original[1, 1] = torch.inf
    (row,) = report(layer).rows
    assert row.violation == torch.inf
    assert row.holds is False
    assert not layer.parametrizations.weight[0].contains(layer.weight).all()
    with pytest.raises(InfeasibleError, match="'weight' under"):
        assert_feasible(layer)


def test_a_view_has_one_answer():
    layer = constrain(nn.Linear(2, 4), "weight", "sphere", view="(g a) b -> g a b", g=2)
    constraint = layer.parametrizations.weight[0]
    with torch.no_grad():
        wrong = layer.weight.clone()
    # Each element is measured by its own size, not by that of the whole tensor.
    for error in (1e-7, 1e-6, 2e-6, 4e-6, 1e-5):
        value = wrong * (1 + torch.tensor([error, 0, 0, 0])[:, None])
        constraint.forward = lambda *_, value=value: value
        layer.parametrizations.weight._store.clear()
        (row,) = report(layer).rows
        assert row.holds is bool(constraint.contains(value))


def test_rebase_names_what_it_cannot_rebase():
    model = constrain(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "*.weight", "orthogonal")
    with torch.no_grad():
        model[1].parametrizations.weight.original[0, 0] = torch.nan
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^'1\.weight': orthogonal\(\) needs finite values"):
        rebase(model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
