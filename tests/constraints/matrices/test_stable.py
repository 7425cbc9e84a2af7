"""Hurwitz and Schur stable matrices: eigenvalues, degenerate members, optima."""

import itertools
import math

import geotorch
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import constrained
from constrained import constrain, tolerance
from constraints import Hurwitz, Schur
from constraints.math.eigenvalues import spectral_distance
from constraints.math.stable_lyapunov import continuous_gramian, discrete_gramian

DTYPES = [torch.float32, torch.float64]
BOTH = [Hurwitz(), Hurwitz(alpha=0.5), Schur(), Schur(radius=0.5)]
hurwitz, schur = Hurwitz(), Schur()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orthogonal(n, seed=0, dtype=torch.float64):
    noise = torch.randn(n, n, dtype=torch.float64, generator=generator(seed))
    return torch.linalg.qr(noise).Q.to(dtype)


def jordan(n, eigenvalue, dtype=torch.float32):
    return eigenvalue * torch.eye(n, dtype=dtype) + torch.diag(torch.ones(n - 1, dtype=dtype), 1)


def rotated(A):
    Q = orthogonal(A.shape[-1])
    return (Q @ A.double() @ Q.mT).to(A.dtype)


def margin(constraint, A):
    """How far inside of the set the worst eigenvalue lies; negative outside."""
    values = np.linalg.eigvals(A.double().numpy())
    if isinstance(constraint, Hurwitz):
        return -constraint.alpha - values.real.max()
    return constraint.radius - abs(values).max()


def boundary(dtype):
    """Members on the boundary, or within rounding of it."""
    noise = torch.randn(6, 6, dtype=dtype, generator=generator(1))
    reflection = orthogonal(6, 2, dtype)
    reflection[:, 0] *= -1
    return {
        hurwitz: [
            torch.zeros(4, 4, dtype=dtype),
            noise - noise.mT,
            torch.diag(torch.tensor([0.0, -1.0, -1.0], dtype=dtype)),
            jordan(2, 0.0, dtype),
            jordan(4, 0.0, dtype),
            rotated(jordan(3, 0.0, dtype)),
        ],
        schur: [
            torch.eye(4, dtype=dtype),
            -torch.eye(4, dtype=dtype),
            orthogonal(6, 2, dtype),
            reflection,
            jordan(3, 1.0, dtype),
            rotated(jordan(3, -1.0, dtype)),
        ],
    }


# ------------------------------------------------------------------------------ Lyapunov equations


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_gramians_solve_what_scipy_solves(n):
    A = hurwitz.sample((3, n, n), dtype=torch.float64, generator=generator(n))
    B = schur.sample((3, n, n), dtype=torch.float64, generator=generator(n))
    L, M = continuous_gramian(A), discrete_gramian(B)
    for a, b, left, right in zip(A, B, L, M, strict=True):
        P = torch.from_numpy(scipy.linalg.solve_continuous_lyapunov(a.numpy(), -np.eye(n)))
        torch.testing.assert_close(left @ left.mT, P, rtol=1e-10, atol=1e-10 * float(P.norm()))
        P = torch.from_numpy(scipy.linalg.solve_discrete_lyapunov(b.numpy(), np.eye(n)))
        torch.testing.assert_close(right @ right.mT, P, rtol=1e-10, atol=1e-10 * float(P.norm()))
        assert torch.equal(left, left.tril())


