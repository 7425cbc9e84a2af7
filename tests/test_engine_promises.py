"""The engine's promises: what stays as in torch (K), and what torch does not do today (E).

A test whose name ends in ``_in_torch_today`` runs the same check on torch's own engine, and pins
that, and how, it fails there.
"""

import copy
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, release
from tests.counting import Outer, Positive, Sphere, evaluations, layer, original, reset

ROOT = Path(__file__).parents[1]

torch_today = pytest.mark.torch_today


class Squash(nn.Module):
    """A foreign parametrization with a right inverse: nonlinear, and it saves its result."""

    def forward(self, x):
        return x.tanh()

    def right_inverse(self, y):
        return y.atanh()


class Split(nn.Module):
    """A foreign parametrization with two originals."""

    def forward(self, a, b):
        return a * b.exp()

    def right_inverse(self, y):
        return y / 2, torch.full_like(y, 2).log()


class Scaled(nn.Module):
    """A foreign parametrization with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x

    def right_inverse(self, y):
        return y / self.gain


def squashed(P=ours, n=3, **kwargs):
    return P.register_parametrization(nn.Linear(n, n, **kwargs), "weight", Squash())


# ============================================================================ K: as in torch


def test_k1_an_original_keeps_its_identity():
    m = nn.Linear(3, 3)
    weight = m.weight
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    ours.register_parametrization(m, "weight", Squash())
    assert original(m) is weight
    m.weight = torch.full((3, 3), 0.5)
    assert original(m) is weight
    m(torch.ones(1, 3)).sum().backward()
    before = m.weight.detach().clone()
    optimizer.step()
    assert (m.weight < before).all()
    ours.remove_parametrizations(m, "weight")
    assert m.weight is weight
    optimizer.zero_grad()
    m(torch.ones(1, 3)).sum().backward()
    before = m.weight.detach().clone()
    optimizer.step()
    assert (m.weight < before).all()


def test_k1_with_frozen_originals_the_trained_one_keeps_its_identity():
    from tests.counting import Anchored

    m = nn.Linear(3, 3)
    weight = m.weight
    ours.register_parametrization(m, "weight", Anchored())
    lists = m.parametrizations.weight
    assert lists.original0 is weight and "original1" in lists._buffers
    ours.remove_parametrizations(m, "weight")
    assert m.weight is weight


def test_k2_state_dict_keys():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    ours.register_parametrization(m, "weight", Scaled())
    ours.register_parametrization(m, "bias", Scaled())
    assert set(m.state_dict()) == {
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.weight.1.gain",
        "parametrizations.bias.original",
        "parametrizations.bias.0.gain",
    }
    ours.remove_parametrizations(m, "weight")
    ours.remove_parametrizations(m, "bias")
    assert list(m.state_dict()) == ["weight", "bias"]


def test_k2_states_pass_between_the_engines():
    a, b = squashed(ours), squashed(torchs)
    b.load_state_dict(a.state_dict())
    assert_close(a.weight, b.weight)
    with torch.no_grad():
        original(b).mul_(0.5)
    a.load_state_dict(b.state_dict())
    assert_close(a.weight, b.weight)


def test_k3_the_training_flag_is_copied_and_put_back_after_an_error():
    m = nn.Linear(3, 3).eval()
    good, bad = Squash(), nn.Sequential(nn.Flatten(0))
    ours.register_parametrization(m, "weight", good)
    assert not good.training
    with pytest.raises(ValueError, match="may not change the shape"):
        ours.register_parametrization(m, "bias", nn.Unflatten(0, (3, 1)))
    with pytest.raises(ValueError, match="may not change the shape"):
        ours.register_parametrization(m, "weight", bad)
    assert bad.training and bad[0].training


def test_k4_chains_read_forwards_and_are_assigned_backwards():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Scaled())
    ours.register_parametrization(m, "weight", Squash())
    assert_close(m.weight.detach(), (2 * original(m)).tanh().detach())
    new = torch.full((3, 3), 0.3)
    m.weight = new
    assert_close(original(m).detach(), new.atanh() / 2)


def test_k4_an_original_can_be_parametrized():
    m = layer(Sphere())
    ours.register_parametrization(m.parametrizations.weight, "original", Squash())
    inner = m.parametrizations.weight.parametrizations.original.original
    assert_close(m.weight, nn.functional.normalize(inner.tanh(), dim=1))
    m.weight.sum().backward()
    assert inner.grad is not None
    with torch.no_grad():
        inner.copy_(torch.eye(3) + 0.1)
    assert_close(m.weight, nn.functional.normalize(inner.tanh(), dim=1))
    m.weight = nn.functional.normalize(torch.full((3, 3), 0.5), dim=1)
    assert_close(inner.tanh().detach(), m.weight.detach())
    ours.remove_parametrizations(m.parametrizations.weight, "original")
    assert type(m.parametrizations.weight) is ours.ParametrizationList
    assert_close(m.weight.detach(), torch.full((3, 3), 3**-0.5))


def test_k4_buffers():
    m = nn.BatchNorm1d(3)
    constrain(m, "running_var", Positive())
    assert not isinstance(original(m, "running_var"), nn.Parameter)
    assert not m.running_var.requires_grad
    m.eval()(torch.randn(2, 3)).sum().backward()
    release(m)
    assert list(dict(m.named_buffers())) == ["running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize("names", [["weight"], ["bias"], ["weight", "bias"], ["bias", "weight"]])
def test_k5_the_class_comes_back(names):
    m = nn.Linear(3, 3)
    for name in names:
        ours.register_parametrization(m, name, Scaled())
    for name in names:
        assert type(m) is not nn.Linear
        ours.remove_parametrizations(m, name)
    assert type(m) is nn.Linear and not hasattr(m, "parametrizations")
    assert "parametrizations" not in m._modules


# K6: function transforms, compilers, wrappers


def three_reads(m, x):
    return (m.weight @ x + m.weight.sum() * m.weight.diagonal()).pow(2).sum()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("constraint", [Positive, Sphere, Outer, Squash, Split])
def test_k6_functional_call_and_transforms(constraint):
    m = layer(constraint()).double()
    params = {k: p.detach().clone() for k, p in m.named_parameters()}
    x = torch.randn(3, dtype=torch.double)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = m

        def forward(self, x):
            return three_reads(self.inner, x)

    reader = Reader()

    def f(p):
        return functional_call(reader, {f"inner.{k}": v for k, v in p.items()}, (x,))

    three_reads(m, x).backward()
    expected = {k: p.grad for k, p in m.named_parameters() if k != "bias"}
    for _ in range(2):
        found = grad(f)(params)
        for k in expected:
            assert_close(found[k], expected[k])
        tangents = {k: torch.ones_like(v) for k, v in params.items()}
        _, out = jvp(f, (params,), (tangents,))
        assert_close(out, sum(g.sum() for g in expected.values()))
        for rows in hessian(f)(params).values():
            assert all(torch.isfinite(h).all() for h in rows.values())
        _ = m.weight, three_reads(m, x)


def test_k6_per_sample_gradients():
    m = layer()
    params = {k: p.detach() for k, p in m.named_parameters()}
    x = torch.randn(5, 3)

    def loss(p, row):
        return functional_call(m, p, (row,)).pow(2).sum()

    found = vmap(grad(loss), (None, 0))(params, x)
    for i in range(5):
        m.zero_grad()
        m(x[i]).pow(2).sum().backward()
        for k, p in m.named_parameters():
            assert_close(found[k][i], p.grad)


def test_k6_compiles_without_a_break_and_trains():
    torch._dynamo.reset()
    m, twin = layer(Sphere()), layer(Sphere())
    twin.load_state_dict(m.state_dict())
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(x.parameters(), lr=0.1) for x in (m, twin)]
    x = torch.randn(4, 3)
    for _ in range(3):
        for run, optimizer in zip((compiled, twin), optimizers, strict=True):
            optimizer.zero_grad()
            run(x).pow(2).sum().backward()
            optimizer.step()
        assert_close(m.weight, twin.weight)
        assert_close(compiled(x), twin(x))


@pytest.mark.parametrize("strict", [True, False])
def test_k6_export(strict):
    m = layer(Sphere()).eval()
    x = torch.randn(2, 3)
    expected = m(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(m, (x,), strict=strict)
    assert "parametrizations.weight.original" in program.state_dict
    assert_close(program.module()(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_k6_jit_trace():
    m = layer(Sphere())
    x = torch.randn(2, 3)
    _ = m.weight
    traced = torch.jit.trace(m, (x,))
    with ours.cached():
        torch.jit.trace(m, (x,))
    with torch.no_grad():
        original(m).copy_(torch.eye(3) + 0.1)
    assert_close(traced(x), m(x))


def test_k6_hooks_on_a_parameter_survive():
    m = nn.Linear(3, 3)
    calls = []
    m.weight.register_hook(lambda g: calls.append("gradient"))
    m.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    ours.register_parametrization(m, "weight", Squash())
    m(torch.ones(1, 3)).sum().backward()
    assert calls == ["gradient", "accumulated"]
    ours.remove_parametrizations(m, "weight")
    m(torch.ones(1, 3)).sum().backward()
    assert calls == ["gradient", "accumulated"] * 2


def test_k6_modules_are_those_that_there_are():
    """Whoever walks over the modules meets each parameter once, under its own name."""
    m = nn.Sequential(nn.LSTM(3, 3), nn.MultiheadAttention(4, 2), nn.Linear(2, 2))
    ours.register_parametrization(m, "0.weight_hh_l0", Squash())
    ours.register_parametrization(m, "1.in_proj_bias", Scaled())
    ours.register_parametrization(m, "2.bias", Scaled())
    for name, module in m.named_modules():
        assert m.get_submodule(name) is module
    met = [p for module in m.modules() for p in module.parameters(recurse=False)]
    assert len(met) == len({id(p) for p in met}) == len(list(m.parameters()))
    names = [name for name, _ in m.named_modules()]
    assert len(names) == len(set(names)) and names[0] == ""
    assert names.index("0") < names.index("0.parametrizations.weight_hh_l0")
    for name, p in m.named_parameters():
        assert m.get_parameter(name) is p


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp1", "fsdp2"])
def test_k6_distributed(wrapper, tmp_path):
    """Two processes on half of a batch each take the same steps as one process on all of it."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.distributed", wrapper, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found, expected = (torch.load(tmp_path / f"{which}.pt") for which in ("many", "one"))
    assert found.keys() == expected.keys()
    for key in expected:
        assert_close(found[key], expected[key], atol=1e-5, rtol=1e-4)


