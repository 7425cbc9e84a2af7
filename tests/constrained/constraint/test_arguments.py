"""Setting an argument changes a constraint's value, violation, spec and repr, or is an error."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from constrained import Constraint, constrain, get, names, spec, violations
from constrained.registration.add import register_parametrization


def others(cls, argument, value):
    """Values of an argument that another instance of the class may have."""
    found = [cls(**kwargs).arguments()[argument] for kwargs, _ in cls.examples]
    if type(value) is int:
        found += [value + 1, value - 1]
    elif type(value) is float:
        found += [0.75 * value, 2 * value + 1]
    distinct = {repr(other): other for other in found if repr(other) != repr(value)}
    return list(distinct.values())[-3:]


def state(constraint):
    return {k: repr(v) for k, v in vars(constraint).items() if k != "_revision"}


@pytest.mark.parametrize("name", [name for name in names() if get(name)._argument_names])
def test_what_follows_from_the_arguments_follows_them(name):
    cls, tried = get(name), 0
    for kwargs, shape in cls.examples[:3]:
        for argument in cls._argument_names:
            for new in others(cls, argument, getattr(cls(**kwargs), argument)):
                module = nn.Module()
                start = torch.linspace(-1, 1, torch.Size(shape).numel())
                module.x = nn.Parameter(start.view(shape))
                constrain(module, "x", cls(**kwargs), init="inside")
                constraint = module.parametrizations.x[0]
                assert module.x.shape == shape
                before, value, tried = state(constraint), module.x.detach().clone(), tried + 1
                try:
                    fresh = cls(**{**constraint.arguments(), argument: new})
                except (ValueError, TypeError) as error:
                    with pytest.raises(type(error)) as caught:
                        setattr(constraint, argument, new)
                    assert str(caught.value) == str(error)
                else:
                    try:
                        setattr(constraint, argument, new)
                    except ValueError as error:
                        assert repr(fresh) in str(error)
                        assert "'x'" in str(error)
                        assert "release()" in str(error)
                    else:
                        with torch.no_grad():
                            found = module.x
                            expected = fresh(*module.parametrizations.x.originals())
                        assert torch.equal(found, expected)
                        assert bool(fresh.contains(found).all())
                        assert violations(module)["x"] == float(fresh.violation(found).max())
                        assert spec(module) == {"x": fresh.spec()}
                        assert repr(constraint) == repr(fresh)
                        assert fresh.closed == constraint.closed
                        assert fresh.event_dim == constraint.event_dim
                        continue
                assert state(constraint) == before
                assert torch.equal(module.x, value)
    assert tried


@pytest.mark.parametrize("name", [name for name in names() if get(name)._argument_names])
def test_a_bad_argument_leaves_a_constraint_as_it_was(name):
    cls = get(name)
    constraint, bad = cls(**cls.examples[0][0]), object()
    before = state(constraint)
    for argument in cls._argument_names:
        try:
            cls(**{**constraint.arguments(), argument: bad})
        except Exception as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                setattr(constraint, argument, bad)
        else:
            pytest.fail(f"{argument} takes anything")
    assert state(constraint) == before


def test_a_whole_follows_its_part():
    layer = constrain(nn.Linear(3, 3), "weight", "symmetric | spectral_norm(bound=2)")
    chain = layer.parametrizations.weight[0]
    layer.weight = torch.diag(torch.tensor([2.0, 1.0, 0.5]))
    chain._parts[1].bound = 0.5
    assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(0.5)
    parts = ["symmetric", {"name": "spectral_norm", "bound": 0.5}]
    assert spec(layer) == {"weight": {"name": "chain", "parts": parts}}
    with pytest.raises(ValueError, match=r"does not keep the set of symmetric\(\)"):
        chain._parts[1].map = "scale"
    assert chain._parts[1].map == "clip"

    constrain(layer, "bias", "product(parts=['box(low=-1, high=1)', 'nonnegative'], sizes=[1, 2])")
    product = layer.parametrizations.bias[0]
    layer.bias = torch.tensor([-1.0, 4.0, 5.0])
    product._parts[0].low = -0.5
    assert layer.bias[0].item() == pytest.approx(-0.5, abs=1e-5)
    assert spec(layer)["bias"]["parts"] == [
        {"name": "box", "low": -0.5, "high": 1.0},
        "nonnegative",
    ]
    with pytest.raises(ValueError, match="'bias'"):
        product.sizes = [2, 1]
    assert list(product.sizes) == [1, 2]


def test_a_view_follows_what_is_viewed():
    layer = nn.Linear(4, 8)
    constrain(layer, "weight", "low_rank(rank=2)", view="(g a) b -> g a b", g=2)
    view = layer.parametrizations.weight[0]
    before = layer.weight.detach().clone()
    for rank in (1, 9):
        with pytest.raises(ValueError, match=r"viewed as .* does not go with .* 'weight'"):
            view.constraint.rank = rank
    assert view.constraint.rank == 2
    assert torch.equal(layer.weight, before)
    layer = constrain(nn.Linear(4, 8), "weight", "sphere", view="a b -> b a")
    layer.parametrizations.weight[0].constraint.radius = 3.0
    torch.testing.assert_close(layer.weight.norm(dim=0), torch.full((4,), 3.0))


class Shifted(Constraint):
    """Numbers above a bound, by a trained scale, with a tensor and a module from the arguments."""

    event_dim = 0

    def __init__(self, bound: float = 0.0, width: int = 1) -> None:
        super().__init__()
        self.bound = bound
        self.width = width
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("end", torch.tensor(float(bound)))
        self.act = nn.Softplus(beta=1.0 + bound)
        if bound == 1:
            self.only_at_one = True

    def forward(self, y):
        return self.end + self.act(y) * self.scale.abs().sum()

    def right_inverse(self, value):
        return torch.log(torch.expm1((value - self.end).clamp(min=1e-6)))

    def violation(self, value):
        return (self.end - value).clamp(min=0)

    def project(self, value):
        return torch.maximum(value, self.end + 1e-3)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.bound + torch.rand(shape, generator=generator, dtype=dtype, device=device) + 0.1

    def dimension(self, shape):
        return 1


def test_parameters_hooks_mode_and_notes_stay():
    layer = constrain(nn.Linear(3, 3), "weight", Shifted()).double().eval()
    constraint = layer.parametrizations.weight[0]
    scale, calls = constraint.scale, []
    constraint.note = "mine"
    with torch.no_grad():
        scale.fill_(2.0)
    handle = constraint.register_forward_hook(lambda *_: calls.append(1))
    layer.weight.sum().backward()
    constraint.bound = 1.0
    assert constraint.scale is scale
    assert scale.item() == 2.0
    assert scale.grad is not None
    assert constraint.note == "mine"
    assert constraint.only_at_one
    assert not constraint.training
    assert constraint.end.dtype == torch.float64
    assert constraint.act.beta == 2.0
    calls.clear()
    assert layer.weight.min().item() >= 1
    assert calls
    handle.remove()
    calls.clear()
    constraint.bound = 3.0
    assert layer.weight.min().item() >= 3
    assert not calls
    assert not hasattr(constraint, "only_at_one")
    with pytest.raises(ValueError, match="another parameter 'scale'"):
        constraint.width = 2
    assert constraint.width == 1
    assert constraint.scale is scale


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_follow_on_their_own(twin):
    layer = constrain(nn.Linear(3, 3), "weight", "at_least(bound=1)")
    other = twin(layer)
    other.parametrizations.weight[0].bound = 5.0
    assert float(other.weight.detach().min()) >= 5
    assert float(layer.weight.detach().min()) < 5
    assert spec(layer) == {"weight": {"name": "at_least", "bound": 1.0}}


def test_a_constraint_that_is_shared_must_fit_everywhere():
    constraint = get("low_rank")(rank=2)
    both = nn.ModuleList([nn.Linear(3, 3), nn.Linear(5, 5)])
    for layer in both:
        with torch.no_grad():
            layer.weight.copy_(constraint.project(layer.weight))
        register_parametrization(layer, "weight", constraint)
    with pytest.raises(ValueError, match="'weight'"):
        constraint.rank = 4
    assert constraint.rank == 2


def test_what_is_registered_or_deleted_later_is_counted():
    constraint, seen = get("sphere")(), set()

    def count():
        seen.add(constraint._revision)
        return len(seen)

    assert count() == 1
    constraint.register_buffer("b", torch.ones(1))
    assert count() == 2
    constraint.register_parameter("p", nn.Parameter(torch.ones(1)))
    assert count() == 3
    constraint.register_module("m", nn.Tanh())
    assert count() == 4
    constraint.add_module("n", nn.Tanh())
    assert count() == 5
    for i, name in enumerate("bpmn"):
        delattr(constraint, name)
        assert count() == 6 + i


def test_no_two_constraints_have_one_revision():
    one = get("positive_definite")()
    more = [one, copy.deepcopy(one), pickle.loads(pickle.dumps(one)), get("correlation")()]
    assert len({each._revision for each in more}) == 4


def test_a_list_among_the_arguments_cannot_be_changed_in_place():
    """What the constructor computed from the list would not change with it."""
    seen = 0
    for name in names():
        for kwargs, _ in get(name).examples:
            constraint = get(name)(**kwargs)
            for key, value in kwargs.items():
                is_kept = type(getattr(constraint, key)) is tuple
                if isinstance(value, list) and is_kept:
                    seen += 1
                    with pytest.raises(TypeError, match="does not support item assignment"):
                        getattr(constraint, key)[0] = value[0]
                    assert constraint.spec().get(key, value) == value
    assert seen > 5


@pytest.mark.parametrize("index", [0, -1])
def test_a_constraint_that_does_not_go_with_the_originals_is_not_put_in_place(index):
    """It would get too few or too many originals, or make a value of another shape."""
    for spec_, new in [("orthogonal", "low_rank(rank=2)"), ("weight_norm", "orthogonal")]:
        layer, other = (nn.Linear(4, 4) for _ in range(2))
        constrain(layer, "weight", spec_)
        constrain(other, "weight", new)
        on, before, value = layer.parametrizations.weight, spec(layer), layer.weight.detach()
        with pytest.raises(ValueError, match=r"'weight' is stored as.*put this one there, release"):
            on[index] = other.parametrizations.weight[0]
        assert spec(layer) == before and torch.equal(layer.weight, value)
    on[index] = get("weight_norm")()
    assert spec(layer) == {"weight": {"name": "weight_norm"}}


def test_an_argument_that_is_a_buffer_where_zeros_have_no_nearest_member():
    class Scaled(get("sphere")):
        def __init__(self, scale=1.0):
            super().__init__()
            self.register_buffer("scale", torch.as_tensor(scale))

        def forward(self, x):
            return self.scale * x / x.norm(dim=-1, keepdim=True)

        project = forward

        def violation(self, value):
            return (value.norm(dim=-1) - self.scale).abs()

        def canonical(self, x):
            return (x,)

        def sample(self, shape, *, generator=None, dtype=None, device=None):
            return self(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    layer = constrain(nn.Linear(4, 4), "weight", Scaled(2.0))
    layer.parametrizations.weight[0].scale = torch.tensor(3.0)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((4,), 3.0))


class Failing(get("sphere")):
    def right_inverse(self, value):
        raise RuntimeError("mine")


def test_a_constraint_whose_right_inverse_fails_is_not_put_in_place():
    layer = constrain(nn.Linear(4, 4), "weight", "sphere")
    before = layer.parametrizations.weight[0]
    with pytest.raises(RuntimeError, match="mine"):
        layer.parametrizations.weight[0] = Failing()
    assert layer.parametrizations.weight[0] is before


def test_one_constraint_in_two_places_is_looked_at_in_the_one_where_it_is_put():
    layer = constrain(nn.Linear(4, 4), "weight", "low_rank(rank=2)")
    register_parametrization(layer, "weight", nn.Identity())
    on = layer.parametrizations.weight
    with pytest.raises(ValueError, match="put this one there"):
        on[1] = on[0]
    assert type(on[1]) is nn.Identity


class Scaled(get("positive")):
    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale))


def test_a_buffer_of_a_model_without_numbers_is_replaced():
    layer = constrain(nn.Linear(4, 4, device="meta"), "weight", Scaled())
    layer.parametrizations.weight[0].scale = torch.tensor(3.0)
    layer.parametrizations.weight[0] = Scaled(2.0)
    assert layer.weight.is_meta


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("spectral_norm(map='scale')", "low_rank(rank=2)"),
        ("low_rank(rank=2)", "spectral_norm(map='scale')"),
        ("orthogonal(map='cayley')", "weight_norm(event_dim=1)"),
        ("weight_norm(event_dim=1)", "orthogonal(map='cayley')"),
    ],
)
def test_a_constraint_of_other_constants_is_not_put_in_anothers_place(one, other):
    # The shapes are the same. A factor that is stored as a constant would never be trained.
    layer, stranger = (constrain(nn.Linear(2, 5), "weight", c) for c in (one, other))
    found, strangers = (m.parametrizations.weight for m in (layer, stranger))
    assert [t.shape for t in strangers.originals()] == [t.shape for t in found.originals()]
    before, value = found[0], layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"number 1 is (a constant|trained) under it.* release"):
        found[0] = strangers[0]
    assert found[0] is before
    assert torch.equal(layer.weight, value)
