"""Orthogonal kernels against the dense matrix of their convolution."""

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain
from constraints import OrthogonalConv


def dense(conv, size):
    """The matrix of a layer without bias on images of a size."""
    channels = conv.in_channels
    count = channels * int(torch.Size(size).numel())
    basis = torch.eye(count).reshape(count, channels, *size)
    bias, conv.bias = conv.bias, None
    with torch.no_grad():
        image = conv(basis)
    conv.bias = bias
    return image.reshape(count, -1).T


def layer(dims, channels, out, kernel, stride=1, groups=1, mode="circular"):
    cls = (nn.Conv1d, nn.Conv2d)[dims - 1]
    conv = cls(
        channels,
        out,
        kernel,
        stride=stride,
        groups=groups,
        padding_mode=mode,
        padding=(kernel - 1) // 2 if mode == "zeros" else 0,
    )
    constrain(conv, "weight", OrthogonalConv(stride=stride, groups=groups))
    if mode == "circular" and kernel > 1:
        # All of the image, and no more: what is missing at one end comes from the other.
        conv.padding = tuple([kernel - stride if kernel >= stride else 0] * dims)
        conv._reversed_padding_repeated_twice = [0, kernel - stride] * dims
    return conv


CASES = [
    (2, 4, 4, 3, 1, 1),
    (2, 3, 5, 3, 1, 1),
    (2, 5, 3, 3, 1, 1),
    (2, 2, 2, 5, 1, 1),
    (2, 4, 4, 2, 1, 1),
    (2, 2, 8, 2, 2, 1),
    (2, 1, 3, 4, 2, 1),
    (2, 2, 3, 4, 2, 1),
    (2, 4, 4, 3, 1, 2),
    (2, 4, 8, 2, 2, 2),
    (1, 4, 4, 5, 1, 1),
    (1, 2, 6, 4, 2, 1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_singular_values_with_circular_padding(case):
    dims, channels, out, kernel, stride, groups = case
    conv = layer(dims, channels, out, kernel, stride, groups)
    for trained in (False, True):
        if trained:
            optimizer = torch.optim.SGD(conv.parameters(), lr=1.0)
            for _ in range(3):
                optimizer.zero_grad()
                conv(torch.randn(2, channels, *[16] * dims)).sin().sum().backward()
                optimizer.step()
        matrix = dense(conv, [16 if dims == 1 else 8] * dims)
        s = torch.linalg.svdvals(matrix)
        rows, columns = matrix.shape
        assert len(s) == min(rows, columns)
        assert (s - 1).abs().max() < 1e-4


@pytest.mark.parametrize("kernel", [3, 5])
def test_zeros_for_padding_lengthen_nothing(kernel):
    conv = layer(2, 4, 4, kernel, mode="zeros")
    s = torch.linalg.svdvals(dense(conv, [16, 16]))
    assert s.max() <= 1 + 1e-5 and s.min() < 0.99


def test_an_orthogonal_kernel_is_kept():
    K = OrthogonalConv().sample((6, 6, 3, 3), generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(6, 6, 3)
    with torch.no_grad():
        conv.weight.copy_(K)
    constrain(conv, "weight", "orthogonal_conv")
    torch.testing.assert_close(conv.weight.detach(), K, rtol=0, atol=1e-5)


def test_every_orthogonal_filter_of_one_dimension_is_a_member():
    # A product in another order, with projections of ranks 1, 3 and 2, and a shift.
    generator = torch.Generator().manual_seed(0)
    taps = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q[None]
    for rank in (1, 3, 2, 0):
        Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        P = Q[:, :rank] @ Q[:, :rank].mT
        nothing = torch.zeros(1, 4, 4, dtype=torch.float64)
        taps = torch.cat((taps @ P, nothing)) + torch.cat((nothing, taps - taps @ P))
    K = taps.movedim(0, -1)
    constraint = OrthogonalConv()
    assert constraint.contains(K)
    torch.testing.assert_close(constraint(*constraint.right_inverse(K)), K, rtol=0, atol=1e-12)


def test_orthogonal_matrices_that_are_no_orthogonal_kernel():
    # What constrains the kernel as a matrix does not make the convolution orthogonal.
    conv = nn.Conv2d(4, 4, 3)
    constrain(conv, "weight", "orthogonal", view="o i h w -> o (i h w)")
    assert not OrthogonalConv().contains(conv.weight.detach())
    assert OrthogonalConv().violation(conv.weight.detach()) > 0.01


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"stride": 2}, (4, 4, 3, 3), "multiples of the stride"),
        ({"groups": 3}, (4, 1, 3, 3), "multiple of 3"),
        ({"stride": [1, 2]}, (4, 4, 3), "as many sizes"),
        ({}, (4, 4), "channels out"),
        ({}, (2, 2, 2, 2, 2), "one or two sizes"),
    ],
)
def test_shapes_that_do_not_fit(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalConv(**arguments).check_shape(shape)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"stride": 0}, ValueError),
        ({"stride": 1.5}, TypeError),
        ({"groups": True}, TypeError),
        ({"event_dim": 2}, ValueError),
    ],
)
def test_wrong_arguments(arguments, error):
    with pytest.raises(error, match="orthogonal_conv"):
        OrthogonalConv(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (4, 4, 3)),
        ({}, (6, 2, 3, 3)),
        ({"stride": 2}, (4, 4, 4, 4)),
        ({"stride": [1, 2], "groups": 2}, (4, 2, 3, 4)),
    ],
)
def test_parameters_that_have_not_full_rank(arguments, shape, dtype):
    constraint = OrthogonalConv(**arguments)
    generator = torch.Generator().manual_seed(0)
    inside = constraint.sample(shape, generator=generator, dtype=dtype)
    H, *matrices = constraint.right_inverse(inside)
    for kind in (
        lambda M: torch.zeros_like(M),
        lambda M: M[..., :1, :].expand_as(M),
        lambda M: M[..., :1].mT * M[..., :1],
        lambda M: -M[..., :1].mT * M[..., :1],
    ):
        free = [H, *(kind(M).clone().requires_grad_() for M in matrices)]
        value = constraint(*free)
        assert constraint.contains(value.detach()).all()
        stepped = constraint(*constraint.canonical(*free))
        torch.testing.assert_close(stepped, value.detach(), rtol=0, atol=1e-5)
        for gradient in torch.autograd.grad(value.sin().sum(), free[1:]):
            assert torch.isfinite(gradient).all()


def test_training_reaches_a_kernel_of_the_same_ranks():
    constraint = OrthogonalConv()
    generator = torch.Generator().manual_seed(1)
    start = constraint.sample((4, 4, 3), generator=generator)
    free = constraint.right_inverse(start)
    nudged = [p + 0.15 * torch.randn(p.shape, generator=generator) for p in free]
    target = constraint(*nudged).detach()
    conv = nn.Conv1d(4, 4, 3)
    with torch.no_grad():
        conv.weight.copy_(start)
    constrain(conv, "weight", constraint)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        (conv.weight - target).square().sum().backward()
        optimizer.step()
    assert (conv.weight - target).square().sum() < 1e-3 * target.square().sum()
    constrained.assert_feasible(conv)