# K7, K8


@pytest.mark.parametrize("change", ["step", "assign", "load_state_dict"])
def test_k7_a_change_between_forward_and_backward_raises(change):
    m = layer(Sphere())
    state = copy.deepcopy(m.state_dict())
    loss = m(torch.ones(1, 3)).pow(2).sum()
    if change == "step":
        with torch.no_grad():
            original(m).add_(1.0)
    elif change == "assign":
        m.weight = nn.functional.normalize(torch.ones(3, 3), dim=1)
    else:
        m.load_state_dict(state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    m(torch.ones(1, 3)).pow(2).sum().backward()
    assert torch.isfinite(original(m).grad).all()


def test_k8_cached():
    m = squashed()
    with ours.cached():
        assert id(m.weight) == id(m.weight)
    assert id(m.weight) != id(x := m.weight) and x is not None


# =============================================================== E01: serialization and copies


class Net(nn.Module):
    """A model as people write them, with constrained and other layers."""

    def __init__(self, P=ours):
        super().__init__()
        self.rnn = nn.LSTM(3, 3)
        self.head = nn.Linear(3, 3)
        self.plain = nn.Linear(3, 3)
        if P is ours:
            constrain(self, "head.weight", Positive(), init="keep")
        else:
            P.register_parametrization(self.head, "weight", Scaled())
        P.register_parametrization(self.rnn, "weight_hh_l0", nn.Tanh())
        P.register_parametrization(self.rnn, "bias_hh_l0", nn.Tanh())

    def forward(self, x):
        return self.plain(self.head(self.rnn(x)[0]))


def check_loaded(model, loaded):
    x = torch.randn(4, 2, 3)
    assert_close(loaded(x), model(x))
    assert ours.is_parametrized(loaded.head, "weight")
    assert ours.is_parametrized(loaded.rnn, "weight_hh_l0")
    assert type(loaded.head) is type(model.head)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    loaded(x).sum().backward()
    with torch.no_grad():
        for p in loaded.parameters():
            p.zero_()
    assert not torch.equal(loaded.head.weight, model.head.weight)
    ours.remove_parametrizations(loaded.head, "weight")
    assert type(loaded.head) is nn.Linear and ours.is_parametrized(model.head)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save({"model": model, "epoch": 3}, file)
    file.seek(0)
    return torch.load(file, weights_only=False)["model"]


def cloudpickled(model):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(model))


