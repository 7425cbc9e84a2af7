"""Replicas of a model, as ``DataParallel`` makes them (E10)."""

import functools
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from tests.promises.counting import Sphere, evaluations, layer, original, reset
from tests.promises.threads import run_all


@pytest.mark.parametrize("inside_cached", [False, True])
def test_e10_replicas_compute_from_what_they_hold(inside_cached):
    """``DataParallel`` makes shallow copies of a module and replaces their parameters."""
    root = nn.Sequential(layer(Sphere()))
    _ = root[0].weight
    x = torch.ones(2, 3)

    def replica(factor):
        copies = {m: m._replicate_for_data_parallel() for m in root.modules()}
        leaves = []
        for m, twin in copies.items():
            for key, child in m._modules.items():
                twin._modules[key] = copies[child]
            for key, p in m._parameters.items():
                leaves.append((p.detach() * factor + (factor - 1)).requires_grad_())
                setattr(twin, key, leaves[-1] * 1)
            for key, b in m._buffers.items():
                twin._buffers[key] = b
        return copies[root], leaves

    with ours.cached() if inside_cached else torch.enable_grad():
        replicas = [replica(factor) for factor in (1.0, 2.0)]
        outs = [r(x) for r, _ in replicas]
        for out, (twin, leaves) in zip(outs, replicas, strict=True):
            bias, p = sorted(leaves, key=lambda t: t.ndim)
            expected = x @ nn.functional.normalize(p, dim=1).T + bias
            assert_close(out, expected)
            assert_close(
                torch.autograd.grad(out.sum(), p)[0], torch.autograd.grad(expected.sum(), p)[0]
            )
            del twin
    m = root[0]
    assert_close(m.weight, m.parametrizations.weight())
    root(x).sum().backward()
    assert original(m).grad is not None


@pytest.fixture
def replicate(monkeypatch):
    """``torch.nn.parallel.replicate`` without the copies to other devices."""
    from torch.nn.parallel import replicate

    module = sys.modules["torch.nn.parallel.replicate"]

    class Broadcast(torch.autograd.Function):
        @staticmethod
        def forward(ctx, n, *tensors):
            ctx.n, ctx.each = n, len(tensors)
            return tuple(t.clone() for _ in range(n) for t in tensors)

        @staticmethod
        def backward(ctx, *gradients):
            rows = [gradients[k * ctx.each : (k + 1) * ctx.each] for k in range(ctx.n)]
            return None, *(sum(column) for column in zip(*rows, strict=True))

    def broadcast(tensors, devices, detach=False):
        if not tensors:
            return []
        if detach:
            return [[t.detach().clone() for t in tensors] for _ in devices]
        flat = Broadcast.apply(len(devices), *tensors)
        return [flat[k * len(tensors) : (k + 1) * len(tensors)] for k in range(len(devices))]

    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", broadcast)
    return replicate


def model():
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    constrain(m, {"0.weight": Sphere(), "2.weight": "low_rank(rank=2)", "4.weight": "orthogonal"})
    return m


@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("inside_cached", [False, True])
def test_e10_replicas_train_in_threads(replicate, read_first, inside_cached, measured):
    """Each thread computes with its replica; gradients accumulate in the originals."""
    m, alone = model(), model()
    ours_, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (m, alone))
    x = torch.randn(6, 4)
    for _ in range(3):
        if read_first:
            _ = m[0].weight, m[2].weight, m[4].weight
        outs = [None, None]

        def forward(k, replica, part, outs=outs):
            with ours.cached() if inside_cached else torch.enable_grad():
                outs[k] = replica(part)

        work = zip(range(2), replicate(m, [0, 1]), x.chunk(2), strict=True)
        run_all(*[functools.partial(forward, *each) for each in work])
        ours_.zero_grad(), theirs.zero_grad()
        torch.cat(outs).pow(2).sum().backward()
        alone(x).pow(2).sum().backward()
        for p, q in zip(m.parameters(), alone.parameters(), strict=True):
            assert_close(p.grad, q.grad)
        ours_.step(), theirs.step()
        for k in (0, 2, 4):
            assert_close(m[k].weight, m[k].parametrizations.weight())
    assert_close(dict(m.state_dict()), dict(alone.state_dict()))
    measured("2 replicas in threads: gradients as of one model")


def test_e10_replicas_that_only_evaluate(replicate):
    m = model().eval()
    x = torch.randn(6, 4)
    expected = m(x).detach()
    with torch.no_grad():
        for _ in range(2):
            replicas = replicate(m, [0, 1], detach=True)
            outs = [r(part) for r, part in zip(replicas, x.chunk(2), strict=True)]
            assert_close(torch.cat(outs), expected)
    with torch.no_grad():
        m[0].parametrizations.weight.original.add_(0.3)
        assert not torch.allclose(replicate(m, [0, 1], detach=True)[0](x), expected)


def test_e10_replicas_do_not_disturb_the_values_of_the_model(replicate):
    m = nn.Sequential(layer(Sphere()))
    w = m[0].weight
    reset(m)
    for replica in replicate(m, [0, 1]):
        replica(torch.ones(1, 3)).sum().backward()
    counted = evaluations(m)
    assert m[0].weight is w and evaluations(m) == counted


def test_e10_data_parallel_without_devices_is_the_module():
    m = layer(Sphere())
    wrapped = nn.DataParallel(m)
    reset(m)
    for _ in range(3):
        wrapped(torch.ones(2, 3)).sum().backward()
    assert evaluations(m) <= 1 and original(m).grad is not None
