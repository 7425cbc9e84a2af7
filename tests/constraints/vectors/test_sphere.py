"""Spheres: vectors of every length, derivatives, samples, geotorch's members."""

import geotorch
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import constrained
from constraints import Sphere

DTYPES = [torch.float32, torch.float64]


def test_values():
    torch.testing.assert_close(Sphere()(torch.tensor([3.0, 4.0])), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(Sphere(10.0)(torch.tensor([-3.0, 4.0])), torch.tensor([-6.0, 8.0]))
    assert Sphere(2.0)(torch.tensor([-1e-3])).tolist() == [-2.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e30])
def test_every_scale(dtype, scale):
    for radius in (1e-3, 1.0, 1e3):
        sphere = Sphere(radius)
        y = (scale * torch.randn(10, 50, dtype=dtype)).requires_grad_()
        value = sphere(y)
        (gradient,) = torch.autograd.grad(value.sum(), y)
        norm = torch.linalg.vector_norm(value.double(), dim=-1)
        assert (norm - radius).abs().max() <= 8 * torch.finfo(dtype).eps * radius
        assert sphere.contains(value).all()
        assert torch.isfinite(gradient).all()


def test_subnormal_vectors_do_not_overflow():
    y = torch.full((3,), 1e-44, requires_grad=True)
    (gradient,) = torch.autograd.grad(Sphere()(y).sum(), y)
    assert torch.isfinite(gradient).all()


def test_round_trip_is_the_identity():
    sphere = Sphere(2.5)
    x = sphere.sample((100, 7))
    assert sphere.right_inverse(x) is x
    torch.testing.assert_close(sphere(x), x, rtol=4e-7, atol=0)


def test_the_derivative_is_the_tangent_projection():
    sphere = Sphere(2.0)
    x = sphere.sample((5,), dtype=torch.float64)
    expected = torch.eye(5, dtype=torch.float64) - torch.outer(x, x) / 4
    torch.testing.assert_close(torch.func.jacrev(sphere)(x), expected)


def test_canonical_is_the_element():
    sphere = Sphere(3.0)
    y = 1e-3 * torch.randn(4, 6)
    (better,) = sphere.canonical(y)
    torch.testing.assert_close(better, sphere(y))
    torch.testing.assert_close(sphere(better), sphere(y))


def test_g19_zero_and_second_derivatives():
    # geotorch 0.4: NaN at zero, and a wrong second derivative right after an assignment.
    sphere = Sphere()
    y = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert sphere(y).tolist() == [1.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(sphere(y).sum(), y, create_graph=True)
    assert gradient.tolist() == [0.0, 1.0, 1.0]
    (second,) = torch.autograd.grad(gradient.square().sum(), y)
    assert torch.isfinite(second).all()
    at_member = sphere.sample((2, 4), dtype=torch.float64).requires_grad_()
    for point in (at_member, torch.randn(3, dtype=torch.float64, requires_grad=True)):
        assert gradcheck(sphere, point, check_forward_ad=True)
        assert gradgradcheck(sphere, point)


def test_violation_and_projection():
    sphere = Sphere(2.0)
    x = sphere.sample((4, 6), dtype=torch.float64)
    for factor in (0.0, 0.5, 1.5, 1e3):
        moved = x.abs().amax(-1) * abs(factor - 1) if factor else torch.full((4,), 2.0).double()
        torch.testing.assert_close(sphere.violation(factor * x), moved)
    torch.testing.assert_close(sphere.project(1e3 * x), x)
    torch.testing.assert_close(sphere.project(1e-3 * x), x)
    assert sphere.project(torch.zeros(3)).tolist() == [2.0, 0.0, 0.0]
    with pytest.raises(constrained.InfeasibleError, match=r"sphere\(radius=2.0\): the value viol"):
        sphere.right_inverse(1.1 * x)


def test_penalty_is_differentiable_everywhere():
    for x in (torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.randn(3)):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(Sphere().violation(x), x)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [3, 100, 3000])
def test_rounding_to_half_precision_leaves_members(dtype, n):
    assert Sphere().contains(Sphere().project(torch.ones(n)).to(dtype))
    assert Sphere().contains(Sphere().sample((20, n), dtype=dtype)).all()


def test_samples_are_uniform():
    x = Sphere(3.0).sample((20_000, 3), generator=torch.Generator().manual_seed(3))
    assert x.mean(0).abs().max() < 0.05
    # Archimedes: each coordinate is uniform on (-radius, radius), with variance radius^2 / 3.
    torch.testing.assert_close(x.var(0), torch.full((3,), 3.0), rtol=0.03, atol=0)


def test_members_of_geotorch_are_members():
    layer = torch.nn.Linear(6, 4)
    geotorch.sphere(layer, "weight", radius=2.0)
    assert Sphere(2.0).contains(layer.weight).all()


@pytest.mark.parametrize(
    ("radius", "kind", "message"),
    [
        (0.0, ValueError, "sphere: radius must be positive and finite, got 0.0."),
        (-1, ValueError, "sphere: radius must be positive and finite, got -1."),
        (float("nan"), ValueError, "sphere: radius must be positive and finite, got nan."),
        ("1", TypeError, "sphere: radius must be a number, got '1'."),
    ],
)
def test_wrong_arguments(radius, kind, message):
    with pytest.raises(kind) as error:
        Sphere(radius)
    assert str(error.value) == message


def test_names():
    assert constrained.get("unit_norm").name == "sphere"
    assert Sphere(1).spec() == {"name": "sphere"}
    assert Sphere(2).spec() == {"name": "sphere", "radius": 2.0}


@pytest.mark.parametrize("length", [1.0, 3.0, 1e-3])
@pytest.mark.parametrize(("name", "shape"), [("sphere", (3, 4)), ("oblique", (4, 3))])
def test_the_gradient_is_that_of_the_map_at_parameters_of_any_length(name, shape, length):
    constraint = constrained.get(name)()
    y = length * constraint.sample(shape, dtype=torch.float64)
    y.requires_grad_()
    gradient = torch.randn(shape, dtype=torch.float64)
    value = constraint(y)
    (expected,) = torch.autograd.grad(value, y, gradient)
    (found,) = constraint.pullback(value.detach(), gradient, y.detach())
    torch.testing.assert_close(found, expected)
