"""What the how-to pages say without a program, in "What to watch for", is so."""

import pytest
import torch
from torch import nn

from constrained import constrain, get, report, violations


class Holder(nn.Module):
    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x)


def test_a_wide_interval_moves_by_up_to_a_quarter_of_its_width():
    free = torch.linspace(-5, 5, 1001, requires_grad=True)
    (slope,) = torch.autograd.grad(get("interval")(low=1.0, high=100.0)(free).sum(), free)
    assert slope.max().item() == pytest.approx(24.75)


def test_weight_norm_takes_filters_of_zeros():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    before = layer.weight.detach().clone()
    torch.testing.assert_close(constrain(layer, "weight", "weight_norm").weight, before)


def test_a_kernel_on_a_sphere_without_a_view_warns():
    with pytest.warns(UserWarning, match=r"72 vectors of 3.*view='conv'"):
        constrain(nn.Conv2d(3, 8, 3), "weight", "sphere")


def test_a_sparse_embedding_has_a_dense_gradient():
    embedding = constrain(nn.Embedding(6, 4, sparse=True), "weight", "sphere")
    embedding(torch.tensor([1])).sum().backward()
    original = embedding.parametrizations.weight.original
    assert original.grad.layout is torch.strided
    with pytest.raises(RuntimeError, match="dense gradients"):
        torch.optim.SparseAdam([original]).step()
    torch.optim.Adam([original]).step()


def test_the_row_of_padding_is_a_unit_vector():
    embedding = constrain(nn.Embedding(6, 4, padding_idx=0), "weight", "sphere")
    assert embedding.weight[0].norm().item() == pytest.approx(1.0)


def test_columns_of_unit_length():
    layer = constrain(nn.Linear(5, 3), "weight", "sphere", view="o i -> i o")
    torch.testing.assert_close(layer.weight.norm(dim=0), torch.ones(5))
    assert get("oblique")().contains(layer.weight)


def test_a_kernel_of_one_pixel_of_determinant_one():
    conv = constrain(nn.Conv2d(3, 3, 1), "weight", "special_linear", view="o i 1 1 -> o i")
    assert torch.linalg.det(conv.weight[..., 0, 0]).item() == pytest.approx(1.0, abs=1e-5)


def test_singular_values_bound_the_condition():
    layer = constrain(nn.Linear(6, 6), "weight", "singular_values(low=0.5, high=2)", init="sample")
    assert torch.linalg.cond(layer.weight) <= 4 + 1e-4


def test_a_start_near_the_identity_is_doubly_stochastic():
    near = 0.9 * torch.eye(5) + 0.1 / 5
    model = constrain(Holder(near), "x", "doubly_stochastic", init="strict")
    assert report(model).rows[0].moved < 1e-5


def test_a_lower_temperature_is_nearer_to_a_permutation():
    free = torch.randn(50, 5, 5, generator=torch.Generator().manual_seed(0))
    warm, cold = (get("soft_permutation")(temperature=t)(free).amax(-1).mean() for t in (1.0, 0.01))
    assert warm < 0.9 < 0.98 < cold


def test_a_stable_matrix_may_enlarge_before_it_decays():
    A = torch.tensor([[0.5, 10.0], [0.0, 0.5]])
    assert get("schur")().contains(A) and torch.linalg.matrix_norm(A, 2) > 1
    assert not get("spectral_norm")(bound=0.99).contains(A)


def test_two_stable_matrices_in_turn_may_be_unstable():
    A, B = torch.tensor([[0.5, 4.0], [0.0, 0.5]]), torch.tensor([[0.5, 0.0], [4.0, 0.5]])
    assert get("schur")().contains(A) and get("schur")().contains(B)
    assert torch.linalg.eigvals(A @ B).abs().max() > 1


def test_a_branch_that_is_a_contraction():
    layer = constrain(nn.Linear(6, 6), "weight", "spectral_norm(bound=0.9)")
    assert torch.linalg.matrix_norm(layer.weight, 2) <= 0.9 + 1e-5
    assert violations(layer)["weight"] < 1e-5


def test_a_point_of_a_closed_set_is_reached():
    for name, end in [("nonnegative", 0.0), ("at_least(1)", 1.0), ("at_most(1)", 1.0)]:
        assert constrain(Holder(torch.tensor([end])), "x", name).x == end
    for name in ("positive", "greater_than(0)", "interval(0, 1)"):
        with pytest.raises(ValueError, match="violates"):
            constrain(Holder(torch.tensor([-0.5])), "x", name, init="strict")