COPIES = [pickled, saved, cloudpickled, copy.deepcopy]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("after", ["nothing", "reads", "training"])
def test_e01_a_model_can_be_saved(how, after):
    model = Net()
    if after == "reads":
        _ = model.head.weight, model.rnn.weight_hh_l0
    if after == "training":
        model(torch.randn(4, 2, 3)).sum().backward()
    check_loaded(model, how(model))


@torch_today
@pytest.mark.parametrize("how", [pickled, saved, cloudpickled, copy.copy])
def test_e01_in_torch_today(how):
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        how(squashed(torchs))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_e01_every_protocol_of_pickle(protocol):
    model = Net()
    check_loaded(model, pickle.loads(pickle.dumps(model, protocol)))


def test_e01_copy_copy_shares_as_for_a_plain_module():
    m = squashed()
    twin = copy.copy(m)
    assert twin is not m and type(twin) is type(m)
    assert original(twin) is original(m)
    assert_close(twin.weight, m.weight)
    twin.note = 1
    assert not hasattr(m, "note")


def test_e01_a_whole_optimizer_or_list_of_models_can_be_saved():
    models = [squashed() for _ in range(2)]
    loaded = pickled({"models": nn.ModuleList(models), "same": models[0]})
    assert loaded["models"][0] is loaded["same"]
    assert_close(loaded["same"].weight, models[0].weight)


LOAD = """
import pickle, sys, torch
from torch.testing import assert_close
folder = sys.argv[1]
x, expected = torch.load(f"{folder}/data.pt")
names = ["torch.pt", "pickle.pkl", "cloud.pkl"]
for name in names:
    with open(f"{folder}/{name}", "rb") as file:
        model = torch.load(file, weights_only=False) if name == "torch.pt" else pickle.load(file)
    assert_close(model(x), expected)
    model(x).sum().backward()
    assert model.head.parametrizations.weight.original.grad is not None
    assert "original" in str(list(model.state_dict()))
    pickle.dumps(model)
assert "constraints" not in sys.modules
"""


def test_e01_loading_in_a_new_process(tmp_path):
    import cloudpickle

    model, x = Net(), torch.randn(4, 2, 3)
    torch.save((x, model(x).detach()), tmp_path / "data.pt")
    torch.save(model, tmp_path / "torch.pt")
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps(model))
    (tmp_path / "cloud.pkl").write_bytes(cloudpickle.dumps(model))
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def _train_elsewhere(model, x, queue):
    model(x).sum().backward()
    queue.put((model(x).detach().numpy(), original(model.head).grad.numpy()))


def test_e01_multiprocessing_by_spawn():
    model, x = Net(), torch.randn(4, 2, 3)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_train_elsewhere, args=(model, x, queue))
    process.start()
    out, gradient = queue.get(timeout=60)
    process.join()
    assert process.exitcode == 0
    expected = model(x)
    expected.sum().backward()
    assert_close(torch.from_numpy(out), expected.detach())
    assert_close(torch.from_numpy(gradient), original(model.head).grad)


class Locked(nn.Linear):
    """A module that leaves something out of its state, and counts how often it was loaded."""

    def __init__(self):
        super().__init__(3, 3)
        self.lock = __import__("threading").Lock()

    def __getstate__(self):
        state = dict(self.__dict__)
        del state["lock"]
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self.lock = "new"


class Tupled(nn.Linear):
    """A module whose state is no dictionary."""

    def __init__(self):
        super().__init__(3, 3)

    def __getstate__(self):
        return dict(self.__dict__), "more"

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.__dict__["more"] = state[1]


@pytest.mark.parametrize("how", COPIES)
def test_e01_the_modules_own_state_methods_are_used(how):
    for cls, attribute, value in [(Locked, "lock", "new"), (Tupled, "more", "more")]:
        m = ours.register_parametrization(cls(), "weight", Squash())
        loaded = how(m)
        assert getattr(loaded, attribute) == value
        assert_close(loaded.weight, m.weight)


def test_e01_deepcopy_of_a_recurrent_layer_after_training():
    m = ours.register_parametrization(nn.LSTM(3, 3, 2), "weight_hh_l1", Squash())
    x = torch.randn(4, 3)
    m(x)[0].sum().backward()
    twin = copy.deepcopy(m)
    assert_close(twin(x)[0], m(x)[0])
    with torch.no_grad():
        original(twin, "weight_hh_l1").zero_()
    assert not torch.allclose(twin(x)[0], m(x)[0])


# ============================================================================== E02: one class


def check_one_compilation(P):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layers = [squashed(P) for _ in range(12)]
    run = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    x = torch.randn(2, 3)
    for m in layers:
        assert_close(run(m, x), m(x))
    assert counter.frame_count == 1


def test_e02_equal_layers_share_a_compiled_graph():
    check_one_compilation(ours)


@torch_today
def test_e02_in_torch_today():
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        check_one_compilation(torchs)


def test_e02_equal_constrained_layers_inside_a_model_compile_once():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layers = [layer(Sphere()) for _ in range(12)]
    run = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    x = torch.randn(2, 3)
    for i, m in enumerate(layers):
        if i % 2:
            _ = m.weight
            m(x).sum().backward()
        assert_close(run(m, x), m(x))
    assert counter.frame_count == 1


def test_e02_one_class_for_each_base_and_names():
    a, b = squashed(), squashed()
    assert type(a) is type(b)
    ours.register_parametrization(a, "bias", Squash())
    assert type(a) is not type(b) and type(b).__name__ == "ParametrizedLinear"
    ours.register_parametrization(b, "bias", Scaled())
    assert type(a) is type(b)
    c = nn.Linear(3, 3)
    ours.register_parametrization(c, "bias", Scaled())
    ours.register_parametrization(c, "weight", Scaled())
    assert type(c) is type(a)


