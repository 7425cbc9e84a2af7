"""Balls, affine subspaces and other sets of vectors: projections, references, optima."""

import geoopt
import pytest
import torch
from torch import nn

import constrained
from constrained.testing.case import unpack
from constraints import Affine, Ball, FrobeniusNorm, MaxNorm, MinMaxNorm, Oblique, SumToZero

A = [[1.0, 2.0, 0.0, 0.5, 1.0], [0.0, 1.0, -3.0, 2.0, 1.0]]
VECTORS = [
    Affine(A=A, b=[1.0, -2.0]),
    Ball(),
    Ball(radius=2, p=3),
    MaxNorm(bound=2),
    MinMaxNorm(low=1, high=2),
    SumToZero(),
]
MATRICES = [FrobeniusNorm(radius=3), Oblique()]


@pytest.mark.parametrize("constraint", VECTORS + MATRICES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_parameter_gives_a_member_and_a_gradient(constraint, scale, dtype):
    start = unpack(constraint.right_inverse(constraint.project(torch.randn(3, 5, dtype=dtype))))
    free = [(scale * torch.randn(p.shape, dtype=dtype)).requires_grad_() for p in start]
    value = constraint(*free)
    assert value.isfinite().all() and constraint.contains(value).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), free))


@pytest.mark.parametrize("constraint", [*VECTORS[1:], *MATRICES], ids=str)
def test_long_vectors_single_entries_and_empty_batches(constraint):
    for shape in ((512, 512), (3, 1), (1, 512)):
        value = constraint.project(torch.randn(shape))
        assert constraint.contains(value).all()
        free = unpack(constraint.right_inverse(value))
        assert torch.allclose(constraint(*free), value, atol=1e-5)
    empty = torch.zeros(0, 4, 5)
    free = unpack(constraint.right_inverse(empty))
    assert constraint(*free).shape == constraint.project(empty).shape == empty.shape
    assert constraint.violation(empty).shape == (0, 4)[: 3 - constraint.event_dim]


def test_projections_onto_balls_are_those_of_their_definition():
    x = 3 * torch.randn(50, 6, dtype=torch.float64)
    ball = Ball(radius=1.5).project(x)
    expected = x * (1.5 / x.norm(dim=-1, keepdim=True)).clamp(max=1)
    assert torch.allclose(ball, expected)


def test_members_of_geoopt():
    sphere = geoopt.Sphere().random(7, 5)
    assert MinMaxNorm(low=0.5, high=1).contains(sphere).all()
    oblique = torch.nn.functional.normalize(torch.randn(5, 4), dim=0)
    assert Oblique().contains(oblique)
    # geoopt's sphere looks at the last dimension.
    made = Oblique()(torch.randn(5, 4))
    assert geoopt.Sphere().check_point_on_manifold(made.mT)
    assert geoopt.Sphere().check_point_on_manifold(FrobeniusNorm()(made).flatten())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_solutions_of_least_squares_are_affine_members(k):
    A = torch.randn(k, 5, dtype=torch.float64)
    b = torch.randn(k, dtype=torch.float64)
    x = torch.linalg.lstsq(A, b, driver="gelsd").solution
    constraint = Affine(A=A, b=b)
    assert constraint.contains(x)
    assert constraint.dimension((5,)) == 5 - k
    assert torch.allclose(constraint.project(torch.zeros(5, dtype=torch.float64)), x)
    layer = nn.Linear(5, 3)
    constrained.constrain(layer, "weight", constraint)
    assert torch.allclose(layer.weight @ A.float().mT, b.float().expand(3, k), atol=1e-5)
    spec = constrained.spec(layer)["weight"]
    again = constrained.constrain(nn.Linear(5, 3), "weight", spec)
    assert torch.allclose(again.weight @ A.float().mT, b.float().expand(3, k), atol=1e-5)


def starts(shape):
    return {
        "random": torch.randn(shape, dtype=torch.float64),
        "zeros": torch.zeros(shape, dtype=torch.float64),
        "ones": torch.ones(shape, dtype=torch.float64),
        "large": 5 * torch.randn(shape, dtype=torch.float64),
        "small": 1e-4 * torch.randn(shape, dtype=torch.float64),
    }


def reach(constraint, target, make, steps):
    """The largest relative distance from where training ends to the projection of the target."""
    nearest = constraint.project(target)
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.stack([*starts(target.shape).values()])))
    constrained.constrain(layer, "x", constraint)
    optimizer = make(layer.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer.x - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    return float(((layer.x.detach() - nearest).norm(dim=(-2, -1)) / nearest.norm()).amax())


@pytest.mark.parametrize(
    ("constraint", "scale"),
    [(c, s) for c in (Affine(A=A, b=[1.0, -2.0]), SumToZero(), *MATRICES) for s in (0.5, 5.0)],
    ids=str,
)
def test_adam_reaches_the_nearest_member_from_anywhere(constraint, scale):
    target = scale * torch.randn(3, 5, dtype=torch.float64)
    assert reach(constraint, target, lambda p: torch.optim.Adam(p, lr=0.3), 400) < 1e-3


@pytest.mark.parametrize("scale", [0.1, 5.0])
@pytest.mark.parametrize(
    "constraint", [Ball(), MaxNorm(bound=2), MinMaxNorm(low=1, high=2)], ids=str
)
def test_sgd_reaches_the_nearest_member_from_anywhere(constraint, scale):
    target = scale * torch.randn(3, 5, dtype=torch.float64)
    assert reach(constraint, target, lambda p: torch.optim.SGD(p, lr=0.1), 500) < 1e-3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ball(radius=0)", "positive and finite, got 0"),
        ("ball(p=0.5)", "p must be 1 or more, got 0.5"),
        ("max_norm", "needs the argument 'bound'"),
        ("min_max_norm(low=2, high=1)", "low must be less than high"),
        ("affine(A=[[1, 1, 1], [1, 1, 1]], b=[0, 1])", "have no solution"),
        ("affine(A=[[1, 1, 1]], b=[0, 1])", r"shape \(k, n\)"),
        ("affine(A=[[1, 1], [1]], b=[0, 1])", "nested lists of numbers"),
        ("affine(A=[[1, 1]], b=[0])", "must have 2 entries"),
    ],
)
def test_what_does_not_fit_is_refused(spec, words):
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=words) as error:
        constrained.constrain(layer, "weight", spec)
    assert str(error.value).startswith("'weight': ")
    assert type(layer) is nn.Linear
