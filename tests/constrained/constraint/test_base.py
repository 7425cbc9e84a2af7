"""The base class: its guards, its messages, and what follows from a constructor's signature."""

from __future__ import annotations

import copy
import inspect
import re
import types
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import Constraint, InfeasibleError, get, tolerance
from constrained.constraint.arguments import snake_case
from constrained.testing import check, trials
from tests.healthy import NonNegative, PositiveDefinite, Sphere, Symmetric


class Recorder(Constraint):
    """All vectors; notes what each method received."""

    event_dim = 1
    complex = True
    seen: ClassVar[dict] = {}

    def note(self, method, value):
        self.seen[method] = (value.dtype, torch.is_autocast_enabled("cpu"))
        return value

    def forward(self, free):
        return self.note("forward", free)

    def right_inverse(self, value):
        return self.note("right_inverse", value), value

    def violation(self, value):
        return self.note("violation", value).abs().sum(-1) * 0

    def project(self, value):
        return self.note("project", value)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return torch.zeros(shape, dtype=dtype)

    def dimension(self, shape):
        return shape[-1]


METHODS = ("forward", "right_inverse", "violation", "project")


# ----------------------------------------------------------------------------------------- abstract


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Constraint()


@pytest.mark.parametrize("method", [*METHODS, "sample"])
def test_every_method_must_be_defined(method):
    members = {name: getattr(Recorder, name) for name in (*METHODS, "sample")}
    del members[method]
    with pytest.raises(TypeError, match=method):
        type("Partial", (Constraint,), {"event_dim": 1, **members})()


def test_the_dimension_is_by_default_the_number_of_entries():
    members = {name: getattr(Recorder, name) for name in (*METHODS, "sample")}
    full = type("Full", (Constraint,), {"event_dim": 2, **members})
    assert full().dimension((3, 4)) == 12


# ----------------------------------------------------------------------------------------- sampling


class Drawn(Recorder):
    """As `Recorder`, with random members."""

    sample = Constraint.sample

    def draw(self, shape, random):
        self.seen["draw"] = (random.dtype, torch.is_autocast_enabled("cpu"))
        return random.normal(shape)

    def shape_problem(self, event):
        return None if event[-1] < 9 else "must be short"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64, torch.complex64])
