"""Every constraint at extreme sizes (one row, one column, 512 x 512) and on structured tensors."""

import itertools

import pytest
import torch
from torch import nn

from constrained import constrain, get
from constrained.constraint.errors import OutOfRangeError
from constrained.constraint.tolerance import tolerance
from constrained.testing.case import unpack
from constrained.torch_internals import linalg
from constraints.math.eigenvalues import eigenvalues, eigenvectors
from tests.promises.catalogue import configurations, every_constraint

SMALL = (1, 1), (1, 7), (7, 1)
LARGE = (512, 512), (512, 3), (3, 512)


def check(name, arguments, shape, dtype):
    constraint = get(name)(**arguments)
    generator = torch.Generator().manual_seed(0)
    inside = constraint.sample(shape, generator=generator, dtype=dtype)
    free = unpack(constraint.right_inverse(inside))
    found = constraint(*free)
    granted = tolerance(inside, constraint.event_dim)
    assert (constraint.violation(found) <= granted).all()
    unit = inside.norm()
    assert (found - inside).norm() <= 1e-5 * unit
    for scale in (1e-6, 1.0, 1e6):
        leaves = [
            p
            if i in constraint.frozen
            else (scale * torch.randn(p.shape, generator=generator, dtype=dtype)).requires_grad_()
            for i, p in enumerate(free)
        ]
        value = constraint(*leaves)
        assert torch.isfinite(value).all()
        assert (constraint.violation(value) <= tolerance(value, constraint.event_dim)).all()
        weight = torch.randn(value.shape, generator=generator, dtype=dtype)
        for gradient in torch.autograd.grad(
            (value * weight).sum(), [p for p in leaves if p.requires_grad], allow_unused=True
        ):
            assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_constraint(*SMALL)
def test_one_row_and_one_column(name, arguments, shape, dtype):
    check(name, arguments, shape, dtype)


@pytest.mark.slow
@every_constraint(*LARGE)
def test_512_rows_and_columns(name, arguments, shape):
    check(name, arguments, shape, torch.float32)


def structured(shape):
    """Tensors that are hard for algorithms made for generic ones: constant, zero, and so on."""
    yield "constant", torch.full(shape, 0.3)
    yield "zeros", torch.zeros(shape)
    generator = torch.Generator().manual_seed(0)
    yield "gaussian", torch.randn(shape, generator=generator)
    if len(shape) > 1:
        m, n = shape[-2:]
        identity, shift = torch.eye(m, n), torch.eye(m, n).roll(1, -1).triu(1)
        yield "identity", identity.expand(shape)
        yield "nilpotent", shift.expand(shape)
        yield "Jordan", (identity + shift).expand(shape)
        yield "permutation", identity.flip(-1).expand(shape)
        yield "rank one", torch.arange(n).expand(shape).float()


#: Powers of two, so that structure is not lost to rounding.
EXTREMES = 1.0, 2.0**-100, 2.0**64, 2.0**100


@every_constraint((4, 4))
def test_structure_at_the_ends_of_the_range(name, arguments, shape):
    constraint = get(name)(**arguments)
    for kind, tensor in structured(shape):
        for scale in EXTREMES:
            value = (scale * tensor).contiguous()
            assert not constraint.violation(value).isnan().any(), kind
            for to_member in (constraint.project, constraint.start):
                # It works, or one sentence says what to do, whatever the linear algebra says.
                try:
                    member = to_member(value)
                    constraint(*unpack(constraint.right_inverse(member)))
                except ValueError as error:
                    assert repr(constraint) in str(error), kind
                    assert "scale the tensor" in str(error), kind
                    assert scale > 1, kind
                    continue
                assert torch.isfinite(member).all(), kind
                assert constraint.contains(member).all(), kind


def structured_params(free, frozen):
    """Parameters of the same kinds, hard for maps; frozen ones stay as they are."""
    kinds = [dict(structured(p.shape)) for p in free]
    for kind in dict.fromkeys(itertools.chain(*kinds)):
        yield (
            kind,
            [
                p if i in frozen else tensors.get(kind, tensors["gaussian"])
                for i, (p, tensors) in enumerate(zip(free, kinds, strict=True))
            ],
        )


