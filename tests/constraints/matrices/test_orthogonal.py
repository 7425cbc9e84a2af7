"""Orthogonal matrices in all maps: references, scales, derivatives, optima."""

import math

import geotorch
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

import constrained
from constrained import constrain
from constrained.constraint.tolerance import tolerance
from constrained.training.canonicalize import canonicalize
from constraints import Orthogonal
from constraints.math.stiefel_curves import cayley, geodesic

# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64
MAPS = ["polar", "cayley", "exp"]
SHAPES = [(1, 1), (3, 3), (5, 2), (2, 5), (3, 2), (6, 3), (4, 1), (1, 4)]


def start(constraint, W):
    """The parameters of W, and the map as a function of the first alone."""
    params = constraint.right_inverse(W)
    X, *base = (params,) if isinstance(params, torch.Tensor) else params
    return X, lambda X: constraint(X, *base)


def largest(x):
    return float(x.detach().abs().max())


# -------------------------------------------------------------------------------------- the set


def test_violation_is_the_largest_entry_of_the_gram_matrix():
    W = torch.eye(4, 3, dtype=DOUBLE)
    assert Orthogonal().violation(W) == 0
    W[0, 1] = 1e-3
    assert float(Orthogonal().violation(W)) == pytest.approx(1e-3)
    assert float(Orthogonal().violation(W.mT)) == pytest.approx(1e-3)
    assert Orthogonal().violation(torch.zeros(2, 3, 3)).tolist() == [1, 1]
    assert Orthogonal().violation(torch.full((3, 3), 1e30)) == torch.inf
    assert Orthogonal().violation(torch.tensor([[1e30, 1e30], [1e30, -1e30]])) == torch.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_peers_agree_on_the_set(shape):
    W = Orthogonal().sample(shape)
    assert geotorch.Stiefel(shape).in_manifold(W)
    assert not geotorch.Stiefel(shape).in_manifold(2 * W)
    assert not Orthogonal().contains(2 * W)
    # Their matrices are members here.
    for layer in (nn.Linear(*reversed(shape)), nn.Linear(*reversed(shape))):
        torch_orthogonal(layer)
        assert Orthogonal().contains(layer.weight.detach())


@pytest.mark.parametrize("shape", [(6, 6), (7, 3), (3, 7), (2, 4, 4)])
def test_projection_is_the_nearest(shape):
    value = torch.randn(shape, dtype=DOUBLE)
    projected = Orthogonal().project(value)
    U, _, Vh = torch.linalg.svd(value, full_matrices=False)
    torch.testing.assert_close(projected, U @ Vh, rtol=0, atol=1e-13)
    for _ in range(20):
        other = Orthogonal().sample(shape, dtype=DOUBLE)
        norms = [torch.linalg.matrix_norm(value - W) for W in (projected, other)]
        assert (norms[0] <= norms[1]).all()


def test_samples_are_uniform():
    generator = torch.Generator().manual_seed(0)
    W = Orthogonal().sample((20000, 3, 2), generator=generator, dtype=DOUBLE)
    # The moments of the Haar measure: E w = 0, E w^2 = 1/n, E w^4 = 3/(n (n + 2)), and both columns
    # are alike.
    for order, expected in ((1, 0), (2, 1 / 3), (3, 0), (4, 3 / 15)):
        moment = (W**order).mean(0)
        assert largest(moment - expected) < 0.015
    square = Orthogonal().sample((20000, 3, 3), generator=generator)
    assert abs(float(torch.linalg.det(square).mean())) < 0.03
    assert abs(float(square.diagonal(dim1=-2, dim2=-1).sum(-1).mean())) < 0.03