def test_a_gramian_of_a_small_and_a_large_part():
    # Rows of unlike size: the sum must not stop before the small ones are complete.
    A = torch.diag(torch.tensor([-1e-3, -1e-3, -1e3, -1e3], dtype=torch.float64))
    L = continuous_gramian(A)
    expected = torch.diag(torch.tensor([500.0, 500.0, 5e-4, 5e-4], dtype=torch.float64))
    torch.testing.assert_close(L @ L.mT, expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------- the set


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constraint", BOTH, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_round_trip_is_exact(constraint, n, dtype):
    A = constraint.sample((3, n, n), dtype=dtype, generator=generator(n))
    params = constraint.right_inverse(A)
    assert ((constraint(*params) - A).norm(dim=(-2, -1)) <= tolerance(A, 2) / 4).all()
    # The remainder is rounding, here.
    remainder = params[4].norm(dim=(-2, -1)) / A.norm(dim=(-2, -1))
    assert (remainder <= 1e3 * torch.finfo(dtype).eps).all()
    assert all(param.is_contiguous() for param in params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_members_on_the_boundary_are_kept(dtype):
    for constraint, members in boundary(dtype).items():
        for A in members:
            assert constraint.contains(A)
            params = constraint.right_inverse(A)
            assert all(torch.isfinite(param).all() for param in params)
            assert (constraint(*params) - A).norm() <= tolerance(A, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constraint", BOTH, ids=repr)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (64, 64), (512, 512), (0, 3, 3)])
def test_the_ends_of_the_range(constraint, shape, dtype):
    identity = torch.eye(shape[-1], dtype=dtype).expand(shape)
    for scale in (0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6):
        free = [scale * torch.randn(shape, dtype=dtype) for _ in range(3)]
        free = [param.requires_grad_() for param in free]
        A = constraint(*free, identity, torch.zeros_like(identity))
        gradients = torch.autograd.grad((A * torch.randn_like(A)).sum(), free)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert torch.isfinite(A).all()
        if shape[-1] < 512 or scale == 1.0:
            assert constraint.contains(A.detach()).all()


@pytest.mark.parametrize("constraint", [hurwitz, schur], ids=repr)
@pytest.mark.parametrize("spread", [0.03, 0.3, 3.0])
def test_values_near_and_far_from_the_start_stay_in_the_set(constraint, spread):
    A = constraint.sample((50, 6, 6), generator=generator(1))
    params = constraint.right_inverse(A)
    moved = (p + spread * torch.randn(p.shape, generator=generator(2)) for p in params[:3])
    value = constraint(*moved, *params[3:])
    assert constraint.contains(value).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_product_of_large_factors_is_stable_too(dtype):
    # The columns of X are nearly orthogonal to those of Y: rounding is of the size of the factors.
    Q = torch.linalg.qr(torch.randn(50, 4, 4, dtype=torch.float64, generator=generator(0))).Q
    Q, nothing = Q.to(dtype), torch.zeros(50, 4, 4, dtype=dtype)
    noise = 1e-6 * torch.randn(50, 4, 4, dtype=dtype, generator=generator(1))
    X, Y = Q[..., :2] @ Q[..., :2].mT + noise, Q[..., 2:] @ Q[..., 2:].mT
    A = hurwitz(X, Y, nothing, torch.eye(4, dtype=dtype).expand(50, 4, 4), nothing)
    assert (A.norm(dim=(-2, -1)) < 1e-5).all()
    assert hurwitz.contains(A).all()


def test_violation_is_a_distance():
    assert hurwitz.violation(torch.diag(torch.tensor([2.0, -1.0]))) == pytest.approx(2.0)
    assert Hurwitz(alpha=1.0).violation(torch.zeros(3, 3)) == pytest.approx(1.0)
    assert schur.violation(torch.diag(torch.tensor([0.5, -3.0]))) == pytest.approx(2.0)
    assert hurwitz.violation(rotated(torch.diag(torch.tensor([1.0, 1, 1, -1])))) == pytest.approx(1)
    # [[-1, t], [d, -1]] is stable for t d < 1: one entry of the size 1 / t leads out of the set.
    A = torch.tensor([[-1.0, 1e3], [4e-3, -1.0]])
    assert float(hurwitz.violation(A)) < 4e-3
    with pytest.raises(constrained.InfeasibleError, match=r"hurwitz\(\): the value violates"):
        hurwitz.right_inverse(torch.eye(3))
    with pytest.raises(ValueError, match="must be a square matrix"):
        schur.check_shape((2, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eigenvalue", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_unstable_jordan_blocks_are_outsiders(n, eigenvalue, dtype):
    # Their eigenvalues have no condition number, but the trace says that they are this far.
    for A in (jordan(n, eigenvalue, dtype), rotated(jordan(n, eigenvalue, dtype))):
        assert hurwitz.violation(A) == pytest.approx(eigenvalue, rel=0.2)
        inside = hurwitz.project(A)
        assert hurwitz.contains(inside)
        stable = -0.5 * torch.eye(2, dtype=dtype)
        both = torch.block_diag(stable, A)
        assert not hurwitz.contains(both)
        assert not schur.contains(torch.eye(n, dtype=dtype) + A)


def test_the_violation_has_a_gradient():
    A = hurwitz.sample((4, 4), dtype=torch.float64) + 3 * torch.eye(4)
    A.requires_grad_()
    assert hurwitz.violation(A) > 0
    (gradient,) = torch.autograd.grad(hurwitz.violation(A), A)
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    change = (hurwitz.violation(A + step) - hurwitz.violation(A - step)) / 2
    assert float((gradient * step).sum()) == pytest.approx(float(change.detach()), rel=1e-4)


def test_elements_of_a_batch_do_not_see_each_other():
    for constraint, members in boundary(torch.float64).items():
        A = torch.stack([m for m in members if m.shape == (4, 4)] + [constraint.sample((4, 4))])
        A[-1] = constraint.sample((4, 4), dtype=torch.float64)
        together = constraint.right_inverse(A)
        for i, a in enumerate(A):
            for all_of_them, one in zip(together, constraint.right_inverse(a), strict=True):
                torch.testing.assert_close(all_of_them[i], one)


@pytest.mark.parametrize("constraint", [hurwitz, schur], ids=repr)
def test_derivatives(constraint):
    for A in (constraint.sample((2, 3, 3), dtype=torch.float64), jordan(3, -0.5, torch.float64)):
        free = [p.clone().requires_grad_() for p in constraint.right_inverse(A)[:3]]
        fixed = constraint.right_inverse(A)[3:]

        def function(*leaves, fixed=fixed):
            return constraint(*leaves, *fixed)

        assert gradcheck(function, free, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, free, fast_mode=True)


# ------------------------------------------------------------------------------ peers and defects


def test_agrees_with_geotorch():
    theirs = geotorch.Hurwitz((5, 5), alpha=0.5)
    ours = Hurwitz(alpha=0.5)
    assert theirs.in_manifold_eigen(ours.sample((5, 5)))
    for _ in range(5):
        A = theirs.sample()
        assert ours.contains(A)
        assert (ours(*ours.right_inverse(A)) - A).norm() <= tolerance(A, 2)


def test_g07_nan_is_refused_before_lapack_sees_it():
    # torch.linalg.eigvals kills the process on a NaN matrix in single precision.
    A = torch.full((4, 4), torch.nan)
    assert hurwitz.violation(A) == math.inf
    assert schur.violation(A) == math.inf
    for method in (hurwitz.right_inverse, hurwitz.project, schur.right_inverse, schur.project):
        with pytest.raises(ValueError, match="needs finite values, but 16 of 16 are NaN"):
            method(A)
    with pytest.raises(ValueError, match="finite"):
        constrain(nn.RNNCell(4, 4), "weight_hh", "hurwitz").weight_hh = A


@pytest.mark.parametrize("n", [128, 256])
def test_g08_large_matrices(n):
    # geotorch 0.4 needs 61 s and 17 GB for these, solving n^2 equations: here n^3 operations.
    A = hurwitz.sample((n, n), generator=generator(n))
    cell = nn.RNNCell(n, n)
    with torch.no_grad():
        cell.weight_hh.copy_(A)
    constrain(cell, "weight_hh", "alpha_stable")
    assert (cell.weight_hh - A).norm() <= tolerance(A, 2)
    largest = max(param.numel() for param in hurwitz.right_inverse(A))
    assert largest == n * n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eigenvalue", [-0.1, -0.5, -2.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_g09_stable_jordan_blocks_are_accepted(n, eigenvalue, dtype):
    # Rotated, the one of order 8 next to 0 is scattered to positive real parts by rounding.
    A = jordan(n, eigenvalue, dtype)
    for value in (A, A.mT, rotated(A)):
        assert hurwitz.contains(value)
        assert (hurwitz(*hurwitz.right_inverse(value)) - value).norm() <= tolerance(value, 2)
        assert torch.equal(hurwitz.project(value), value)
    for value in (A / 4, rotated(A) / 4):
        assert schur.contains(value)
        assert (schur(*schur.right_inverse(value)) - value).norm() <= tolerance(value, 2)


# ----------------------------------------------------------------------------------------- training


def minimize(constraint, start, target, steps=800, lr=0.05):
    params = constraint.right_inverse(start)
    free = [param.clone().requires_grad_() for param in params[:3]]
    optimizer = torch.optim.Adam(free, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (constraint(*free, *params[3:]) - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    return constraint(*free, *params[3:]).detach()


def elements(constraint):
    Q = orthogonal(3, 4, torch.float32)
    random = constraint.sample((3, 3), generator=generator(5))
    if constraint is hurwitz:
        return {
            "zero": torch.zeros(3, 3),
            "minus identity": -torch.eye(3),
            "skew": Q - Q.mT,
            "jordan": jordan(3, -0.5),
            "random": random,
        }
    reflection = Q * torch.tensor([-1.0, 1.0, 1.0])
    return {
        "zero": torch.zeros(3, 3),
        "identity": torch.eye(3),
        "minus identity": -torch.eye(3),
        "orthogonal": Q,
        "reflection": reflection,
        "jordan": jordan(3, 0.5),
        "random": random,
    }


@pytest.mark.parametrize("constraint", [hurwitz, schur], ids=repr)
def test_adam_leads_any_matrix_to_any_other(constraint):
    # One matrix of a batch knows nothing of the others, nor does Adam.
    ways = [*itertools.product(elements(constraint).items(), repeat=2)]
    starts, targets = (torch.stack([way[i][1] for way in ways]) for i in range(2))
    found = minimize(constraint, starts, targets)
    for ((start, _), (end, target)), A in zip(ways, found, strict=True):
        assert (A - target).norm() <= 0.03 * max(1, float(target.norm())), (start, end)
        assert constraint.contains(A), (start, end)


@pytest.mark.parametrize("constraint", [hurwitz, schur], ids=repr)
def test_adam_reaches_the_nearest_member(constraint):
    # Of b I it is the multiple c I on the boundary: the trace of a member is n c at most, and
    # ||A - b I||_F >= |tr A - n b| / sqrt(n).
    b, c = (1.0, 0.0) if constraint is hurwitz else (2.0, 1.0)
    found = minimize(constraint, torch.stack([*elements(constraint).values()]), b * torch.eye(3))
    for name, A in zip(elements(constraint), found, strict=True):
        loss = float((A - b * torch.eye(3)).square().sum())
        assert loss == pytest.approx(3 * (b - c) ** 2, rel=1e-3), name
        assert constraint.contains(A)


@pytest.mark.parametrize("name", ["hurwitz(alpha=0.1)", "schur(radius=0.9)"])
def test_an_rnn_stays_stable(name):
    rnn = nn.RNN(3, 16)
    constrain(rnn, "weight_hh_l0", name)
    optimizer = torch.optim.AdamW(rnn.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        rnn(torch.randn(20, 4, 3))[0].square().mean().neg().backward()
        optimizer.step()
        constrained.assert_feasible(rnn)


def test_samples():
    A = Hurwitz(alpha=0.3).sample((100, 5, 5), generator=generator(6))
    for a in A:
        assert 0.099 <= margin(Hurwitz(alpha=0.3), a) <= 1.001
    for b in Schur(radius=2.0).sample((100, 5, 5), generator=generator(6)):
        assert 0.099 <= margin(Schur(radius=2.0), b) <= 2.0


def test_projection_shifts_and_scales():
    A = torch.randn(4, 4, generator=generator(7))
    abscissa = np.linalg.eigvals(A.double().numpy()).real.max()
    torch.testing.assert_close(hurwitz.project(A), A - float(abscissa) * torch.eye(4))
    radius = abs(np.linalg.eigvals(A.double().numpy())).max()
    torch.testing.assert_close(schur.project(A), A / float(radius))
    inside = hurwitz.sample((4, 4))
    assert torch.equal(hurwitz.project(inside), inside)


def test_distance_of_a_cluster_beyond_the_largest_one():
    A = jordan(40, 0.5, torch.float64)

    def way(x):
        return torch.complex(x.real.clamp(min=0), torch.zeros_like(x.real))

    assert float(spectral_distance(A, way)) == pytest.approx(0.5, rel=0.1)


def test_arguments_and_names():
    with pytest.raises(TypeError, match="alpha must be a number, got '1'"):
        Hurwitz(alpha="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        Hurwitz(alpha=math.nan)
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="radius must be positive and finite"):
            Schur(radius=wrong)
    assert constrained.get("alpha_stable") is constrained.get("continuous_stable") is Hurwitz
    assert constrained.get("discrete_stable") is Schur


def test_the_rest_of_a_schur_matrix_is_that_of_its_own_map():
    """A derived class whose map is scaled passes on the factor that `project` divides by."""

    class Threefold(Schur):
        def forward(self, *params):
            return 3 * super().forward(*params)

        def right_inverse(self, value):
            return super().right_inverse(value / 3)

        def violation(self, value):
            return super().violation(value / 3)

    value = Schur().sample((4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    constraint = Threefold()
    torch.testing.assert_close(constraint(*constraint.right_inverse(3 * value)), 3 * value)
