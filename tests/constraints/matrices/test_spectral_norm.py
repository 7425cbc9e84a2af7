"""Bounds on the spectral norm: references, training along the bound, optima."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap

import constrained
from constrained import constrain
from constraints import Orthogonal, SpectralNorm

# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64


def norm(X):
    return torch.linalg.matrix_norm(X.detach().double(), 2)


def with_singular_values(*values, n=5):
    k = len(values)
    U, V = (Orthogonal().sample((n, max(k, 1)), dtype=DOUBLE)[:, :k] for _ in range(2))
    return (U * torch.tensor(values, dtype=DOUBLE)) @ V.mT


# --------------------------------------------------------------------------------- set and map


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 7), (7, 40), (2, 3, 4, 4), (1, 6)])
@pytest.mark.parametrize("bound", [1e-3, 1.0, 30.0])
def test_map_against_its_definition(shape, bound):
    constraint = SpectralNorm(bound)
    for scale in (1e-2, 0.3, 1.0, 10.0, 1e4):
        X = scale * bound * torch.randn(shape, dtype=DOUBLE)
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        expected = (U * S.clamp(max=bound).unsqueeze(-2)) @ Vh
        torch.testing.assert_close(constraint(X), expected, rtol=0, atol=1e-12 * bound)
        assert (norm(constraint(X)) <= bound * (1 + 1e-14)).all()


@pytest.mark.parametrize("n, p", [(1, 1), (3, 3), (64, 64), (100, 20), (20, 100), (130, 130)])
def test_the_bound_is_exact_at_every_scale(n, p):
    constraint = SpectralNorm()
    for scale in (0.0, 1e-38, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e30, 1e37):
        for X in (scale * torch.randn(n, p), torch.full((n, p), scale), scale * torch.eye(n, p)):
            X.requires_grad_()
            W = constraint(X)
            assert torch.equal(constraint(W), W)
            assert norm(W) <= 1 + 1e-6
            if scale >= 10:
                assert norm(W) >= 1 - 3e-6
            G = torch.randn(n, p)
            (gradient,) = torch.autograd.grad(W, X, G)
            assert torch.isfinite(gradient).all()
            assert gradient.norm() <= G.norm() * (1 + 1e-5)


def test_second_derivatives_are_finite():
    constraint = SpectralNorm()
    for scale in (0.0, 1e-30, 1e-3, 1.0, 10.0, 1e3, 1e6):
        for X in (scale * torch.randn(4, 3), torch.full((4, 3), scale), scale * torch.eye(3)):
            X.requires_grad_()
            W = constraint(X)
            (first,) = torch.autograd.grad(W, X, torch.randn_like(W), create_graph=True)
            (second,) = torch.autograd.grad(first, X, torch.randn_like(W))
            assert torch.isfinite(first).all()
            assert torch.isfinite(second).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_come_back_bit_for_bit(dtype):
    constraint = SpectralNorm(2.0)
    on_the_boundary = 2 * Orthogonal().sample((6, 4), dtype=dtype)
    clipped = constraint.project(10 * torch.randn(30, 30, dtype=dtype))
    scaled = constraint(10 * torch.randn(4, 30, 20, dtype=dtype))
    inside = constraint.sample((3, 7, 5), dtype=dtype)
    for W in (on_the_boundary, clipped, scaled, inside, torch.zeros(3, 3, dtype=dtype)):
        assert torch.equal(constraint(W), W)
        assert torch.equal(constraint.right_inverse(W), W)
        assert torch.equal(constraint.project(W), W)


def test_the_derivative_on_the_boundary_is_the_identity():
    constraint = SpectralNorm()
    for W in (torch.eye(3), constraint(10 * torch.randn(3, 3)), torch.zeros(3, 3)):
        jacobian = jacrev(constraint)(W).reshape(9, 9)
        assert torch.equal(jacobian, torch.eye(9))


def test_the_derivative_outside():
    # Directions that change a singular value above the bound are lost, the others are not.
    constraint = SpectralNorm()
    X = with_singular_values(3.0, 0.7, 0.2)
    U, _, Vh = torch.linalg.svd(X)
    jacobian = jacrev(constraint)(X).reshape(25, 25)
    torch.testing.assert_close(jacobian, jacobian.mT)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert eigenvalues.min() > -1e-14
    assert eigenvalues.max() < 1 + 1e-14
    for i, j, weight in ((0, 0, 0.0), (1, 1, 1.0), (2, 1, 1.0), (1, 4, 1.0)):
        direction = torch.outer(U[:, i], Vh[j])
        torch.testing.assert_close(jacobian @ direction.flatten(), weight * direction.flatten())


def test_the_canonical_form_goes_back_to_the_boundary_step_by_step():
    constraint = SpectralNorm()
    X = 3 * torch.randn(4, 6, requires_grad=True)
    W, before = constraint(X).detach(), X
    for _ in range(200):
        (X,) = constraint.canonical(X)
        assert not X.requires_grad
        torch.testing.assert_close(constraint(X), W, rtol=0, atol=1e-5)
        assert torch.linalg.matrix_norm(X - W) <= torch.linalg.matrix_norm(before - W) + 1e-6
        before = X
    # From here a gradient leads inside.
    assert torch.equal(constraint(X), X)


def test_projection_cuts_the_singular_values():
    constraint = SpectralNorm(2.0)
    X = with_singular_values(5.0, 3.0, 1.0)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    projected = constraint.project(X)
    torch.testing.assert_close(projected, (U * S.clamp(max=2)) @ Vh, rtol=0, atol=1e-13)
    for _ in range(50):
        other = constraint(projected + 0.1 * torch.randn(5, 5, dtype=DOUBLE))
        assert torch.linalg.matrix_norm(X - other) >= torch.linalg.matrix_norm(X - projected)
    for scale in (1e-30, 1e30):
        assert norm(constraint.project(scale * torch.randn(6, 3))) <= 2 * (1 + 1e-6)


def test_violation():
    constraint = SpectralNorm(2.0)
    assert constraint.violation(with_singular_values(2.5, 1.0)) == pytest.approx(0.5)
    assert constraint.violation(torch.eye(3)) == 0
    assert constraint.contains(2 * torch.eye(3))
    with pytest.raises(constrained.InfeasibleError, match=r"spectral_norm\(bound=2.0\): .* by 1 "):
        constraint.right_inverse(3 * torch.eye(3))


def test_samples():
    constraint = SpectralNorm(3.0)
    W = constraint.sample((4000, 3, 2), generator=torch.Generator().manual_seed(0))
    norms = norm(W) / 3
    assert norms.max() <= 1
    for order in (1, 2, 3):
        assert float((norms**order).mean()) == pytest.approx(1 / (order + 1), abs=0.02)
    again = constraint.sample((4000, 3, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(W, again)


def test_names_and_arguments():
    assert constrained.get("spectral_norm") is constrained.get("lipschitz") is SpectralNorm
    assert repr(SpectralNorm(2)) == "spectral_norm(bound=2.0)"
    assert SpectralNorm().spec() == {"name": "spectral_norm"}
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="spectral_norm: bound must be positive and finite"):
            SpectralNorm(bad)
    for bad in ("1", True, None):
        with pytest.raises(TypeError, match="spectral_norm: bound must be a number"):
            SpectralNorm(bad)


# ---------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 2), (2, 5), (2, 3, 3)])
def test_derivatives(shape):
    constraint = SpectralNorm(0.1)
    X = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(constraint, X, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(constraint, X, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(
    "values",
    [(3.0, 0.5, 0.5), (3.0, 3.0, 0.5), (3.0, 0.5, 0.0), (3.0, 3.0, 3.0), (0.5, 0.5, 0.5), ()],
    ids=str,
)
def test_derivatives_with_equal_singular_values(values):
    constraint = SpectralNorm()
    X = with_singular_values(*values).requires_grad_()
    assert gradcheck(constraint, X, check_forward_ad=True)
    assert gradgradcheck(constraint, X, check_fwd_over_rev=True)


def test_second_derivatives_after_a_conversion_and_a_rebase():
    layer = constrain(nn.Linear(6, 6), "weight", "spectral_norm(bound=0.5)").double()
    constrained.rebase(layer)
    x = torch.randn(8, 6, dtype=torch.float64)
    (original,) = layer.parametrizations.weight.parameters()
    loss = layer(x).tanh().square().mean()
    (gradient,) = torch.autograd.grad(loss, original, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), original)
    assert second.abs().max() < 10


def test_all_compositions_of_modes_agree_to_third_order():
    def cubes(X):
        return SpectralNorm()(X).pow(3).sum()

    X = torch.randn(4, 3, dtype=DOUBLE)
    assert 0 < (torch.linalg.svdvals(X) > 1).sum() < 3
    expected = hessian(cubes)(X)
    for outer, inner in ((jacrev, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        torch.testing.assert_close(outer(inner(cubes))(X), expected, rtol=0, atol=1e-12)
    D, step = torch.randn_like(X), 1e-5
    found = torch.einsum("abcdij,ij->abcd", jacfwd(hessian(cubes))(X), D)
    quotient = (hessian(cubes)(X + step * D) - hessian(cubes)(X - step * D)) / (2 * step)
    torch.testing.assert_close(found, quotient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_derivations_agree(shape, dtype):
    X = torch.randn(shape, dtype=dtype, requires_grad=True)
    G = torch.randn(shape, dtype=dtype)
    (cheap,) = torch.autograd.grad(SpectralNorm()(X), X, G)
    (exact,) = torch.autograd.grad(SpectralNorm()(X), X, G, create_graph=True)
    atol = 1e-13 if dtype == DOUBLE else 1e-4
    torch.testing.assert_close(cheap, exact, rtol=0, atol=atol)


def test_elements_of_a_batch_are_on_their_own():
    constraint = SpectralNorm()
    inside = constraint.sample((4, 3))
    X = torch.stack([inside, 3 * torch.randn(4, 3), torch.full((4, 3), torch.nan), inside])
    X[3, 1, 1] = torch.inf
    X.requires_grad_()
    W = constraint(X)
    assert torch.equal(W[0], inside)
    torch.testing.assert_close(W[1], constraint(X[1]))
    assert W[2:].isnan().all()
    (gradient,) = torch.autograd.grad(W, X, torch.ones_like(W))
    assert torch.equal(gradient[0], torch.ones(4, 3))
    assert gradient[1].isfinite().all()
    assert constraint(torch.empty(0, 4, 3)).shape == (0, 4, 3)


def test_vmap_and_compile():
    constraint = SpectralNorm()
    X = torch.randn(3, 4, 5)
    torch.testing.assert_close(vmap(constraint)(X), constraint(X), rtol=0, atol=1e-6)
    torch._dynamo.reset()
    compiled = torch.compile(constraint, fullgraph=True, backend="aot_eager")
    X = (X * torch.tensor([0.0, 0.1, 1.0])[:, None, None]).requires_grad_()
    values = [function(X) for function in (constraint, compiled)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(value.pow(3).sum(), X)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------- training

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.03, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.03),
}


@pytest.mark.parametrize(
    "name, top", [("sgd", 0.7), ("sgd", 3.0), ("momentum", 0.7), ("momentum", 3.0), ("adam", 0.7)]
)
def test_training_reaches_the_optimum_within_the_bound(name, top):
    # The optimum is the nearest member, the constraint being on the singular values alone.
    target = with_singular_values(top, 0.5, 0.2).float()
    layer = nn.Linear(5, 5, bias=False)
    layer.weight.data.mul_(10)
    constrain(layer, "weight", SpectralNorm())
    optimizer = OPTIMIZERS[name](layer.parameters())
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum() / 2
        loss.backward()
        optimizer.step()
        assert norm(layer.weight) <= 1 + 1e-6
    nearest = SpectralNorm().project(target)
    torch.testing.assert_close(layer.weight.detach(), nearest, rtol=0, atol=1e-3)


def test_dividing_by_the_norm_ends_elsewhere():
    # Why the map is not X min(1, bound / norm): the other singular values end at 1/3 of the
    # target's.
    target = torch.diag(torch.tensor([3.0, 0.6]))
    X = torch.eye(2)
    for _ in range(500):
        X = X - 0.1 * (X - target)
        X = X / torch.linalg.matrix_norm(X, 2).clamp(min=1)
    torch.testing.assert_close(X, torch.diag(torch.tensor([1.0, 0.2])))
    nearest = SpectralNorm().project(target)
    torch.testing.assert_close(nearest, torch.diag(torch.tensor([1.0, 0.6])))


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_one_very_large_step(rate):
    layer = constrain(nn.Linear(6, 4, bias=False), "weight", SpectralNorm())
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
        assert norm(layer.weight) <= 1 + 1e-6
