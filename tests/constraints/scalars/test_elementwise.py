"""Constraints on each entry: half-lines, closed sets, angles and masks, against torch."""

import math

import pytest
import torch
from torch import distributions, nn
from torch.distributions import constraints as torchs
from torch.nn.utils import prune

import constrained
from constraints import (
    Angle,
    AtLeast,
    AtMost,
    Box,
    GreaterThan,
    LessThan,
    Masked,
    Negative,
    Nonnegative,
    Nonpositive,
    Positive,
)

OPEN = [Positive(), Negative(), GreaterThan(bound=3), LessThan(bound=-0.1), GreaterThan(bound=-1e4)]
CLOSED = [Nonnegative(), Nonpositive(), AtLeast(bound=3), AtMost(bound=-0.1), Box(low=-1, high=2)]
NUMBERS = [0.0, 1e-38, 1e-6, 1e-3, 0.5, 1.0, 2.0, 3.0, 10.0, 1e3, 1e6, 1e30]
LINE = torch.tensor([sign * x for x in NUMBERS for sign in (1, -1)], dtype=torch.float64)

PEERS = [
    (Positive(), torchs.positive),
    (GreaterThan(bound=3), torchs.greater_than(3.0)),
    (LessThan(bound=-0.1), torchs.less_than(-0.1)),
    (Nonnegative(), torchs.nonnegative),
    (AtLeast(bound=3), torchs.greater_than_eq(3.0)),
    (Box(low=-1, high=2), torchs.interval(-1.0, 2.0)),
]


@pytest.mark.parametrize(("constraint", "peer"), PEERS, ids=lambda x: str(x))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_of_torch_are_members_and_the_reverse(constraint, peer, dtype):
    y = LINE.to(dtype)
    assert peer.check(constraint(y)).all()
    theirs = distributions.transform_to(peer)(torch.randn(1000, dtype=dtype))
    assert constraint.contains(theirs).all()
    # Where they are away from the bound, they come back.
    assert torch.allclose(constraint(constraint.right_inverse(theirs)), theirs)


