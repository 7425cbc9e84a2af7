"""E06: checkpoints of torch's parametrizations, of its old hooks, and of geotorch."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.testing import assert_close

import constrained
from constrained import baked_state_dict, constrain
from tests.promises.checkpoints import (
    bits,
    converged_spectral_norm,
    same,
    trained,
)

torch_today = pytest.mark.torch_today

SHAPES = [(4, 4), (5, 3), (3, 5)]
NOT_SURE = r"'weight': its keys .* The same keys with another meaning come from .*baked_state_dict"


def linear(shape):
    return nn.Linear(shape[1], shape[0])


def fresh(shape, spec):
    torch.manual_seed(7)
    return constrain(linear(shape), "weight", spec, init="sample")


def loaded(model, state, sure=True):
    """The weight after loading. Checks that there was a warning if the keys are ambiguous."""
    before = [id(p) for p in model.parameters()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model.load_state_dict(state) == ([], [])
    assert [id(p) for p in model.parameters()] == before
    assert len(caught) == (not sure)
    constrained.assert_feasible(model)
    return model.weight


def old_weight_norm(module, dim=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(module, dim=dim)


# ------------------------------------------------------------------------------------------ torch


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("function", [torchs.weight_norm, old_weight_norm])
def test_e06_weight_norm(function, dim, shape):
    source = trained(function(linear(shape), dim=dim))
    model = fresh(shape, f"low_rank(rank={min(shape)})")
    weight = loaded(model, source.state_dict())
    assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_e06_spectral_norm(shape, old):
    source = converged_spectral_norm(linear(shape), old)
    weight = loaded(fresh(shape, "spectral_norm"), source.state_dict())
    assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("old", [False, True])
def test_e06_spectral_norm_that_has_not_settled_is_infeasible(old):
    """torch underestimates the norm, so that its weight has a norm above 1."""
    function = torch.nn.utils.spectral_norm if old else torchs.spectral_norm
    source = function(nn.Linear(20, 20)).eval()
    state = source.state_dict()
    u = "weight_u" if old else "parametrizations.weight.0._u"
    v = "weight_v" if old else "parametrizations.weight.0._v"
    state[u], state[v] = nn.functional.normalize(torch.ones(2, 20))
    source.load_state_dict(state)
    source(torch.ones(1, 20))
    model = fresh((20, 20), "spectral_norm")
    with pytest.raises(RuntimeError, match=r"spectral_norm\(\): the value violates.*project"):
        model.load_state_dict(state)
    constrained.load_state_dict(model, state, on_infeasible="project")
    expected = model.parametrizations.weight[0].project(source.weight.detach())
    assert_close(model.weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_e06_spectral_norm_of_convolutions():
    for source in (nn.Conv2d(3, 3, 2), nn.ConvTranspose2d(4, 3, 2)):
        model = constrain(copy.deepcopy(source), "weight", "interval(low=-9.0, high=9.0)")
        torchs.spectral_norm(source, n_power_iterations=30).eval()
        assert_close(loaded(model, source.state_dict()), source.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_e06_orthogonal_of_torch(shape):
    """Before training, all of torch's maps are at their base, so the keys determine the value."""
    for chart in ("matrix_exp", "cayley", "householder"):
        source = torchs.orthogonal(linear(shape), orthogonal_map=chart)
        weight = loaded(fresh(shape, "orthogonal"), source.state_dict())
        assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)
    source = trained(torchs.orthogonal(linear(shape)))
    weight = loaded(fresh(shape, "orthogonal"), source.state_dict(), sure=False)
    assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chart", ["matrix_exp", "cayley", "householder"])
def test_e06_orthogonal_of_torch_with_any_map_by_way_of_its_own_model(chart, shape):
    source = trained(torchs.orthogonal(linear(shape), orthogonal_map=chart))
    model = fresh(shape, "orthogonal")
    with pytest.warns(UserWarning, match=NOT_SURE):
        model.load_state_dict(source.state_dict())
    again = torchs.orthogonal(linear(shape), orthogonal_map=chart)
    again.load_state_dict(source.state_dict())
    weight = loaded(model, baked_state_dict(again, everything=True))
    assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)


def test_e06_a_warning_that_is_an_error_leaves_the_model_alone():
    source = trained(torchs.orthogonal(nn.Linear(4, 4)))
    model = fresh((4, 4), "orthogonal")
    held, before = bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="its keys in the checkpoint are read as"):
            constrained.load_state_dict(model, source.state_dict())
    assert bits(model)[0] == held and same(model.state_dict(), before)