def test_samples_follow_the_generator():
    draws = [
        Orthogonal().sample((2, 5), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert all(draw.is_contiguous() for draw in draws)
    assert Orthogonal().sample((3, 3), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_names_and_arguments():
    for name in ("orthogonal", "stiefel", "semi_orthogonal"):
        assert constrained.get(name) is Orthogonal
    assert repr(Orthogonal()) == "orthogonal()"
    assert Orthogonal("cayley").spec() == {"name": "orthogonal", "map": "cayley"}
    assert Orthogonal().frozen == ()
    assert Orthogonal("exp").frozen == (1,)
    with pytest.raises(ValueError, match="one of 'polar', 'rebased', 'cayley', 'exp', not 'qr'"):
        Orthogonal("qr")


# ------------------------------------------------------------------------------------- the maps


@pytest.mark.parametrize("n, p", [(1, 1), (3, 3), (4, 1), (5, 2), (3, 2), (6, 3), (9, 3), (7, 5)])
@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0, 30.0])
def test_curves_have_their_closed_forms(n, p, length):
    B = Orthogonal().sample((n, p), dtype=DOUBLE)
    X = length * torch.randn(n, p, dtype=DOUBLE)
    A = X @ B.mT - B @ X.mT
    identity = torch.eye(n, dtype=DOUBLE)
    expected = torch.linalg.solve(identity - A / 2, identity + A / 2) @ B
    torch.testing.assert_close(cayley(B, X), expected, rtol=0, atol=1e-12)
    expected = torch.from_numpy(scipy.linalg.expm(A.numpy())) @ B
    torch.testing.assert_close(geodesic(B, X), expected, rtol=0, atol=1e-11)
    for map, curve in (("cayley", cayley), ("exp", geodesic)):
        torch.testing.assert_close(Orthogonal(map)(X, B), curve(B, X), rtol=0, atol=1e-11)
        torch.testing.assert_close(Orthogonal(map)(X.mT, B.mT).mT, curve(B, X), rtol=0, atol=1e-11)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("n, p", [(1, 1), (8, 8), (64, 64), (33, 7), (7, 33), (12, 8), (200, 10)])
def test_every_scale_lands_in_the_set(map, n, p):
    constraint = Orthogonal(map)
    W = constraint.sample((n, p))
    zero, forward = start(constraint, W)
    for scale in (0.0, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e12, 1e30):
        for noise in (torch.randn(n, p), torch.ones(n, p)):
            X = (scale * noise).requires_grad_()
            value = forward(X)
            assert largest(constraint.violation(value)) <= 1e-5
            (gradient,) = torch.autograd.grad((value * torch.randn(n, p)).sum(), X)
            assert torch.isfinite(gradient).all()
    assert torch.equal(forward(zero), W)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(map, dtype):
    constraint = Orthogonal(map)
    W = constraint.sample((40, 30), dtype=dtype)
    params = constraint.right_inverse(W)
    X, *base = (params,) if map == "polar" else params
    assert X.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(constraint(X, *base), W, rtol=rounding, atol=rounding)
    X = X + (0.1 * torch.randn(40, 30)).to(dtype)
    expected = constraint(*(param.double() for param in (X, *base)))
    found = constraint(X, *base)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 2)])
@pytest.mark.parametrize("where", ["right inverse", "random"])
def test_derivatives(map, shape, where):
    constraint = Orthogonal(map)
    X, forward = start(constraint, constraint.sample(shape, dtype=DOUBLE))
    X = X if where == "right inverse" else torch.randn_like(X)
    X = X.clone().requires_grad_()
    assert gradcheck(forward, X, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(forward, X, check_fwd_over_rev=True)


def members(shape):
    n, p = shape
    k = max(shape)
    signs = torch.ones(k, dtype=DOUBLE)
    signs[0] = -1
    identity = torch.eye(k, dtype=DOUBLE)
    yield "identity", identity[:n, :p]
    yield "-identity", -identity[:n, :p]
    yield "reflection", torch.diag(signs)[:n, :p]
    if n >= p:
        yield "permutation", identity.roll(1, 0)[:n, :p]
    yield "random", Orthogonal().sample(shape, dtype=DOUBLE)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_direction_is_dead(map, shape):
    constraint = Orthogonal(map)
    size = math.prod(shape)
    for name, W in members(shape):
        X, forward = start(constraint, W)
        assert torch.equal(forward(X), W), name
        jacobian = jacrev(forward)(X).reshape(size, size)
        singular = torch.linalg.svdvals(jacobian)
        rank = constraint.dimension(shape)
        assert (singular[:rank] > 0.9).all(), name
        assert (singular[rank:] < 1e-12).all(), name


def test_both_components_are_reached():
    for sign in (1, -1):
        W = torch.diag(torch.tensor([1.0, 1.0, sign]))
        for map in MAPS:
            X, forward = start(Orthogonal(map), W)
            det = torch.linalg.det(forward(X + 0.1 * torch.randn(3, 3)))
            assert float(det) == pytest.approx(sign, abs=1e-5)


@pytest.mark.parametrize("rate", [0.1, 3.0, 100.0])
def test_gradient_steps_keep_the_sign_of_the_determinant(rate):
    for sign in (1.0, -1.0):
        module = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, sign])))
        constrain(module, "weight", "orthogonal")
        target = Orthogonal().sample((3, 3))
        optimizer = torch.optim.SGD(module.parameters(), lr=rate)
        for _ in range(20):
            optimizer.zero_grad()
            (module.weight - target).square().sum().backward()
            optimizer.step()
            assert float(torch.linalg.det(module.weight.detach())) == pytest.approx(sign, abs=1e-5)