def test_sampling_computes_in_the_working_precision_with_autocast_off(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        found = Drawn().sample((2, 3), dtype=dtype, generator=torch.Generator().manual_seed(0))
    working = {None: torch.float32, torch.bfloat16: torch.float32}.get(dtype, dtype)
    assert Recorder.seen["draw"] == (working, False)
    expected = torch.randn(2, 3, dtype=working, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, expected.to(dtype or torch.float32))


def test_a_shape_is_checked_before_a_member_is_drawn():
    with pytest.raises(ValueError, match="must be short"):
        Drawn().sample((2, 9))


def test_a_class_may_override_sample_itself(recwarn):
    assert torch.equal(Recorder().sample((2, 3)), torch.zeros(2, 3))
    both = get("product")(parts=[NonNegative(), "sphere"], sizes=[1, 2], dim=-1)
    assert both.contains(both.sample((4, 3))).all()
    assert not recwarn


# ------------------------------------------------------------------------------------------- guards


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "inside"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_methods_receive_at_least_single_precision(method, dtype, inside):
    result = getattr(Recorder(), method)(torch.ones(3, dtype=dtype))
    assert Recorder.seen[method][0] == inside
    results = result if isinstance(result, tuple) else (result,)
    expected = torch.finfo(inside).dtype if method == "violation" else str(dtype)[6:]
    assert {str(r.dtype)[6:] for r in results} == {expected}


@pytest.mark.parametrize("method", METHODS)
def test_methods_run_with_autocast_off(method):
    with torch.autocast("cpu", torch.bfloat16):
        getattr(Recorder(), method)(torch.ones(3))
        assert torch.is_autocast_enabled("cpu")
    assert Recorder.seen[method] == (torch.float32, False)


def test_guards_keep_names_signatures_and_docstrings():
    assert PositiveDefinite.forward.__name__ == "forward"
    assert list(inspect.signature(Sphere.right_inverse).parameters) == ["self", "value"]


def test_an_inherited_method_is_guarded_once():
    class Child(Recorder):
        pass

    assert Child.forward is Recorder.forward


def test_low_precision_is_rounded_once():
    v = torch.randn(100)
    found = Sphere()(v.bfloat16())
    expected = Sphere()(v.bfloat16().float()).bfloat16()
    assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------- violation


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cls", [Sphere, Symmetric, NonNegative, PositiveDefinite])
def test_an_element_that_is_not_finite_has_an_infinite_violation(cls, bad):
    value = cls().sample((3, 4, 4))
    value[(1,) * value.ndim] = bad
    expected = torch.zeros_like(cls().violation(value), dtype=torch.bool)
    expected[(1,) * expected.ndim] = True
    assert torch.equal(cls().violation(value) == torch.inf, expected)
    assert torch.equal(cls().contains(value), ~expected)


def test_contains_takes_a_tolerance():
    x = torch.tensor([1.0, 1e-3])
    assert not Sphere().contains(x * 2)
    assert Sphere().contains(x * 2, tol=1.1)
    assert Sphere().contains(torch.zeros(0, 4)).shape == (0,)
    assert not NonNegative().contains(torch.tensor(torch.inf), tol=torch.inf)


# --------------------------------------------------------------------------------------- messages


def message(error, function, *arguments):
    with pytest.raises(error) as caught:
        function(*arguments)
    text = str(caught.value)
    assert len(text) < 300
    assert "tensor(" not in text
    return text


def test_an_outsider_is_told_how_far_it_is():
    value = torch.eye(3)
    value[0, 1] = 0.5
    found = re.fullmatch(
        r"Symmetric\(\): the value violates the constraint by 0\.707 "
        r"\(at most (\S+) is rounding\); its project\(value\) gives a nearby member, and a write "
        r"inside of writable\(module\) goes to it\.",
        message(InfeasibleError, Symmetric().right_inverse, value),
    )
    assert found
    assert float(found[1]) == pytest.approx(float(tolerance(value, 2)), rel=0.1)
    assert issubclass(InfeasibleError, ValueError)
    told = message(InfeasibleError, get("symmetric")().right_inverse, value)
    assert "get('symmetric')(...).project(value) gives a nearby member" in told


def test_an_outsider_in_a_batch_is_told_where_it_is():
    value = torch.eye(3).repeat(2, 4, 1, 1)
    value[1, 2, 0, 1] = 100
    text = message(InfeasibleError, Symmetric().right_inverse, value)
    assert "by 141 at index (1, 2) (at most" in text


def test_the_worst_element_is_named_against_its_own_tolerance():
    # The first one is larger, and its violation too, but it is rounding there.
    value = torch.stack([torch.full((2, 2), 1e6), torch.eye(2)])
    value[0, 0, 1] += 0.0625
    value[1, 0, 1] = 0.01
    assert "at index (1,)" in message(InfeasibleError, Symmetric().right_inverse, value)


def test_a_large_tensor_is_not_printed():
    value = torch.randn(500, 500)
    message(InfeasibleError, Symmetric().right_inverse, value)
    value[3, 4] = torch.nan
    text = message(ValueError, Symmetric().right_inverse, value)
    assert text == "Symmetric() needs finite values, but 1 of 250000 are NaN or infinite."
    message(ValueError, Symmetric().project, value)


@pytest.mark.parametrize("method", ["right_inverse", "project", "violation"])
def test_shapes(method):
    constraint = Symmetric()
    assert message(ValueError, getattr(constraint, method), torch.ones(3)) == (
        "Symmetric() needs a tensor of at least 2 dimensions, but the shape is (3,)."
    )
    assert message(ValueError, getattr(constraint, method), torch.ones(4, 2, 3)) == (
        "Symmetric(): each element must be square, but the shape is (4, 2, 3)."
    )
    assert "at least one dimension" in message(
        ValueError, getattr(Sphere(), method), torch.tensor(1.0)
    )


@pytest.mark.parametrize("method", ["right_inverse", "project"])
def test_types(method):
    function = getattr(Symmetric(), method)
    assert message(TypeError, function, [[1.0]]) == "Symmetric() needs a tensor, got list."
    assert message(TypeError, function, torch.eye(2).int()) == (
        "Symmetric() needs a real floating-point tensor, got torch.int32."
    )
    assert "real floating-point" in message(TypeError, function, torch.eye(2) * 1j)
    assert "floating-point or complex" in message(
        TypeError, getattr(Recorder(), method), torch.ones(2, dtype=torch.int64)
    )


def test_an_empty_batch_is_a_batch_of_members():
    assert Symmetric().right_inverse(torch.zeros(0, 3, 3)).shape == (0, 3, 3)


# ---------------------------------------------------------------------------- identity and spelling


def test_repr_and_spec_hold_the_arguments_off_their_defaults():
    assert repr(Sphere()) == "Sphere()"
    assert repr(Sphere(2.0)) == "Sphere(radius=2.0)"
    assert Sphere(2.0).arguments() == {"radius": 2.0}
    assert Sphere(1.0).spec() == {"name": "tests.healthy:Sphere"}
    assert Sphere(radius=2.0).spec() == {"name": "tests.healthy:Sphere", "radius": 2.0}


def test_an_argument_that_equals_the_default_in_another_type_is_kept():
    assert Sphere(1).spec() == {"name": "tests.healthy:Sphere", "radius": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PositiveDefinite", "positive_definite"),
        ("Sphere", "sphere"),
        ("PSDLowRank", "psd_low_rank"),
        ("L1Ball", "l1_ball"),
        ("already_snake", "already_snake"),
    ],
)
def test_snake_case(name, expected):
    assert snake_case(name) == expected


def test_canonical_is_the_identity_by_default():
    assert not Sphere().has_canonical()
    v = torch.randn(3)
    assert Sphere().canonical(v)[0] is v


def test_a_changed_argument_is_counted():
    constraint = Sphere()
    before = constraint._revision
    constraint.radius = 2.0
    assert constraint._revision > before