@pytest.mark.parametrize("constraint", OPEN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_open_half_line_is_never_left(constraint, dtype):
    if abs(constraint.end) * torch.finfo(dtype).eps > 1:
        return
    value = constraint(LINE.to(dtype).clamp(-6e4, 6e4))
    assert value.isfinite().all() and constraint.contains(value).all()
    if dtype.itemsize > 2:
        # In half precision the bound itself may be no number, and its neighbours round to one.
        assert ((value.double() - constraint.end) * constraint.direction > 0).all()


@pytest.mark.parametrize("constraint", CLOSED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_closed_set_is_never_left_and_members_stay_bit_for_bit(constraint, dtype):
    y = LINE.to(dtype)
    value = constraint(y)
    assert (constraint.violation(value) == 0).all()
    inside = constraint.violation(y) == 0
    assert torch.equal(value[inside], y[inside])
    assert torch.equal(constraint.right_inverse(value), value)


@pytest.mark.parametrize("constraint", CLOSED, ids=str)
def test_the_way_back_from_outside_has_a_gradient(constraint):
    y = LINE[LINE.abs() < 1e7].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(constraint(y).sum(), y)
    assert (gradient != 0).all()
    assert (gradient[constraint.violation(y) == 0] == 1).all()


@pytest.mark.parametrize("distance", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("constraint", OPEN[:4], ids=str)
def test_distances_from_the_bound_come_back(constraint, distance):
    x = torch.tensor(constraint.end + constraint.direction * distance)
    back = constraint(constraint.right_inverse(x))
    # Relative to the distance, but for the spacing of numbers around the bound.
    spacing = torch.finfo(torch.float32).eps * abs(constraint.end)
    assert abs(float(back - x)) <= 1e-4 * distance + 2 * spacing


OPTIMA = [
    (Negative(), -0.5, -0.5),
    (Negative(), -3.0, -3.0),
    (GreaterThan(bound=3), 4.0, 4.0),
    (LessThan(bound=-0.1), -5.0, -5.0),
    (Nonpositive(), 2.0, 0.0),
    (Nonpositive(), -2.0, -2.0),
    (AtLeast(bound=3), 1.0, 3.0),
    (AtLeast(bound=3), 4.0, 4.0),
    (AtMost(bound=-0.1), 1.0, -0.1),
    (Box(low=-1, high=2), 5.0, 2.0),
    (Box(low=-1, high=2), -5.0, -1.0),
    (Box(low=-1, high=2), 0.5, 0.5),
]


@pytest.mark.parametrize(("constraint", "target", "optimum"), OPTIMA, ids=str)
def test_adam_reaches_the_nearest_member_from_anywhere(constraint, target, optimum):
    starts = torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0])
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(starts))
    constrained.constrain(layer, "x", constraint)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        (layer.x - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert (layer.x - optimum).abs().max() < 1e-3 * max(1, abs(target))


def test_angles():
    y = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    wrapped = Angle()(y)
    assert (wrapped.abs() <= math.pi).all()
    assert torch.allclose(wrapped.sin(), y.sin(), atol=1e-12)
    assert torch.allclose(wrapped.cos(), y.cos(), atol=1e-12)
    inside = y[y.abs() <= math.pi]
    assert torch.equal(Angle()(inside), inside)
    assert Angle()(torch.tensor(1e30)).abs() <= math.pi


def test_an_angle_is_assigned_as_the_same_angle():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.bias.fill_(3.5)
    constrained.constrain(layer, "bias", "angle")
    assert math.isclose(layer.bias.item(), 3.5 - 2 * math.pi, rel_tol=1e-6)


@pytest.mark.parametrize("start", [0.0, 3.1, -3.1, math.pi, 1.0])
def test_an_optimizer_goes_around_the_circle(start):
    layer = nn.Module()
    layer.register_parameter("x", nn.Parameter(torch.tensor(start)))
    constrained.constrain(layer, "x", "angle")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        # The optimum is beyond the end where the numbers jump.
        (1 - torch.cos(layer.x - 3.5)).backward()
        optimizer.step()
    assert abs(math.remainder(layer.x.item() - 3.5, 2 * math.pi)) < 1e-3
    assert layer.x.abs() <= math.pi


def test_a_mask_of_torch_prune():
    layer = nn.Linear(6, 4)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    mask, expected = layer.weight_mask.clone(), layer.weight.detach().clone()
    prune.remove(layer, "weight")
    constrained.constrain(layer, "weight", Masked(mask))
    assert torch.equal(layer.weight, expected)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, weight_decay=0.1)
    layer(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert ((layer.weight == 0) == (mask == 0)).all()
    spec = constrained.spec(layer)
    assert spec == {"weight": {"name": "masked", "mask": mask.bool().tolist()}}
    assert "masked(mask=<4 x 6>)" in str(constrained.report(layer))
    again = constrained.constrain(nn.Linear(6, 4), spec)
    assert ((again.weight == 0) == (mask == 0)).all()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2)])
def test_masks_of_any_dimension_and_batches(shape):
    mask = torch.ones(shape)
    mask.view(-1)[::2] = 0
    constraint = Masked(mask)
    X = torch.randn(5, *shape)
    assert torch.equal(constraint(X), X * mask)
    assert constraint.violation(X).shape == (5,)
    with torch.device("meta"):
        assert constraint(torch.randn(5, *shape)).is_meta
        assert Masked(mask=[[1, 0]]).dimension((1, 2)) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("greater_than(bound='a')", "must be a number"),
        ({"name": "greater_than", "bound": math.inf}, "bound must be finite, got inf"),
        ({"name": "at_most", "bound": math.nan}, "bound must be finite, got nan"),
        ("box(low=1, high=1)", "low must be less than high"),
        ({"name": "box", "low": -math.inf, "high": 0.0}, "low must be finite"),
        ("masked(mask=[])", "at least one"),
        ("masked(mask=[[1, 2, 0]])", "zeros and ones"),
        ("masked(mask=[[1, 0], [1]])", "nested lists"),
        ("masked(mask=[[1, 0]])", r"shape \(1, 2\) of the mask"),
    ],
)
def test_what_does_not_fit_is_refused(spec, words):
    layer = nn.Linear(3, 3)
    with pytest.raises((ValueError, TypeError), match=words) as error:
        constrained.constrain(layer, "weight", spec)
    assert str(error.value).startswith("'weight': ")
    assert type(layer) is nn.Linear
