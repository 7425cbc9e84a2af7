"""A matrix held to a bound by singular vectors that are followed from step to step."""

import copy
import pickle

import pytest
import torch
from torch import nn

import constraints.math.leading_vectors as leading_vectors
from constrained import constrain
from constraints import SpectralNorm
from constraints.math.inward_gradient import inward_gradient, thin_inward_gradient
from constraints.math.leading_vectors import cut, vectors_of
from constraints.math.singular_vectors import one_side

DOUBLE = torch.float64


def norm(X):
    return torch.linalg.matrix_norm(X.detach().double(), 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrum(s, shape=None, seed=0):
    """A matrix with given singular values."""
    n, p = shape or (len(s), len(s))
    g = generator(seed)
    U, V = (torch.linalg.qr(torch.randn(m, len(s), dtype=DOUBLE, generator=g)).Q for m in (n, p))
    return (U * s.double()) @ V.mT


def clipped(X, bound=1.0):
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return (U * S.clamp(max=bound)) @ Vh


def some_at_the_bound(n=160, k=12, dtype=torch.float32, shape=None):
    s = torch.cat((torch.ones(k), torch.linspace(0.97, 0, n - k)))
    return spectrum(s, shape).to(dtype)


@pytest.fixture
def decompositions(monkeypatch):
    """How often a matrix was decomposed."""
    calls = []
    decompose = leading_vectors._decomposed

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return decompose(*args, **kwargs)

    monkeypatch.setattr(leading_vectors, "_decomposed", counted)
    return calls


def step_of(size, shape, dtype, seed=1):
    D = torch.randn(*shape[:-1], 8, dtype=dtype, generator=generator(seed)) @ torch.randn(
        8, shape[-1], dtype=dtype, generator=generator(seed + 1)
    )
    return size * D / torch.linalg.matrix_norm(D, 2)


# ------------------------------------------------------------------------------------ following


@pytest.mark.parametrize("bound", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(160, 160), (200, 160), (160, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-2, 0.2])
def test_a_matrix_that_has_moved_is_cut(bound, shape, dtype, size, decompositions):
    W = bound * some_at_the_bound(dtype=dtype, shape=shape)
    before = vectors_of(W, bound)
    decompositions.clear()
    X = W + bound * step_of(size, shape, dtype)
    found, vectors = cut(X, bound, before)
    # In double precision, rounding is too small for some of these.
    assert dtype == DOUBLE or not decompositions
    rounding = 8 * torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(X))
    assert norm(found) <= bound + rounding
    # Also nearly the nearest: the vectors that are cut by are singular vectors up to a residual.
    distance = torch.linalg.matrix_norm(found.double() - clipped(X.double(), bound), 2)
    # They may be cut by what the residuals leave open, besides rounding.
    open_to = (leading_vectors._WRONG + 2) * leading_vectors._ROUNDING
    open_to *= torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(X))
    assert distance <= 1e-2 * size * bound + open_to
    U, S, V = vectors.U, vectors.S, vectors.V
    for Q in (U, V):
        torch.testing.assert_close(Q.mT @ Q, torch.eye(len(S), dtype=dtype), rtol=0, atol=1e-4)
    assert vectors.at.sum() == (torch.linalg.svdvals(found) > bound * (1 - 2e-5)).sum() or size


def test_members_come_back_bit_for_bit_and_their_value_in_memory_of_its_own():
    W = some_at_the_bound()
    _, before = cut(W, 1.0, None)
    kept = W.clone()
    found, _ = cut(W, 1.0, before)
    assert torch.equal(found, kept)
    layer = constrain(torch.nn.Linear(160, 160, bias=False), "weight", "spectral_norm")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for rate in (0.0, 0.1):
        layer(torch.ones(1, 160)).sum().backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        original = layer.parametrizations["weight"].original
        assert layer.weight.data_ptr() != original.data_ptr()
        torch.testing.assert_close(layer.weight, original, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(200, 160), (160, 200)])
def test_both_sides_are_found_from_the_shorter_one(shape):
    W = some_at_the_bound(dtype=DOUBLE, shape=shape)
    vectors = vectors_of(W, 1.0)
    kept = one_side(vectors)
    assert len(kept.basis) == min(shape)
    for found, expected in zip(kept.vectors(W)[:4], vectors[:4], strict=True):
        torch.testing.assert_close(found, expected)


