"""Bounded rank: round trips, balanced factors, best approximations, degenerate members."""

import geotorch
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import constrained
from constrained import tolerance
from constraints import FixedRank, LowRank, RankOne

DTYPES = [torch.float32, torch.float64]


def relative(found, expected):
    return ((found - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constraint", [LowRank(2), FixedRank(2)], ids=str)
def test_a_small_product_of_large_factors_has_the_rank_too(constraint, dtype):
    # Columns that cancel but for a thousandth: the factors' rounding would be a violation.
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(20, 8, dtype=dtype, generator=generator) for _ in range(4))
    U = torch.stack([a, a + 1e-3 * b], dim=-1)
    V = torch.stack([c, -c + 1e-3 * d], dim=-1)
    assert constraint.contains(constraint(U, V)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 1, 1), (9, 4, 2), (4, 9, 3), (60, 60, 5)], ids=str)
def test_round_trip(dtype, scale, size):
    m, n, rank = size
    constraint = LowRank(rank)
    x = scale * constraint.sample((3, m, n), dtype=dtype)
    U, V = constraint.right_inverse(x)
    assert U.shape == (3, m, rank)
    assert V.shape == (3, n, rank)
    assert U.is_contiguous()
    assert V.is_contiguous()
    assert relative(constraint(U, V), x) <= 16 * torch.finfo(dtype).eps


def test_the_factors_are_balanced():
    x = LowRank(3).sample((8, 5), dtype=torch.float64)
    U, V = LowRank(3).right_inverse(x)
    sigma = torch.diag(torch.linalg.svdvals(x)[:3])
    torch.testing.assert_close(U.mT @ U, sigma)
    torch.testing.assert_close(V.mT @ V, sigma)


def test_a_member_of_smaller_rank_keeps_all_directions_live():
    rank_2 = LowRank(2).sample((3, 8, 6), dtype=torch.float64)
    rank_2[1] = 0
    U, V = LowRank(4).right_inverse(rank_2)
    largest = torch.linalg.svdvals(rank_2)[:, 0]
    largest[1] = 1
    norms = U.square().sum(-2)
    torch.testing.assert_close(norms[:, 2:], largest[:, None].expand(3, 2))
    gram = U.mT @ U
    torch.testing.assert_close(gram, torch.diag_embed(norms))
    assert V[:, :, 2:].abs().max() < 1e-14
    torch.testing.assert_close(LowRank(4)(U, V), rank_2)


@pytest.mark.parametrize("constraint", [LowRank(2), RankOne()], ids=str)
def test_training_leaves_the_zero_matrix(constraint):
    # geotorch's low_rank stalls under SGD there.
    target = constraint.sample((6, 5), generator=torch.Generator().manual_seed(0))
    params = [p.requires_grad_() for p in constraint.right_inverse(torch.zeros(6, 5))]
    optimizer = torch.optim.SGD(params, lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        (constraint(*params) - target).square().sum().backward()
        optimizer.step()
    assert relative(constraint(*params).detach(), target) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6])
def test_every_scale(dtype, scale):
    for constraint, shapes in ((LowRank(2), ((4, 2), (3, 2))), (RankOne(), ((4,), (3,)))):
        params = [(scale * torch.randn(s, dtype=dtype)).requires_grad_() for s in shapes]
        value = constraint(*params)
        gradients = torch.autograd.grad(value.sum(), params)
        assert constraint.contains(value)
        assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_projection_is_the_truncated_svd(dtype, scale):
    x = scale * torch.randn(2, 7, 5, dtype=dtype)
    constraint = LowRank(2)
    left, sigma, right = torch.linalg.svd(x, full_matrices=False)
    expected = left[..., :2] * sigma[..., None, :2] @ right[..., :2, :]
    found = constraint.project(x)
    assert relative(found, expected) <= 32 * torch.finfo(dtype).eps
    assert constraint.contains(found).all()
    assert relative(constraint.project(found), found) <= 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(constraint.violation(x), sigma[..., 2])
    torch.testing.assert_close(torch.linalg.matrix_norm(x - found, 2), sigma[..., 2])