def test_e06_a_batch_and_a_view():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2, 4, 3))

    source = torchs.orthogonal(Batch())
    model = constrain(Batch(), "weight", "orthogonal")
    assert_close(loaded(model, source.state_dict()), source.weight, atol=1e-5, rtol=1e-5)
    conv = torchs.weight_norm(nn.Conv2d(2, 3, 2))
    model = constrain(nn.Conv2d(2, 3, 2), "weight", "low_rank(rank=3)", view="o i h w -> o (i h w)")
    assert_close(loaded(model, conv.state_dict()), conv.weight, atol=1e-5, rtol=1e-5)


def test_e06_nested_prefixes_strict_and_other_keys():
    source = nn.Sequential(nn.Linear(3, 3), trained(torchs.weight_norm(nn.Linear(3, 3))))
    model = constrain(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "1.weight", "low_rank(rank=3)"
    )
    state = {f"net.{k}": v for k, v in source.state_dict().items()}
    wrapped = nn.ModuleDict({"net": model})
    wrapped.load_state_dict(state, strict=True)
    assert_close(model[1].weight, source[1].weight, atol=1e-5, rtol=1e-5)
    assert wrapped.load_state_dict({**state, "x": 1}, strict=False) == ([], ["x"])
    # Keys of old hooks are not converted if the module itself has tensors of those names.
    layer = nn.Linear(3, 3)
    layer.weight_g, layer.weight_v = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(3, 3))
    constrain(layer, "weight", "symmetric")
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*parametrizations.weight.original"):
        layer.load_state_dict({k: v for k, v in layer.state_dict().items() if "weight_" in k})


def test_e06_both_old_and_plain_keys():
    """torch 1.0 wrote both for spectral_norm: the value, and the original it came from."""
    source = converged_spectral_norm(nn.Linear(4, 4), old=True)
    state = source.state_dict()
    model = fresh((4, 4), "spectral_norm")
    loaded(model, {**state, "weight": source.weight.detach()})
    with pytest.raises(RuntimeError, match="Unexpected key.*weight_orig.*weight_u.*weight_v"):
        model.load_state_dict({**state, "weight": source.weight.detach() / 2})


def test_e06_keys_that_nobody_knows(measured):
    model = fresh((4, 4), "orthogonal")
    state = {
        "bias": torch.zeros(4),
        "parametrizations.weight.original": torch.eye(4),
        "parametrizations.weight.0.angle": torch.ones(2),
    }
    held, before = bits(model)
    for strict in (True, False):
        with pytest.raises(RuntimeError) as error:
            constrained.load_state_dict(model, state, strict=strict)
        message = str(error.value)
        assert "the checkpoint has 0.angle (2,), where orthogonal() has original (4, 4)" in message
        assert "baked_state_dict(of that model) here, with everything=True" in message
    assert bits(model)[0] == held and same(model.state_dict(), before)
    measured("unknown keys are refused, with the cure")


@torch_today
def test_e06_keys_that_nobody_knows_in_torch_today(measured):
    """Without strict, coordinates of another map load as if they were the module's own."""
    source = trained(torchs.orthogonal(nn.Linear(4, 4)))
    target = torchs.spectral_norm(nn.Linear(4, 4))
    target.load_state_dict(source.state_dict(), strict=False)
    own = "parametrizations.weight.original"
    assert torch.equal(target.state_dict()[own], source.state_dict()[own])
    assert not torch.allclose(target.eval().weight, source.weight, atol=0.1)
    measured("coordinates of another map load silently with strict=False")


# --------------------------------------------------------------------------------------- geotorch

#: geotorch's functions, the constraint in their place, and whether the keys fix the value.
GEOTORCH = [
    ("orthogonal", {}, "orthogonal", SHAPES),
    ("sphere", {}, "sphere", SHAPES),
    ("low_rank", {"rank": 2}, "low_rank(rank=2)", SHAPES),
    ("positive_definite", {}, "positive_definite", SHAPES[:1]),
]


def geotorchs(name, shape, **arguments):
    geotorch = pytest.importorskip("geotorch")
    module = linear(shape)
    getattr(geotorch, name)(module, "weight", **arguments)
    return module


@pytest.mark.parametrize(("name", "arguments", "spec", "shapes"), GEOTORCH)
def test_e06_geotorch(name, arguments, spec, shapes, measured):
    for shape in shapes:
        source = trained(geotorchs(name, shape, **arguments))
        weight = loaded(fresh(shape, spec), source.state_dict(), sure=name == "sphere")
        assert_close(weight, source.weight, atol=1e-5, rtol=1e-4)
    measured(f"geotorch.{name} loads")