def check_stack(P):
    models = [squashed(P) for _ in range(3)]
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(2, 3)
    out = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(params, buffers)
    for i, m in enumerate(models):
        assert_close(out[i], m(x))


def test_e02_an_ensemble_can_be_stacked():
    check_stack(ours)


@torch_today
def test_e02_stack_in_torch_today():
    with pytest.raises(RuntimeError, match="same class"):
        check_stack(torchs)


# ======================================================================= E03: copies are apart


def check_copies_in_cached(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    with torch.no_grad():
        original(twin).zero_()
    with P.cached():
        assert m.weight is not twin.weight
        assert torch.count_nonzero(twin.weight) == 0
        assert torch.count_nonzero(m.weight) == 9


def check_removal_on_a_copy(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    P.remove_parametrizations(twin, "weight")
    assert m.weight.shape == (3, 3) and P.is_parametrized(m)
    m(torch.ones(1, 3)).sum().backward()


def check_registration_on_a_copy(P):
    m = squashed(P)
    twin = copy.deepcopy(m)
    P.register_parametrization(twin, "bias", Squash())
    assert m.bias.shape == (3,) and isinstance(m.bias, nn.Parameter)


def check_transformer_encoder(P):
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    P.register_parametrization(block.linear1, "weight", Squash())
    encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
    with torch.no_grad():
        for i, b in enumerate(encoder.layers):
            original(b.linear1).mul_(i + 1)
    x = torch.randn(2, 3, 4)
    expected = encoder(x)
    with P.cached():
        assert_close(encoder(x), expected)


CHECKS_OF_COPIES = [
    (check_copies_in_cached, AssertionError),
    (check_removal_on_a_copy, AttributeError),
    (check_registration_on_a_copy, KeyError),
    (check_transformer_encoder, AssertionError),
]


@pytest.mark.parametrize("check", [c for c, _ in CHECKS_OF_COPIES])
def test_e03_copies_are_independent(check):
    check(ours)


@torch_today
@pytest.mark.parametrize(("check", "error"), CHECKS_OF_COPIES)
def test_e03_in_torch_today(check, error):
    with pytest.raises(error):
        check(torchs)


def test_e03_an_averaged_model():
    m = layer()
    average = torch.optim.swa_utils.AveragedModel(m)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    x = torch.randn(2, 3)
    for _ in range(3):
        m(x).pow(2).sum().backward()
        optimizer.step()
        average(x), m(x)
        average.update_parameters(m)
    expected = layer()
    expected.load_state_dict(average.module.state_dict())
    with ours.cached():
        m(x)
        assert_close(average(x), expected(x))


# ====================================================================== E05: order of parameters


def lstm():
    return nn.LSTM(3, 3, 2)


def model_of_models():
    return nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3), nn.Sequential(nn.Linear(3, 3)))


class Mixed(nn.Module):
    """Own parameters, children before and between them, a shared one, a None."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.rand(3, 3) / 2)
        self.child = nn.Linear(3, 3)
        self.b = nn.Parameter(torch.rand(3, 3) / 2)
        self.register_parameter("none", None)
        self.shared = self.child.weight
        self.attention = nn.MultiheadAttention(4, 2, bias=False)
        self.c = nn.Parameter(torch.rand(3) / 2)


ORDERS = [
    (lambda: nn.Linear(3, 3), ["weight"]),
    (lambda: nn.Linear(3, 3), ["bias"]),
    (lambda: nn.Linear(3, 3), ["weight", "bias"]),
    (lambda: nn.Linear(3, 3), ["bias", "weight"]),
    (lambda: nn.Linear(3, 3, bias=False), ["weight"]),
    (lstm, ["weight_hh_l0"]),
    (lstm, ["bias_ih_l1", "weight_ih_l0", "weight_hh_l1"]),
    (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    (lambda: nn.MultiheadAttention(4, 2, bias=False), ["in_proj_weight"]),
    (lambda: nn.MultiheadAttention(4, 2), ["in_proj_bias", "in_proj_weight"]),
    (model_of_models, ["1.weight_hh_l0"]),
    (model_of_models, ["0.weight", "1.bias_hh_l0", "2.0.weight", "2.0.bias"]),
    (Mixed, ["a"]),
    (Mixed, ["b"]),
    (Mixed, ["c", "a", "b"]),
    (Mixed, ["child.weight", "b"]),
    (Mixed, ["attention.in_proj_weight", "a"]),
]


def ids(model):
    return [id(p) for p in model.parameters()]


@pytest.mark.parametrize(("make", "names"), ORDERS)
def test_e05_the_order_of_parameters_is_kept(make, names):
    m = make()
    before, named = ids(m), [n for n, _ in m.named_parameters()]
    for name in names:
        ours.register_parametrization(m, name, nn.Tanh())
        assert ids(m) == before
    outer = nn.Sequential(nn.Linear(2, 2), m, nn.Linear(2, 2))
    assert ids(outer)[2:-2] == before
    assert [n for n, _ in pickled(m).named_parameters()] == [n for n, _ in m.named_parameters()]
    state = list(m.state_dict())
    assert len(state) == len(set(state))
    for name in names:
        ours.remove_parametrizations(m, name, leave_parametrized=False)
        assert ids(m) == before
    assert [n for n, _ in m.named_parameters()] == named


@torch_today
@pytest.mark.parametrize(("make", "names"), [ORDERS[0], ORDERS[5]])
def test_e05_in_torch_today(make, names):
    m = make()
    before = ids(m)
    torchs.register_parametrization(m, names[0], nn.Tanh())
    assert ids(m) != before
    torchs.remove_parametrizations(m, names[0], leave_parametrized=False)
    assert ids(m) != before


def test_e05_several_originals_stand_where_their_tensor_stood():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    names = [n for n, _ in m.named_parameters()]
    assert names == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "bias",
    ]
    ours.remove_parametrizations(m, "weight")
    assert [n for n, _ in m.named_parameters()] == ["weight", "bias"]


def test_e05_buffers_keep_their_order():
    m = nn.BatchNorm1d(3)
    before = [id(b) for b in m.buffers()]
    ours.register_parametrization(m, "running_mean", Scaled())
    ours.remove_parametrizations(m, "running_mean", leave_parametrized=False)
    assert [id(b) for b in m.buffers()] == before
    assert list(m.state_dict()) == list(nn.BatchNorm1d(3).state_dict())


def test_e05_a_parameter_added_later_comes_last():
    m = squashed()
    m.gain = nn.Parameter(torch.ones(()))
    names = ["parametrizations.weight.original", "bias", "gain"]
    assert [n for n, _ in m.named_parameters()] == names
    ours.remove_parametrizations(m, "weight")
    assert [n for n, _ in m.named_parameters()] == ["weight", "bias", "gain"]


def check_optimizer_state(P, make, name):
    """Adam's moments, saved from a plain model, go to the right parameters of another."""
    plain, constrained = make(), make()
    owner, _, tensor = name.rpartition(".")
    P.register_parametrization(constrained.get_submodule(owner), tensor, nn.Tanh())
    for p in plain.parameters():
        p.grad = torch.full_like(p, p.numel())
    first = torch.optim.Adam(plain.parameters())
    first.step()
    second = torch.optim.Adam(constrained.parameters())
    second.load_state_dict(first.state_dict())
    for p, q in zip(plain.parameters(), constrained.parameters(), strict=True):
        assert second.state[q]["exp_avg"].shape == q.shape == p.shape
        assert torch.equal(second.state[q]["exp_avg"], first.state[p]["exp_avg"])
        q.grad = torch.ones_like(q)
    second.step()


