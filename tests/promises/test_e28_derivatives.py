"""E28: derivatives of every order are right; reads are pure."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from tests.promises.counting import Foreign, Outer, Positive, Sphere, layer
from tests.promises.foreign import Split, Squash

torch_today = pytest.mark.torch_today
MAKES = pytest.mark.parametrize("make", [Positive, Sphere, Outer, Foreign, Squash, Split])


class WeightNorm(nn.Module):
    """The formula of ``torch.nn.utils.parametrizations.weight_norm``, as a plain module."""

    def forward(self, g, v):
        return g * v / v.norm(dim=1, keepdim=True)

    def right_inverse(self, w):
        return w.norm(dim=1, keepdim=True), w


def trained(m):
    return list(m.parametrizations.weight.parameters())


def hessian_vector_error(m):
    """How far a Hessian-vector product is from finite differences, relative."""
    names = [n for n, _ in m.named_parameters() if "weight" in n]
    x = torch.randn(4, m.in_features, dtype=torch.double)
    ps = trained(m)
    vs = [torch.randn_like(p) for p in ps]

    def gradient(create_graph=False):
        loss = m(x).sin().sum()
        return torch.autograd.grad(loss, ps, create_graph=create_graph)

    product = torch.autograd.grad(
        sum((g * v).sum() for g, v in zip(gradient(True), vs, strict=True)), ps
    )
    h, sides = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(ps, vs, strict=True):
                p.add_(v, alpha=sign * h)
        sides.append(gradient())
        with torch.no_grad():
            for p, v in zip(ps, vs, strict=True):
                p.sub_(v, alpha=sign * h)
    expected = [(a - b) / (2 * h) for a, b in zip(*sides, strict=True)]
    assert names
    norm = sum(e.pow(2).sum() for e in expected) ** 0.5
    wrong = sum((e - p).pow(2).sum() for e, p in zip(expected, product, strict=True)) ** 0.5
    return float(wrong / norm)


@MAKES
@pytest.mark.parametrize("inside_cached", [False, True])
def test_e28_second_derivatives(make, inside_cached):
    m = layer(make()).double()
    x = torch.randn(2, 3, dtype=torch.double)
    with ours.cached() if inside_cached else torch.enable_grad():
        assert gradcheck(lambda *_: m(x), tuple(m.parameters()))
        assert gradgradcheck(lambda *_: m(x), tuple(m.parameters()))


@pytest.mark.parametrize("make", [Positive, Sphere, Outer, Foreign, Squash, Split, WeightNorm])
@pytest.mark.parametrize("inside_cached", [False, True])
def test_e28_hessian_vector_products_agree_with_finite_differences(make, inside_cached, measured):
    m = nn.Linear(3, 3).double()
    m.weight.data.abs_()
    if hasattr(make(), "project"):
        m.weight.data = make().project(m.weight.data)
    ours.register_parametrization(m, "weight", make())
    with ours.cached() if inside_cached else torch.enable_grad():
        error = hessian_vector_error(m)
    assert error < 1e-6
    if make is WeightNorm:
        measured(f"weight_norm's formula: relative error of a Hessian-vector product {error:.0e}")


@torch_today
def test_e28_weight_norm_in_torch_today(measured):
    error = hessian_vector_error(parametrizations.weight_norm(nn.Linear(3, 3).double()))
    assert error > 1e-2
    measured(f"weight_norm: relative error of a Hessian-vector product {error:.2g}")


@MAKES
def test_e28_forward_mode(make):
    m = layer(make()).double()
    x = torch.randn(2, 3, dtype=torch.double)
    params = {k: p.detach() for k, p in m.named_parameters()}
    tangents = {k: torch.randn_like(p) for k, p in params.items()}

    def f(p):
        return functional_call(m, p, (x,)).sin().sum()

    _ = m.weight
    over_reverse = jvp(grad(f), (params,), (tangents,))[1]
    directional = grad(lambda p: sum((g * tangents[k]).sum() for k, g in grad(f)(p).items()))
    assert_close(over_reverse, directional(params))

    def first(p):
        return jvp(f, (p,), (tangents,))[1]

    second = jvp(first, (params,), (tangents,))[1]
    assert_close(second, sum((over_reverse[k] * tangents[k]).sum() for k in tangents))


@torch_today
def test_e28_forward_mode_of_weight_norm_in_torch_today():
    m = parametrizations.weight_norm(nn.Linear(3, 3))
    params = {k: p.detach() for k, p in m.named_parameters()}
    with pytest.raises(NotImplementedError):
        jvp(lambda p: functional_call(m, p, (torch.ones(1, 3),)), (params,), (params,))


@MAKES
def test_e28_vmap_in_training(make):
    m = layer(make()).train()
    x = torch.randn(5, 3)
    assert_close(vmap(m)(x), m(x))
    stacked = {k: torch.stack([p.detach(), 2 * p.detach()]) for k, p in m.named_parameters()}
    found = vmap(lambda p: functional_call(m, p, (x,)))(stacked)
    for i in range(2):
        one = {k: p[i] for k, p in stacked.items()}
        assert_close(found[i], functional_call(m, one, (x,)))


@pytest.mark.parametrize("make", [Positive, Sphere, Outer, Foreign])
def test_e28_reads_are_pure(make):
    m = layer(make()).train()
    state, random = copy.deepcopy(m.state_dict()), torch.get_rng_state()
    _ = m.weight.shape, hasattr(m, "weight"), repr(m), str(m.weight), m.extra_repr()
    assert_close(m.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), random)


def moves(P, context):
    m = nn.Linear(4, 4)
    parametrizations.spectral_norm(m)
    parametrization = m.parametrizations.weight[0]
    if P is ours:
        (w,) = (m.parametrizations.weight.original.detach().clone(),)
        m = nn.Linear(4, 4)
        m.weight.data = w
        ours.register_parametrization(m, "weight", parametrization, unsafe=True)
    m.train()
    count, before = 0, parametrization._u.clone()
    with context:
        for _ in range(4):
            _ = m.weight.shape
            count += not torch.equal(before, parametrization._u)
            before = parametrization._u.clone()
    return count


def test_e28_state_moves_once_inside_cached(measured):
    count = moves(ours, ours.cached())
    assert count == 1
    measured(f"4 reads of spectral_norm in cached() move its state {count} time")


@torch_today
def test_e28_state_moves_at_every_read_in_torch_today(measured):
    count = moves(torchs, torch.enable_grad())
    assert count == 4
    measured(f"4 reads of .shape move the state of spectral_norm {count} times")


def test_e28_forward_mode_by_hand():
    m = layer(Sphere())
    p = m.parametrizations.weight.original.detach()
    t = torch.randn(3, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(p, t)
        out = functional_call(m, {"weight": dual}, (torch.eye(3),))
        assert_close(forward_ad.unpack_dual(out).tangent, t.T)
