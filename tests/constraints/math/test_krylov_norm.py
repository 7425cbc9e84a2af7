"""The spectral norm of a matrix that changes little per step, and scaling to a bound on it."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import constrained
from constrained import constrain, get
from constraints import SpectralNorm
from constraints.math.krylov_norm import generic_directions, leading
from constraints.math.scale_to_norm import radial_step, tracked_radial

DOUBLE = torch.float64


def norm(X):
    return torch.linalg.matrix_norm(X.detach().double(), 2)


def frobenius(X):
    return torch.linalg.matrix_norm(X)


def found(X):
    return leading(X, generic_directions(X), frobenius(X))


def spectrum(s):
    """A matrix with singular vectors that no direction is near to."""
    g = torch.Generator().manual_seed(len(s))
    U, V = (torch.linalg.qr(torch.randn(len(s), len(s), dtype=DOUBLE, generator=g)).Q for _ in "UV")
    return (U * s) @ V.mT


# ------------------------------------------------------------------------------------ the norm


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2), (3, 50), (50, 3), (60, 60), (4, 30, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_norm_of_a_matrix_of_which_nothing_is_known(shape, dtype):
    X = torch.randn(shape, dtype=dtype)
    size, directions = found(X)
    rounding = 8 * torch.finfo(dtype).eps * frobenius(X)
    assert ((size - torch.linalg.matrix_norm(X, 2)).abs() <= rounding).all()
    assert directions.shape == (*shape[:-2], min(2, *shape[-2:]), shape[-1])
    images = torch.linalg.vector_norm(directions[..., :1, :] @ X.mT, dim=-1).squeeze(-1)
    torch.testing.assert_close(images, size)


@pytest.mark.parametrize(
    "s",
    [
        torch.zeros(40),
        torch.ones(40),
        torch.eye(40)[0],
        torch.linspace(1, 0, 40),
        torch.cat((torch.ones(20), torch.linspace(1, 0, 20))),
        0.5 ** torch.arange(40),
    ],
)
def test_the_norm_for_any_spectrum(s):
    for X in (spectrum(s.double()), torch.diag(s.double())):
        size, directions = found(X)
        assert torch.allclose(size, s.double().amax(), rtol=0, atol=1e-12)
        torch.testing.assert_close(directions @ directions.mT, torch.eye(2, dtype=DOUBLE))


def test_the_directions_are_orthonormal_where_no_product_leads_to_new_ones():
    entry = torch.zeros(64, 64)
    entry[32, 21] = 2
    for X in (entry, torch.ones(16, 16), torch.eye(64)):
        size, directions = frobenius(X), torch.eye(2, X.shape[-1])
        for _ in range(3):
            found_size, directions = leading(X, directions, size)
            torch.testing.assert_close(directions @ directions.mT, torch.eye(2), rtol=0, atol=1e-5)
            torch.testing.assert_close(found_size.double(), norm(X), rtol=1e-6, atol=0)


def test_a_direction_that_overtakes_the_one_that_was_right_is_seen():
    # Orthogonal to both directions that are followed, and to every product with them.
    s = torch.linspace(1, 0.5, 100, dtype=DOUBLE)
    directions = torch.eye(2, 100, dtype=DOUBLE)
    for _ in range(40):
        s[50] += 0.02
        size, directions = leading(torch.diag(s), directions, s.norm())
    assert size == pytest.approx(float(s[50]), rel=1e-12)
    assert directions[0].abs().argmax() == 50


# ------------------------------------------------------------------------------------- the map


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_following_gives_what_the_map_does(scale):
    constraint = SpectralNorm(bound=scale, map="scale")
    for size in (0.5, 1.5):
        X = torch.randn(3, 20, 10)
        X = X * (size * scale / torch.linalg.matrix_norm(X, 2, keepdim=True))
        W, directions = tracked_radial(X, generic_directions(X), scale)
        torch.testing.assert_close(W, constraint(X, directions), rtol=1e-5, atol=0)
        assert torch.equal(W, X) == (size < 1)
        assert torch.equal(constraint(W, directions), W)


def test_what_is_not_finite_stays_where_it_is():
    X = torch.randn(3, 6, 6)
    X[1, 0, 0] = torch.nan
    W, _ = tracked_radial(X, generic_directions(X), 1.0)
    assert torch.isnan(W[1]).all()
    assert (norm(W[::2]) <= 1 + 1e-6).all()


def test_on_the_boundary_the_gradient_is_that_of_the_side_the_descent_leads_to():
    W = spectrum(torch.linspace(1, 0.2, 12, dtype=DOUBLE))
    directions = found(W)[1]
    G = torch.randn(12, 12, dtype=DOUBLE)
    v = directions[0]
    inwards = G if (W @ v) @ G @ v > 0 else -G
    assert torch.equal(radial_step(inwards, W, directions, 1.0), inwards)
    step = 1e-6
    outside = W + step * inwards
    expected = torch.autograd.functional.vjp(
        lambda X: X / torch.linalg.matrix_norm(X, 2), outside, -inwards
    )[1]
    here = radial_step(-inwards, W, directions, 1.0)
    torch.testing.assert_close(here, expected, rtol=0, atol=100 * step)
    inside = 0.9 * W
    assert torch.equal(radial_step(-inwards, inside, directions, 1.0), -inwards)


# ------------------------------------------------------------------------------------ training


def optimizers():
    return [
        lambda p: torch.optim.SGD(p, lr=0.3),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=3e-3),
    ]


@pytest.mark.parametrize("start", ["random", "orthogonal", "small"])
@pytest.mark.parametrize("make", optimizers())
def test_the_bound_holds_after_each_step(start, make):
    n = 96
    layer = nn.Linear(n, n, bias=False)
    weight = torch.randn(n, n) / n**0.5
    if start == "orthogonal":
        nn.init.orthogonal_(weight)
    layer.weight.data = {"small": 1e-3 * weight}.get(start, weight)
    constrain(layer, "weight", "spectral_norm(map='scale')")
    optimizer = make(layer.parameters())
    target = 2 * torch.randn(n, n) / n**0.5
    worst = largest = 0.0
    for _ in range(150):
        x = torch.randn(32, n)
        optimizer.zero_grad()
        (layer(x) - x @ target.T).square().sum(-1).mean().backward()
        optimizer.step()
        excess = float(norm(layer.weight)) - 1
        worst, largest = max(worst, excess), max(largest, excess + 1)
    assert worst <= 1e-4
    assert largest >= 1 - 1e-4


def test_the_bound_holds_from_the_first_step_of_a_large_layer():
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024, bias=False)
    drawn = layer.weight.detach().clone()
    constrain(layer, "weight", "spectral_norm(map='scale')")
    torch.testing.assert_close(layer.weight, drawn / torch.linalg.matrix_norm(drawn, 2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, y = torch.randn(32, 1024), torch.randn(32, 1024)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
        assert norm(layer.weight) <= 1 + 1e-5


def test_one_of_many_equal_singular_values_is_followed_from_the_first_step():
    g = torch.Generator().manual_seed(0)
    n = 1024
    W = torch.linalg.qr(torch.randn(n, n, generator=g)).Q
    u, v = (torch.nn.functional.normalize(torch.randn(n, generator=g), dim=0) for _ in range(2))
    directions = found(W)[1]
    for _ in range(3):
        x = torch.randn(32, n, generator=g)
        G = (x @ (W - 3 * torch.outer(u, v)).T).T @ x
        G = radial_step(G, W, directions, 1.0)
        W = W - 1e-3 * frobenius(W) / frobenius(G) * G
        W, directions = tracked_radial(W, directions, 1.0)
        assert norm(W) <= 1 + 1e-5


def test_without_the_hook_a_step_ends_at_the_same_value():
    with_hook = constrain(nn.Linear(20, 30), "weight", "spectral_norm(map='scale')")
    X = with_hook.parametrizations.weight.original0
    before, directions = X.detach().clone(), with_hook.parametrizations.weight.original1.clone()
    optimizer = torch.optim.SGD(with_hook.parameters(), lr=0.5)
    (with_hook(torch.randn(8, 20)) - 3).square().mean().backward()
    stepped = before - 0.5 * X.grad
    optimizer.step()
    expected = get("spectral_norm")(map="scale")(stepped, directions)
    assert torch.equal(with_hook.weight, X)
    torch.testing.assert_close(with_hook.weight, expected, rtol=0, atol=1e-6)


def test_a_run_goes_on_from_a_checkpoint():
    def model():
        m = constrain(nn.Linear(16, 16), "weight", "spectral_norm(map='scale')")
        return m, torch.optim.SGD(m.parameters(), lr=0.3)

    def train(m, optimizer):
        for x in torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0)):
            optimizer.zero_grad()
            (m(x) - 2 * x).square().mean().backward()
            optimizer.step()

    (first, o), (second, p) = model(), model()
    train(first, o)
    second.load_state_dict(first.state_dict())
    train(first, o)
    train(second, p)
    assert torch.equal(first.weight, second.weight)


def test_nothing_is_kept_from_a_call_that_had_no_numbers():
    spec = "spectral_norm(map='scale')"
    with FakeTensorMode():
        constrain(nn.Linear(17, 17), "weight", spec)
    layer = nn.Linear(17, 17)
    with torch.device("meta"):
        constrain(layer, "weight", spec)
    assert norm(layer.weight) <= 1 + 1e-6


def test_in_a_chain_it_does_not_follow_others():
    both = "spectral_norm(bound=0.5, map='scale') | nonnegative"
    with pytest.raises(ValueError, match="nonnegative"):
        constrain(nn.Linear(3, 3), "weight", both)
    with pytest.raises(ValueError, match="spectral_norm"):
        constrain(nn.Linear(3, 3), "weight", "symmetric | spectral_norm(map='scale')")


def test_names_and_arguments():
    constraint = SpectralNorm(0.5, map="scale")
    assert repr(constraint) == "spectral_norm(bound=0.5, map='scale')"
    assert constraint.spec() == {"name": "spectral_norm", "bound": 0.5, "map": "scale"}
    assert constraint.value_index == 0
    assert SpectralNorm().value_index == 0
    with pytest.raises(ValueError, match="map must be 'clip' or 'scale', got 'divide'"):
        SpectralNorm(map="divide")
    with pytest.raises(constrained.InfeasibleError, match="by 1 "):
        constraint.right_inverse(1.5 * torch.eye(3))


def test_compiled_training_is_eager_training():
    def trained(compiled):
        torch.manual_seed(0)
        layer = constrain(nn.Linear(16, 24), "weight", "spectral_norm(map='scale')")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        for x in torch.randn(20, 4, 16):
            optimizer.zero_grad()
            (forward(x) - 3).square().mean().backward()
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-5)


# From torch 2.15 on, opcheck reads the gradients of its own intermediate results.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_the_gradient_of_traced_code(size):
    X = spectrum(torch.linspace(size, 0.2, 12, dtype=DOUBLE)).requires_grad_()
    directions, G = found(X.detach())[1], torch.randn(12, 12, dtype=DOUBLE)
    value, _ = torch.ops.constraints.radial(X, directions, 1.0)
    constraint = SpectralNorm(map="scale")
    expected = constraint(X, directions)
    torch.testing.assert_close(value, expected)
    if size != 1:
        here, there = (torch.autograd.grad(v, X, G)[0] for v in (value, expected))
        torch.testing.assert_close(here, there)
    torch.library.opcheck(torch.ops.constraints.radial, (X, directions, 1.0))