OPTIMIZERS = [
    (lambda: nn.Linear(3, 3), "weight"),
    (lstm, "weight_hh_l0"),
    (model_of_models, "1.weight_hh_l0"),
]


@pytest.mark.parametrize(("make", "name"), OPTIMIZERS)
def test_e05_optimizer_states_load(make, name):
    check_optimizer_state(ours, make, name)


@torch_today
@pytest.mark.parametrize(("make", "name"), OPTIMIZERS)
def test_e05_optimizer_states_in_torch_today(make, name):
    with pytest.raises((AssertionError, RuntimeError)):
        check_optimizer_state(torchs, make, name)


def test_e05_adam_goes_on_in_a_fresh_model():
    def start():
        torch.manual_seed(3)
        m = constrain(nn.Sequential(lstm()), "0.weight_hh_l*", Sphere())
        return m, torch.optim.Adam(m.parameters(), lr=0.05)

    def step(m, optimizer):
        optimizer.zero_grad()
        m(torch.ones(4, 3))[0].pow(2).sum().backward()
        optimizer.step()

    a, optimizer_a = start()
    for _ in range(3):
        step(a, optimizer_a)
    b, optimizer_b = start()
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    optimizer_b.load_state_dict(copy.deepcopy(optimizer_a.state_dict()))
    for _ in range(3):
        step(a, optimizer_a)
        step(b, optimizer_b)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert_close(p, q)


def test_e05_random_models():
    """Any tree of modules, any names in any order: the parameters stay in order."""
    generator = torch.Generator().manual_seed(0)

    def pick(n):
        return int(torch.randint(n, (), generator=generator))

    def tree(depth):
        m = nn.Module()
        for i in range(1 + pick(4)):
            if pick(2) and depth:
                m.add_module(f"m{i}", tree(depth - 1))
            else:
                m.register_parameter(f"p{i}", nn.Parameter(torch.rand(2)))
        return m

    for _ in range(60):
        m = tree(3)
        names, before = [n for n, _ in m.named_parameters()], ids(m)
        chosen = [n for n in names if pick(2)]
        chosen = [chosen[i] for i in torch.randperm(len(chosen), generator=generator)]
        for name in chosen:
            ours.register_parametrization(m, name, nn.Tanh())
            assert ids(m) == before
        for name in reversed(chosen):
            ours.remove_parametrizations(m, name, leave_parametrized=False)
            assert ids(m) == before
        assert [n for n, _ in m.named_parameters()] == names


# ============================================================================ E14: tied weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def tied_by_path():
    m = Tied()
    with torch.no_grad():
        m.a.weight.abs_().add_(0.1)
    return ours.register_parametrization(m, "a.weight", Positive())


def tied_by_constrain():
    return constrain(Tied(), "b.weight", Positive())


def tied_by_glob():
    return constrain(Tied(), "*.weight", Positive())


TIES = pytest.mark.parametrize("make", [tied_by_path, tied_by_constrain, tied_by_glob])


@TIES
def test_e14_one_constraint_serves_all_owners(make):
    m = make()
    a, b = m.a.parametrizations.weight, m.b.parametrizations.weight
    assert a is b
    assert [n for n, _ in m.named_parameters()] == ["a.parametrizations.weight.original", "a.bias"]
    assert set(m.state_dict()) == {
        "a.parametrizations.weight.original",
        "b.parametrizations.weight.original",
        "a.bias",
    }
    reset(m)
    assert m.a.weight is m.b.weight
    m(torch.ones(1, 3)).sum().backward()
    assert evaluations(m) == 1
    expected = torch.autograd.grad(
        (m.b.weight @ (m.a.weight @ torch.ones(3) + m.a.bias)).sum(), a.original
    )
    assert_close(a.original.grad, expected[0])
    m.b.weight = torch.full((3, 3), 2.0)
    assert_close(m.a.weight.detach(), torch.full((3, 3), 2.0))


@TIES
def test_e14_both_are_released_together(make):
    m = make()
    kept, value = original(m.a), m.a.weight.detach().clone()
    ours.remove_parametrizations(m, "b.weight")
    assert type(m.a) is type(m.b) is nn.Linear
    assert m.a.weight is m.b.weight is kept
    assert_close(m.a.weight.detach(), value)
    assert [n for n, _ in m.named_parameters()] == ["a.weight", "a.bias"]


def test_e14_released_by_release():
    m = release(tied_by_constrain())
    assert type(m.a) is type(m.b) is nn.Linear and m.a.weight is m.b.weight


@TIES
@pytest.mark.parametrize("how", COPIES)
def test_e14_copies_keep_the_tie(make, how):
    m = make()
    twin = how(m)
    assert twin.a.parametrizations.weight is twin.b.parametrizations.weight
    assert twin.a.parametrizations.weight is not m.a.parametrizations.weight
    ours.remove_parametrizations(twin, "a.weight")
    assert twin.a.weight is twin.b.weight and isinstance(twin.a.weight, nn.Parameter)
    assert ours.is_parametrized(m.a) and ours.is_parametrized(m.b)


