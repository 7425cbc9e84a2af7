"""Steps in place: the same as those of the plain path, and only where they are possible."""

import contextlib
import weakref

import pytest
import torch
from torch import nn

from constrained import NonfiniteGradientError, assert_feasible, constrain
from constrained.attached import attached_constraint
from constrained.constraint.geometry import Geometry
from constrained.training import in_place, projected_step
from constrained.training.in_place import InPlace, plain_rates
from constraints import Nonnegative, Orthogonal, Simplex, Sphere

#: Constraint, shape of the weight. Square matrices from 192 on may land on their set.
CASES = [
    ("orthogonal", (12, 12)),
    ("orthogonal", (40, 7)),
    ("orthogonal", (7, 40)),
    ("orthogonal", (5, 6, 6)),
    ("orthogonal", (200, 200)),
    ("nonnegative", (9, 5)),
    ("box(low=-0.1, high=0.2)", (9, 5)),
    ("sphere", (9, 30)),
    ("sphere(radius=3.0)", (9, 30)),
    ("max_norm(bound=0.5)", (9, 30)),
    ("simplex", (9, 30)),
]


class Tensor(nn.Module):
    def __init__(self, shape, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(
            torch.randn(shape, generator=generator).to(dtype) / shape[-1] ** 0.5
        )
        self.gradient = torch.randn(shape, generator=generator).to(dtype)
        if shape == (200, 200):
            # Of low rank, as that of a layer with a small batch.
            self.gradient = self.gradient[:, :8] @ self.gradient[:8] / 20

    def step(self, optimizer):
        self.weight.grad = self.gradient.clone() + self.weight.detach()
        if self.weight.shape == (200, 200):
            self.weight.grad = self.gradient.clone()
        optimizer.step()


def projected(constraint, shape, dtype=torch.float32):
    return constrain(Tensor(shape, dtype), "weight", constraint, mode="project")


@contextlib.contextmanager
def counted(monkeypatch):
    """How many steps are brought back in place."""
    seen = []
    original = InPlace.bring_back

    def spy(self, parameter):
        seen.append(parameter.shape)
        original(self, parameter)

    with monkeypatch.context() as patch:
        patch.setattr(InPlace, "bring_back", spy)
        yield seen


@contextlib.contextmanager
def by_the_plain_path(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(InPlace, "prepare", lambda *_: False)
        yield


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("constraint", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_five_steps_are_those_of_the_plain_path(constraint, shape, dtype, kind, monkeypatch):
    fast, plain = (projected(constraint, shape, dtype) for _ in range(2))
    ours, other = (OPTIMIZERS[kind](m.parameters()) for m in (fast, plain))
    start = fast.weight.detach().clone()
    with counted(monkeypatch) as seen:
        for _ in range(5):
            fast.step(ours)
    is_smooth_or_numbers = constraint.startswith(("orthogonal", "sphere", "nonnegative", "box"))
    assert len(seen) == (5 if kind != "Adam" or is_smooth_or_numbers else 0)
    with by_the_plain_path(monkeypatch):
        for _ in range(5):
            plain.step(other)
    assert_feasible(fast)
    assert not torch.equal(fast.weight, start)
    if constraint.startswith(("nonnegative", "box")):
        assert torch.equal(fast.weight, plain.weight)
    elif shape == (200, 200):
        # Another curve with the same end to second order in the length of the step.
        far = (plain.weight - start).norm()
        assert (fast.weight - plain.weight).norm() <= 0.05 * far
    else:
        tolerance = 2e-5 if dtype is torch.float32 else 1e-13
        torch.testing.assert_close(fast.weight, plain.weight, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("constraint", "shape"), [c for c in CASES if c[1] != (200, 200)], ids=str)
def test_a_member_that_gets_no_gradient_stays_bit_for_bit(constraint, shape):
    model = projected(constraint, shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.step(optimizer)
    before = model.weight.detach().clone()
    model.weight.grad.zero_()
    optimizer.step()
    assert torch.equal(model.weight, before) or constraint == "simplex"
    torch.testing.assert_close(model.weight, before, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("constraint", "shape"), CASES, ids=str)
@pytest.mark.parametrize("at", [0, -1])
def test_a_gradient_that_is_not_finite_is_told_of_and_left_as_it_was(constraint, shape, bad, at):
    model = projected(constraint, shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.step(optimizer)
    before = model.weight.detach().clone()
    model.weight.grad = model.gradient.clone()
    model.weight.grad.view(-1)[at] = bad
    given = model.weight.grad.clone()
    with pytest.raises(NonfiniteGradientError, match="'weight'.*step 2"):
        optimizer.step()
    assert torch.equal(model.weight, before)
    torch.testing.assert_close(model.weight.grad, given, rtol=0, atol=0, equal_nan=True)
    model.step(optimizer)
    assert_feasible(model)


@pytest.mark.parametrize("constraint", ["sphere", "orthogonal", "max_norm(bound=1.0)"])
def test_a_finite_gradient_whose_squares_overflow_is_not_taken_for_infinite(constraint):
    model = projected(constraint, (6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-24)
    model.weight.grad = model.gradient * 1e22
    before = model.weight.detach().clone()
    optimizer.step()
    assert_feasible(model)
    assert (model.weight != before).any()


def half(dtype):
    def make(model):
        return model.to(dtype)

    return make


def strided(model):
    model.weight.data = model.weight.data.mT.contiguous().mT
    return model


@pytest.mark.parametrize("constraint", ["orthogonal", "sphere", "simplex", "nonnegative"])
@pytest.mark.parametrize(
    "change", [half(torch.bfloat16), half(torch.float16), strided], ids=["bf16", "fp16", "strided"]
)
def test_other_dtypes_and_strides_go_the_plain_path(constraint, change, monkeypatch):
    model = change(projected(constraint, (8, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with counted(monkeypatch) as seen:
        for _ in range(2):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
    assert not seen
    assert_feasible(model)


def test_under_autocast_and_with_a_strided_gradient_the_plain_path_is_gone(monkeypatch):
    model = projected("orthogonal", (8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with counted(monkeypatch) as seen:
        with torch.autocast("cpu", torch.bfloat16):
            model.step(optimizer)
        model.weight.grad = model.gradient.mT
        optimizer.step()
        assert not seen
        model.step(optimizer)
    assert len(seen) == 1
    assert_feasible(model)


def test_a_sharded_tensor_goes_the_plain_path(monkeypatch):
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    if distributed.is_initialized():
        pytest.skip("there is a process group already")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = projected("sphere", (6, 4))
        start = model.weight.detach().clone()
        shard = distribute_tensor(start.clone(), mesh, [Shard(0)])
        model.weight = nn.Parameter(shard)
        model.weight.grad = distribute_tensor(model.gradient, mesh, [Shard(0)])
        with counted(monkeypatch) as seen:
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert not seen
        moved = model.weight.detach().full_tensor()
        torch.testing.assert_close(moved.norm(dim=-1), torch.ones(6))
        assert not torch.equal(moved, start)
    finally:
        distributed.destroy_process_group()


def test_without_a_constrained_parameter_the_hooks_look_at_nothing(monkeypatch):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    monkeypatch.setattr(attached_constraint, "_all", weakref.WeakSet())
    monkeypatch.setattr(projected_step, "_parameters", lambda _: 1 / 0)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [0.5] * 3
    model = projected("nonnegative", (2, 2))
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    del model


def test_a_constraint_that_comes_during_a_step_is_kept_at_its_end():
    layer = Tensor((4, 4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.step(optimizer)

    def closure():
        constrain(layer, "weight", "nonnegative", mode="project")
        layer.weight.grad = torch.full((4, 4), 100.0)
        return 0.0

    optimizer.step(closure)
    assert_feasible(layer)


class OwnTangent(Sphere):
    """Tangents without their first entry."""

    def tangent(self, value, vector):
        found = super().tangent(value, vector).clone()
        found[..., 0] = 0
        return found


class OwnProjection(Nonnegative):
    def project(self, value):
        return value.clamp(min=0.5)


class OwnMap(Orthogonal):
    def forward(self, *params):
        return super().forward(*params)


class OwnFast(Simplex):
    """It has both, and the fast one is the last."""

    def project(self, value):
        return super().project(value)

    def retract_(self, value):
        value.copy_(self.project(value))


def test_a_derived_class_with_another_set_does_not_use_the_fast_method(monkeypatch):
    assert Sphere().is_in_place() and not OwnTangent().is_in_place()
    assert Nonnegative().is_in_place() and not OwnProjection().is_in_place()
    assert Orthogonal().is_in_place() and not OwnMap().is_in_place()
    assert Orthogonal().lands() and not OwnMap().lands()
    assert OwnFast().is_in_place()
    for constraint, least in ((OwnTangent(), None), (OwnProjection(), 0.5)):
        model = projected(constraint, (4, 6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        first = model.weight[:, 0].detach().clone()
        with counted(monkeypatch) as seen:
            model.step(optimizer)
        assert not seen
        if least is None:
            torch.testing.assert_close(model.weight[:, 0], first, atol=1e-3, rtol=0)
            assert (model.weight.grad[:, 0] == 0).all()
        else:
            assert (model.weight >= least).all()


def test_the_defaults_in_place_are_the_plain_methods():
    sphere = Sphere()
    value = sphere.sample((3, 5), generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    expected = sphere.tangent(value, gradient)
    assert Geometry.tangent_(sphere, value, gradient)
    torch.testing.assert_close(gradient, expected)
    moved = value + 0.1
    expected = sphere.retract(moved)
    Geometry.retract_(sphere, moved)
    torch.testing.assert_close(moved, expected)
    assert not Geometry.landing_(sphere, value, gradient, 0.1, {})
    assert not Geometry.has_landed(sphere, value, {})


def test_only_plain_SGD_is_a_step_that_is_known():
    weight = nn.Parameter(torch.ones(3))

    class Other(torch.optim.SGD):
        pass

    assert plain_rates(torch.optim.SGD([weight], lr=0.5)) == {id(weight): 0.5}
    for more in ({"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}):
        assert not plain_rates(torch.optim.SGD([weight], lr=0.5, **more))
    assert not plain_rates(Other([weight], lr=0.5))
    assert not plain_rates(torch.optim.Adam([weight], lr=0.5))
    assert in_place._DTYPES == (torch.float32, torch.float64)
