"""The orthogonal polar factor: accuracy at every scale and spectrum, and its derivatives."""

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from constraints.math import polar as polar_file
from constraints.math.polar import polar, polar_factor
from constraints.math.symmetric_lyapunov import lyapunov, right_divide, spectrum

# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64
SHAPES = [(1, 1), (3, 3), (4, 2), (2, 4), (4, 1), (1, 4), (2, 3, 2)]


def matrix(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype)


def orthogonal(n, p, dtype=DOUBLE):
    return torch.linalg.qr(matrix(n, p, dtype=dtype)).Q


def defect(W):
    """The largest entry of |W' W - I|, with W taken as tall."""
    W = W.detach()
    tall = W if W.shape[-2] >= W.shape[-1] else W.mH
    gram = tall.mH @ tall
    return float((gram - torch.eye(gram.shape[-1], dtype=gram.dtype)).abs().max())


def degenerate_points():
    """Matrices of full rank with equal singular values, orthogonal ones among them."""
    torch.manual_seed(0)
    identity = torch.eye(3, dtype=DOUBLE)
    yield "identity", identity
    yield "-identity", -identity
    yield "reflection", torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE))
    yield "permutation", identity[[2, 0, 1]]
    yield "tall identity", identity[:, :2]
    yield "wide identity", identity[:2]
    yield "random orthogonal", orthogonal(4, 4)
    yield "random Stiefel", orthogonal(5, 2)
    yield "scaled orthogonal", 3 * orthogonal(3, 3)
    singular = torch.tensor([2.0, 2.0, 0.5], dtype=DOUBLE)
    yield "two equal singular values", (orthogonal(4, 3) * singular) @ orthogonal(3, 3)


DEGENERATE = [pytest.param(X, id=name) for name, X in degenerate_points()]


# ------------------------------------------------------------------------------------ the value


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (6, 3), (3, 6), (6, 1), (1, 6)])
@pytest.mark.parametrize("distance", [1e-9, 1e-3, 0.1, 1.0, 100.0])
def test_value_is_that_of_scipy(shape, distance):
    X = orthogonal(max(shape), min(shape)).reshape(shape) + distance * matrix(*shape)
    tall = X if shape[0] >= shape[1] else X.mT
    expected = torch.from_numpy(scipy.linalg.polar(tall.numpy())[0])
    torch.testing.assert_close(polar(X), expected if tall is X else expected.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n, p", [(1, 1), (8, 8), (64, 64), (200, 20), (20, 200)])
@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-3, 0.02, 0.3, 3.0])
def test_orthogonal_to_rounding(n, p, distance):
    X = orthogonal(max(n, p), min(n, p), torch.float32)
    X = (X if n >= p else X.mT) + distance * matrix(n, p, dtype=torch.float32)
    W = polar(X)
    assert defect(W) <= 1e-6
    assert torch.equal(polar(W), W)
    assert W.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("rank", range(5))
def test_of_a_symmetric_matrix_it_is_a_reflection(rank, dtype):
    A = matrix(3, 5, rank, dtype=dtype)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype)[:rank]
    X = (A * signs) @ A.mH
    X = (X + X.mH) * 0.5
    W = polar(X)
    assert defect(W) <= 1e-6
    assert torch.equal(W, W.mH)
    H = W @ X
    assert (torch.linalg.eigvalsh(H) >= -1e-5).all()
    torch.testing.assert_close(H, H.mH, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (6, 3), (3, 6), (2, 3, 4, 3)])
def test_orthogonal_matrix_comes_back_bit_for_bit(shape, dtype):
    W = polar(torch.randn(shape, dtype=dtype))
    again = polar(W)
    assert torch.equal(again, W)
    assert again.data_ptr() != W.data_ptr()


@pytest.mark.parametrize("shape", [(20, 20), (300, 20), (20, 300), (3, 30, 20)])
@pytest.mark.parametrize("length", [0.3, 3.0, 1e3])
def test_a_long_orthogonal_step_needs_no_singular_values(shape, length, monkeypatch):
    # W + length A with W' A skew and A' A = I has equal singular values: it is scaled, no more.
    n, p = max(shape[-2:]), min(shape[-2:])
    Q = orthogonal(max(n, 2 * p), 2 * p) if n >= 2 * p else None
    W = orthogonal(n, p) if Q is None else Q[:, :p]
    J = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)] * (p // 2))
    A = W @ J if Q is None else Q[:, p:]
    X = (W + length * A).float()
    X = X.mT if shape[-2] < shape[-1] else X.expand(*shape[:-2], n, p)
    exact = polar(X.double()).float()
    monkeypatch.setattr(polar_file, "svd", None)
    W = polar_factor(X)
    assert defect(W.double()) <= 1e-6
    torch.testing.assert_close(W, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e-3, 1.0, 1e3, 1e6, 1e30, 1e37])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (6, 3), (3, 6)])
