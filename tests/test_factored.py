import pytest
import torch
import torch.nn.functional as F
from torch import nn

from constrained import constrain
from constraints import LowRank


def layer(n=32, m=48, spec="low_rank(rank=3)", **options):
    torch.manual_seed(0)
    return constrain(nn.Linear(n, m, **options), "weight", spec)


def evaluations(monkeypatch):
    count = []
    forward = LowRank.forward
    monkeypatch.setattr(
        LowRank, "forward", lambda self, U, V: count.append(1) or forward(self, U, V)
    )
    return count


def after_a_step(m):
    """What was read when the layer was made is no longer held."""
    torch.optim.SGD(m.parameters(), lr=0.0).step()
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(m.parameters(), lr=0.0).step()
    return m


@pytest.mark.parametrize("spec", ["low_rank(rank=3)", "rank_one"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_applied_by_its_factors(monkeypatch, spec, bias):
    m = after_a_step(layer(spec=spec, bias=bias))
    count = evaluations(monkeypatch)
    x = torch.randn(5, 32, requires_grad=True)
    y = m(x)
    assert not count
    gradients = torch.autograd.grad(y.sin().sum(), [x, *m.parameters()])
    z = F.linear(x, m.weight, m.bias)
    torch.testing.assert_close(y, z)
    expected = torch.autograd.grad(z.sin().sum(), [x, *m.parameters()])
    torch.testing.assert_close(gradients, expected)


def test_what_is_asked_of_a_weight_that_was_read_is_done():
    m = after_a_step(layer())
    w = m.weight
    w.retain_grad()
    seen = []
    w.register_hook(lambda g: seen.append(g.shape))
    m(torch.ones(2, 32)).sum().backward()
    assert w.grad is not None and seen == [w.shape]


def test_a_write_into_a_weight_is_no_less_an_error():
    m = after_a_step(layer())
    with torch.no_grad():
        m.weight.mul_(2)
    with pytest.raises(RuntimeError, match="written in place"):
        m(torch.ones(2, 32))


def test_an_assignment_takes_effect():
    m = after_a_step(layer())
    new = m.weight.detach() * 2
    m.weight = new
    m = after_a_step(m)
    torch.testing.assert_close(m(torch.eye(32)) - m.bias, new.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(monkeypatch, dtype):
    m = after_a_step(layer().to(dtype))
    count = evaluations(monkeypatch)
    m(torch.ones(2, 32, dtype=dtype))
    assert count


def test_a_rank_that_is_not_small_is_multiplied_out(monkeypatch):
    m = after_a_step(layer(4, 4, "low_rank(rank=3)"))
    count = evaluations(monkeypatch)
    m(torch.ones(2, 4))
    assert count


def test_functional_calls_and_transforms():
    m = after_a_step(layer())
    x = torch.randn(5, 32)
    there = {k: v * 2 for k, v in m.named_parameters()}
    y = torch.func.functional_call(m, there, (x,))
    w = 4 * m.weight
    torch.testing.assert_close(y, F.linear(x, w, 2 * m.bias))
    m = after_a_step(m)
    one_by_one = torch.func.vmap(m)(x)
    torch.testing.assert_close(one_by_one, m(x))


def test_a_class_with_a_forward_of_its_own_keeps_it():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    m = after_a_step(constrain(Twice(32, 48), "weight", "low_rank(rank=3)"))
    x = torch.randn(5, 32)
    torch.testing.assert_close(m(x), 2 * F.linear(x, m.weight, m.bias))


def test_training_by_factors_is_training():
    by_factors, dense = after_a_step(layer()), after_a_step(layer())
    x, y = torch.randn(8, 32), torch.randn(8, 48)
    for m in (by_factors, dense):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            if m is dense:
                _ = m.weight  # read, and so multiplied out
            (m(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(by_factors.weight, dense.weight)
