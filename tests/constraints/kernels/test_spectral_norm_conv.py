"""Bounds on the norm of a convolution, against its dense matrix."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap

import constrained
from constrained import constrain
from constraints import SpectralNormConv
from constraints.math import conv_symbol as symbol
from constraints.math.top_singular_value import largest_singular_value

# Forward-mode differentiation, whose rules torch still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

DOUBLE = torch.float64
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def matrix(K, size, stride=1, groups=1, padding_mode="zeros", padding=None):
    """The convolution as a matrix: what it makes of every unit vector."""
    kernel = K.shape[2:]
    images = torch.eye(K.shape[1] * groups * size ** len(kernel), dtype=K.dtype)
    images = images.reshape(-1, K.shape[1] * groups, *[size] * len(kernel))
    if padding_mode == "circular":
        around = [side for k in reversed(kernel) for side in ((k - 1) // 2, k // 2)]
        images, padding = F.pad(images, around, mode="circular"), 0
    elif padding is None:
        padding = tuple(k - 1 for k in kernel)
    convolution = CONV[len(kernel)]
    return convolution(images, K, stride=stride, groups=groups, padding=padding).flatten(1)


def true_norm(K, size, **kwargs):
    return float(torch.linalg.matrix_norm(matrix(K, size, **kwargs), 2))


def outside(*shape, dtype=DOUBLE):
    return 10 * torch.randn(shape, dtype=dtype)


# --------------------------------------------------------------------------------- set and map


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_circular_is_exact(k, stride, groups):
    arguments = {"stride": stride, "groups": groups, "padding_mode": "circular"}
    constraint = SpectralNormConv(2.0, size=16, **arguments)
    K = outside(4, 4 // groups, k, k)
    exact = true_norm(K, 16, **arguments)
    assert float(constraint.norm(K)) == pytest.approx(exact, rel=1e-12)
    W = constraint(K)
    torch.testing.assert_close(W, K * 2 / exact, rtol=1e-13, atol=0)
    assert true_norm(W, 16, **arguments) == pytest.approx(2, rel=1e-12)
    assert torch.equal(constraint(W), W)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_zeros_is_an_upper_bound_within_four_percent_of_the_lattice(k, stride, groups):
    arguments = {"stride": stride, "groups": groups}
    constraint = SpectralNormConv(**arguments)
    W = constraint.project(outside(4, 4 // groups, k, k))
    # The lattice: the limit of finer and finer tori.
    fine = SpectralNormConv(size=256, padding_mode="circular", **arguments)
    lattice = float(fine.norm(W))
    largest = math.cos(math.pi / 16) ** 2
    assert largest * 0.999 < lattice <= 1 + 1e-12
    for size in (6, 16):
        padded = true_norm(W, size, **arguments)
        assert padded <= lattice + 1e-3
        assert padded <= 1 + 1e-12
    assert padded > 0.85
    assert true_norm(W, 16, padding=0, **arguments) <= padded + 1e-12


@pytest.mark.parametrize("resolution", [2, 4, 8, 16, 32])
def test_resolution(resolution):
    finest = SpectralNormConv(padding_mode="circular", size=1024)
    for _ in range(5):
        K = outside(2, 3, 5)
        ratio = float(SpectralNormConv(resolution=resolution).norm(K) / finest.norm(K))
        assert 1 - 1e-5 <= ratio <= 1 / math.cos(math.pi / (2 * resolution)) + 1e-12


@pytest.mark.parametrize("resolution", [2, 3, 8])
def test_the_worst_case_between_the_points_of_a_grid(resolution):
    # The singular values of the symbol are |cos(w + a)| and |cos(w - a)|, a being half the distance
    # of two points: the grid sees cos(a) at most.
    a = math.pi / (2 * resolution)
    x = torch.arange(3, dtype=DOUBLE)
    rotation = torch.stack(((a * x).cos(), (a * x).sin(), -(a * x).sin(), (a * x).cos()))
    K = rotation.reshape(2, 2, 3) * torch.tensor([0.5, 0.0, 0.5], dtype=DOUBLE)
    grid = SpectralNormConv(padding_mode="circular", size=2 * resolution)
    assert float(grid.norm(K)) == pytest.approx(math.cos(a))
    assert float(SpectralNormConv(resolution=resolution).norm(K)) == pytest.approx(1)


@pytest.mark.parametrize("shape, stride", [((2, 3, 4), 2), ((2, 2, 3, 2), [1, 2]), ((2, 2, 5), 3)])
def test_other_strides_and_shapes(shape, stride):
    size = 6
    arguments = {"stride": stride, "padding_mode": "circular"}
    K = outside(*shape)
    exact = true_norm(K, size, **arguments)
    assert float(SpectralNormConv(size=size, **arguments).norm(K)) == pytest.approx(exact)
    assert true_norm(SpectralNormConv(stride=stride).project(K), size, stride=stride) <= 1 + 1e-12


def test_three_dimensions():
    K = outside(2, 1, 2, 3, 2)
    exact = true_norm(K, 4, padding_mode="circular")
    assert float(SpectralNormConv(size=4, padding_mode="circular").norm(K)) == pytest.approx(exact)
    W = SpectralNormConv().project(K)
    assert 0.8 < true_norm(W, 6) <= 1 + 1e-12


def test_transposed_convolutions_have_the_same_norm():
    K = outside(4, 1, 3, 3)
    layer = nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2, bias=False).double()
    constrain(layer, "weight", SpectralNormConv(stride=2, groups=2))
    layer.weight = SpectralNormConv(stride=2, groups=2).project(K)
    images = torch.eye(4 * 36, dtype=DOUBLE).reshape(-1, 4, 6, 6)
    norm = torch.linalg.matrix_norm(layer(images).detach().flatten(1), 2)
    assert 0.85 < float(norm) <= 1 + 1e-12


def test_with_the_stride_one_any_dilation_is_covered():
    W = SpectralNormConv().project(outside(2, 2, 3, 3))
    images = torch.eye(2 * 100, dtype=DOUBLE).reshape(-1, 2, 10, 10)
    for dilation in (1, 2, 3):
        operator = F.conv2d(images, W, dilation=dilation, padding=6).flatten(1)
        assert float(torch.linalg.matrix_norm(operator, 2)) <= 1 + 1e-12


@pytest.mark.parametrize("arguments", [{}, {"padding_mode": "circular", "size": 8}], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 1e-3, 1.0, 10.0, 1e6, 1e30, 1e37])
def test_the_bound_at_every_scale(arguments, scale):
    constraint = SpectralNormConv(**arguments)
    for K in (torch.randn(3, 2, 3, 3), torch.ones(3, 2, 3, 3), torch.eye(3).expand(2, 2, 3, 3)):
        K = (K * scale).requires_grad_()
        W = constraint(K)
        assert torch.equal(constraint(W), W)
        assert float(constraint.norm(W.detach().double())) <= 1 + 1e-6
        P = constraint.project(K.detach())
        assert torch.equal(constraint.project(P), P)
        assert torch.equal(constraint(P), P)
        assert float(constraint.norm(P.double())) <= 1 + 1e-6
        if scale >= 1:
            assert float(constraint.norm(P.double())) >= 1 - 1e-5
        G = torch.randn_like(W)
        (gradient,) = torch.autograd.grad(W, K, G, create_graph=True)
        assert gradient.isfinite().all()
        if gradient.requires_grad:
            (second,) = torch.autograd.grad(gradient.pow(2).sum(), K)
            assert second.isfinite().all()


def test_members_come_back_bit_for_bit():
    constraint = SpectralNormConv(0.7, event_dim=4)
    for W in (constraint.project(outside(5, 3, 2, 3, 3)), constraint.sample((5, 3, 2, 3, 3))):
        assert torch.equal(constraint(W), W)
        assert torch.equal(constraint.project(W), W)
        assert torch.equal(constraint.right_inverse(W), W)
        (back,) = constraint.canonical(W)
        assert torch.equal(back, W)
    assert constraint(torch.empty(0, 3, 2, 3, 3)).shape == (0, 3, 2, 3, 3)


def test_elements_of_a_batch_are_on_their_own():
    constraint = SpectralNormConv(event_dim=3)
    inside = constraint.sample((2, 3, 3))
    K = torch.stack(
        [inside, outside(2, 3, 3, dtype=torch.float32), torch.full((2, 3, 3), torch.nan)]
    )
    K.requires_grad_()
    W = constraint(K)
    assert torch.equal(W[0], inside)
    torch.testing.assert_close(W[1], constraint(K[1]))
    assert W[2].isnan().all()
    (gradient,) = torch.autograd.grad(W, K, torch.ones_like(W))
    assert torch.equal(gradient[0], torch.ones(2, 3, 3))
    assert gradient[1].isfinite().all()


def test_many_symbols_are_looked_at_in_parts(monkeypatch):
    constraint = SpectralNormConv(event_dim=4, groups=2)
    K = 0.3 * torch.randn(3, 4, 2, 3, 3, dtype=DOUBLE)
    expected = constraint.norm(K), constraint(K)
    monkeypatch.setattr("constraints.math.conv_symbol.ENTRIES", 500)
    torch.testing.assert_close(constraint.norm(K), expected[0])
    torch.testing.assert_close(constraint(K), expected[1])
    W = constraint.project(K)
    assert torch.equal(constraint(W), W)


@pytest.mark.parametrize("candidates", [1, 3, 8])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3, 3), (2, 2, 6, 2, 3), (1, 6, 6, 3, 3)])
def test_the_loudest_frequency_is_found_whatever_is_looked_at_first(monkeypatch, candidates, shape):
    monkeypatch.setattr("constraints.math.conv_symbol._CANDIDATES", candidates)
    sizes, points = shape[-2:], [8, 6]
    K = torch.randn(shape, dtype=DOUBLE)
    # Kernels whose frequencies are nearly, or exactly, as loud as one another.
    nearly, flat = torch.zeros(2, *shape, dtype=DOUBLE)
    flat[..., 0, 0] = torch.eye(*shape[-4:-2], dtype=DOUBLE)
    nearly[:] = flat + 1e-3 * K
    for kernel in (K, nearly, flat, torch.zeros_like(K)):
        symbols = torch.fft.fft2(kernel, s=points).movedim((-4, -3), (-2, -1))
        expected = torch.linalg.matrix_norm(symbols, 2).amax((-2, -1))
        grouped = kernel.flatten(-2).unsqueeze(1)
        found = symbol.operator_norm(grouped, sizes, points)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        for share, inside in ((1.001, True), (0.999, False)):
            bound = share * expected + (1e-3 if inside else 0)
            wave = symbol.loudest_wave(grouped, sizes, points, bound)
            assert (wave is None) == (inside or not kernel.any())
        if kernel.any():
            some = torch.where(torch.arange(len(kernel)) == 0, 0.999, 1.1) * expected
            wave = symbol.loudest_wave(grouped, sizes, points, some)
            assert wave is not None
            norm = symbol.operator_norm(grouped, sizes, points, wave)
            torch.testing.assert_close(norm[0], expected[0], rtol=1e-12, atol=0)


def test_violation():
    constraint = SpectralNormConv(padding_mode="circular", size=8)
    K = torch.zeros(2, 2, 3, 3)
    K[0, 0, 1, 1] = K[1, 1, 0, 2] = 1.5
    assert float(constraint.violation(K)) == pytest.approx(0.5)
    assert constraint.contains(K / 1.5)
    assert float(constraint.violation(torch.zeros(2, 2, 3, 3))) == 0
    message = r"spectral_norm_conv\(padding_mode='circular', size=8\): .* by 0.5 "
    with pytest.raises(constrained.InfeasibleError, match=message):
        constraint.right_inverse(K)


def test_projection_is_nearest_in_the_operator_norm():
    constraint = SpectralNormConv()
    K = outside(3, 2, 3, 3)
    reached = float(constraint.norm(K - constraint.project(K)))
    assert reached == pytest.approx(float(constraint.violation(K)))
    for _ in range(20):
        assert float(constraint.norm(K - constraint.sample((3, 2, 3, 3), dtype=DOUBLE))) > reached


def test_samples():
    constraint = SpectralNormConv(3.0, event_dim=3)
    W = constraint.sample((2000, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    norms = constraint.norm(W) / 3
    assert norms.max() <= 1 + 1e-6
    assert float(norms.mean()) == pytest.approx(1 / 2, abs=0.02)


# ---------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((2, 2, 3), {}),
        ((1, 1, 3, 3), {"stride": 2}),
        ((2, 1, 2, 2), {"groups": 2}),
        ((2, 2, 2, 2), {"padding_mode": "circular", "size": 4}),
        ((2, 2, 1, 2, 2), {"event_dim": 4}),
    ],
    ids=str,
)
def test_derivatives(shape, arguments):
    constraint = SpectralNormConv(0.1, **arguments)
    K = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    for function in (constraint, constraint.norm):
        assert gradcheck(function, K, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, K, check_fwd_over_rev=True, check_batched_grad=True)


def test_all_compositions_of_modes_agree_to_third_order():
    constraint = SpectralNormConv(0.3)

    def cubes(K):
        return constraint(K).pow(3).sum()

    K = torch.randn(2, 1, 3, dtype=DOUBLE)
    expected = hessian(cubes)(K)
    for outer, inner in ((jacrev, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        torch.testing.assert_close(outer(inner(cubes))(K), expected, rtol=0, atol=1e-12)
    D, step = torch.randn_like(K), 1e-5
    found = torch.einsum("abcdefijk,ijk->abcdef", jacfwd(hessian(cubes))(K), D)
    quotient = (hessian(cubes)(K + step * D) - hessian(cubes)(K - step * D)) / (2 * step)
    torch.testing.assert_close(found, quotient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rest", [(0.5, 0.5), (0.5, 0.0), (0.0, 0.0), (1.0, 0.5), (1.0, 1.0)])
def test_largest_singular_value_beside_equal_ones(rest):
    U, V = (torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE)).Q[:, :3] for _ in range(2))
    A = (2 * (U * torch.tensor((1.0, *rest), dtype=DOUBLE)) @ V.mT).requires_grad_()
    assert float(largest_singular_value(A.detach())) == pytest.approx(2)
    if rest[0] < 1:
        assert gradcheck(largest_singular_value, A, check_forward_ad=True)
        assert gradgradcheck(largest_singular_value, A, check_fwd_over_rev=True)
    (first,) = torch.autograd.grad(largest_singular_value(A), A, create_graph=True)
    assert float(torch.linalg.matrix_norm(first.detach(), "nuc")) == pytest.approx(1)
    (second,) = torch.autograd.grad(first.pow(2).sum(), A)
    assert second.isfinite().all()


def test_largest_singular_value_of_zero():
    A = torch.zeros(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(largest_singular_value(A), A)
    assert torch.equal(gradient, torch.zeros(3, 2))


def test_vmap_and_compile():
    constraint = SpectralNormConv()
    K = torch.randn(3, 2, 2, 3, 3)
    loop = torch.stack([constraint(k) for k in K])
    torch.testing.assert_close(vmap(constraint)(K), loop, rtol=0, atol=1e-6)
    torch._dynamo.reset()
    compiled = torch.compile(constraint, fullgraph=True, backend="aot_eager")
    for scale in (0.01, 1.0):
        k = (K[0] * scale).requires_grad_()
        values = [function(k) for function in (constraint, compiled)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-6)
        gradients = [torch.autograd.grad(value.pow(3).sum(), k)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_jit_trace(scale):
    layer = constrain(nn.Conv1d(2, 3, 3), "weight", "spectral_norm_conv")
    traced = torch.jit.trace(layer, torch.randn(1, 2, 5))
    layer.parametrizations.weight.original.data.mul_(scale)
    x = torch.randn(2, 2, 7)
    torch.testing.assert_close(traced(x), layer(x))


# ----------------------------------------------------------------------------------- with layers


def layer_norm(layer, *size):
    """The norm of a layer on images of a size; None if it takes no such images."""
    channels = layer.in_channels
    images = torch.eye(channels * math.prod(size), dtype=layer.weight.dtype)
    bias, layer.bias = layer.bias, None
    try:
        made = layer(images.reshape(-1, channels, *size)).detach().flatten(1)
    except RuntimeError:
        return None
    finally:
        layer.bias = bias
    return float(torch.linalg.matrix_norm(made, 2))


MODES = ["zeros", "circular", "reflect", "replicate"]


def adverse(layer):
    """A random kernel, or a shift, which is what gains most from a border."""
    with torch.no_grad():
        layer.weight.normal_()
        if torch.rand(()) < 0.3:
            layer.weight.zero_()
            layer.weight[:, 0].flatten(1)[:, -1] = 1.0
    return layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_the_norm_is_that_of_the_layer(mode, seed):
    draw = torch.Generator().manual_seed(100 * seed + MODES.index(mode))

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    for _ in range(4):
        k, dilation, stride = pick(1, 2, 3, 4, 5), pick(1, 1, 2, 3), pick(1, 1, 2, 3, 4)
        groups, most = pick(1, 1, 2), dilation * (k - 1) // 2
        padding = pick(most, most + 3) if mode == "zeros" else most
        if stride == 1 and k % 2 and pick(True, False):
            padding = "same"
        layer = nn.Conv1d(
            2 * groups, 2 * groups, k, stride, padding, dilation, groups, padding_mode=mode
        )
        constrain(adverse(layer.double()), "weight", "spectral_norm_conv")
        found = [norm for n in range(1, 14) if (norm := layer_norm(layer, n)) is not None]
        assert max(found) <= 1 + 1e-12, layer
        if mode == "zeros":
            assert max(found) > 0.8


@pytest.mark.parametrize("mode", MODES)
def test_the_norm_is_that_of_the_layer_in_two_dimensions(mode):
    for stride, dilation, k in ((1, 1, 3), ((1, 2), (2, 1), (3, 2)), (2, 2, 3), (2, 3, 2)):
        layer = nn.Conv2d(2, 3, k, stride, dilation=dilation, padding_mode=mode)
        spread = [d * (n - 1) for d, n in zip(layer.dilation, layer.kernel_size, strict=True)]
        layer = nn.Conv2d(
            2, 3, k, stride, [n // 2 for n in spread], dilation, padding_mode=mode, bias=False
        )
        constrain(adverse(layer.double()), "weight", "spectral_norm_conv")
        sizes = [(4, 4), (5, 4), (7, 6), (1, 6), (3, 2)]
        norms = [norm for size in sizes if (norm := layer_norm(layer, *size)) is not None]
        assert 0.2 < max(norms) <= 1 + 1e-12


@pytest.mark.parametrize("stride, dilation", [(1, 2), (2, 2), (2, 3), (4, 2), (3, 2), (2, 1)])
def test_with_a_size_the_norm_is_exact_whatever_stride_and_dilation(stride, dilation):
    layer = nn.Conv1d(2, 3, 3, stride, dilation, dilation, padding_mode="circular").double()
    layer.weight.data.normal_()
    constrain(layer, "weight", "spectral_norm_conv(size=12)")
    assert layer_norm(layer, 12) == pytest.approx(1, rel=1e-12)


def test_shifts_reach_the_bound_at_a_border():
    for mode in ("reflect", "replicate"):
        layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode=mode, bias=False).double()
        layer.weight.data = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=DOUBLE)
        constraint = SpectralNormConv(padding_mode=mode, resolution=64)
        assert layer_norm(layer, 8) == pytest.approx(2**0.5)
        assert float(constraint.norm(layer.weight.detach())) == pytest.approx(2**0.5, rel=1e-3)


def test_a_transposed_layer_with_everything():
    for stride, dilation, output_padding in ((2, 3, 1), (2, 2, 1), (3, 1, 2)):
        layer = nn.ConvTranspose1d(
            4, 2, 3, stride, 1, output_padding, groups=2, dilation=dilation, bias=False
        )
        constrain(adverse(layer.double()), "weight", "spectral_norm_conv")
        assert 0.8 < layer_norm(layer, 14) <= 1 + 1e-12


def test_settings_are_taken_from_the_layer_and_come_back_by_the_spec():
    def model():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, stride=(1, 2), groups=2, padding=1, padding_mode="circular"),
            nn.ConvTranspose2d(4, 2, 3, stride=2, dilation=(2, 1)),
        )

    plain = constrained.spec(constrain(model(), "*.weight", "spectral_norm_conv(bound=2)"))
    same = {"name": "spectral_norm_conv", "bound": 2.0}
    assert plain == {
        "0.weight": same,
        "1.weight": {**same, "stride": [1, 2], "groups": 2, "padding_mode": "circular"},
        "2.weight": {**same, "stride": 2, "dilation": [2, 1]},
    }
    again = constrain(model(), json.loads(json.dumps(plain)))
    assert constrained.spec(again) == plain


@pytest.mark.parametrize(
    "make, spec, message",
    [
        (lambda: nn.Conv2d(2, 2, 3, 2), "spectral_norm_conv(stride=1)", "stride must be .* 2, got"),
        (lambda: nn.Conv2d(2, 2, 3), "spectral_norm_conv(groups=2)", "groups must be .* 1, got 2"),
        (
            lambda: nn.Conv2d(2, 2, 3, padding_mode="reflect"),
            "spectral_norm_conv(padding_mode='zeros')",
            "padding_mode must be that of the layer, 'reflect', got 'zeros'; leave it out",
        ),
        (lambda: nn.Conv2d(2, 2, 3), "spectral_norm_conv(size=8)", "size goes with .*'zeros'"),
        (
            lambda: nn.Conv2d(2, 2, 3, dilation=(1, 2)),
            "spectral_norm_conv(dilation=2)",
            r"dilation must be that of the layer, \[1, 2\], got 2",
        ),
        (
            lambda: nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"),
            "spectral_norm_conv",
            "images do not grow, but here an axis grows by 2.*pad with fewer",
        ),
        (lambda: nn.Conv2d(2, 2, 2, 2), "orthogonal_conv(stride=1)", "stride must be .* 2, got 1"),
        (
            lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"),
            "orthogonal_conv",
            "pads with zeros, or circularly .*got padding_mode='replicate'",
        ),
        (
            lambda: nn.Conv1d(2, 2, 2, padding=1, padding_mode="circular"),
            "orthogonal_conv",
            "no more than keeps the size, got padding_mode='circular', by which an axis grows by 1",
        ),
        (
            lambda: nn.Conv1d(2, 2, 2, stride=2, dilation=2),
            "orthogonal_conv",
            r"the stride 1 or the dilation 1 .*stride=\(2,\) and dilation=\(2,\)",
        ),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_contradicts_the_layer_is_refused(make, spec, message, lazy):
    layer = make()
    if lazy:
        kind = {nn.Conv1d: nn.LazyConv1d, nn.Conv2d: nn.LazyConv2d}[type(layer)]
        layer = kind(2, *(getattr(layer, n) for n in ("kernel_size", "stride", "padding")),
                     dilation=layer.dilation, padding_mode=layer.padding_mode)  # fmt: skip
    model, before = nn.Sequential(layer), type(layer)
    with pytest.raises(ValueError, match=f"'0.weight': .*{message}"):
        constrain(model, "0.weight", spec)
    assert type(model[0]) is before


def test_a_lazy_layer_tells_its_settings():
    layer = nn.LazyConv2d(4, 2, stride=2, groups=2, padding_mode="reflect")
    constrain(layer, "weight", "spectral_norm_conv")
    layer(torch.ones(1, 4, 6, 6))
    expected = {"stride": 2, "groups": 2, "padding_mode": "reflect"}
    assert constrained.spec(layer)["weight"] == {"name": "spectral_norm_conv", **expected}


def test_tied_kernels_of_layers_that_differ_are_refused():
    model = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2), nn.Conv1d(2, 2, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="that of '1.weight' is .*by the settings of its module"):
        constrain(model, "0.weight", "spectral_norm_conv")
    model[1].stride = (2,)
    constrain(model, "0.weight", "spectral_norm_conv")
    assert constrained.spec(model)["0.weight"]["stride"] == 2


def test_a_view_takes_no_groups_from_the_layer():
    layer = nn.Conv2d(4, 4, 3, groups=2, stride=2, padding=1, padding_mode="reflect", bias=False)
    layer.double().weight.data.normal_()
    view = "(2 o) i h w -> 2 o i h w"
    constrain(layer, "weight", "spectral_norm_conv(event_dim=4)", view=view)
    expected = {"stride": 2, "padding_mode": "reflect", "event_dim": 4, "view": view}
    assert constrained.spec(layer)["weight"] == {"name": "spectral_norm_conv", **expected}
    assert layer_norm(layer, 6, 6) <= 1 + 1e-12


def test_orthogonal_kernels_take_their_settings_from_the_layer():
    layer = nn.Conv2d(4, 8, 2, stride=2, groups=2, bias=False).double()
    constrain(layer, "weight", "orthogonal_conv", init="sample")
    expected = {"name": "orthogonal_conv", "stride": 2, "groups": 2}
    assert constrained.spec(layer)["weight"] == expected
    images = torch.eye(4 * 16, dtype=DOUBLE).reshape(-1, 4, 4, 4)
    values = torch.linalg.svdvals(layer(images).detach().flatten(1))
    assert float(values.max()) == pytest.approx(1)
    assert int((values > 0.5).sum()) == len(values) == 8 * 4


def test_every_step_of_training_holds_the_bound():
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    constrain(layer, "weight", "spectral_norm_conv")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    images = torch.randn(8, 3, 12, 12)
    for _ in range(30):
        optimizer.zero_grad()
        loss = -layer(images).square().mean()
        loss.backward()
        optimizer.step()
        assert true_norm(layer.weight.detach(), 8, padding=1) <= 1 + 1e-5
    assert true_norm(layer.weight.detach(), 16, padding=1) > 0.85


def test_one_name_serves_all_layers():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 2))
    for p in model.parameters():
        p.data.mul_(10)
    constrain(model, "*.weight", "spectral_norm_conv(bound=2)")
    assert max(constrained.violations(model).values()) < 1e-5


def nearest(constraint, target):
    """The nearest member in the Frobenius norm: cut by cut, as far as the set goes beyond them."""
    K, cuts = target, []
    while float(constraint.norm(K)) > 1 + 1e-4:
        leaf = K.clone().requires_grad_()
        cuts.append(torch.autograd.grad(constraint.norm(leaf), leaf)[0].flatten())
        A = torch.stack(cuts)
        excess, Q = A @ target.flatten() - 1, A @ A.mT
        weights = torch.zeros(len(cuts), dtype=DOUBLE)
        for _ in range(200):
            for i in range(len(cuts)):
                weights[i] = (weights[i] + (excess[i] - Q[i] @ weights) / Q[i, i]).clamp(min=0)
        K = target - (weights @ A).reshape(target.shape)
    return constraint.project(K)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.2),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("level", [0.5, 1.3])
def test_training_reaches_the_optimum_within_the_bound(name, level):
    constraint = SpectralNormConv()
    target = level * constraint.project(outside(2, 2, 3))
    optimum = (nearest(constraint, target) - target).norm()
    # From the boundary.
    layer = nn.Conv1d(2, 2, 3, bias=False).double()
    layer.weight.data = outside(2, 2, 3)
    constrain(layer, "weight", constraint)
    optimizer = OPTIMIZERS[name](layer.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(300):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().div(2).backward()
        optimizer.step()
        schedule.step()
    assert float((layer.weight.detach() - target).norm() - optimum) < 0.01


def test_scaling_the_kernel_back_after_each_step_ends_elsewhere():
    # Why there is no canonical form.
    constraint = SpectralNormConv()
    target = 1.5 * constraint.project(outside(2, 2, 3))
    best = float((nearest(constraint, target) - target).square().sum())
    K = constraint.sample((2, 2, 3), dtype=DOUBLE)
    for _ in range(300):
        K = constraint(K - 0.1 * (K - target))
    assert float((K - target).square().sum()) > 1.2 * best
    assert not constraint.has_canonical()


def test_a_kernel_outside_returns_when_it_is_rebased():
    constraint = SpectralNormConv()
    layer = nn.Conv1d(2, 2, 3, bias=False).double()
    constrain(layer, "weight", constraint)
    layer.weight = boundary = constraint.project(outside(2, 2, 3))
    layer.parametrizations.weight.original.data.mul_(3)

    def slope():
        layer.zero_grad()
        (layer.weight * boundary).sum().backward()
        gradient = layer.parametrizations.weight.original.grad
        return float((gradient * boundary).sum() / boundary.square().sum())

    assert slope() == pytest.approx(0, abs=1e-12)
    constrained.rebase(layer)
    assert slope() == pytest.approx(1)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_one_very_large_step(rate):
    layer = constrain(nn.Conv1d(2, 2, 3, bias=False), "weight", "spectral_norm_conv")
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(1, 2, 8)).square().sum().backward()
        optimizer.step()
        assert true_norm(layer.weight.detach(), 8) <= 1 + 1e-5


def test_names_and_arguments():
    assert constrained.get("spectral_norm_conv") is SpectralNormConv
    assert repr(SpectralNormConv(2, stride=2)) == "spectral_norm_conv(bound=2.0, stride=2)"
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bound must be positive and finite"):
            SpectralNormConv(bad)
    for bad in ("1", True, None):
        with pytest.raises(TypeError, match="bound must be a number"):
            SpectralNormConv(bad)
    with pytest.raises(ValueError, match=r"must be 'zeros', 'circular', .*, got 'mirror'"):
        SpectralNormConv(padding_mode="mirror")
    for mode in ("zeros", "reflect", "replicate"):
        with pytest.raises(ValueError, match="size, that of the images, goes with"):
            SpectralNormConv(padding_mode=mode, size=4)
    for name in ("stride", "groups", "resolution", "dilation"):
        with pytest.raises(TypeError, match=f"{name} must be a whole number, got 1.5"):
            SpectralNormConv(**{name: 1.5})
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            SpectralNormConv(**{name: 0})
    with pytest.raises(ValueError, match="event_dim must be 3, 4 or 5, or None"):
        SpectralNormConv(event_dim=2)


def test_shapes():
    for arguments, shape, message in (
        ({}, (3, 4), "must be a kernel of 3 to 5 dimensions"),
        ({}, (3, 0, 2), "none empty"),
        ({"groups": 2}, (3, 2, 2), "must have a multiple of groups=2 output channels"),
        ({"stride": [1, 2]}, (3, 2, 2), r"as many sizes of its kernel as there are in stride="),
        ({"padding_mode": "circular", "size": 4}, (3, 2, 5), "no larger than size=4"),
        ({"padding_mode": "circular", "size": 5, "stride": 2}, (3, 2, 3), "a multiple of stride=2"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralNormConv(**arguments).check_shape(shape)
