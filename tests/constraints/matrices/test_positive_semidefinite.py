"""Positive semidefinite matrices and correlations: references, degenerate members, optima."""

import geotorch
import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import constraints as torch_constraints
from torch.distributions.transforms import CorrCholeskyTransform

import constrained
from constrained import constrain
from constrained.constraint.tolerance import tolerance
from constrained.testing.bounds import STEPS
from constraints import (
    Correlation,
    CorrelationCholesky,
    FixedRank,
    PositiveSemidefinite,
    PSDFixedRank,
    PSDLowRank,
)

DOUBLE = torch.float64

CONES = [PositiveSemidefinite(), PSDLowRank(rank=2), PSDFixedRank(rank=2)]


def holder(value, constraint):
    module = nn.Module()
    module.weight = nn.Parameter(value.clone())
    return constrain(module, "weight", constraint)


def train(module, loss, make, steps):
    optimizer = make(module.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module.weight).backward()
        optimizer.step()
        schedule.step()
    return module.weight.detach()


class TestDegenerateMembers:
    def test_every_singular_matrix_of_rank_one_is_a_member(self):
        # A test for eigenvalues of at least zero refuses most of these.
        x = torch.randn(100, 8)
        W = x.unsqueeze(-1) * x.unsqueeze(-2)
        assert PositiveSemidefinite().contains(W).all()
        assert PSDLowRank(rank=1).contains(W).all()
        for constraint in (PositiveSemidefinite(), PSDLowRank(rank=1)):
            free = constraint.right_inverse(W)
            free = free if isinstance(free, tuple) else (free,)
            apart = torch.linalg.matrix_norm(constraint(*free) - W)
            assert (apart <= STEPS * tolerance(W, 2)).all()

    @pytest.mark.parametrize("constraint", CONES, ids=str)
    def test_g02_asymmetric_matrices_are_refused(self, constraint):
        with pytest.raises(ValueError, match="violates"):
            constraint.right_inverse(torch.eye(4) + 100 * torch.eye(4).roll(1, 0))

    @pytest.mark.parametrize("constraint", [PositiveSemidefinite(), PSDLowRank(rank=2)], ids=str)
    @pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
    def test_g05_training_leaves_zero(self, constraint, make):
        target = constraint.sample((5, 5), generator=torch.Generator().manual_seed(0))
        module = holder(torch.zeros(5, 5), constraint)
        found = train(module, lambda W: (W - target).square().sum(), lambda p: make(p, lr=0.1), 750)
        assert (found - target).norm() < 1e-2 * target.norm()

    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
    @pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
    def test_a_direction_that_does_not_lower_the_loss_is_left(self, make, dtype):
        # The second eigenvector of the start is one of the gradient too, along which the optimum
        # has nothing: only another direction lowers the loss.
        start = torch.diag_embed(torch.tensor([[5.0, 0.0, 0.0], [5.0, 1.0, 0.0]], dtype=dtype))
        target = torch.diag(torch.tensor([5.0, -1.0, 1.0], dtype=dtype))
        module = holder(start, PSDLowRank(rank=2))
        found = train(
            module, lambda W: (W - target).square().sum(), lambda p: make(p, lr=0.05), 600
        )
        expected = torch.diag(torch.tensor([5.0, 0.0, 1.0], dtype=dtype))
        torch.testing.assert_close(found, expected.expand(2, 3, 3), rtol=0, atol=1e-2)

    def test_there_zero_cannot_be_left(self):
        with torch.random.fork_rng():
            layer = nn.Linear(5, 5, bias=False)
            geotorch.positive_semidefinite(layer, "weight")
        layer.weight = torch.zeros(5, 5)
        (layer.weight - torch.eye(5)).square().sum().backward()
        assert all(p.grad.abs().max() < 1e-6 for p in layer.parameters())

    @pytest.mark.parametrize("constraint", [FixedRank(rank=2), PSDFixedRank(rank=2)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
    def test_the_rank_does_not_fall(self, constraint, dtype):
        shape = (6, 6)
        for value in (torch.zeros(shape), torch.ones(shape), torch.diag(torch.arange(6.0) == 1)):
            inside = constraint.project(value.to(dtype))
            assert torch.linalg.matrix_rank(inside) == 2
        free = constraint.right_inverse(constraint.sample(shape, dtype=dtype))
        free = free if isinstance(free, tuple) else (free,)
        for scale in (0.0, 1e-6, 1.0, 1e6):
            first = [scale * torch.ones_like(p) for p in free]
            value = constraint(*first)
            s = torch.linalg.svdvals(value.double())
            assert s[1] > 0.25 * torch.finfo(dtype).eps * s[0] and s[2] < 1e-6 * s[0]


class TestAgainstOtherLibraries:
    @pytest.mark.parametrize(
        ("constraint", "there"),
        [
            (PositiveSemidefinite(), lambda: geotorch.PSSD(size=(6, 6))),
            (PSDLowRank(rank=2), lambda: geotorch.PSSDLowRank(size=(6, 6), rank=2)),
            (PSDFixedRank(rank=2), lambda: geotorch.PSSDFixedRank(size=(6, 6), rank=2)),
            (FixedRank(rank=2), lambda: geotorch.FixedRank(size=(6, 6), rank=2)),
        ],
        ids=lambda x: str(x) if isinstance(x, constrained.Constraint) else "",
    )
    def test_geotorch(self, constraint, there):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            manifold = there()
            theirs = manifold.sample()
        assert constraint.contains(theirs.detach()).all()
        ours = constraint.sample((6, 6), generator=torch.Generator().manual_seed(0))
        assert manifold.in_manifold(ours)

    def test_scipy_random_correlations(self):
        eigenvalues = torch.tensor([2.5, 1.0, 0.4, 0.1], dtype=DOUBLE)
        for seed in range(5):
            W = scipy.stats.random_correlation.rvs(eigenvalues.numpy(), random_state=seed)
            W = torch.tensor(W, dtype=DOUBLE)
            assert Correlation().contains(W, tol=1e-12)
            W = Correlation().project(W)
            torch.testing.assert_close(Correlation()(Correlation().right_inverse(W)), W)

    def test_torch_distributions(self):
        L = CorrCholeskyTransform()(torch.randn(20, 10, dtype=DOUBLE))
        constraint = CorrelationCholesky()
        assert constraint.contains(L).all()
        torch.testing.assert_close(constraint(constraint.right_inverse(L)), L)
        ours = constraint.sample((20, 5, 5), dtype=DOUBLE)
        assert torch_constraints.corr_cholesky.check(ours).all()
        assert Correlation().contains(ours @ ours.mT).all()

    def test_positive_semidefinite_of_torch_distributions(self):
        ours = PositiveSemidefinite().sample((50, 4, 4), dtype=DOUBLE)
        assert torch_constraints.positive_semidefinite.check(ours).all()
        assert PositiveSemidefinite().contains(torch.zeros(4, 4))


class TestConditioning:
    @pytest.mark.parametrize(("dtype", "decades"), [(torch.float32, 6), (DOUBLE, 12)])
    def test_ill_conditioned_matrices_return(self, dtype, decades):
        Q = torch.linalg.qr(torch.randn(8, 8, dtype=DOUBLE)).Q
        sizes = torch.logspace(0, -decades, 8, dtype=DOUBLE)
        W = ((Q * sizes) @ Q.mT).to(dtype)
        W = (W + W.mT) / 2
        assert torch.equal(PositiveSemidefinite()(W), PositiveSemidefinite().project(W))
        C = Correlation().project(W)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            Correlation()(Correlation().right_inverse(C)), C, rtol=0, atol=30 * eps
        )
        assert torch.linalg.cholesky_ex(C).info == 0
        L = torch.linalg.cholesky(C)
        back = CorrelationCholesky()(CorrelationCholesky().right_inverse(L))
        torch.testing.assert_close(back, L, rtol=0, atol=30 * eps)

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3, 1e6])
    def test_correlations_of_any_parameters(self, scale):
        X = (scale * torch.randn(64, 64)).requires_grad_()
        for constraint in (Correlation(), CorrelationCholesky()):
            W = constraint(X)
            assert constraint.contains(W)
            assert torch.isfinite(torch.autograd.grad(W.sum(), X)[0]).all()
        assert torch.linalg.cholesky_ex(Correlation()(X)).info == 0

    def test_the_diagonal_is_one_exactly(self):
        W = Correlation()(torch.randn(50, 7, 7))
        assert torch.equal(W.diagonal(dim1=-2, dim2=-1), torch.ones(50, 7))