def test_no_square_base_for_a_tall_matrix():
    # A skew 50,000 x 50,000 matrix would take 10 GB.
    B = Orthogonal().sample((50_000, 2))
    for map in MAPS:
        X, forward = start(Orthogonal(map), B)
        X.requires_grad_()
        forward(X).sum().backward()
        assert X.grad.shape == (50_000, 2)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (2, 5), (3, 2)])
def test_vmap_and_compile(map, shape):
    constraint = Orthogonal(map)
    B = constraint.sample((3, *shape))
    params = (torch.randn(3, *shape), B)[: 1 if map == "polar" else 2]
    torch.testing.assert_close(torch.vmap(constraint)(*params), constraint(*params))
    torch._dynamo.reset()
    compiled = torch.compile(constraint, fullgraph=True, backend="aot_eager")
    X = params[0].requires_grad_()
    values = [function(X, *params[1:]) for function in (constraint, compiled)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((value**3).sum(), X)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------- training


class Procrustes(nn.Module):
    """``min ||W A - B||`` over orthogonal W. Up to a constant, that is ``max tr(W' B A')``."""

    def __init__(self, n, p):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(n, p))
        self.A = torch.randn(p, 2 * p) / (2 * p) ** 0.5
        target = Orthogonal().sample((n, p))
        if n == p and torch.linalg.det(target) < 0:
            target[:, 0] *= -1
        self.B = target @ self.A + 0.1 * torch.randn(n, 2 * p) / (2 * p) ** 0.5
        U, _, Vh = torch.linalg.svd((self.B @ self.A.mT).double(), full_matrices=False)
        self.optimum = float((U @ Vh @ self.A.double() - self.B).square().sum() / 2)

    def loss(self, W):
        return (W @ self.A - self.B).square().sum() / 2

    def forward(self):
        return self.loss(self.weight)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.5),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.1),
}


def train(problem, optimizer, steps):
    """Every loss, and the largest violation of the constraint after a step."""
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, violations = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
        violations.append(largest(Orthogonal().violation(problem.weight.detach())))
    return losses, max(violations)