def test_e14_removal_on_one_owner_leaves_the_other():
    m = tied_by_path()
    value = m.a.weight.detach().clone()
    ours.remove_parametrizations(m.a, "weight")
    assert isinstance(m.a.weight, nn.Parameter) and ours.is_parametrized(m.b)
    assert m.a.weight is not original(m.b)
    assert_close(m.a.weight.detach(), value)
    assert_close(m.b.weight.detach(), value)
    with torch.no_grad():
        m.a.weight.zero_()
    assert_close(m.b.weight.detach(), value)
    ours.remove_parametrizations(m.b, "weight")
    assert_close(m.b.weight.detach(), value)


def test_e14_a_chain_on_tied_weights():
    m = tied_by_path()
    ours.register_parametrization(m, "b.weight", Positive())
    assert m.a.weight is m.b.weight and len(m.a.parametrizations.weight) == 2
    assert_close(m.a.weight, original(m.b).exp().exp())


def test_e14_training_keeps_the_tie():
    m = tied_by_constrain()
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        m(torch.randn(4, 3)).pow(2).sum().backward()
        optimizer.step()
        assert m.a.weight is m.b.weight
    m.load_state_dict(copy.deepcopy(m.state_dict()))
    assert m.a.weight is m.b.weight
    m.double()
    assert m.a.weight is m.b.weight and m.a.weight.dtype is torch.float64
    out = functional_call(
        m,
        {"a.parametrizations.weight.original": torch.zeros(3, 3).double()},
        (torch.ones(1, 3).double(),),
    )
    assert_close(out.detach(), (torch.ones(3, 3).double() @ (3 + m.a.bias)).detach()[None])


def test_e14_within_one_module():
    m = nn.Module()
    m.left = nn.Parameter(torch.rand(3) + 0.5)
    m.right = m.left
    root = nn.Sequential(m)
    ours.register_parametrization(root, "0.left", Positive())
    assert m.left is m.right
    ours.remove_parametrizations(root, "0.right")
    assert m.left is m.right and isinstance(m.left, nn.Parameter)


@torch_today
def test_e14_in_torch_today():
    m = Tied()
    torchs.register_parametrization(m.a, "weight", Split())
    with torch.no_grad():
        for p in m.a.parametrizations.weight.parameters():
            p.add_(1)
    assert not torch.allclose(m.a.weight, m.b.weight)
    m = Tied()
    before = m.a.weight.detach().clone()
    for owner in (m.a, m.b):
        torchs.register_parametrization(owner, "weight", Scaled())
    assert_close(m.a.weight.detach(), before / 2)


# ============================================================================== E15: assignment


def check_assignment_copies(P):
    m = nn.Linear(3, 3)
    P.register_parametrization(m, "weight", ReturnsItsInput())
    mine = torch.full((3, 3), 0.5)
    m.weight = mine
    with torch.no_grad():
        original(m).add_(1)
    assert torch.equal(mine, torch.full((3, 3), 0.5))
    mine.zero_()
    assert_close(m.weight.detach(), torch.full((3, 3), 1.5))


class ReturnsItsInput(nn.Module):
    def forward(self, x):
        return x * 1

    def right_inverse(self, y):
        return y


class SplitsViews(nn.Module):
    def forward(self, a, b):
        return torch.stack((a, b))

    def right_inverse(self, y):
        return y[0], y[1]


def check_assignment_ties_nothing(P):
    new = torch.full((3, 3), 0.5)
    layers = [
        P.register_parametrization(nn.Linear(3, 3), "weight", ReturnsItsInput()) for _ in "ab"
    ]
    for m in layers:
        m.weight = new
    with torch.no_grad():
        original(layers[0]).zero_()
    assert_close(layers[1].weight.detach(), torch.full((3, 3), 0.5))


def check_assignment_of_an_expanded_tensor(P):
    m = P.register_parametrization(nn.Linear(3, 3), "weight", ReturnsItsInput())
    m.weight = torch.zeros(()).expand(3, 3)
    m(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(m.parameters(), lr=1.0).step()
    assert_close(m.weight.detach(), torch.full((3, 3), -1.0))


def check_assignment_of_another_shape(P):
    m = P.register_parametrization(nn.Linear(4, 4), "weight", ReturnsItsInput())
    with pytest.raises(ValueError, match=r"\(7, 9\).*\(4, 4\)"):
        m.weight = torch.zeros(7, 9)
    assert m.weight.shape == (4, 4)


CHECKS_OF_ASSIGNMENT = [
    (check_assignment_copies, AssertionError),
    (check_assignment_ties_nothing, AssertionError),
    (check_assignment_of_an_expanded_tensor, RuntimeError),
    (check_assignment_of_another_shape, pytest.fail.Exception),
]


@pytest.mark.parametrize("check", [c for c, _ in CHECKS_OF_ASSIGNMENT])
def test_e15_assignment(check):
    check(ours)


@torch_today
@pytest.mark.parametrize(("check", "error"), CHECKS_OF_ASSIGNMENT)
def test_e15_in_torch_today(check, error):
    with pytest.raises(error):
        check(torchs)


def test_e15_several_originals_share_no_memory_with_the_value():
    m = nn.Module()
    m.w = nn.Parameter(torch.rand(2, 3))
    value = m.w.detach()
    ours.register_parametrization(m, "w", SplitsViews())
    lists = m.parametrizations.w
    places = {t.untyped_storage().data_ptr() for t in (value, lists.original0, lists.original1)}
    assert len(places) == 3
    m.w = new = torch.ones(2, 3)
    places = {t.untyped_storage().data_ptr() for t in (new, lists.original0, lists.original1)}
    assert len(places) == 3


def test_e15_dtype_and_device_are_checked():
    m = squashed()
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match=r"float64.*float32"):
        m.weight = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="meta"):
        m.weight = torch.zeros(3, 3, device="meta")
    with pytest.raises(TypeError, match="list"):
        m.weight = [[0.0]]
    assert_close(m.weight.detach(), before)


