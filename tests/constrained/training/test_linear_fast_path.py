"""Linear layers: gradients from thin factors, and application by factors of the value."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from constrained import constrain, get
from constrained.training import linear_fast_path
from constraints import LowRank


def layer(n=320, m=480, spec="low_rank(rank=3)", **options):
    torch.manual_seed(0)
    return constrain(nn.Linear(n, m, **options), "weight", spec)


def evaluations(monkeypatch):
    count = []
    forward = LowRank.forward

    def counted(self, U, V):
        count.append(1)
        return forward(self, U, V)

    monkeypatch.setattr(LowRank, "forward", counted)
    for cls in (LowRank, *LowRank.__subclasses__()):
        # It is the same map still.
        monkeypatch.setattr(cls, "_map_as_defined", counted)
    return count


def after_a_step(m):
    """Take a step, so that the value that was read at construction is no longer stored."""
    torch.optim.SGD(m.parameters(), lr=0.0).step()
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(m.parameters(), lr=0.0).step()
    return m


@pytest.mark.parametrize("spec", ["low_rank(rank=3)", "rank_one"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_applied_by_its_factors(monkeypatch, spec, bias):
    count = evaluations(monkeypatch)
    m = after_a_step(layer(spec=spec, bias=bias))
    count.clear()
    x = torch.randn(5, 320, requires_grad=True)
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
    m(torch.ones(2, 320)).sum().backward()
    assert w.grad is not None and seen == [w.shape]


def test_a_write_into_a_weight_is_no_less_an_error():
    m = after_a_step(layer())
    with torch.no_grad():
        m.weight.mul_(2)
    with pytest.raises(RuntimeError, match="written in place"):
        m(torch.ones(2, 320))


def test_an_assignment_takes_effect():
    m = after_a_step(layer())
    new = m.weight.detach() * 2
    m.weight = new
    m = after_a_step(m)
    torch.testing.assert_close(m(torch.eye(320)) - m.bias, new.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(monkeypatch, dtype):
    count = evaluations(monkeypatch)
    m = after_a_step(layer().to(dtype))
    count.clear()
    m(torch.ones(2, 320, dtype=dtype))
    assert count


@pytest.mark.parametrize("spec", ["low_rank(rank=3)", "rank_one"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_once(spec, dtype):
    m = after_a_step(layer(spec=spec))
    x = torch.randn(5, 320)
    with torch.autocast("cpu", dtype):
        y = m(x)
        expected = F.linear(x, m.parametrizations.weight(), m.bias)
    assert y.dtype is dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_a_rank_that_is_not_small_is_multiplied_out(monkeypatch):
    count = evaluations(monkeypatch)
    m = after_a_step(layer(4, 4, "low_rank(rank=3)"))
    count.clear()
    m(torch.ones(2, 4))
    assert count


def test_functional_calls_and_transforms():
    m = after_a_step(layer())
    x = torch.randn(5, 320)
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
    m = after_a_step(constrain(Twice(320, 480), "weight", "low_rank(rank=3)"))
    x = torch.randn(5, 320)
    torch.testing.assert_close(m(x), 2 * F.linear(x, m.weight, m.bias))


def test_training_by_factors_is_training():
    by_factors, dense = after_a_step(layer()), after_a_step(layer())
    x, y = torch.randn(8, 320), torch.randn(8, 480)
    for m in (by_factors, dense):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            if m is dense:
                _ = m.weight  # read, and so multiplied out
            (m(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(by_factors.weight, dense.weight)


# ------------------------------------------------------------------------------- thin gradients

THIN = (
    ("orthogonal", 32, 32),
    ("orthogonal", 24, 40),
    ("orthogonal", 40, 24),
    ("orthogonal(map='rebased')", 32, 32),
    ("special_orthogonal", 32, 32),
    ("positive_definite", 32, 32),
    ("correlation", 32, 32),
)


def stepped(spec, n, m, dtype=torch.float32, bias=True):
    """A layer that has taken a step, so that its value is known and nobody has read it."""
    torch.manual_seed(0)
    made = constrain(nn.Linear(n, m, bias=bias, dtype=dtype), "weight", spec)
    made(torch.randn(3, n, dtype=dtype)).square().sum().backward()
    torch.optim.SGD(made.parameters(), lr=1e-2).step()
    made.zero_grad()
    return made


def thin_calls(monkeypatch, layer):
    """Counts the gradients that are had from thin factors."""
    cls, calls = type(layer.parametrizations.weight[0]), []
    thin = cls.thin_pullback

    def counted(self, *args):
        found = thin(self, *args)
        calls.append(found is not None)
        return found

    monkeypatch.setattr(cls, "thin_pullback", counted)
    return calls


def gradients(y, inputs, **options):
    return torch.autograd.grad(y.sin().sum(), inputs, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spec, n, m", THIN)
def test_few_rows_make_a_thin_gradient(monkeypatch, spec, n, m, bias):
    layer = stepped(spec, n, m, torch.float64, bias)
    calls = thin_calls(monkeypatch, layer)
    x = torch.randn(2, 2, n, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    y = layer(x)
    found = gradients(y, inputs)
    assert calls == [True]
    z = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(found, gradients(z, inputs))
    assert calls == [True]


@pytest.mark.parametrize("spec, n, m", THIN)
def test_with_many_rows_the_gradient_is_formed(monkeypatch, spec, n, m):
    layer = stepped(spec, n, m, torch.float64)
    calls = thin_calls(monkeypatch, layer)
    x = torch.randn(500, n, dtype=torch.float64)
    inputs = list(layer.parameters())
    found = gradients(layer(x), inputs)
    assert calls == [spec == "orthogonal(map='rebased')"]
    torch.testing.assert_close(found, gradients(F.linear(x, layer.weight, layer.bias), inputs))


def test_second_derivatives_of_a_thin_gradient():
    layer = stepped("orthogonal", 6, 6, torch.float64)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def penalty(y):
        first = gradients(y, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.cos().sum() for g in first), inputs)

    y = layer(x)
    torch.testing.assert_close(penalty(y), penalty(F.linear(x, layer.weight, layer.bias)))


def test_outputs_may_be_overwritten():
    layer = stepped("orthogonal", 16, 16)
    x = torch.randn(2, 16)
    inputs = list(layer.parameters())
    found = torch.autograd.grad(layer(x).relu_().sum(), inputs)
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).relu().sum(), inputs)
    torch.testing.assert_close(found, expected)


def test_gradients_accumulate_over_several_calls(monkeypatch):
    layer = stepped("orthogonal", 16, 16, torch.float64)
    calls = thin_calls(monkeypatch, layer)
    x, z = torch.randn(2, 2, 16, dtype=torch.float64)
    (layer(x).square().sum() + layer(z).sin().sum()).backward()
    layer(x).cos().sum().backward()
    assert calls == [True] * 3
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    u, v = (F.linear(t, layer.weight, layer.bias) for t in (x, z))
    (u.square().sum() + v.sin().sum() + u.cos().sum()).backward()
    torch.testing.assert_close(found, [p.grad for p in layer.parameters()])


@pytest.mark.parametrize("what", ["input", "original"])
def test_a_write_between_forward_and_backward_is_an_error(what):
    layer = stepped("orthogonal", 16, 16)
    x = torch.randn(2, 16)
    y = layer(x).sum()
    with torch.no_grad():
        (x if what == "input" else layer.parametrizations.weight.original).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_is_asked_of_an_orthogonal_weight_is_done():
    layer = stepped("orthogonal", 16, 16)
    seen = []
    layer.weight.register_hook(lambda g: seen.append(g.shape))
    layer(torch.ones(2, 16)).sum().backward()
    assert seen == [(16, 16)]


def test_a_weight_that_was_written_after_the_step_is_evaluated():
    layer = stepped("orthogonal", 16, 16)
    layer(torch.ones(2, 16))
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3).add_(0.1)
    x = torch.eye(16)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias))
    W = layer.weight
    torch.testing.assert_close(W @ W.T, torch.eye(16))


def test_autocast_keeps_its_dtype():
    layer = stepped("orthogonal", 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(2, 16))
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()


def test_a_wrong_input_is_the_usual_error():
    layer = stepped("orthogonal", 16, 16)
    for x in (torch.ones(2, 15), torch.ones(2, 16, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same dtype"):
            layer(x)
    assert layer(torch.ones(16)).shape == (16,)
    assert layer(torch.ones(0, 16)).shape == (0, 16)
    layer(torch.ones(0, 16)).sum().backward()


def test_transforms_see_the_weight():
    layer = stepped("orthogonal", 16, 16)
    x = torch.randn(5, 16)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    found = torch.utils.checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=False)
    torch.testing.assert_close(found, layer(x))


def test_training_by_thin_gradients_is_training():
    thin, dense = stepped("orthogonal", 24, 24), stepped("orthogonal", 24, 24)
    x, y = torch.randn(4, 24), torch.randn(4, 24)
    for layer in (thin, dense):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            if layer is dense:
                _ = layer.weight
            (layer(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(thin.weight, dense.weight, rtol=0, atol=1e-4)


def test_a_value_that_was_evaluated_is_no_copy_of_its_original():
    layer = stepped("orthogonal", 16, 16, torch.float64)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3)
    x, inputs = torch.randn(2, 16, dtype=torch.float64), list(layer.parameters())
    found = [gradients(layer(x), inputs) for _ in range(2)]
    expected = gradients(F.linear(x, layer.weight, layer.bias), inputs)
    for each in found:
        torch.testing.assert_close(each, expected)


# ------------------------------------------------------------------ between the two passes


UNREAD = ("orthogonal", "positive_definite", "low_rank(rank=4)", "spectral_norm", "rank_one")


@pytest.mark.parametrize("spec", (*UNREAD, "sphere", "positive"))
def test_a_layer_whose_input_is_computed_from_itself_and_its_bias(spec):
    """As in a recurrent network, where the input depends on the weight."""
    torch.manual_seed(0)
    m = constrain(nn.Linear(24, 24, dtype=torch.float64), "weight", spec, init="sample")
    x, parameters = torch.randn(1, 24, dtype=torch.float64), list(m.parameters())

    def loss(weight=None):
        y = x
        for _ in range(3):
            y = y * (1 + m.bias)
            y = (m(y) if weight is None else F.linear(y, weight, m.bias)).tanh()
        return y.square().sum()

    for first_order in (False, True):
        after_a_step(m)
        found = torch.autograd.grad(loss(), parameters, create_graph=first_order)
        expected = torch.autograd.grad(
            loss(m.parametrizations.weight()), parameters, create_graph=first_order
        )
        torch.testing.assert_close(found, expected)
    directions = [torch.randn_like(p) for p in parameters]
    twice = [
        torch.autograd.grad(sum((g * d).sum() for g, d in zip(gs, directions, strict=True)), m.bias)
        for gs in (found, expected)
    ]
    torch.testing.assert_close(*twice)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(
    ("spec", "change"),
    [
        ("orthogonal", lambda p, c: p.add_(0.1)),
        ("positive_definite", lambda p, c: p.add_(0.1)),
        ("sphere", lambda p, c: setattr(c, "radius", 3.0)),
        ("spectral_norm", lambda p, c: setattr(c, "bound", 0.5)),
        ("ball", lambda p, c: setattr(c, "radius", 0.1)),
        ("interval(-1, 1)", lambda p, c: setattr(c, "high", 2.0)),
    ],
)
def test_what_changes_between_the_passes_is_an_error(spec, change, read, create_graph):
    m = after_a_step(constrain(nn.Linear(24, 24), "weight", spec, init="sample"))
    if read:
        _ = m.weight
    out = m(torch.randn(1, 24)).sin().sum()
    with torch.no_grad():
        change(m.parametrizations.weight.original, m.parametrizations.weight[0])
    with pytest.raises(RuntimeError, match="between the forward pass and the backward pass"):
        torch.autograd.grad(out, list(m.parameters()), create_graph=create_graph)


@pytest.mark.parametrize("spec", (*UNREAD, "sphere", "positive"))
def test_modes_may_change_between_the_passes(spec):
    m = after_a_step(constrain(nn.Linear(24, 24), "weight", spec, init="sample"))
    x = torch.randn(1, 24)
    expected = torch.autograd.grad(m(x).sum(), list(m.parameters()))
    after_a_step(m)
    out = m(x).sum()
    m.eval()
    m.train()
    torch.testing.assert_close(torch.autograd.grad(out, list(m.parameters())), expected)


@pytest.mark.parametrize("is_derived", [False, True])
@pytest.mark.parametrize("spec", UNREAD)
def test_a_forward_that_somebody_gives_all_layers_of_a_class_is_called(
    spec, is_derived, monkeypatch
):
    class Derived(nn.Linear):
        pass

    cls = Derived if is_derived else nn.Linear
    m = after_a_step(constrain(cls(*((320, 480) if "rank" in spec else (9, 9))), "weight", spec))
    plain = nn.Linear.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: 0 * plain(self, x))
    assert not m(torch.ones(2, m.in_features)).any()


@pytest.mark.parametrize("spec", ["low_rank(rank=8)", "rank_one"])
def test_a_layer_that_gains_nothing_by_it_leaves_no_weight_unread(monkeypatch, spec):
    m = after_a_step(constrain(nn.Linear(16, 16), "weight", spec))
    unread = []
    monkeypatch.setattr(linear_fast_path, "Unread", lambda *args: unread.append(args))
    m(torch.ones(2, 16)).sum().backward()
    assert not unread


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spec", (*UNREAD, "sphere", "positive"))
def test_many_gradients_at_once(spec, bias):
    """As those of the rows of a Jacobian, of a layer that nobody has read since its step."""
    m = after_a_step(
        constrain(nn.Linear(24, 24, bias=bias, dtype=torch.float64), "weight", spec, init="sample")
    )
    x = torch.randn(1, 24, dtype=torch.float64, requires_grad=True)
    units, inputs = torch.eye(24, dtype=torch.float64).unsqueeze(1), [x, *m.parameters()]
    y = m(x)
    found = torch.autograd.grad(y, inputs, units, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y[0, i], inputs, retain_graph=True) for i in range(24)]
    for gradients, expected in zip(found, zip(*one_by_one, strict=True), strict=True):
        assert not gradients.requires_grad
        torch.testing.assert_close(gradients, torch.stack(expected))
    after_a_step(m)
    jacobian = torch.autograd.functional.jacobian(m, x, vectorize=True)
    torch.testing.assert_close(jacobian[0, :, 0], m.parametrizations.weight().detach())


@pytest.mark.parametrize("spec", UNREAD)
def test_functional_calls_inside_of_a_transform(spec):
    m = constrain(nn.Linear(6, 6), "weight", spec)
    x = torch.randn(5, 6)
    given = {k: v.detach() for k, v in m.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(m, p, (x,)).sum())(given)
    expected = torch.autograd.grad(m(x).sum(), list(m.parameters()))
    torch.testing.assert_close([found[k] for k, _ in m.named_parameters()], list(expected))


@pytest.mark.parametrize("is_derived", [False, True])
@pytest.mark.parametrize("spec", ["low_rank(rank=3)", "rank_one"])
def test_a_map_that_is_set_on_a_class_is_not_left_for_factors_of_the_old_one(
    monkeypatch, spec, is_derived
):
    kind, options = (LowRank, {"rank": 3}) if "rank=" in spec else (get("rank_one"), {})
    forward = kind.forward
    cls = type("Derived", (kind,), {}) if is_derived else kind
    m = after_a_step(layer(spec=cls(**options)))
    x = torch.randn(5, 320)
    m(x)
    monkeypatch.setattr(cls, "forward", lambda self, *params: 3 * forward(self, *params))
    W = m.parametrizations.weight()
    torch.testing.assert_close(m(x), F.linear(x, W, m.bias))