@pytest.mark.parametrize("answer", [lambda v: v.abs().max(), lambda v: v.abs()])
def test_a_violation_of_another_shape_is_told(answer):
    class Odd(NonNegative):
        event_dim = 1

        def violation(self, value):
            return answer(value)

    with pytest.raises(ValueError, match=r"^Odd\(\): `violation` must give .* shape \(2,\) here"):
        Odd().violation(torch.ones(2, 3))


def test_a_class_without_examples_is_not_taken_for_tried():
    class Unexampled(NonNegative):
        examples = ()

    for ask in (check, trials):
        with pytest.raises(ValueError, match="Unexampled has no examples"):
            ask(Unexampled)


@pytest.mark.parametrize(
    "spec",
    [
        *("ball", "correlation", "l1_ball", "low_rank(rank=2)", "nonnegative", "orthogonal"),
        *("positive", "positive_definite", "spectral_norm", "sphere", "symmetric", "weight_norm"),
    ],
)
@pytest.mark.parametrize("how", ["class", "mixin", "set", "set later", "set on an object"])
def test_another_map_has_other_derivatives_and_canonical_parameters(spec, how):
    """Derivatives and canonical parameters of a class are not inherited by one with another map."""
    name, _, rank = spec.partition("(rank=")
    given = {"rank": int(rank[:-1])} if rank else {}
    kind = get(name)
    one = kind(**given)

    def forward(self, *params):
        return 3 * kind.forward(self, *params)

    methods = {
        "forward": forward,
        "right_inverse": lambda self, value: one.right_inverse(value / 3),
        "violation": lambda self, value: one.violation(value / 3),
    }
    late = {"forward": methods.pop("forward")} if how.startswith("set") else {}
    bases = (type("Threefold", (), methods), kind) if how == "mixin" else (kind,)
    cls = type("Derived", bases, {} if how == "mixin" else methods)
    if how == "set":
        cls.forward = late["forward"]
    derived = cls(**given)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    for layer in model:
        layer.weight.data.copy_(3 * one.sample((4, 4), dtype=torch.double))
        ours.register_parametrization(layer, "weight", copy.deepcopy(derived))
    if how.endswith(("later", "object")):
        model(torch.eye(4, dtype=torch.double)).sum().backward()
    if how == "set later":
        cls.forward = forward
    if how == "set on an object":
        for here in (derived, *(layer.parametrizations.weight[0] for layer in model)):
            here.forward = types.MethodType(forward, here)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        lists = [layer.parametrizations.weight for layer in model]
        params = [[p.detach().requires_grad_() for p in found.parameters()] for found in lists]
        x = torch.eye(4, dtype=torch.double)[:2]
        plain = x
        for p in params:
            plain = plain @ derived(*p).mT
        expected = torch.autograd.grad(plain.sin().sum(), [t for p in params for t in p])
        optimizer.zero_grad()
        model(x).sin().sum().backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            assert_close(p.grad, gradient)
        optimizer.step()
        for layer, p in zip(model, params, strict=True):
            for tensor, gradient in zip(p, expected[: len(p)], strict=True):
                tensor.data.sub_(gradient, alpha=0.01)
            expected = expected[len(p) :]
            assert_close(layer.weight.detach(), derived(*p).detach())


def test_a_class_without_event_dim_is_told_what_it_is():
    def defined(**more):
        kept = {k: v for k, v in vars(Sphere).items() if k not in ("event_dim", "__init__")}
        return type("Mine", (Constraint,), {**kept, **more})

    def init(self):
        super(type(self), self).__init__()

    def init_with(self):
        super(type(self), self).__init__()
        self.event_dim = 1

    for cls in (defined(), defined(__init__=init)):
        assert "Mine must say how many trailing dimensions" in message(TypeError, cls)
    assert defined(event_dim=1)().event_dim == defined(__init__=init_with)().event_dim == 1


@pytest.mark.parametrize("method", ["right_inverse", "violation", "project"])
def test_a_method_that_returns_nothing_is_told_what_it_should(method):
    mine = type("Mine", (Sphere,), {method: lambda self, value: None})()
    told = message(TypeError, getattr(mine, method), torch.tensor([1.0, 0.0]))
    assert re.search(rf"`{method}` must return .*tensor.* returned nothing: its `return`", told)


def test_a_right_inverse_that_returns_no_tensors_is_told_what_it_should():
    mine = type("Mine", (Sphere,), {"right_inverse": lambda self, value: (value, 1.0)})()
    told = message(TypeError, mine.right_inverse, torch.tensor([1.0, 0.0]))
    assert told.endswith("a tuple of as many as `forward` takes, and returned float.")


@pytest.mark.parametrize("examples", [({}, (4,)), (({},),), (({}, 4),), (((4,), {}),), {}, ({},)])
def test_examples_that_are_no_pairs_are_told_what_they_should_be(examples):
    mine = type("Mine", (Sphere,), {"examples": examples})
    told = message(TypeError, lambda: trials(mine))
    assert "Mine.examples must be a tuple of pairs" in told
    assert "write `examples = (({}, (4,)),)`" in told
