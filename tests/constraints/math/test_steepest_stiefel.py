"""The steepest tangent direction of Stiefel manifolds: certified by duality, against closed forms.

The certificate is elementary. For a symmetric S and a tangent A, W' A is skew, so that
-<G, A> = -<G + W S, A>, which is at most the nuclear norm of G + W S if ||A||_2 <= 1.
"""

import pytest
import scipy.optimize
import torch

from constraints.math.polar import polar
from constraints.math.skew_sign import contraction, skew_sign
from constraints.math.steepest_stiefel import steepest_tangent

DOUBLE = torch.float64
SHAPES = [(1, 1), (2, 2), (7, 7), (64, 64), (5, 1), (6, 5), (9, 4), (8, 4), (100, 64), (257, 64)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stiefel(n, p, dtype=torch.float32, seed=0):
    W = torch.linalg.qr(torch.randn(n, p, dtype=DOUBLE, generator=generator(seed))).Q
    return W.to(dtype).contiguous()


def gradients(n, p, dtype=torch.float32):
    """Gradients of many spectra, by their names."""
    g = generator(1)

    def normal(*shape):
        return torch.randn(*shape, dtype=DOUBLE, generator=g)

    noise = normal(n, p)
    thin = normal(n, 2) @ normal(2, p)
    decaying = torch.linalg.qr(normal(n, p)).Q * torch.logspace(0, -6, p, dtype=DOUBLE)
    one = torch.zeros(n, p, dtype=DOUBLE)
    one[-1, 0] = 1
    found = {
        "normal": noise,
        "rank two": thin,
        "rank two, noise 1e-3": thin + 1e-3 * noise,
        "rank two, noise 1e-6": thin + 1e-6 * noise,
        "decaying": decaying @ normal(p, p),
        "one entry": one,
    }
    return {name: G.to(dtype) for name, G in found.items()}


def skew_part(P):
    return (P - P.mT) / 2


def dual_bound(W, G):
    """The nuclear norm of G + W S, for the best S. Of full precision, and for a tall W only.

    With X = -sign(N) and H = |N|, whose blocks in a basis [W, V] are H_11, H_21 and H_22, S is
    -sym(W' X W Y) + sym(W' G) with the Schur complement Y = 2 (H_11 - H_21' H_22^+ H_21).
    """
    W, G = W.to(DOUBLE), G.to(DOUBLE)
    n, p = W.shape
    exact = polar(W)
    complete = torch.linalg.qr(torch.cat((exact, torch.eye(n, dtype=DOUBLE)), 1)).Q
    V = complete[:, p:n]
    U, s, Vh = torch.linalg.svd(skew_part(G @ exact.mT))
    rank = int((s > 1e-13 * s[0]).sum()) if len(s) else 0
    K = exact.mT @ -(U[:, :rank] @ Vh[:rank]) @ exact
    H = (Vh.mT * s) @ Vh
    Y = exact.mT @ H @ exact
    if n > p:
        H21 = V.mT @ H @ exact
        Y = 2 * (Y - H21.mT @ torch.linalg.pinv(V.mT @ H @ V, rtol=1e-12, hermitian=True) @ H21)
    S, along = -K @ Y, exact.mT @ G
    S = (S + S.mT) / 2 - (along + along.mT) / 2
    return float(torch.linalg.matrix_norm(G + W @ S, "nuc"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", list(gradients(2, 2)))
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["single", "double"])
def test_gap_and_feasibility(shape, name, dtype):
    W, G = stiefel(*shape, dtype), gradients(*shape, dtype)[name]
    A, norm, gap = steepest_tangent(W, G)
    W, G, A = W.to(DOUBLE), G.to(DOUBLE), A.to(DOUBLE)
    bound = dual_bound(W, G)
    assert -(G * A).sum() >= bound - 1e-6 * torch.linalg.matrix_norm(G, "nuc")
    assert abs(norm - bound) <= 1e-6 * torch.linalg.matrix_norm(G, "nuc")
    assert abs(gap) <= 1e-6
    rounding = 1e-6 if dtype == torch.float32 else 1e-9
    assert torch.linalg.matrix_norm(A, 2) <= 1 + rounding
    assert (W.mT @ A + A.mT @ W).abs().max() <= rounding


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-40, 2.0**40, 2.0**100])
def test_the_scale_of_the_gradient_does_not_matter(scale):
    for shape in ((20, 20), (30, 20), (90, 20)):
        W, G = stiefel(*shape), gradients(*shape)["normal"].clamp(-4, 4)
        one, another = steepest_tangent(W, G), steepest_tangent(W, G * scale)
        # Scaled by a power of two, a gradient keeps its digits, except where it is subnormal.
        if scale > 2.0**-100:
            assert torch.equal(one.direction, another.direction)
        torch.testing.assert_close(one.direction, another.direction, rtol=0, atol=1e-4)
        assert abs(another.relative_gap) <= 1e-6
        assert float(another.dual_norm) == pytest.approx(float(one.dual_norm) * scale, rel=1e-6)


