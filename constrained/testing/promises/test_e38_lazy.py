"""E38: lazy modules are constrained when they materialize."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import constrained
import constrained.parametrize as ours
from constrained.testing.promises.foreign import Squash

torch_today = pytest.mark.torch_today
pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


def model():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(6), nn.Linear(6, 2))


X = torch.ones(3, 5)


def test_e38_a_lazy_layer_is_constrained_in_its_first_forward_pass(measured):
    m = model()
    constrained.constrain(m, "0.weight", "orthogonal")
    assert constrained.spec(m) == {"0.weight": {"name": "orthogonal"}}
    assert "from the first forward pass on" in str(constrained.report(m))
    m(X)
    assert ours.is_parametrized(m[0], "weight")
    assert ours.type_before_parametrizations(m[0]) is nn.Linear
    constrained.assert_feasible(m)
    measured(f"LazyLinear: violation {constrained.violations(m)['0.weight']:.0e}")
    assert constrained.spec(m) == {"0.weight": {"name": "orthogonal"}}
    assert "_constraints_waiting" not in vars(m[0]) and not m[0]._forward_pre_hooks
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    m(X).pow(2).sum().backward()
    optimizer.step()
    constrained.assert_feasible(m)


def test_e38_a_glob_over_lazy_and_other_layers():
    m = model()
    specs = {"*.weight": "spectral_norm(bound=0.5)", "3.bias": "interval(-1, 1)"}
    constrained.constrain(m, specs)
    assert sorted(constrained.spec(m)) == ["0.weight", "2.weight", "3.bias", "3.weight"]
    m(X)
    assert sorted(constrained.violations(m)) == ["0.weight", "2.weight", "3.bias", "3.weight"]
    constrained.assert_feasible(m)


@pytest.mark.parametrize(
    ("layer", "x", "spec"),
    [
        (lambda: nn.LazyConv2d(4, 3), torch.ones(1, 2, 8, 8),
         {"name": "orthogonal", "view": "o i h w -> o (i h w)"}),
        (lambda: nn.LazyConv1d(4, 3), torch.ones(1, 2, 8), {"name": "sphere", "init": "sample"}),
        (lambda: nn.LazyBatchNorm1d(), torch.randn(4, 3), {"name": "positive"}),
    ],
)  # fmt: skip
def test_e38_views_inits_and_other_lazy_layers(layer, x, spec):
    m = nn.Sequential(layer())
    constrained.constrain(m, {"0.weight": spec})
    assert constrained.spec(m) == {"0.weight": spec}
    again = constrained.constrain(nn.Sequential(layer()), constrained.spec(m))
    for one in (m, again):
        one(x)
        assert ours.is_parametrized(one[0], "weight")
        constrained.assert_feasible(one)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_e38_copies_wait_too(how):
    m = constrained.constrain(model(), "0.weight", "orthogonal")
    twin = how(m)
    assert constrained.spec(twin) == {"0.weight": {"name": "orthogonal"}}
    twin(X)
    constrained.assert_feasible(twin)
    assert ours.is_parametrized(twin[0], "weight")
    assert not ours.is_parametrized(m[0]) and constrained.spec(m)
    m(X)
    assert ours.is_parametrized(m[0], "weight")


def test_e38_released_before_it_has_a_shape():
    m = constrained.constrain(model(), "*.weight", "spectral_norm")
    constrained.release(m, "0.weight")
    assert sorted(constrained.spec(m)) == ["2.weight", "3.weight"]
    constrained.release(m)
    assert constrained.spec(m) == {}
    m(X)
    assert not any(ours.is_parametrized(layer) for layer in m)


def test_e38_a_shape_that_does_not_fit_fails_in_every_forward_pass():
    m = constrained.constrain(model(), "0.weight", "positive_definite")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'0.weight': positive_definite.*\(4, 5\)"):
            m(X)
    constrained.release(m)
    assert m(X).shape == (3, 2)


def test_e38_a_state_dict_materializes():
    plain = model()
    plain(X)
    with torch.no_grad():
        nn.init.orthogonal_(plain[0].weight)
    m = constrained.constrain(model(), "0.weight", "orthogonal", init="strict")
    m.load_state_dict(plain.state_dict())
    # Torch makes it a Linear layer in the first forward pass only.
    assert type(m[0]) is nn.LazyLinear and constrained.spec(m)
    assert torch.allclose(m(X), plain(X), atol=1e-5)
    assert ours.is_parametrized(m[0], "weight")
    assert torch.allclose(m[0].weight, plain[0].weight, atol=1e-6)
    constrained.assert_feasible(m)


def test_e38_a_state_dict_outside_of_the_set_is_an_error_if_strict():
    plain = model()
    plain(X)
    m = constrained.constrain(model(), "0.weight", "orthogonal", init="strict")
    m.load_state_dict(plain.state_dict())
    with pytest.raises(constrained.InfeasibleError, match="'0.weight': orthogonal"):
        m(X)


def test_e38_twice_and_tied_are_refused():
    m = constrained.constrain(model(), "0.weight", "orthogonal")
    with pytest.raises(ValueError, match="'0.weight' is constrained already"):
        constrained.constrain(m, "0.weight", "positive")
    tied = model()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0.weight' is tied to '2.weight'"):
        constrained.constrain(tied, "0.weight", "orthogonal")
    # All or nothing: what would have waited does not.
    m = model()
    with pytest.raises(ValueError, match="3.weight"):
        constrained.constrain(m, {"0.weight": "orthogonal", "3.weight": "positive_definite"})
    assert constrained.spec(m) == {}


def test_e38_registration_on_a_lazy_tensor_is_refused():
    m = model()
    with pytest.raises(ValueError, match="'weight' of LazyLinear has no shape yet"):
        ours.register_parametrization(m[0], "weight", Squash())
    assert type(m[0]) is nn.LazyLinear
    assert m(X).shape == (3, 2)


@torch_today
def test_e38_lazy_in_torch_today(measured):
    layer = nn.LazyLinear(4)
    with pytest.raises((RuntimeError, ValueError)) as error:
        parametrizations.orthogonal(layer)
    measured(f"LazyLinear: {type(error.value).__name__}")