@every_constraint((4, 4))
def test_the_map_at_the_ends_of_the_range(name, arguments, shape):
    constraint = get(name)(**arguments)
    inside = constraint.sample(shape, generator=torch.Generator().manual_seed(0))
    free = unpack(constraint.right_inverse(inside))
    for kind, params in structured_params(free, constraint.frozen):
        for scale in (*EXTREMES, 2.0**-128, 2.0**50):
            scaled = [
                p if i in constraint.frozen else p * torch.tensor(scale)
                for i, p in enumerate(params)
            ]
            try:
                value = constraint(*scaled)
            except OutOfRangeError:
                assert not 2.0**-60 < scale < 2.0**60, kind
                continue
            if torch.isfinite(value).all():
                assert constraint.contains(value).all(), (kind, scale)
                continue
            # Infinite only where the element itself is beyond the range.
            exact = constraint(*(p.double() for p in scaled))
            assert exact.abs().max() > torch.finfo(value.dtype).max / 16, (kind, scale)


@pytest.mark.parametrize("name", ["hurwitz", "schur"])
@pytest.mark.parametrize("size", [12, 24, 32])
def test_eigenvalues_that_the_qr_algorithm_does_not_find(name, size):
    constraint = get(name)()
    # On which of these it does not converge depends on the processor.
    for scale in (1.0, 0.3, 0.1, 7.0, 1e-3, 1e3, 1e-310):
        value = torch.full((2, size, size), scale, dtype=torch.float64)
        member = constraint.project(value)
        assert constraint.contains(member).all()
        assert constraint.contains(constraint(*constraint.right_inverse(member))).all()


def test_eigenvalues_where_an_algorithm_gives_up(monkeypatch):
    constant, diagonal = torch.full((4, 4), 0.5), torch.diag(torch.arange(4.0))
    batch = torch.stack([constant, diagonal]).double()
    eig, refused = linalg.eig, []

    def hesitant(M):
        if (M == M[..., :1, :]).all(-1).all(-1).any():
            refused.append(M)
            raise torch.linalg.LinAlgError("does not converge")
        return eig(M)

    monkeypatch.setattr(linalg, "eig", hesitant)
    monkeypatch.setattr(linalg, "eigvals", lambda M: hesitant(M)[0])
    for found in (eigenvalues(batch), eigenvectors(batch)[0]):
        expected = torch.tensor([[0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 3.0]]).double()
        torch.testing.assert_close(found.real.sort(-1).values, expected)
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [("angle", {}, (64,)), ("ball", {"radius": 2.0, "p": 3.0}, (64, 3)), ("l1_ball", {}, (64, 3))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_every_size(name, arguments, shape, dtype):
    constraint = get(name)(**arguments)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=generator, dtype=dtype)
    for exponent in range(-36, 37):
        y = (normal * 10.0**exponent).requires_grad_()
        for value in (constraint(y), constraint(y.detach())):
            assert constraint.contains(value.detach()).all(), exponent
        (gradient,) = torch.autograd.grad(constraint(y).sin().sum(), y)
        assert torch.isfinite(gradient).all(), exponent


def test_affine_far_from_its_solutions():
    affine = get("affine")(A=[[1.0, 1.0, 1.0]], b=[1.0])
    y = torch.full((3,), 2.0**70, requires_grad=True)
    value = affine(y)
    torch.testing.assert_close(value, torch.full((3,), 1 / 3))
    (gradient,) = torch.autograd.grad(value[0], y)
    torch.testing.assert_close(gradient, torch.tensor([2 / 3, -1 / 3, -1 / 3]))


def test_numbers_beyond_the_range_are_told_of_as_such():
    """The message does not blame the spec."""
    layer = nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 2e38)
    sentence = r"^'weight': positive_definite\(\): .*scale the tensor"
    with pytest.raises(OutOfRangeError, match=sentence):
        constrain(layer, "weight", "positive_definite")


def test_every_name_is_tried():
    assert {name for name, *_ in configurations()} >= {"orthogonal", "simplex", "positive"}
