"""Recurrent and attention layers: one evaluation a forward, right values, right gradients (E08)."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from tests.promises.counting import Averaging, Sphere, evaluations, reset

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
)

RECURRENT = {
    "RNN": lambda: nn.RNN(3, 4),
    "RNN, relu, two layers": lambda: nn.RNN(3, 4, num_layers=2, nonlinearity="relu"),
    "RNN, both directions": lambda: nn.RNN(3, 4, bidirectional=True),
    "LSTM": lambda: nn.LSTM(3, 4),
    "LSTM, two layers, both directions": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "LSTM, projections": lambda: nn.LSTM(3, 4, proj_size=2),
    "LSTM, projections, all": lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "LSTM, batch first, no bias": lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    "GRU": lambda: nn.GRU(3, 4),
    "GRU, two layers": lambda: nn.GRU(3, 4, 2),
    "GRU, both directions": lambda: nn.GRU(3, 4, bidirectional=True),
    "GRU, dropout": lambda: nn.GRU(3, 4, 2, dropout=0.5),
}
EACH = pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)


def constrained_all(m):
    constrain(m, {name: Sphere() for name, _ in m.named_parameters()})
    reset(m)
    return m


def plain(m):
    """The same module with the same values, as plain parameters."""
    twin = copy.deepcopy(m)
    for each in list(twin.modules()):
        for name in list(getattr(each, "parametrizations", ())):
            ours.remove_parametrizations(each, name)
    return twin


def lists(m):
    """For each parametrized tensor, its path in a plain twin and its list."""
    for prefix, each in m.named_modules():
        for name, found in getattr(each, "parametrizations", {}).items():
            yield f"{prefix}.{name}".lstrip("."), found


def touch(m):
    """Write to all originals, so that stored values are stale, and reset the counts."""
    with torch.no_grad():
        for p in m.parameters():
            p.mul_(1.0)
    reset(m)


def check(m, run, tensors=None):
    """Values, gradients by the chain rule, and the number of evaluations, in training and after."""
    count = len(list(lists(m))) if tensors is None else tensors
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for step in range(2):
        twin = plain(m)
        touch(m)
        for module in (m, twin):
            module.zero_grad()
            for k in range(2):
                torch.manual_seed(k)
                out = run(module)
                if module is m:
                    first = out
                    assert evaluations(m) == count, (evaluations(m), count)
                out.pow(2).sum().backward()
        assert_close(first, out)
        gradients = {n: p.grad for n, p in twin.named_parameters()}
        for path, found in lists(m):
            originals = list(found.parameters())
            by_hand = torch.autograd.grad(found(), originals, gradients[path])
            for p, g in zip(originals, by_hand, strict=True):
                assert_close(p.grad, g, atol=1e-5, rtol=1e-4)
        for name, p in m.named_parameters():
            if "parametrizations" not in name:
                assert_close(p.grad, gradients[name], atol=1e-5, rtol=1e-4)
        if step == 0:
            optimizer.step()
    m.eval(), twin.eval()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1)
        twin = plain(m)
        touch(m)
        for _ in range(3):
            assert_close(run(m), run(twin), atol=1e-5, rtol=1e-4)
    assert evaluations(m) == count
    m.train()


@EACH
def test_e08_recurrent_values_gradients_evaluations(make, measured):
    m = constrained_all(make())
    x = torch.randn(5, 2, 3)
    check(m, lambda layer: layer(x)[0])
    measured("RNN, LSTM, GRU: 1 evaluation of a tensor in 2 forwards and backwards")


@EACH
def test_e08_recurrent_with_packed_sequences(make):
    m = constrained_all(make())
    x = pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 3]))
    check(m, lambda layer: pad_packed_sequence(layer(x)[0])[0])


@EACH
def test_e08_recurrent_final_state_only(make):
    m = constrained_all(make())
    x = torch.randn(5, 2, 3)

    def final(layer):
        state = layer(x)[1]
        return sum(s.sum() for s in state) if isinstance(state, tuple) else state

    check(m, final)


@EACH
def test_e08_recurrent_copies_after_a_training_forward(make):
    m = constrained_all(make())
    x = torch.randn(5, 2, 3)
    m(x)[0].sum().backward()
    torch.manual_seed(1)
    expected = m(x)[0]
    for copied in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        torch.manual_seed(1)
        assert_close(copied(x)[0], expected)
        state = {k: v.clone() for k, v in m.state_dict().items()}
        copied.zero_grad()
        copied(x)[0].pow(2).sum().backward()
        torch.optim.SGD(copied.parameters(), lr=0.5).step()
        assert_close(dict(m.state_dict()), state, rtol=0, atol=0)
        torch.manual_seed(1)
        assert not torch.equal(copied(x)[0], expected)
        check(copied, lambda layer: layer(x)[0])
    torch.manual_seed(1)
    assert_close(m(x)[0], expected)


@EACH
def test_e08_recurrent_flatten_parameters(make):
    m = constrained_all(make())
    x = torch.randn(5, 2, 3)
    torch.manual_seed(1)
    expected = m(x)[0]
    m.flatten_parameters()
    torch.manual_seed(1)
    assert_close(m(x)[0], expected)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        m(x)[0].pow(2).sum().backward()
        optimizer.step()
        m.flatten_parameters()
        torch.manual_seed(1)
        found = m(x)[0]
        torch.manual_seed(1)
        assert_close(found, plain(m)(x)[0])
        for name, value in zip(m._flat_weights_names, m._flat_weights, strict=True):
            assert_close(value, getattr(m, name))


@EACH
def test_e08_recurrent_conversions(make):
    m = constrained_all(make())
    x = torch.randn(5, 2, 3)
    m(x)[0].sum().backward()
    m.double()
    check(m, lambda layer: layer(x.double())[0])
    m.eval().to(torch.bfloat16)
    assert m(x.bfloat16())[0].dtype is torch.bfloat16


@pytest.mark.torch_today
def test_e08_recurrent_evaluations_in_torch_today(measured):
    counts = []
    for m in (nn.LSTM(3, 3), nn.LSTM(3, 3, 2, bidirectional=True)):
        names = [n for n, _ in m.named_parameters()]
        for name in names if m.num_layers == 2 else ["weight_hh_l0"]:
            torchs.register_parametrization(m, name, Averaging())
        reset(m)
        m(torch.randn(4, 3))
        counts.append(evaluations(m))
    assert counts[0] == 4 and counts[1] > 16
    measured(f"LSTM: {counts[0]} evaluations of 1 tensor a forward, {counts[1]} of 16 tensors")


@pytest.mark.torch_today
def test_e08_recurrent_copies_in_torch_today(measured):
    m = torchs.register_parametrization(nn.LSTM(3, 3), "weight_hh_l0", nn.Tanh())
    m(torch.randn(4, 3)).__getitem__(0).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(m)
    measured("deepcopy after a forward: RuntimeError")


def cells():
    return {
        "RNNCell": nn.RNNCell(3, 4),
        "LSTMCell": nn.LSTMCell(3, 4),
        "GRUCell": nn.GRUCell(3, 4),
    }


@pytest.mark.parametrize("kind", cells())
def test_e08_cells_over_five_hundred_steps(kind, measured):
    m = constrained_all(cells()[kind])
    x = torch.randn(500, 2, 3)

    def run(cell):
        state = None
        for row in x:
            state = cell(row, state)
        return state[0] if isinstance(state, tuple) else state

    check(m, run)
    measured("500 time steps: 1 evaluation")


# ---------------------------------------------------------------------------------------- attention


@pytest.fixture
def calls(monkeypatch):
    """How often torch's fused kernels have run."""
    found = {}
    for name in (
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_nested_tensor_from_mask",
    ):
        kernel = getattr(torch, name)

        def counted(*args, kernel=kernel, name=name, **kwargs):
            found[name] = found.get(name, 0) + 1
            return kernel(*args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    return found


ATTENTION = {
    "packed": {},
    "packed, batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "biases of keys and values": {"add_bias_kv": True},
    "separate projections": {"kdim": 3, "vdim": 2, "batch_first": True},
}


def attention(options):
    m = nn.MultiheadAttention(4, 2, **options)
    for name, p in m.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    return constrained_all(m)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
def test_e08_attention_values_gradients_evaluations(options, need_weights, measured):
    m = attention(options)
    q = torch.randn(2, 5, 4)
    k, v = torch.randn(2, 5, options.get("kdim", 4)), torch.randn(2, 5, options.get("vdim", 4))
    check(m, lambda layer: layer(q, k, v, need_weights=need_weights)[0])
    measured("attention: 1 evaluation of a tensor")


def test_e08_attention_in_its_fast_path(calls):
    m = attention({"batch_first": True}).eval()
    twin = plain(m)
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        for mode in (torch.no_grad, torch.inference_mode):
            touch(m)
            with mode():
                for _ in range(3):
                    for options in ({}, {"key_padding_mask": mask}, {"need_weights": False}):
                        assert_close(m(x, x, x, **options)[0], twin(x, x, x, **options)[0])
            assert evaluations(m) == len(list(lists(m)))
    assert calls["_native_multi_head_attention"] == 36


def test_e08_attention_copies_after_a_training_forward():
    m = attention({"batch_first": True})
    x = torch.randn(2, 5, 4)
    m(x, x, x)[0].sum().backward()
    twin = copy.deepcopy(m)
    check(twin, lambda layer: layer(x, x, x)[0])
    check(m, lambda layer: layer(x, x, x)[0])


def encoder(layers=2):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    m = nn.TransformerEncoder(layer, layers)
    for name, p in m.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    weights = {n: Sphere() for n, p in m.named_parameters() if "norm" not in n}
    constrain(m, weights)
    reset(m)
    return m


@pytest.mark.parametrize("masked", [False, True])
def test_e08_encoder_values_gradients_evaluations(masked, measured):
    m = encoder()
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None

    def run(module):
        out = module(x, src_key_padding_mask=mask)
        # At masked positions the encoder gives zeros in its fast path, and other numbers elsewhere.
        return out if mask is None else out.masked_fill(mask[..., None], 0)

    check(m, run)
    measured("attention: 1 evaluation of a tensor")


def test_e08_encoder_in_its_fast_path_with_nested_tensors(calls):
    m = encoder().eval()
    twin = plain(m)
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    slow = m(x, src_key_padding_mask=mask).masked_fill(mask[..., None], 0)
    assert not calls
    reset(m)
    with torch.no_grad():
        for _ in range(3):
            found = m(x, src_key_padding_mask=mask)
            assert_close(found, twin(x, src_key_padding_mask=mask), atol=1e-5, rtol=1e-4)
            assert_close(found, slow.detach(), atol=1e-5, rtol=1e-4)
    assert calls["_nested_tensor_from_mask"] == 6 and calls["_transformer_encoder_layer_fwd"] == 12
    assert evaluations(m) <= len(list(lists(m)))


def test_e08_encoder_trains_and_evaluates_by_turns(calls):
    m = encoder(1)
    x = torch.randn(2, 5, 4)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for step in range(1, 4):
        m.train()
        optimizer.zero_grad()
        m(x).pow(2).sum().backward()
        optimizer.step()
        m.eval()
        with torch.no_grad():
            fast = m(x)
        assert calls["_transformer_encoder_layer_fwd"] == step
        assert_close(fast, plain(m)(x).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.torch_today
def test_e08_attention_in_torch_today(measured):
    m = nn.MultiheadAttention(4, 2, batch_first=True)
    torchs.register_parametrization(m, "in_proj_weight", Averaging())
    reset(m)
    x = torch.randn(2, 5, 4)
    m(x, x, x)
    training = evaluations(m)
    m.eval()
    reset(m)
    with torch.no_grad():
        m(x, x, x)
    assert training >= 1 and evaluations(m) >= 3
    measured(f"attention: {training} evaluations in training, {evaluations(m)} in eval")
