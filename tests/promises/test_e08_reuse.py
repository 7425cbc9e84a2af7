"""One evaluation serves every read until something changes (E08)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import Constraint, constrain
from tests.promises.counting import (
    Anchored,
    Averaging,
    Dropped,
    Foreign,
    Noisy,
    Outer,
    Positive,
    Sphere,
    Symmetric,
    evaluations,
    layer,
    original,
    reset,
)

CONSTRAINTS = [Positive, Sphere, Symmetric, Outer, Anchored]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_e08_five_hundred_reads_are_one_evaluation(constraint):
    m = layer(constraint())
    h = torch.ones(3)
    for _ in range(500):
        h = torch.tanh(m.weight @ h + m.bias)
    assert evaluations(m) == 1
    h.sum().backward()
    assert evaluations(m) == 1


@pytest.mark.torch_today
def test_e08_in_torch_today():
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", Foreign())
    reset(m)
    for _ in range(500):
        _ = m.weight
    assert evaluations(m) == 500


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_e08_one_evaluation_for_each_step(constraint):
    m = layer(constraint())
    optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
    for step in range(1, 6):
        optimizer.zero_grad()
        for _ in range(3):
            m(m(torch.ones(2, 3))).pow(2).sum().backward()
        assert evaluations(m) == step
        optimizer.step()


def test_e08_gradient_accumulation_gives_the_same_gradient():
    m, twin = layer(Sphere()), layer(Sphere())
    twin.load_state_dict(m.state_dict())
    batches = torch.randn(4, 2, 3)
    reset(m)
    for x in batches:
        m(x).pow(2).sum().backward()
    assert evaluations(m) == 1
    twin(batches.flatten(0, 1)).pow(2).sum().backward()
    assert_close(original(m).grad, original(twin).grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_e08_an_evaluation_loop_is_one_evaluation(mode):
    m = layer().eval()
    with mode():
        for _ in range(100):
            m(torch.ones(1, 3))
    assert evaluations(m) == 1
    for _ in range(3):
        with mode():
            m(torch.ones(1, 3))
    assert evaluations(m) == 1


def test_e08_training_serves_the_evaluation_after_it():
    """A value with a graph is reused without gradients; the reverse costs one evaluation."""
    m = layer()
    _ = m.weight
    with torch.no_grad():
        assert not m.weight.requires_grad
    assert evaluations(m) == 1 and m.weight.requires_grad
    with torch.no_grad():
        original(m).add_(1)
        _ = m.weight
    assert evaluations(m) == 2
    assert m.weight.requires_grad and evaluations(m) == 3
    with torch.no_grad():
        _ = m.weight
    assert m.weight.requires_grad and evaluations(m) == 3


def test_e08_shape_and_repr_and_hasattr_cost_nothing():
    m = layer()
    _ = m.weight
    assert hasattr(m, "weight") and m.weight.shape == (3, 3)
    repr(m), dir(m), m.state_dict()
    for _ in m.named_parameters():
        pass
    assert evaluations(m) == 1


def test_e08_a_frozen_tensor():
    m = layer()
    m.requires_grad_(False)
    for _ in range(3):
        assert not m.weight.requires_grad
        m(torch.ones(1, 3))
    assert evaluations(m) == 1


def test_e08_a_chain_is_evaluated_once():
    m = layer(Sphere())
    ours.register_parametrization(m, "weight", Positive())
    reset(m)
    for _ in range(10):
        m(torch.ones(1, 3)).sum().backward()
    assert evaluations(m) == 2 and len(m.parametrizations.weight) == 2


def test_e08_each_tensor_has_its_own_value():
    m = constrain(nn.Linear(3, 3), {"weight": Positive(), "bias": Sphere()})
    reset(m)
    for _ in range(10):
        m(torch.ones(1, 3)).sum().backward()
    assert evaluations(m.parametrizations.weight) == evaluations(m.parametrizations.bias) == 1
    with torch.no_grad():
        original(m, "bias").add_(1)
    m(torch.ones(1, 3))
    assert evaluations(m.parametrizations.weight) == 1
    assert evaluations(m.parametrizations.bias) == 2


# ------------------------------------------------------------------------- recurrence and attention


def plain_twin(m):
    """The same layer with the same values, as plain parameters."""
    twin = copy.deepcopy(m)
    for name in list(twin.parametrizations):
        ours.remove_parametrizations(twin, name)
    return twin


def check_against_twin(m, run, per_forward=1):
    """Right outputs, right gradients, one evaluation for each tensor in a forward."""
    names = list(m.parametrizations)
    twin = plain_twin(m)
    for training in (True, False):
        m.train(training), twin.train(training)
        reset(m)
        out = run(m)
        expected = run(twin)
        assert_close(out, expected)
        m.zero_grad(), twin.zero_grad()
        out.pow(2).sum().backward()
        expected.pow(2).sum().backward()
        assert evaluations(m) <= len(names) * per_forward
        for name in names:
            value, gradient = getattr(m, name), getattr(twin, name).grad
            lists = m.parametrizations[name]
            pulled = torch.autograd.grad(lists(), list(lists.parameters()), gradient)
            for p, g in zip(lists.parameters(), pulled, strict=True):
                assert_close(p.grad, g, atol=1e-5, rtol=1e-4)
            assert_close(value.detach(), getattr(twin, name).detach())
    with torch.no_grad():
        assert_close(run(m), run(twin))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("which", ["one", "all"])
def test_e08_recurrent_layers(kind, which):
    m = kind(3, 4, num_layers=2, bidirectional=True)
    names = ["weight_hh_l0"] if which == "one" else [n for n, _ in m.named_parameters()]
    constrain(m, dict.fromkeys(names, Sphere()))
    x = torch.randn(5, 2, 3)
    check_against_twin(m, lambda layer: layer(x)[0])
    reset(m)
    for _ in range(3):
        m(x)[0].sum().backward()
    assert evaluations(m) == len(names) or evaluations(m) == 0


@pytest.mark.torch_today
def test_e08_recurrent_layers_in_torch_today():
    m = nn.LSTM(3, 3)
    torchs.register_parametrization(m, "weight_hh_l0", Averaging())
    reset(m)
    m(torch.randn(4, 3))
    assert evaluations(m) == 4


def test_e08_recurrent_layers_train_like_their_cell():
    m = constrain(nn.RNN(3, 4), "weight_hh_l0", Sphere())
    x = torch.randn(6, 3)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        h = torch.zeros(4)
        for row in x:
            h = torch.tanh(m.weight_ih_l0 @ row + m.bias_ih_l0 + m.weight_hh_l0 @ h + m.bias_hh_l0)
        expected = torch.autograd.grad(h.sum(), list(m.parameters()))
        optimizer.zero_grad()
        out, _ = m(x)
        assert_close(out[-1], h)
        out[-1].sum().backward()
        for p, g in zip(m.parameters(), expected, strict=True):
            assert_close(p.grad, g)
        optimizer.step()


@pytest.mark.parametrize("batch_first", [True, False])
def test_e08_attention(batch_first):
    m = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    nn.init.ones_(m.in_proj_bias)
    constrain(m, {"in_proj_weight": Sphere(), "in_proj_bias": Positive()})
    x = torch.randn(5, 3, 4)
    check_against_twin(m, lambda layer: layer(x, x, x)[0])
    m.eval()
    reset(m)
    with torch.no_grad():
        original(m, "in_proj_weight").add_(0.1)
        for _ in range(3):
            m(x, x, x, need_weights=False)
    assert evaluations(m.parametrizations.in_proj_weight) == 1


def test_e08_attention_with_separate_projections():
    m = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True)
    constrain(m, "*_proj_weight", Sphere())
    q, k, v = torch.randn(2, 5, 4), torch.randn(2, 6, 3), torch.randn(2, 6, 2)
    check_against_twin(m, lambda layer: layer(q, k, v)[0])


def test_e08_a_transformer_layer_in_its_fast_path():
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    constrain(block, {"self_attn.in_proj_weight": Sphere(), "linear1.weight": Sphere()})
    x = torch.randn(2, 3, 4)
    expected = block(x)
    block.eval()
    assert_close(block(x), expected)
    with torch.no_grad():
        assert_close(block(x), expected.detach(), atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------- what is not to be reused


def test_foreign_modules_are_evaluated_at_each_read():
    m = layer(Foreign())
    for k in range(1, 4):
        _ = m.weight
        assert evaluations(m) == k


def test_constraints_that_are_not_deterministic_are_evaluated_at_each_read():
    m = layer(Noisy())
    a, b = m.weight, m.weight
    assert evaluations(m) == 2 and not torch.equal(a, b)


def test_one_foreign_module_in_a_chain_is_enough():
    m = layer(Positive())
    ours.register_parametrization(m, "weight", nn.Tanh())
    reset(m)
    _ = m.weight, m.weight
    assert evaluations(m) == 2


def test_random_modules_behave_as_under_torch():
    values = []
    for P in (ours, torchs):
        torch.manual_seed(5)
        m = nn.Linear(4, 4)
        with torch.no_grad():
            m.weight.fill_(1.0)
        P.register_parametrization(m, "weight", Dropped())
        values.append(torch.stack([m.weight.detach() for _ in range(4)]))
        m.eval()
        assert torch.equal(m.weight, original(m))
    assert torch.equal(*values) and not torch.equal(values[0][0], values[0][1])


def test_modules_that_write_state_behave_as_under_torch():
    for P in (ours, torchs):
        m = nn.Linear(3, 3)
        P.register_parametrization(m, "weight", Averaging())
        runs = m.parametrizations.weight[0].runs
        before = float(runs)
        for k in range(1, 4):
            _ = m.weight
            assert float(runs) == before + k
        m.eval()
        _ = m.weight
        assert float(runs) == before + 3


@pytest.mark.parametrize("module", [Foreign, Dropped, Averaging])
def test_in_cached_foreign_modules_are_evaluated_once(module):
    m = layer(module())
    for k in range(1, 3):
        with ours.cached():
            a = m.weight
            assert m.weight is a
            m(torch.ones(1, 3)).sum().backward()
            assert evaluations(m) == k
    _ = m.weight
    assert evaluations(m) == 3


def test_a_constraint_that_is_turned_random_is_no_longer_kept():
    m = layer(Positive())
    _ = m.weight
    m.parametrizations.weight[0].deterministic = False
    _ = m.weight, m.weight
    assert evaluations(m) == 3


class Empty(Constraint):
    event_dim = 0

    def forward(self, x):
        return x * 1

    def right_inverse(self, value):
        return value.clone()

    def violation(self, value):
        return torch.zeros_like(value)

    def project(self, value):
        return value.clone()

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return torch.rand(shape)

    def dimension(self, shape):
        return 1


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2000,), (7, 300)])
def test_tensors_of_every_size(shape):
    m = nn.Module()
    m.p = nn.Parameter(torch.rand(shape))
    ours.register_parametrization(m, "p", Empty())
    for _ in range(3):
        assert m.p is m.p
        m.p.sum().backward()
        with torch.no_grad():
            original(m, "p").add_(1)
        assert_close(m.p, original(m, "p"))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
)
def test_tensors_of_every_dtype(dtype):
    class Any(Empty):
        complex = True

        def forward(self, x):
            return x.clone().mH

        def right_inverse(self, value):
            return value.mH

        def violation(self, value):
            return torch.zeros(value.shape, dtype=value.real.dtype)

    m = nn.Module()
    m.p = nn.Parameter(torch.rand(3, 3).to(dtype))
    ours.register_parametrization(m, "p", Any())
    assert m.p is m.p and m.p.dtype is dtype
    m.p.abs().sum().backward()
    with torch.no_grad():
        original(m, "p").mul_(2)
    assert_close(m.p.resolve_conj(), original(m, "p").mH.resolve_conj())
    with torch.no_grad(), pytest.raises(RuntimeError, match="written in place"):
        m.p.zero_()
        _ = m.p
    assert_close(m.p.resolve_conj(), original(m, "p").mH.resolve_conj())


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
def test_originals_of_every_layout(layout):
    m = nn.Module()
    tensor = {
        "transposed": torch.rand(4, 3).mT,
        "strided": torch.rand(6, 8)[::2, ::2],
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }[layout]
    m.p = nn.Parameter(tensor)
    ours.register_parametrization(m, "p", Empty())
    for _ in range(3):
        assert_close(m.p, original(m, "p"))
        m.p.sum().backward()
        original(m, "p").data.mul_(2)
        assert_close(m.p, original(m, "p"))
    m.p = torch.ones_like(m.p)
    assert_close(m.p.detach(), torch.ones_like(m.p))
