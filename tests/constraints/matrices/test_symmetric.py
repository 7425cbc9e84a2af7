"""Symmetric and skew matrices: exact values, projections, derivatives."""

import geotorch
import pytest
import torch
from torch.autograd import gradcheck

import constrained
from constraints import Skew, Symmetric
from constraints.bases.linear_space import LinearSpace

BOTH = [Symmetric(), Skew()]
LINEAR = [
    pytest.param(cls(**kwargs), event, id=f"{cls(**kwargs)}-{event}")
    for cls in map(constrained.get, constrained.names())
    if issubclass(cls, LinearSpace)
    for kwargs, event in cls.examples
]
X = torch.tensor([[1.0, 4.0], [0.0, 1.0]])


def test_values():
    assert Symmetric()(X).tolist() == [[1.0, 2.0], [2.0, 1.0]]
    assert Skew()(X).tolist() == [[0.0, 2.0], [-2.0, 0.0]]
    assert torch.equal(Symmetric()(X) + Skew()(X), X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("constraint", BOTH, ids=str)
def test_values_are_exact_and_stay(constraint, dtype):
    sign = 1 if constraint.name == "symmetric" else -1
    for scale in (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e4):
        W = constraint((scale * torch.randn(3, 5, 5)).to(dtype))
        assert torch.equal(W, sign * W.mT)
        assert constraint.violation(W).max() == 0
        assert torch.equal(constraint.right_inverse(W), W)
        assert torch.equal(constraint(W), W)
        assert torch.equal(constraint.project(W), W)


@pytest.mark.parametrize("constraint", BOTH, ids=str)
def test_single_entries(constraint):
    # The set is the line, or a point.
    value = constraint(torch.tensor([[3.0]]))
    assert value.tolist() == [[3.0 if constraint.name == "symmetric" else 0.0]]
    assert constraint.contains(value)
    assert constraint.dimension((1, 1)) == (1 if constraint.name == "symmetric" else 0)


@pytest.mark.parametrize(("constraint", "dimension"), [(Symmetric(), 15), (Skew(), 10)], ids=str)
def test_no_direction_is_dead(constraint, dimension):
    jacobian = torch.func.jacrev(constraint)(torch.zeros(5, 5)).reshape(25, 25)
    assert torch.linalg.matrix_rank(jacobian) == dimension == constraint.dimension((5, 5))


def test_violation_is_the_largest_entry_of_the_other_part():
    assert Symmetric().violation(X) == 2
    assert Skew().violation(X) == 2
    with pytest.raises(constrained.InfeasibleError, match=r"symmetric\(\): .* by 2 "):
        Symmetric().right_inverse(X)


@pytest.mark.parametrize("constraint", BOTH, ids=str)
def test_projection_is_orthogonal(constraint):
    Y = torch.randn(6, 6, dtype=torch.float64)
    W = constraint.sample((6, 6), dtype=torch.float64)
    assert abs(float(((Y - constraint.project(Y)) * W).sum())) < 1e-12


@pytest.mark.parametrize("constraint", BOTH, ids=str)
def test_derivatives(constraint):
    Y = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(constraint, Y, check_forward_ad=True)


@pytest.mark.parametrize("constraint", BOTH, ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (0, 0)])
def test_shapes(constraint, shape):
    with pytest.raises(ValueError) as error:
        constraint.check_shape(shape)
    assert str(error.value) == (
        f"{constraint}: each element must be a square matrix with a row or more, "
        f"but the shape is {shape}."
    )


def test_g11_a_symmetric_weight_can_be_assigned():
    # geotorch 0.4's symmetric has no right inverse.
    layer = torch.nn.Linear(4, 4, bias=False)
    constrained.constrain(layer, "weight", Symmetric())
    W = Symmetric().sample((4, 4))
    layer.weight = W
    assert torch.equal(layer.weight, W)


@pytest.mark.parametrize("name", ["symmetric", "skew"])
def test_members_of_geotorch_are_members(name):
    layer = torch.nn.Linear(5, 5)
    getattr(geotorch, name)(layer, "weight")
    assert constrained.get(name)().contains(layer.weight)


def test_names():
    assert constrained.get("skew_symmetric").name == "skew"
    assert constrained.get("antisymmetric").name == "skew"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("constraint", "event"), LINEAR)
def test_a_small_value_of_large_parameters_is_a_member(constraint, event, dtype):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(100, *event, generator=generator, dtype=dtype)
    W = constraint(X)
    assert constraint.contains(constraint(1e4 * (X - W) + 1e-2 * W)).all()