@pytest.mark.parametrize("n, p", [(16, 16), (32, 8)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_procrustes_reaches_the_optimum(name, n, p):
    problem = constrain(Procrustes(n, p), "weight", Orthogonal())
    losses, violation = train(problem, OPTIMIZERS[name](problem.parameters()), 300)
    assert losses[-1] == pytest.approx(problem.optimum, rel=1e-5)
    assert violation <= 1e-5


@pytest.mark.parametrize("map", ["cayley", "exp"])
@pytest.mark.parametrize("n, p", [(8, 8), (20, 4)])
def test_procrustes_along_curves(map, n, p):
    problem = constrain(Procrustes(n, p), "weight", Orthogonal(map))
    first = float(problem().detach())
    losses, violation = train(problem, OPTIMIZERS["adam"](problem.parameters()), 320)
    assert problem.optimum * (1 - 1e-5) <= losses[-1] <= problem.optimum + 0.01 * first
    assert violation <= 1e-5


def test_as_good_as_the_map_of_torch():
    mine, theirs = Procrustes(12, 12), nn.Linear(12, 12, bias=False)
    constrain(mine, "weight", Orthogonal())
    nn.init.eye_(theirs.weight)
    torch_orthogonal(theirs)
    ends = []
    for read, params in (
        (lambda: mine.weight, mine.parameters()),
        (lambda: theirs.weight, theirs.parameters()),
    ):
        optimizer = torch.optim.SGD(params, lr=0.2, momentum=0.9)
        for _ in range(300):
            optimizer.zero_grad()
            mine.loss(read()).backward()
            optimizer.step()
        ends.append(read().detach())
    losses = [float(mine.loss(W)) for W in ends]
    assert losses[0] == pytest.approx(mine.optimum, rel=1e-5)
    assert losses[0] <= losses[1] * (1 + 1e-5)
    assert largest(Orthogonal().violation(ends[0])) <= 1e-6


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("rate", [1e2, 1e6, 1e12, 1e30])
def test_one_very_large_step(map, rate):
    problem = constrain(Procrustes(12, 6), "weight", Orthogonal(map))
    optimizer = torch.optim.SGD(problem.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        problem().backward()
        optimizer.step()
        assert largest(Orthogonal().violation(problem.weight.detach())) <= 1e-5


def test_without_the_hook_nothing_is_wrong():
    # The parameter is not brought back after a step: forward computes the whole map.
    problem = Procrustes(16, 16)
    X = problem.weight.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([X], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        W = Orthogonal()(X)
        assert largest(Orthogonal().violation(W)) <= 1e-5
        problem.loss(W).backward()
        optimizer.step()
    assert float(problem.loss(Orthogonal()(X)).detach()) == pytest.approx(problem.optimum, rel=1e-5)


def test_line_search_far_from_the_canonical_point():
    problem = constrain(Procrustes(16, 16).double(), "weight", Orthogonal())
    problem.A, problem.B = problem.A.double(), problem.B.double()
    optimizer = torch.optim.LBFGS(problem.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = problem()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert float(problem().detach()) == pytest.approx(problem.optimum, rel=1e-6)


@pytest.mark.slow
def test_no_drift():
    layer = constrain(nn.Linear(4, 4, bias=False), "weight", Orthogonal())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    for step in range(10_000):
        optimizer.zero_grad()
        (layer.weight * torch.randn(4, 4)).sum().backward()
        optimizer.step()
        if step % 100 == 99:
            weight = layer.weight.detach()
            # The rounding of one step, and not that of all before.
            assert Orthogonal().contains(weight)
            assert geotorch.Stiefel((4, 4)).in_manifold(weight, eps=float(tolerance(weight, 2)))


def test_weight_decay_changes_nothing():
    ends = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        layer = constrain(nn.Linear(6, 6, bias=False), "weight", Orthogonal())
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=decay)
        for _ in range(20):
            optimizer.zero_grad()
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_the_parameter_is_the_weight():
    layer = nn.Linear(6, 4)
    constrain(layer, "weight", Orthogonal())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    (original,) = (p for name, p in layer.named_parameters() if name.endswith("original"))
    assert torch.equal(original, layer.weight)
    assert original.is_contiguous()


# --------------------------------------------------------------------------------- the rebased map


class TestRebased:
    def layer(self, n=32, dtype=torch.float32):
        torch.manual_seed(0)
        layer = nn.Linear(n, n, bias=False).to(dtype)
        return constrained.constrain(layer, "weight", "orthogonal", map="rebased")

    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
            lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, lr=0.3),
            lambda p: torch.optim.SGD(p, lr=1e-3),
        ],
    )
    @pytest.mark.parametrize("n", [2, 32, 200])
    def test_it_stays_orthogonal_at_every_step(self, make, n):
        layer = self.layer(n)
        optimizer = make(layer.parameters())
        target = torch.linalg.qr(torch.randn(n, n)).Q
        for _ in range(60):
            optimizer.zero_grad()
            (layer.weight - target).square().sum().backward()
            optimizer.step()
            W = layer.weight.detach()
            assert float((W @ W.T - torch.eye(n)).abs().max()) < 5e-6
            inside = layer.parametrizations.weight
            assert not inside.original0.any() and torch.equal(inside.original1, W)

    def test_it_reaches_the_optimum_of_procrustes(self):
        layer = self.layer(dtype=torch.float64)
        start = layer.weight.detach().clone()
        # In the same component.
        S = torch.randn(32, 32, dtype=torch.float64)
        target = start @ torch.linalg.matrix_exp((S - S.T) / 3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
        for _ in range(200):
            optimizer.zero_grad()
            ((layer.weight - target).square().sum() / 2).backward()
            optimizer.step()
        assert float((layer.weight.detach() - target).norm()) < 1e-6

    def test_without_the_hook_it_is_the_same_matrix(self):
        layer = self.layer()
        with torch.no_grad():
            layer.parametrizations.weight.original0.normal_(std=0.1)
        before = layer.weight.detach().clone()
        canonicalize(layer.parametrizations.weight)
        torch.testing.assert_close(layer.weight, before)

    def test_it_does_not_drift(self):
        layer = self.layer(80)
        inside = layer.parametrizations.weight
        generator = torch.Generator().manual_seed(0)
        for _ in range(3000):
            with torch.no_grad():
                inside.original0.normal_(std=1e-3, generator=generator)
            canonicalize(inside)
        W = inside.original1
        assert float((W.T @ W - torch.eye(80)).abs().max()) < 5e-6

    def test_a_plain_checkpoint_loads(self):
        layer, plain = self.layer(), nn.Linear(32, 32, bias=False)
        nn.init.orthogonal_(plain.weight)
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer.weight, plain.weight)

    def test_only_square_matrices(self):
        with pytest.raises(ValueError, match="must be a square matrix for map='rebased'"):
            constrained.constrain(nn.Linear(4, 3), "weight", "orthogonal", map="rebased")