@pytest.mark.parametrize("n", [2, 6, 32])
def test_square_is_the_known_closed_form(n):
    W, G = stiefel(n, n, DOUBLE), gradients(n, n, DOUBLE)["normal"]
    U, _, Vh = torch.linalg.svd(skew_part(W.mT @ G))
    torch.testing.assert_close(steepest_tangent(W, G).direction, -W @ (U @ Vh))


def test_a_vector_is_a_normalized_tangent():
    W, G = stiefel(9, 1, DOUBLE), gradients(9, 1, DOUBLE)["normal"]
    tangent = G - W @ (W.mT @ G)
    found = steepest_tangent(W, G)
    torch.testing.assert_close(found.direction, -tangent / tangent.norm())
    torch.testing.assert_close(found.dual_norm, tangent.norm())


@pytest.mark.parametrize("shape", [(3, 2), (4, 2), (4, 3), (5, 2)], ids=str)
def test_numerical_minimum_of_the_dual(shape):
    W, G = stiefel(*shape, DOUBLE), gradients(*shape, DOUBLE)["normal"]
    p = shape[1]
    rows, columns = torch.tril_indices(p, p)

    def nuclear_norm(entries):
        lower = torch.zeros(p, p, dtype=DOUBLE)
        lower[rows, columns] = torch.from_numpy(entries)
        return float(torch.linalg.matrix_norm(G + W @ (lower + lower.mT), "nuc"))

    start = torch.zeros(len(rows), dtype=DOUBLE).numpy()
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20000, "maxfev": 20000}
    for _ in range(5):
        found = scipy.optimize.minimize(nuclear_norm, start, method="Nelder-Mead", options=options)
        start = found.x
    assert float(steepest_tangent(W, G).dual_norm) == pytest.approx(found.fun, rel=1e-6)


def test_no_random_tangent_is_steeper():
    W, G = stiefel(7, 3, DOUBLE), gradients(7, 3, DOUBLE)["normal"]
    g, best = generator(5), float(steepest_tangent(W, G).dual_norm)
    for _ in range(1000):
        V = torch.randn(7, 3, dtype=DOUBLE, generator=g) - G * 2 * torch.rand((), generator=g)
        along = W.mT @ V
        A = V - W @ (along + along.mT) / 2
        A /= torch.linalg.matrix_norm(A, 2)
        assert -(G * A).sum() < best


def test_rotations_carry_the_direction_along():
    W, G = stiefel(30, 12, DOUBLE), gradients(30, 12, DOUBLE)["decaying"]
    left, right = stiefel(30, 30, DOUBLE, 3), stiefel(12, 12, DOUBLE, 4)
    rotated = steepest_tangent(left @ W @ right, left @ G @ right).direction
    torch.testing.assert_close(rotated, left @ steepest_tangent(W, G).direction @ right)


def test_the_normal_part_of_the_gradient_does_not_matter():
    for shape in ((20, 12), (40, 12)):
        W, G = stiefel(*shape, DOUBLE), gradients(*shape, DOUBLE)["normal"]
        S = torch.randn(12, 12, dtype=DOUBLE, generator=generator(2))
        other = G + 100 * W @ (S + S.mT)
        one, another = (steepest_tangent(W, x).direction for x in (G, other))
        torch.testing.assert_close(one, another, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 12), (20, 12), (40, 12)], ids=str)
def test_without_a_tangent_part_there_is_no_direction(shape):
    W = stiefel(*shape)
    S = torch.randn(12, 12, generator=generator(2))
    for G in (torch.zeros(shape), W @ (S + S.mT), 1e10 * W):
        found = steepest_tangent(W, G)
        assert not found.direction.any()
        assert found.dual_norm == found.relative_gap == 0


def test_wide_is_transposed():
    W, G = stiefel(9, 4), gradients(9, 4)["normal"]
    found = steepest_tangent(W.mT, G.mT).direction
    assert torch.equal(found.mT, steepest_tangent(W, G).direction)
    assert found.is_contiguous()


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (20, 5)], ids=str)
def test_a_batch_is_treated_one_by_one(shape):
    by_name = gradients(*shape)
    G = torch.stack([*by_name.values(), torch.zeros(shape)])
    W = torch.stack([stiefel(*shape, seed=i) for i in range(len(G))])
    found = steepest_tangent(W.unsqueeze(1), G.unsqueeze(1))
    assert found.dual_norm.shape == found.relative_gap.shape == (len(G), 1)
    for i in range(len(G)):
        alone = steepest_tangent(W[i], G[i])
        torch.testing.assert_close(found.direction[i, 0], alone.direction, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.dual_norm[i, 0], alone.dual_norm, rtol=1e-6, atol=1e-12)