def test_what_following_cannot_do_is_decomposed(decompositions):
    W = some_at_the_bound()
    before = vectors_of(W, 1.0)
    far = W + step_of(5.0, W.shape, W.dtype)
    many = spectrum(torch.linspace(1.3, 0.9, 160)).float()
    nan = W.clone()
    nan[3, 4] = torch.nan
    for X in (far, many, 1e30 * W, nan):
        decompositions.clear()
        found, _ = cut(X, 1.0, before)
        assert decompositions
        assert X is nan or norm(found) <= 1 + 1e-5
    assert cut(nan, 1.0, before)[0].isnan().all()


def test_a_direction_that_comes_from_elsewhere_is_seen_at_once():
    # A step along one pair of directions, orthogonal to all that are followed.
    s = torch.cat((torch.ones(6), torch.linspace(0.97, 0, 154))).double()
    for seed in range(20):
        W = spectrum(s, seed=seed).float()
        before = vectors_of(W, 1.0)
        _, before = cut(W, 1.0, before)
        _, before = cut(W, 1.0, before)
        U, _, Vh = torch.linalg.svd(W)
        X = W + 0.5 * torch.outer(U[:, 80], Vh[80])
        for _ in range(2):
            X, before = cut(X, 1.0, before)
            assert norm(X) <= 1 + 1e-5
            X = X + 0.7 * torch.outer(U[:, 90], Vh[90])


def test_vectors_that_were_no_help_are_not_tried_again_at_once(monkeypatch):
    W = some_at_the_bound()
    before, tried = vectors_of(W, 1.0), []
    monkeypatch.setattr(leading_vectors, "_followed", lambda *_: tried.append(1))
    counts = []
    for _ in range(40):
        _, before = cut(W, 1.0, before)
        counts.append(len(tried))
    assert counts[0] == 1
    assert 5 <= counts[-1] <= 8


def test_a_value_that_rises_unseen_by_all_products_is_seen():
    # In a diagonal matrix, exactly right vectors stay so.
    s = torch.linspace(1, 0.5, 100, dtype=DOUBLE)
    _, before = cut(torch.diag(s), 1.0, None)
    for _ in range(40):
        s[70] += 0.02
        W, before = cut(torch.diag(s), 1.0, before)
        s = W.diagonal().clone()
    assert float(s[70]) == pytest.approx(1, abs=1e-6)
    assert norm(W) <= 1 + 1e-6


# ------------------------------------------------------------------------------------- gradient


def test_thin_and_dense_gradients_agree():
    for k, b in ((12, 3), (12, 20), (60, 4)):
        W = some_at_the_bound(k=k, dtype=DOUBLE)
        vectors = vectors_of(W, 1.0)
        left, right = (torch.randn(b, 160, dtype=DOUBLE, generator=generator(i)) for i in (5, 6))
        dense = inward_gradient(left.mT @ right, 1.0, vectors)
        thin = thin_inward_gradient(left.mT @ right, left, right, 1.0, vectors)
        torch.testing.assert_close(thin, dense, rtol=0, atol=1e-10)


def test_the_gradient_is_that_of_a_projected_step():
    W = spectrum(torch.tensor([1.0, 1.0, 0.95, 0.3, 0.1]))
    G = torch.randn(5, 5, dtype=DOUBLE, generator=generator(3))
    found = inward_gradient(G, 1.0, vectors_of(W, 1.0))
    length = 1 / G.norm()
    torch.testing.assert_close(found, (W - clipped(W - length * G)) / length)


def test_the_gradient_vanishes_at_an_optimum_and_leads_inside():
    W = some_at_the_bound(dtype=DOUBLE)
    vectors = vectors_of(W, 1.0)
    U, V = (x[:, vectors.at] for x in (vectors.U, vectors.V))
    C = torch.randn(12, 12, dtype=DOUBLE)
    outwards = U @ (C @ C.mT) @ V.mT
    assert inward_gradient(-outwards, 1.0, vectors).norm() <= 1e-12 * outwards.norm()
    inwards = 1e-3 * outwards
    torch.testing.assert_close(inward_gradient(inwards, 1.0, vectors), inwards)
    inside = 0.9 * W
    assert vectors_of(inside, 1.0) is None


def test_not_finite_gradients_come_back():
    vectors = vectors_of(some_at_the_bound(), 1.0)
    for bad in (torch.nan, torch.inf):
        G = torch.ones(160, 160)
        G[0, 0] = bad
        assert not inward_gradient(G, 1.0, vectors).isfinite().all()
        assert (
            not thin_inward_gradient(G[:2].mT @ G[:2], G[:2], G[:2], 1.0, vectors).isfinite().all()
        )


# ------------------------------------------------------------------------------------- training

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.3),
    "large": lambda params: torch.optim.SGD(params, lr=30.0),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.03, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2),
    "fast adam": lambda params: torch.optim.Adam(params, lr=3e-2),
}