@pytest.mark.parametrize("bad", ["shape", "dtype", "outside", "nan"])
def test_e15_a_failed_assignment_changes_nothing(bad):
    m = layer(Sphere())
    before, kept = copy.deepcopy(m.state_dict()), original(m)
    value = {
        "shape": torch.ones(2, 3),
        "dtype": nn.functional.normalize(torch.ones(3, 3)).double(),
        "outside": torch.full((3, 3), 5.0),
        "nan": torch.full((3, 3), torch.nan),
    }[bad]
    with pytest.raises(ValueError):
        m.weight = value
    assert original(m) is kept
    for k, v in m.state_dict().items():
        assert torch.equal(v, before[k])


def test_e15_a_failed_assignment_to_several_originals_changes_nothing():
    class Sometimes(Split):
        def right_inverse(self, y):
            a, b = super().right_inverse(y)
            return a, (b.double() if y.sum() > 100 else b)

    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Sometimes())
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match="Tensor 1 returned by"):
        m.weight = torch.full((3, 3), 100.0)
    assert_close(m.weight.detach(), before)


def test_e15_a_parameter_can_be_assigned():
    m = squashed()
    new = nn.Parameter(torch.full((3, 3), 0.5))
    m.weight = new
    assert_close(m.weight.detach(), new.detach())
    assert original(m) is not new and "weight" not in m._parameters


def test_e15_a_tensor_with_a_graph_can_be_assigned():
    m, source = squashed(), torch.full((3, 3), 0.5, requires_grad=True)
    m.weight = source * 1
    assert original(m).is_leaf
    m.weight.sum().backward()
    assert source.grad is None


# ======================================================================= E19: the error it was


class Misspelt(nn.Module):
    def forward(self, x):
        return x.no_such_method()


class FailsLater(nn.Module):
    broken = False

    def forward(self, x):
        return self.does_not_exist if self.broken else x


def test_e19_an_attribute_error_inside_a_parametrization_is_shown():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    with pytest.raises(RuntimeError, match="does_not_exist") as caught:
        _ = m.weight
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "weight" in str(caught.value) and "FailsLater" in str(caught.value)
    with pytest.raises(RuntimeError, match="does_not_exist"):
        m(torch.ones(1, 3))
    m.parametrizations.weight[0].broken = False
    assert m.weight.shape == (3, 3)


@torch_today
def test_e19_in_torch_today():
    m = nn.Linear(3, 3)
    torchs.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = m.weight


def test_e19_other_errors_pass_unchanged():
    class Raises(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise ZeroDivisionError("mine")
            return x

    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Raises())
    m.parametrizations.weight[0].fails = True
    with pytest.raises(ZeroDivisionError, match="mine"):
        _ = m.weight


def test_e19_on_registration_the_error_of_the_parametrization_is_seen():
    m = nn.Linear(3, 3)
    with pytest.raises(AttributeError, match="no_such_method"):
        ours.register_parametrization(m, "weight", Misspelt())
    assert type(m) is nn.Linear


# ================================================================= E20: a missing right inverse


class HalfPrecisionKernel(nn.Module):
    """A right inverse whose kernel does not exist for the dtype."""

    def forward(self, x):
        return x

    def right_inverse(self, y):
        return torch.linalg.qr(y).Q


def check_kernel_error(P):
    m = nn.Linear(3, 3).half()
    with pytest.raises(NotImplementedError, match="Half"):
        P.register_parametrization(m, "weight", HalfPrecisionKernel())
    assert type(m) is nn.Linear


def test_e20_an_error_of_a_kernel_is_not_swallowed():
    check_kernel_error(ours)


@torch_today
def test_e20_kernels_in_torch_today():
    with pytest.raises(pytest.fail.Exception):
        check_kernel_error(torchs)


def test_e20_a_deliberate_refusal_counts_as_no_right_inverse():
    class Refuses(nn.Tanh):
        def right_inverse(self, y):
            raise NotImplementedError("there is none")

    class RefusesBelow(nn.Tanh):
        def right_inverse(self, y):
            return self._inverse(y)

        def _inverse(self, y):
            raise NotImplementedError from None

    for cls in (Refuses, RefusesBelow):
        m = nn.Linear(3, 3)
        before = m.weight.detach().clone()
        ours.register_parametrization(m, "weight", cls())
        assert_close(m.weight.detach(), before.tanh())


def test_e20_a_constraint_must_have_a_right_inverse():
    class Without(Positive):
        def right_inverse(self, value):
            raise NotImplementedError("forgotten")

    m = nn.Linear(3, 3)
    with torch.no_grad():
        m.weight.abs_().add_(0.1)
    with pytest.raises(NotImplementedError, match="forgotten"):
        ours.register_parametrization(m, "weight", Without())
    assert type(m) is nn.Linear


def check_not_finite(P):
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.exp()

        def right_inverse(self, y):
            return y.log()

    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match="NaN or infinite"):
        P.register_parametrization(m, "weight", Logarithm())
    assert type(m) is nn.Linear
    assert_close(m.weight.detach(), before)


def test_e20_originals_that_are_not_finite_are_refused():
    check_not_finite(ours)


@torch_today
def test_e20_not_finite_in_torch_today():
    with pytest.raises(pytest.fail.Exception):
        check_not_finite(torchs)


def test_e20_a_value_that_is_not_finite_is_refused():
    """Without a right inverse the tensor itself becomes the original, whatever comes of it."""

    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

        def rigth_inverse(self, y):  # sic
            return y.exp()

    m = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ours.register_parametrization(m, "weight", Logarithm())
    assert type(m) is nn.Linear


# ================================================================== E21: all of it or nothing