class TestOptima:
    def test_correlation_completion(self):
        # Of all correlation matrices with these entries next to the diagonal, the determinant is
        # largest where the inverse is tridiagonal: the chain, W_ij the product in between.
        known = torch.tensor([0.5, -0.3, 0.8, 0.2], dtype=DOUBLE)
        optimum = torch.eye(5, dtype=DOUBLE)
        for i in range(5):
            for j in range(i + 1, 5):
                optimum[i, j] = optimum[j, i] = known[i:j].prod()

        def loss(W):
            neighbours = W.diagonal(offset=1, dim1=-2, dim2=-1)
            miss = (neighbours - known).square().sum(-1)
            return 100 * miss - torch.linalg.slogdet(W).logabsdet

        near = 0.1 * torch.eye(5) + 0.9 * torch.ones(5, 5)
        starts = torch.stack([torch.eye(5), near, Correlation().sample((5, 5))]).to(DOUBLE)
        module = holder(starts, Correlation())
        found = train(module, lambda W: loss(W).sum(), lambda p: torch.optim.Adam(p, lr=0.03), 750)
        assert (loss(found) <= loss(optimum) + 1e-3 * abs(loss(optimum))).all()
        assert (found - optimum).abs().max() < 0.02

    @pytest.mark.parametrize("rank", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_low_rank_approximation(self, rank):
        target = PositiveSemidefinite().sample((6, 6))
        best = PSDLowRank(rank=rank).project(target)
        for constraint in (PSDLowRank(rank=rank), PSDFixedRank(rank=rank)):
            starts = torch.stack((torch.zeros(6, 6), torch.eye(6), constraint.sample((6, 6))))
            found = train(
                holder(starts, constraint),
                lambda W: (W - target).square().sum(),
                lambda p: torch.optim.Adam(p, lr=0.1),
                500,
            )
            excess = (found - target).square().sum((-2, -1)) - (best - target).square().sum()
            assert (excess < 1e-3 * target.square().sum()).all()


@pytest.mark.parametrize("cls", [FixedRank, PSDLowRank, PSDFixedRank])
@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_wrong_ranks(cls, rank, error):
    with pytest.raises(error, match="rank must be"):
        cls(rank=rank)


def test_ranks_that_do_not_fit():
    with pytest.raises(ValueError, match="at least 7"):
        PSDFixedRank(rank=7).sample((6, 6))
    with pytest.raises(ValueError, match="at least 4"):
        constrain(nn.Linear(3, 5), "weight", "fixed_rank(rank=4)")


def test_errors_of_correlations():
    with pytest.raises(ValueError, match="square"):
        constrain(nn.Linear(3, 5), "weight", "correlation")
    W = torch.eye(3)
    W[1, 1] = 1.5
    with pytest.raises(ValueError, match="0.5"):
        Correlation().right_inverse(W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_without_a_positive_eigenvalue_trains_again(dtype):
    """There the derivative of the map vanishes altogether, and no step would lead out of it."""
    layer = constrain(nn.Linear(3, 3, bias=False, dtype=dtype), "weight", "positive_semidefinite")
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(-torch.eye(3) - torch.ones(3, 3))
    target = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=dtype))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), target, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rank", [2, 5])
def test_a_core_without_a_positive_eigenvalue_trains_again(rank):
    """With columns as short as rounding leaves them, it would take thousands of small steps."""
    constraint = PSDLowRank(rank=rank)
    generator = torch.Generator().manual_seed(0)
    first, target = (
        constraint.sample((5, 5), generator=generator, dtype=torch.float64) for _ in range(2)
    )
    layer = nn.Linear(5, 5, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(first)
    constrain(layer, "weight", constraint)
    with torch.no_grad():
        layer.parametrizations.weight.original1.copy_(-torch.eye(rank))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1 / float(target.square().sum()))
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