@pytest.mark.parametrize("constraint", [LowRank(2), RankOne()], ids=str)
def test_degenerate_tensors(constraint):
    for x in (torch.zeros(5, 4), torch.ones(5, 4), torch.eye(5, 4)):
        member = constraint.project(x)
        assert constraint.contains(member)
        back = constraint(*constraint.right_inverse(member))
        assert (back - member).norm() <= tolerance(member, 2)


def test_full_rank_is_the_whole_space():
    constraint = LowRank(3)
    x = torch.randn(2, 3, 5)
    assert constraint.violation(x).tolist() == [0.0, 0.0]
    assert relative(constraint(*constraint.right_inverse(x)), x) < 1e-6
    assert constraint.dimension((3, 5)) == 15


def test_outsiders():
    x = torch.diag(torch.tensor([3.0, 2.0, 0.5]))
    assert LowRank(2).violation(x) == pytest.approx(0.5)
    assert RankOne().violation(x) == pytest.approx(2.0)
    with pytest.raises(constrained.InfeasibleError, match=r"low_rank\(rank=2\): the .* by 0.5 "):
        LowRank(2).right_inverse(x)


def test_rank_one():
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    constraint = RankOne()
    assert torch.equal(constraint(x, y), torch.outer(x, y))
    value = constraint.sample((2, 3, 4, 5))
    left, right = constraint.right_inverse(value)
    assert left.shape == (2, 3, 4)
    assert right.shape == (2, 3, 5)
    torch.testing.assert_close(left.norm(dim=-1), right.norm(dim=-1))
    torch.testing.assert_close(constraint(left, right), value)
    assert constraint.dimension((4, 5)) == 8


@pytest.mark.parametrize("rank", [1, 2])
def test_no_direction_is_dead_at_a_member_of_full_rank(rank):
    constraint = LowRank(rank)
    U, V = constraint.right_inverse(constraint.sample((5, 4), dtype=torch.float64))
    jacobians = torch.func.jacrev(constraint, argnums=(0, 1))(U, V)
    jacobian = torch.cat([j.reshape(20, -1) for j in jacobians], -1)
    assert torch.linalg.matrix_rank(jacobian) == constraint.dimension((5, 4)) == rank * (9 - rank)


def test_derivatives():
    params = [torch.randn(2, s, 2, dtype=torch.float64, requires_grad=True) for s in (4, 3)]
    assert gradcheck(LowRank(2), params, check_forward_ad=True)
    assert gradgradcheck(LowRank(2), params)
    params = [torch.randn(2, s, dtype=torch.float64, requires_grad=True) for s in (4, 3)]
    assert gradcheck(RankOne(), params, check_forward_ad=True)
    assert gradgradcheck(RankOne(), params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_leaves_members(dtype):
    for n in (4, 64, 256):
        assert LowRank(3).contains(LowRank(3).sample((n, n), dtype=dtype))


def test_samples():
    x = LowRank(3).sample((50, 40, 30), generator=torch.Generator().manual_seed(4))
    assert float(x.var()) == pytest.approx(1.0, rel=0.1)
    assert (torch.linalg.matrix_rank(x) == 3).all()


def test_members_of_geotorch_are_members():
    layer = torch.nn.Linear(7, 5)
    geotorch.low_rank(layer, "weight", rank=2)
    assert LowRank(2).contains(layer.weight)


@pytest.mark.parametrize(
    ("rank", "kind", "message"),
    [
        (0, ValueError, "low_rank: rank must be at least 1, got 0."),
        (2.0, TypeError, "low_rank: rank must be an integer, got 2.0."),
        (True, TypeError, "low_rank: rank must be an integer, got True."),
    ],
)
def test_wrong_arguments(rank, kind, message):
    with pytest.raises(kind) as error:
        LowRank(rank)
    assert str(error.value) == message


def test_shapes():
    with pytest.raises(ValueError) as error:
        LowRank(4).check_shape((7, 3))
    assert str(error.value) == (
        "low_rank(rank=4): each element must have at least 4 rows and columns to hold a matrix of "
        "that rank, but the shape is (7, 3)."
    )
    with pytest.raises(ValueError, match=r"rank_one\(\): each element must have at least one row"):
        RankOne().check_shape((0, 3))