class Bad:
    """Parametrizations whose registration fails, each at another point."""

    class Forward(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

        def right_inverse(self, y):
            return torch.zeros_like(y)

    class Inverse(nn.Module):
        def forward(self, x):
            return x

        def right_inverse(self, y):
            y.zero_()
            raise ZeroDivisionError

    class Shape(nn.Module):
        def forward(self, x):
            return x[:, :1]

        def right_inverse(self, y):
            return y[:2] * 0

    class Type(nn.Module):
        def forward(self, x):
            return None

        def right_inverse(self, y):
            return y * 0

    class Second(nn.Module):
        def forward(self, a, b):
            return a

        def right_inverse(self, y):
            return y * 0, "text"


def snapshot(m):
    return (
        type(m),
        ids(m),
        list(m.state_dict()),
        {k: v.clone() for k, v in m.state_dict().items()},
        list(m._modules),
        {k: (id(v), v.requires_grad, v.shape, v.stride()) for k, v in m.named_parameters()},
        set(m.__dict__),
    )


def check_same(m, before):
    after = snapshot(m)
    for k, v in before[3].items():
        assert torch.equal(after[3][k], v)
    assert [x for i, x in enumerate(after) if i != 3] == [x for i, x in enumerate(before) if i != 3]


BAD = [Bad.Forward, Bad.Inverse, Bad.Shape, Bad.Type, Bad.Second]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("unsafe", [False, True])
def test_e21_a_failed_registration_leaves_the_module_as_it_was(bad, unsafe):
    m = nn.Linear(3, 3)
    before = snapshot(m)
    try:
        ours.register_parametrization(m, "weight", bad(), unsafe=unsafe)
    except (ZeroDivisionError, ValueError):
        check_same(m, before)
    else:
        assert unsafe


@pytest.mark.parametrize("bad", BAD[:4])
def test_e21_a_failed_second_registration_too(bad):
    m = squashed()
    before = snapshot(m)
    with pytest.raises((ZeroDivisionError, ValueError)):
        ours.register_parametrization(m, "weight", bad())
    check_same(m, before)
    assert len(m.parametrizations.weight) == 1


@pytest.mark.parametrize("bad", BAD)
def test_e21_a_failed_registration_of_another_tensor_too(bad):
    m = squashed()
    m.other = nn.Parameter(torch.rand(3, 3))
    before = snapshot(m)
    with pytest.raises((ZeroDivisionError, ValueError)):
        ours.register_parametrization(m, "other", bad())
    check_same(m, before)


@torch_today
@pytest.mark.parametrize("bad", [Bad.Forward, Bad.Shape, Bad.Type])
def test_e21_in_torch_today(bad):
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    with pytest.raises((ZeroDivisionError, ValueError)):
        torchs.register_parametrization(m, "weight", bad())
    assert m.weight.shape != before.shape or not torch.equal(m.weight, before)


@pytest.mark.parametrize("name", ["keys", "items", "values", "pop", "clear", "update", "places"])
def test_e21_names_that_a_module_dict_has(name):
    m = nn.Module()
    m.register_parameter(name, nn.Parameter(torch.rand(3)))
    before = snapshot(m)
    try:
        ours.register_parametrization(m, name, Scaled())
    except (KeyError, ValueError):
        check_same(m, before)
    else:
        assert getattr(m, name).shape == (3,)


@torch_today
def test_e21_names_in_torch_today():
    m = nn.Module()
    m.keys = nn.Parameter(torch.rand(3))
    with pytest.raises(KeyError):
        torchs.register_parametrization(m, "keys", Scaled())
    assert not list(m.parameters()) and type(m) is not nn.Module


def test_e21_a_class_that_cannot_be_subclassed():
    class Demanding(nn.Linear):
        def __init_subclass__(cls, *, kind, **kwargs):
            super().__init_subclass__(**kwargs)

    m = Demanding(3, 3)
    before = snapshot(m)
    try:
        ours.register_parametrization(m, "weight", Squash())
    except TypeError:
        check_same(m, before)
    else:
        assert m.weight.shape == (3, 3)


def test_e21_an_attribute_that_stands_in_the_way():
    m = nn.Linear(3, 3)
    m.parametrizations = "mine"
    before = snapshot(m)
    with pytest.raises(ValueError, match="parametrizations"):
        ours.register_parametrization(m, "weight", Squash())
    check_same(m, before)


def test_e21_a_tied_place_that_cannot_hold_it():
    m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Module()})
    m["b"].register_parameter("keys", m["a"].weight)
    before = snapshot(m)
    with pytest.raises((KeyError, ValueError)):
        ours.register_parametrization(m, "a.weight", Squash())
    check_same(m, before)
    assert type(m["a"]) is nn.Linear and type(m["b"]) is nn.Module
    assert m["a"].weight is m["b"].keys


def test_e21_a_refused_removal_changes_nothing():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", Split())
    before = snapshot(m)
    with pytest.raises(ValueError, match="Cannot leave unparametrized"):
        ours.remove_parametrizations(m, "weight", leave_parametrized=False)
    check_same(m, before)


def test_e21_a_failed_removal_changes_nothing():
    m = nn.Linear(3, 3)
    ours.register_parametrization(m, "weight", FailsLater())
    m.parametrizations.weight[0].broken = True
    before = snapshot(m)
    with pytest.raises((RuntimeError, AttributeError), match="does_not_exist"):
        ours.remove_parametrizations(m, "weight")
    check_same(m, before)


# ================================================= E24: paths, functions, tensors that are None


def test_e24_dotted_paths():
    m = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    assert ours.register_parametrization(m, "0.0.weight", Squash()) is m
    assert ours.is_parametrized(m[0][0], "weight") and not ours.is_parametrized(m)
    assert ours.remove_parametrizations(m, "0.0.weight") is m
    assert type(m[0][0]) is nn.Linear
    for path in ("0.1.weight", "0.0.foo", "nothing.weight"):
        with pytest.raises(ValueError, match=path.rpartition(".")[2] if "foo" in path else path):
            ours.register_parametrization(m, path, Squash())


def test_e24_functions():
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    ours.register_parametrization(m, "weight", torch.tanh)
    ours.register_parametrization(m, "bias", lambda b: 2 * b)
    assert_close(m.weight.detach(), before.tanh())
    m(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    with pytest.raises(RuntimeError, match="right_inverse"):
        m.weight = before
    assert "tanh" in repr(m)


def test_e24_none_is_a_clear_error():
    m = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match=r"'bias'.*None"):
        ours.register_parametrization(m, "bias", Squash())
    with pytest.raises(TypeError, match=r"function.*int"):
        ours.register_parametrization(m, "weight", 3)
    with pytest.raises(TypeError, match="NoneType"):
        ours.register_parametrization(m, "weight", None)
    assert type(m) is nn.Linear


@torch_today
def test_e24_in_torch_today():
    with pytest.raises(AttributeError):
        torchs.register_parametrization(nn.Linear(3, 3, bias=False), "bias", Squash())
    with pytest.raises(AttributeError):
        torchs.register_parametrization(nn.Linear(3, 3), "weight", torch.tanh)
    with pytest.raises(ValueError):
        torchs.register_parametrization(nn.Sequential(nn.Linear(3, 3)), "0.weight", Squash())