def test_half_precision_is_computed_in_single():
    W, G = stiefel(9, 4).bfloat16(), gradients(9, 4)["normal"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = steepest_tangent(W, G)
    assert found.direction.dtype == torch.bfloat16
    expected = steepest_tangent(W.float(), G.float())
    assert torch.equal(found.direction, expected.direction.bfloat16())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_is_an_error(broken):
    G = torch.ones(5, 2)
    G[3, 1] = broken
    with pytest.raises(ValueError, match=r"gradient holds NaN or infinity"):
        steepest_tangent(stiefel(5, 2), G)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"shapes are \(5, 2\) and \(2, 5\)"):
        steepest_tangent(stiefel(5, 2), torch.ones(2, 5))
    with pytest.raises(ValueError, match="must be matrices"):
        steepest_tangent(torch.ones(3), torch.ones(3))
    with pytest.raises(TypeError, match="real weights"):
        steepest_tangent(stiefel(5, 2).cfloat(), torch.ones(5, 2).cfloat())


@pytest.mark.parametrize("shape", [(64, 64), (100, 64), (512, 64), (64, 512)], ids=str)
@pytest.mark.parametrize("lr", [1e-3, 0.1, 1.0, 10.0])
def test_the_retraction_ends_on_the_manifold(shape, lr):
    tall = stiefel(max(shape), min(shape))
    W = tall if shape[0] >= shape[1] else tall.mT.contiguous()
    G = torch.randn(shape, generator=generator(7))
    value = polar(W + lr * steepest_tangent(W, G).direction).double()
    gram = value.mT @ value if shape[0] >= shape[1] else value @ value.mT
    assert (gram - torch.eye(len(gram), dtype=DOUBLE)).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1024, 64), (1024, 256), (1024, 1024), (3072, 128)], ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_large(shape, scale):
    W = polar(stiefel(*shape))
    G = scale * torch.randn(shape, generator=generator(8))
    A, norm, gap = steepest_tangent(W, G)
    assert abs(gap) <= 1e-6
    W, G, A = W.to(DOUBLE), G.to(DOUBLE), A.to(DOUBLE)
    if shape[0] <= 1024:
        assert -(G * A).sum() >= (1 - 1e-6) * dual_bound(W, G)
    assert -(G * A).sum() == pytest.approx(float(norm), rel=1e-6)
    assert torch.linalg.matrix_norm(A, 2) <= 1 + 2e-6
    assert (W.mT @ A + A.mT @ W).abs().max() <= 1e-6


# ------------------------------------------------------------------------ the sign of a skew matrix


@pytest.mark.parametrize("m", [1, 2, 3, 4, 9, 40])
@pytest.mark.parametrize("exponent", [0, -3, -7, -12], ids=str)
def test_sign_of_every_spectrum(m, exponent):
    blocks = torch.logspace(0, exponent, m // 2, dtype=DOUBLE)
    N = torch.zeros(m, m, dtype=DOUBLE)
    for i, s in enumerate(blocks):
        N[2 * i, 2 * i + 1] = s
    Q = stiefel(m, m, DOUBLE)
    N = skew_part(Q @ (N - N.mT) @ Q.mT)
    X, norm = skew_sign(N)
    assert torch.equal(X, -X.mT)
    nuclear = 2 * float(blocks.sum())
    assert float(norm) == pytest.approx(nuclear, rel=1e-7)
    assert torch.linalg.matrix_norm(X, 2) <= 1 + 1e-5
    X = contraction(X)
    assert float((N * X).sum()) == pytest.approx(nuclear, rel=1e-7)
    assert torch.linalg.matrix_norm(X, 2) <= 1 + 1e-9


def test_sign_resolves_what_matters():
    # Ten large singular values, and so many small ones that they matter.
    large, small = torch.ones(5), torch.full((295,), 1e-7)
    blocks = torch.cat((large, small)).double()
    N = torch.block_diag(*(torch.tensor([[0.0, s], [-s, 0.0]], dtype=DOUBLE) for s in blocks))
    Q = stiefel(600, 600, DOUBLE)
    N = skew_part(Q @ N @ Q.mT)
    X, norm = skew_sign(N, gap=1e-8)
    assert float((N * X).sum()) == pytest.approx(2 * float(blocks.sum()), rel=1e-9)
    assert float((N * skew_sign(N, gap=1.0)[0]).sum()) == pytest.approx(10, rel=1e-9)
    assert float(norm) >= 2 * float(blocks.sum()) * (1 - 1e-12)
