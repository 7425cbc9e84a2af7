import pytest
import torch

from constrained import constrain
from constraints.math.nearest_of_rank import nearest_of_rank


def of_rank(rank, *shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(*shape, generator=g, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(X, full_matrices=False)
    return (U[..., :rank] * s[..., None, :rank]) @ Vh[..., :rank, :]


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6), (2, 5, 4)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_it_is_the_truncated_decomposition_and_so_is_its_derivative(shape, rank):
    g = torch.Generator().manual_seed(1)
    X = torch.randn(*shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(nearest_of_rank(X, rank), of_rank(rank, *shape, seed=1))
    assert torch.autograd.gradcheck(lambda X: nearest_of_rank(X, rank), X.requires_grad_())


def test_at_a_matrix_of_that_rank_the_derivative_projects_onto_the_tangent_space():
    W = of_rank(3, 20, 12).requires_grad_()
    G = torch.randn(20, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found,) = torch.autograd.grad(nearest_of_rank(W, 3), W, G)
    U, _, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
    U, V = U[:, :3], Vh[:3].T
    expected = U @ (U.T @ G) + G @ V @ V.T - U @ (U.T @ G @ V) @ V.T
    torch.testing.assert_close(found, expected)


def test_zero_has_a_finite_derivative():
    W = torch.zeros(3, 4, requires_grad=True)
    (found,) = torch.autograd.grad(nearest_of_rank(W, 2).sum(), W)
    assert found.isfinite().all()


def test_lbfgs_completes_a_matrix_that_stays_a_plain_parameter():
    M, start = of_rank(3, 40, 40), of_rank(3, 40, 40, seed=1)
    seen = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    model = torch.nn.Module()
    model.W = torch.nn.Parameter(start)
    constrain(model, "W", "low_rank(rank=3)", init="strict", mode="project")
    optimizer = torch.optim.LBFGS(
        model.parameters(), line_search_fn="strong_wolfe", tolerance_grad=1e-12
    )

    def closure():
        optimizer.zero_grad()
        loss = ((model.W - M) * seen).square().sum()
        loss.backward()
        return loss

    first = float(closure().detach())
    for _ in range(20):
        optimizer.step(closure)
    assert float(closure().detach()) < 1e-8 * first