OTHERS = [
    *GEOTORCH,
    ("orthogonal", {"triv": "cayley"}, "orthogonal", SHAPES),
    ("positive_semidefinite_low_rank", {"rank": 2}, "low_rank(rank=2)", SHAPES[:1]),
    ("fixed_rank", {"rank": 2}, "low_rank(rank=2)", SHAPES),
    ("symmetric", {}, "symmetric", SHAPES[:1]),
    ("skew", {}, "skew", SHAPES[:1]),
    ("almost_orthogonal", {"lam": 0.1}, "spectral_norm(bound=1.2)", SHAPES[:1]),
]


@pytest.mark.parametrize(("name", "arguments", "spec", "shapes"), OTHERS)
def test_e06_geotorch_by_way_of_its_own_model(name, arguments, spec, shapes):
    for shape in shapes:
        source = trained(geotorchs(name, shape, **arguments))
        again = geotorchs(name, shape, **arguments)
        again.load_state_dict(source.state_dict())
        plain = baked_state_dict(again, everything=True)
        assert list(plain) == ["weight", "bias"]
        linear(shape).load_state_dict(plain)
        model = fresh(shape, spec)
        constrained.load_state_dict(model, plain, on_infeasible="project")
        assert_close(model.weight, source.weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["symmetric", "skew"])
def test_e06_geotorch_keys_that_look_like_the_models_own(name):
    """The metadata tells them apart. Without it they are taken as the model's own: a warning."""
    source = trained(geotorchs(name, (4, 4)))
    model = fresh((4, 4), name)
    weight = loaded(model, source.state_dict(), sure=name == "skew")
    assert_close(weight, source.weight, atol=1e-5, rtol=1e-5)
    with pytest.warns(UserWarning, match=rf"read as those of {name}\(\).*geotorch.{name}; if"):
        model.load_state_dict(dict(source.state_dict()))
    own = trained(fresh((4, 4), name))
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.01 * torch.rand_like(p))
    loaded(model, own.state_dict())
    assert torch.equal(model.weight, own.weight)


class Exponential(nn.Module):
    def forward(self, X):
        return X.exp()

    def right_inverse(self, value):
        return value.log()


class UpperTriangle(nn.Module):
    """The Symmetric of torch's tutorial on parametrizations."""

    def forward(self, X):
        return X.triu() + X.triu(1).mT


def written_by(parametrization, spec):
    layer = linear((4, 4))
    with torch.no_grad():
        layer.weight.copy_(layer.weight.abs() + 0.1)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", parametrization)
    return layer, fresh((4, 4), spec)


def test_e06_a_map_of_the_user_with_the_keys_of_the_model():
    """The metadata shows that no constraint wrote them, so they are not taken for its own."""
    source, model = written_by(Exponential(), "positive")
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"positive\(\) has, but was written by another"):
        model.load_state_dict(source.state_dict())
    assert torch.equal(model.weight, before)
    loaded(model, baked_state_dict(source, everything=True))
    assert_close(model.weight, source.weight)
    # The way out that the message names, for a writer that is known.
    own = fresh((4, 4), "positive")
    loaded(model, dict(own.state_dict()))
    assert torch.equal(model.weight, own.weight)


def test_e06_a_symmetric_map_of_the_user_is_among_those_that_are_named():
    source, model = written_by(UpperTriangle(), "symmetric")
    with pytest.warns(UserWarning, match=r"geotorch.symmetric\..*the upper triangle"):
        model.load_state_dict(source.state_dict())


@pytest.mark.parametrize("name", ["matrix_exp", "cayley"])
def test_e06_an_orthogonal_of_torch_without_trivialization(name):
    """Its only key is that of the constraint here, and means another matrix."""
    source = torchs.orthogonal(linear((4, 4)), orthogonal_map=name, use_trivialization=False)
    with torch.no_grad():
        source.parametrizations.weight.original.add_(0.3)
    model = fresh((4, 4), "orthogonal")
    with pytest.raises(RuntimeError, match=r"orthogonal\(\) has, but was written by another"):
        model.load_state_dict(source.state_dict())
    loaded(model, baked_state_dict(source, everything=True))
    assert_close(model.weight, source.weight, atol=1e-5, rtol=1e-5)


def test_e06_own_keys_of_the_shapes_of_other_ones():
    """A step and its base look like the g and v of a weight_norm of one column."""
    for shape in ((4, 1), (1, 1)):
        source = fresh(shape, "orthogonal(map='cayley')")
        weight = loaded(fresh(shape, "orthogonal(map='cayley')"), source.state_dict())
        assert torch.equal(weight, source.weight)


def test_e06_geotorch_keys_that_several_manifolds_share():
    source = trained(geotorchs("positive_semidefinite", (4, 4)))
    with pytest.warns(UserWarning, match=r"geotorch.positive_definite .*positive_semidefinite"):
        fresh((4, 4), "positive_definite").load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match=r"0.0.base \(4, 4\), where symmetric\(\) has"):
        fresh((4, 4), "symmetric").load_state_dict(source.state_dict())
