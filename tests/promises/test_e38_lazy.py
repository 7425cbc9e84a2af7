"""E38: lazy modules are constrained when they materialize."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torchs

import constrained
import constrained.parametrize as ours
from tests.promises.foreign import Scaled, Squash

torch_today = pytest.mark.torch_today
pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


def model():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(6), nn.Linear(6, 2))


X = torch.ones(3, 5)


def test_e38_a_lazy_layer_is_constrained_in_its_first_forward_pass(measured):
    m = model()
    constrained.constrain(m, "0.weight", "orthogonal")
    assert constrained.spec(m) == {"0.weight": {"name": "orthogonal"}}
    (row,) = constrained.report(m).rows
    assert "once it has a shape" in row.constraint
    m(X)
    assert ours.is_parametrized(m[0], "weight")
    assert ours.type_before_parametrizations(m[0]) is nn.Linear
    constrained.assert_feasible(m)
    measured(f"LazyLinear: violation {constrained.violations(m)['0.weight']:.0e}")
    assert constrained.spec(m) == {"0.weight": {"name": "orthogonal"}}
    # No trace of the postponed constraint is left: the layer is like one that was never lazy.
    never = constrained.constrain(nn.Linear(5, 4), "weight", "orthogonal")
    assert type(m[0]) is type(never) and vars(m[0]).keys() == vars(never).keys()
    assert not m[0]._forward_pre_hooks and not m[0]._load_state_dict_pre_hooks
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
        (lambda: nn.LazyConv1d(4, 3), torch.ones(1, 2, 8),
         {"name": "sphere", "view": "o i w -> o (i w)", "init": "sample"}),
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
    with pytest.raises(ValueError, match="'0.weight' is constrained already"):
        constrained.constrain(m, "0.weight", "orthogonal")
    constrained.release(m)
    assert m(X).shape == (3, 2)


def test_e38_a_state_dict_materializes():
    plain = model()
    plain(X)
    with torch.no_grad():
        nn.init.orthogonal_(plain[0].weight)
    m = constrained.constrain(model(), "0.weight", "orthogonal", init="strict")
    m.load_state_dict(plain.state_dict())
    # Torch turns it into a Linear layer only in the first forward pass.
    assert ours.type_before_parametrizations(m[0]) is nn.LazyLinear
    constrained.assert_feasible(m)
    assert torch.allclose(m(X), plain(X), atol=1e-5)
    assert ours.type_before_parametrizations(m[0]) is nn.Linear
    assert ours.is_parametrized(m[0], "weight")
    assert torch.allclose(m[0].weight, plain[0].weight, atol=1e-6)
    constrained.assert_feasible(m)


@pytest.mark.parametrize("init", ["keep", "strict"])
def test_e38_a_plain_state_dict_outside_of_the_set(init):
    plain = model()
    plain(X)
    m = constrained.constrain(model(), "0.weight", "orthogonal", init=init)
    with pytest.raises((RuntimeError, ValueError), match="'0.weight': orthogonal"):
        constrained.load_state_dict(m, plain.state_dict())
    # All or nothing: it is still lazy.
    assert is_lazy(m[0].weight) and is_lazy(m[2].weight) and constrained.spec(m)
    if init == "keep":
        m(torch.ones(3, 7))
        assert m[0].weight.shape == (4, 7)
        constrained.assert_feasible(m)
        m = constrained.constrain(model(), "0.weight", "orthogonal")
        constrained.load_state_dict(m, plain.state_dict(), on_infeasible="project")
        constrained.assert_feasible(m)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "spec", ["orthogonal", "low_rank(rank=2)", "orthogonal(map='cayley')", "sphere", Scaled()]
)
def test_e38_a_constrained_state_dict_materializes(spec, assign):
    source = constrained.constrain(model(), "0.weight", spec)
    # Torch stores the lazy tensor itself there, which would materialize with the model.
    waiting = copy.deepcopy(source.state_dict())
    source(X)
    m = constrained.constrain(model(), "0.weight", spec)
    m.load_state_dict(waiting)
    assert is_lazy(m[0].weight)
    m.load_state_dict(source.state_dict(), assign=assign)
    assert ours.is_parametrized(m[0], "weight")
    # It is lazy until the end of this pass, which reads the weight. Later ones may apply factors.
    torch.testing.assert_close(m(X), source(X))
    assert torch.equal(m[0].weight, source[0].weight)
    assert torch.equal(m(X), source(X))
    assert list(m.state_dict()) == list(source.state_dict())


def test_e38_a_view_needs_the_shape_before_a_constrained_state_dict():
    spec = {"0.weight": {"name": "orthogonal", "view": "o i k -> o (i k)"}}
    source = constrained.constrain(nn.Sequential(nn.LazyConv1d(2, 3)), spec)
    source(torch.ones(1, 2, 8))
    m = constrained.constrain(nn.Sequential(nn.LazyConv1d(2, 3)), spec)
    with pytest.raises(ValueError, match="'0.weight' has no shape yet.*call the model once"):
        m.load_state_dict(source.state_dict())


def test_e38_materialized_by_hand():
    m = constrained.constrain(nn.LazyLinear(4), "weight", "orthogonal")
    m.initialize_parameters(X)
    constrained.assert_feasible(m)
    assert ours.is_parametrized(m, "weight")
    m(X)
    assert type(m) is type(constrained.constrain(nn.Linear(5, 4), "weight", "orthogonal"))


@pytest.mark.parametrize("target", ["0.weight", "*.weight"])
def test_e38_an_optimizer_is_told(target):
    m = model()
    optimizer = torch.optim.Adam(m.parameters())
    constrained.constrain(m, target, "low_rank(rank=1)", optimizer=optimizer)
    m(X)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in m.parameters()}
    before = m[0].weight.detach().clone()
    m(X).sum().backward()
    optimizer.step()
    assert not torch.equal(m[0].weight, before)
    constrained.assert_feasible(m)


def test_e38_an_optimizer_that_was_not_told_warns():
    m = model()
    optimizer = torch.optim.Adam(m.parameters())
    constrained.constrain(m, "0.weight", "low_rank(rank=1)")
    m(X).sum().backward()
    with pytest.warns(UserWarning, match="parameters that have left the model, of '0.weight'"):
        optimizer.step()


@pytest.mark.parametrize("spec", ["orthogonal", "low_rank(rank=1)"])
@pytest.mark.parametrize("how", [lambda m: m, copy.deepcopy])
def test_e38_tied_lazy_tensors_stay_tied(spec, how):
    m = nn.Sequential(nn.LazyLinear(5, bias=False), nn.LazyLinear(5, bias=False))
    m[1].weight = m[0].weight
    constrained.constrain(m, "1.weight", spec)
    assert list(constrained.spec(m)) == ["0.weight"]
    m = how(m)
    m(X)
    assert m[0].parametrizations.weight is m[1].parametrizations.weight
    assert list(constrained.spec(m)) == ["0.weight"]
    constrained.assert_feasible(m)


def test_e38_tied_lazy_tensors_are_released_together():
    m = nn.Sequential(nn.LazyLinear(5, bias=False), nn.LazyLinear(5, bias=False))
    m[1].weight = m[0].weight
    constrained.constrain(m, "0.weight", "orthogonal")
    constrained.release(m, "1.weight")
    assert constrained.spec(m) == {} and {type(layer) for layer in m} == {nn.LazyLinear}
    m(X)
    assert m[0].weight is m[1].weight


def test_e38_another_tensor_of_a_lazy_module_stays_parametrized():
    class Scaling(nn.LazyLinear):
        cls_to_become = nn.Linear

        def __init__(self):
            super().__init__(4)
            self.scale = nn.Parameter(torch.rand(3))

    m = ours.register_parametrization(Scaling(), "scale", nn.Tanh())
    m(X)
    assert ours.is_parametrized(m, "scale") and m.scale.shape == (3,)
    assert ours.type_before_parametrizations(m) is nn.Linear


def test_e38_lazy_statistics():
    m = nn.Sequential(nn.LazyBatchNorm1d())
    constrained.constrain(m, {"0.running_var": "positive", "0.weight": "positive"})
    m(torch.randn(8, 3))
    assert not torch.equal(m[0].running_var, torch.ones(3))
    constrained.assert_feasible(m)


def test_e38_compiled_before_the_first_forward_pass():
    # Layers of another size in another test would let torch compile with symbolic sizes, for
    # which no lazy layer can be created.
    torch.compiler.reset()
    m = constrained.constrain(model(), "*.weight", "spectral_norm")
    compiled = torch.compile(m, backend="eager")
    compiled(X)
    assert all(ours.is_parametrized(m[i], "weight") for i in (0, 2, 3))
    constrained.assert_feasible(m)
    assert torch.allclose(compiled(X), m(X))


def test_e38_twice_and_without_a_lazy_module_are_refused():
    m = constrained.constrain(model(), "0.weight", "orthogonal")
    with pytest.raises(ValueError, match="'0.weight' is constrained already, by orthogonal"):
        constrained.constrain(m, "0.weight", "positive")
    # All or nothing: nothing is postponed either.
    m = model()
    with pytest.raises(ValueError, match=r"3\.weight"):
        constrained.constrain(m, {"0.weight": "orthogonal", "3.weight": "positive_definite"})
    assert constrained.spec(m) == {} and type(m[0]) is nn.LazyLinear
    m = nn.Module()
    m.w = nn.UninitializedParameter()
    with pytest.raises(ValueError, match="'w': the tensor has no shape yet.*materialize"):
        constrained.constrain(m, "w", "orthogonal")
    with pytest.raises(ValueError, match=r"'0\.weight'.*init='sample' goes with a Constraint"):
        constrained.constrain(model(), "0.weight", Squash(), init="sample")


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


@torch_today
def test_e38_another_tensor_of_a_lazy_module_in_torch_today():
    class Scaling(nn.LazyLinear):
        cls_to_become = nn.Linear

        def __init__(self):
            super().__init__(4)
            self.scale = nn.Parameter(torch.rand(3))

    m = torchs.register_parametrization(Scaling(), "scale", nn.Tanh())
    m(X)
    with pytest.raises(AttributeError, match="scale"):
        m.scale  # noqa: B018