def start_of(kind, n):
    X = torch.randn(n, n, generator=generator(7)) / n**0.5
    if kind == "orthogonal":
        return torch.linalg.qr(X).Q
    if kind == "equal":
        return some_at_the_bound(n, n // 4)
    if kind == "deficient":
        return X @ spectrum(torch.cat((torch.ones(3), torch.zeros(n - 3)))).float()
    return {"random": X, "small": 1e-3 * X, "zero": 0 * X}[kind]


@pytest.mark.parametrize("start", ["random", "orthogonal", "equal", "small", "deficient", "zero"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_bound_holds_after_each_step(start, optimizer):
    n = 96
    layer = nn.Linear(n, n, bias=False)
    layer.weight.data = start_of(start, n)
    constrain(layer, "weight", "spectral_norm")
    steps = OPTIMIZERS[optimizer](layer.parameters())
    g = generator(1)
    target = 2 * torch.randn(n, n, generator=g) / n**0.5
    for _ in range(60):
        x = torch.randn(32, n, generator=g)
        steps.zero_grad()
        (layer(x) - x @ target.T).square().sum(-1).mean().backward()
        steps.step()
        assert norm(layer.weight) <= 1 + 1e-4


@pytest.mark.parametrize(
    "name", ["sgd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("momentum", "adam"))]
)
def test_the_optimum_is_that_of_the_exact_projection(name, decompositions):
    # Nearest to a matrix, of which 12 singular values are above the bound.
    n = 256
    target = spectrum(torch.cat((torch.linspace(2, 1.2, 12), torch.linspace(0.9, 0, n - 12))))
    target = target.float()
    layer = nn.Linear(n, n, bias=False)
    layer.weight.data = start_of("random", n)
    constrain(layer, "weight", "spectral_norm")
    optimizer = OPTIMIZERS[name](layer.parameters())
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=900)
    decompositions.clear()
    for _ in range(900):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum() / 2
        loss.backward()
        optimizer.step()
        decay.step()
    best = float((clipped(target.double()) - target).square().sum() / 2)
    assert float(loss.detach()) <= best * (1 + 1e-4)
    assert norm(layer.weight) <= 1 + 1e-5
    assert len(decompositions) < 60


def trained(layer, optimizer, seed, steps=6):
    for x in torch.randn(steps, 8, layer.weight.shape[1], generator=generator(seed)):
        optimizer.zero_grad()
        (layer(x) - 3).square().mean().backward()
        optimizer.step()


def fresh():
    layer = nn.Linear(128, 96, bias=False)
    layer.weight.data = some_at_the_bound(96, shape=(96, 128))
    constrain(layer, "weight", "spectral_norm")
    return layer, torch.optim.SGD(layer.parameters(), lr=1e-3)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_a_copy_has_the_value_and_goes_on_without_the_vectors(how):
    layer, optimizer = fresh()
    trained(layer, optimizer, 1)
    if how == "state_dict":
        other, _ = fresh()
        other.load_state_dict(layer.state_dict())
    else:
        copied = copy.deepcopy if how == "deepcopy" else lambda m: pickle.loads(pickle.dumps(m))
        other = copied(layer)
    assert set(layer.state_dict()) == {"parametrizations.weight.original"}
    assert torch.equal(other.weight, layer.weight)
    trained(layer, optimizer, 2)
    trained(other, torch.optim.SGD(other.parameters(), lr=1e-3), 2)
    torch.testing.assert_close(other.weight, layer.weight, rtol=0, atol=1e-5)
    assert norm(other.weight) <= 1 + 1e-5


def test_the_stored_value_is_that_of_an_evaluation():
    layer, optimizer = fresh()
    for seed in range(8):
        trained(layer, optimizer, seed, steps=1)
        original = layer.parametrizations.weight.original.detach()
        assert torch.equal(layer.weight, original)
        assert torch.equal(SpectralNorm()(original), original)


def test_without_the_hook_the_value_is_the_exact_projection():
    layer, _ = fresh()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.add_(step_of(0.5, original.shape, original.dtype))
        exact = clipped(original.double()).float()
        torch.testing.assert_close(layer.weight, exact, rtol=0, atol=1e-5)


def test_no_random_number_is_drawn_and_runs_are_equal():
    def run():
        layer, optimizer = fresh()
        before = torch.get_rng_state()
        trained(layer, optimizer, 1)
        assert torch.equal(torch.get_rng_state(), before)
        return layer.weight.detach()

    torch.manual_seed(0)
    first = run()
    torch.manual_seed(1)
    assert torch.equal(run(), first)