def test_every_scale_is_orthogonal_with_finite_gradient(shape, scale):
    X = (scale * matrix(*shape, dtype=torch.float32)).requires_grad_()
    W = polar(X)
    assert defect(W) <= 1e-6
    (gradient,) = torch.autograd.grad((W * torch.randn(shape)).sum(), X)
    assert torch.isfinite(gradient).all()
    if 1e-30 <= scale:
        torch.testing.assert_close(W, polar(X.double()).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "X",
    [
        torch.zeros(3, 3),
        torch.zeros(4, 2),
        torch.ones(3, 3),
        torch.ones(2, 5),
        torch.diag(torch.tensor([1.0, 0.0, 0.0])),
        torch.diag(torch.tensor([1.0, 1.0, 0.0])),
    ],
)
def test_singular_matrices_have_a_member_and_finite_derivatives(X):
    X = X.clone().requires_grad_()
    W = polar(X)
    assert defect(W) <= 1e-6
    first = torch.autograd.grad((W * torch.randn_like(W)).sum(), X, create_graph=True)[0]
    (second,) = torch.autograd.grad((first * torch.randn_like(W)).sum(), X)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_batches_are_treated_element_by_element():
    member = polar(matrix(4, 3, dtype=torch.float32))
    batch = torch.stack(
        [member, member + 1e-2 * torch.randn(4, 3), 1e20 * torch.randn(4, 3), torch.zeros(4, 3)]
    )
    found = polar(batch)
    assert torch.equal(found[0], member)
    for W, X in zip(found, batch, strict=True):
        assert defect(W) <= 1e-6
        if X.any():
            torch.testing.assert_close(W, polar(X), rtol=0, atol=1e-6)
    assert polar(torch.empty(0, 4, 3)).shape == (0, 4, 3)
    assert polar(torch.empty(4, 0)).shape == (4, 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_a_number_stays_in_its_element(bad):
    X = matrix(2, 3, 3)
    X[1, 0, 0] = bad
    X.requires_grad_()
    W = polar(X)
    assert W[1].isnan().all()
    torch.testing.assert_close(W[0], polar(X[0]), rtol=0, atol=1e-14)
    W.sum().backward()
    assert X.grad[0].isfinite().all()


def test_nearest():
    X = matrix(5, 3)
    reached = torch.linalg.matrix_norm(X - polar(X))
    for spread in (1e-3, 0.1, 10.0):
        for _ in range(20):
            other = polar(polar(X) + spread * matrix(5, 3))
            assert torch.linalg.matrix_norm(X - other) >= reached - 1e-12


# ---------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives(shape, dtype):
    X = torch.randn(shape, dtype=dtype, requires_grad=True)
    assert gradcheck(polar, X, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(polar, X, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("X", DEGENERATE)
def test_derivatives_at_degenerate_points(X):
    X = X.clone().requires_grad_()
    assert gradcheck(polar, X, check_forward_ad=True)
    assert gradgradcheck(polar, X, check_fwd_over_rev=True)


@pytest.mark.parametrize("n, p", [(5, 5), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivative_at_an_orthogonal_matrix_is_the_tangent_projection(n, p, dtype):
    W = polar(torch.randn(n, p, dtype=dtype)).requires_grad_()
    G = torch.randn(n, p, dtype=dtype)
    (found,) = torch.autograd.grad(polar(W), W, G)
    W = W.detach()
    expected = G - W @ (W.mT @ G + G.mT @ W) / 2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(W.mT @ found, -found.mT @ W)


@pytest.mark.parametrize("n, p", [(6, 6), (7, 4), (30, 1)])
@pytest.mark.parametrize("distance", [1e-13, 1e-8, 1e-4, 1e-2, 0.03])
def test_the_cheap_derivatives_are_the_exact_one(n, p, distance):
    X = (orthogonal(n, p) + distance * matrix(n, p) / (n * p) ** 0.5).requires_grad_()
    G = matrix(n, p)
    (cheap,) = torch.autograd.grad(polar(X), X, G)
    (exact,) = torch.autograd.grad(polar(X), X, G, create_graph=True)
    torch.testing.assert_close(cheap, exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
def test_forward_mode_against_difference_quotient(shape):
    X, D = matrix(*shape), matrix(*shape)
    value, found = jvp(polar, (X,), (D,))
    step = 1e-6
    torch.testing.assert_close(value, polar(X), rtol=0, atol=1e-14)
    expected = (polar(X + step * D) - polar(X - step * D)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def cubes(X):
    return (polar(X) ** 3).sum()


@pytest.mark.parametrize("X", [pytest.param(matrix(4, 3), id="random"), *DEGENERATE])
def test_all_compositions_of_modes_agree(X):
    expected = jacrev(jacrev(cubes))(X)
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        torch.testing.assert_close(outer(inner(cubes))(X), expected, rtol=0, atol=1e-11)
    (first,) = torch.autograd.grad(cubes(X.requires_grad_()), X)
    torch.testing.assert_close(grad(cubes)(X.detach()), first, rtol=0, atol=1e-13)


def test_third_derivative():
    X, D, step = matrix(4, 3), matrix(4, 3), 1e-5
    found = torch.einsum("abcdij,ij->abcd", jacfwd(hessian(cubes))(X), D)
    quotient = (hessian(cubes)(X + step * D) - hessian(cubes)(X - step * D)) / (2 * step)
    torch.testing.assert_close(found, quotient, rtol=1e-6, atol=1e-6)


def test_vmap_is_a_loop():
    batch = matrix(3, 2, 4, 3)
    torch.testing.assert_close(vmap(vmap(polar))(batch), polar(batch), rtol=0, atol=1e-14)
    torch.testing.assert_close(vmap(polar, 3, 3)(batch), polar(batch.movedim(3, 0)).movedim(0, 3))
    found = vmap(vmap(hessian(cubes)))(batch)
    torch.testing.assert_close(found[1, 1], hessian(cubes)(batch[1, 1]), rtol=0, atol=1e-12)


def test_backward_under_autocast():
    X = torch.randn(6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        (expected,) = torch.autograd.grad(polar(X).sum(), X)
        value = polar(X).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(value, X)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------------ without numbers


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 4, 3)])
def test_compiled_is_eager(shape):
    torch._dynamo.reset()
    compiled = torch.compile(cubes, fullgraph=True, backend="aot_eager")
    for X in (torch.randn(shape), polar(torch.randn(shape)), torch.zeros(shape)):
        X = X.requires_grad_()
        values = cubes(X), compiled(X)
        (expected,), (found,) = (torch.autograd.grad(value, X) for value in values)
        assert torch.equal(*values)
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_by_inductor():
    torch._dynamo.reset()
    X = torch.randn(2, 5, 3, requires_grad=True)
    for function in (cubes, lambda X: vmap(cubes)(X).sum()):
        (expected,) = torch.autograd.grad(function(X), X)
        (found,) = torch.autograd.grad(torch.compile(function, fullgraph=True)(X), X)
        torch.testing.assert_close(found, expected)


def test_operators_are_well_formed():
    X = polar(matrix(2, 4, 3)) + 0.1
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.constraints.polar_factor.default, (X,), test_utils=checks)
    torch.library.opcheck(
        torch.ops.constraints.polar_gradient.default, (X, polar(X), X), test_utils=checks
    )


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    X = torch.empty(2, 3, 5, device="meta", requires_grad=True)
    W = polar(X)
    assert (W.shape, W.device.type) == ((2, 3, 5), "meta")
    W.sum().backward()
    assert X.grad.shape == X.shape
    with FakeTensorMode():
        X = torch.randn(5, 3, requires_grad=True)
        polar(X).sum().backward()
        assert X.grad.shape == X.shape


# ---------------------------------------------------------------------------- Lyapunov equations


def positive(n):
    A = matrix(n, n)
    return A @ A.mT + torch.eye(n, dtype=DOUBLE)


def test_solutions_solve():
    H, C, M = positive(4), matrix(4, 4), matrix(6, 4)
    h, Q = spectrum(H)
    Y, Z = lyapunov(H, C, h, Q), right_divide(M, H, h, Q)
    torch.testing.assert_close(H @ Y + Y @ H, C)
    torch.testing.assert_close(Z @ H, M)
    expected = scipy.linalg.solve_continuous_lyapunov(H.numpy(), C.numpy())
    torch.testing.assert_close(Y, torch.from_numpy(expected))


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_solutions_have_derivatives(equal):
    H = 2 * torch.eye(3, dtype=DOUBLE) if equal else positive(3)
    C, M = matrix(3, 3).requires_grad_(), matrix(2, 3).requires_grad_()
    H.requires_grad_()

    def symmetric(H):
        H = (H + H.mT) / 2
        return H, *spectrum(H)

    def solve(H, C):
        H, h, Q = symmetric(H)
        return lyapunov(H, C, h, Q)

    def divide(M, H):
        return right_divide(M, *symmetric(H))

    for function, inputs in ((solve, (H, C)), (divide, (M, H))):
        assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_vanishing_directions_get_the_solution_of_least_norm():
    H = torch.diag(torch.tensor([2.0, 0.0, 0.0]))
    h, Q = spectrum(H)
    C = torch.ones(3, 3)
    expected = torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.0, 0.0], [0.5, 0.0, 0.0]])
    torch.testing.assert_close(lyapunov(H, C, h, Q), expected)
    torch.testing.assert_close(
        right_divide(C, H, h, Q), torch.tensor([[0.5, 0.0, 0.0]]).expand(3, 3)
    )
    assert not lyapunov(0 * H, C, *spectrum(0 * H)).any()
