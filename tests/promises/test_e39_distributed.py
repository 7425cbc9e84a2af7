"""Several processes: constraints before wrapping, in DDP and FSDP (E39)."""

import gc
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.fsdp import fully_shard as torch_fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained
import constrained.parametrize as ours
from constrained import constrain
from constrained.training import canonicalize, post_step
from tests.promises import distributed
from tests.promises.counting import Sphere, evaluations, layer, original, reset

# ------------------------------------------------------------------------ two processes, started


IGNORED = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def saved(both, place):
    with warnings.catch_warnings():
        # There is only one process, on purpose.
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(both, checkpoint_id=place)


def check_fsdp2():
    if not distributed.HAS_FSDP2:
        pytest.skip(f"torch {torch.__version__} has FSDP2 for GPUs alone")


def fully_shard(m, **options):
    check_fsdp2()
    return torch_fully_shard(m, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of one process, and the result of its further training."""
    folder = tmp_path_factory.mktemp("distributed")
    m = distributed.model()
    optimizer = distributed.optimizers(m.parameters(), "adamw")
    distributed.train(m, optimizer, range(4))
    states, moments = get_state_dict(m, optimizer)
    both = {"model": states, "optimizer": moments}
    saved(both, folder / "one_dcp")
    torch.save(both, folder / "one.pt")
    distributed.train(m, optimizer, range(4, 8))
    torch.save(m.state_dict(), folder / "went_on.pt")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    """A function that starts the processes for a wrapper, once."""
    known = {}

    def of(wrapper):
        if wrapper not in known:
            if wrapper in distributed.FSDP2:
                check_fsdp2()
            known[wrapper] = distributed.start(folder, wrapper)
        return known[wrapper]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrapper"), distributed.checks())
def test_e39_two_processes(name, wrapper, outcomes, measured):
    for rank, found in enumerate(outcomes(wrapper)):
        assert name in found, f"process {rank} stopped before, at {list(found)[-1]}"
        assert found[name]["error"] is None, found[name]["error"]
    if found[name]["measured"]:
        measured(found[name]["measured"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("wrapper", distributed.WRAPPERS)
def test_k6_two_processes_train_as_one(wrapper, kind, folder, outcomes, measured, monkeypatch):
    """200 steps with half of each batch per process give what one process gives."""
    outcomes(wrapper)
    if wrapper == "fsdp1":
        # The shards cannot be made canonical, and their gradients cannot be changed.
        for module, name in (
            (post_step, "prepare_step"),
            (post_step, "canonicalize"),
            (canonicalize, "canonicalize"),
        ):
            monkeypatch.setattr(module, name, lambda *_: None)
    alone = distributed.model()
    distributed.train(alone, distributed.optimizers(alone.parameters(), kind), range(200))
    found = torch.load(folder / f"{wrapper}_{kind}.pt")
    assert found.keys() == alone.state_dict().keys()
    assert_close(found, dict(alone.state_dict()), atol=1e-6, rtol=1e-6)
    worst = max(float((found[k] - v).abs().max()) for k, v in alone.state_dict().items())
    if kind == "sgd":
        measured(f"{wrapper}: after 200 steps {worst:.0e} from one process")


@IGNORED
@pytest.mark.slow
@pytest.mark.parametrize("way", ["dcp", "full"])
@pytest.mark.parametrize("wrapper", ["ddp", *distributed.FSDP2])
def test_e39_saved_by_two_loaded_by_one(wrapper, way, folder, outcomes):
    outcomes(wrapper)
    m = distributed.model(seed=5)
    optimizer = distributed.optimizers(m.parameters(), "adamw")
    distributed.loss_of(m, 0)
    if way == "dcp":
        states, moments = get_state_dict(m, optimizer)
        both = {"model": states, "optimizer": moments}
        dcp.load(both, checkpoint_id=folder / f"{wrapper}_dcp")
        options = StateDictOptions()
    else:
        both = torch.load(folder / f"{wrapper}_saved.pt")
        options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        m,
        optimizer,
        model_state_dict=both["model"],
        optim_state_dict=both["optimizer"],
        options=options,
    )
    distributed.train(m, optimizer, range(4, 8))
    assert_close(dict(m.state_dict()), torch.load(folder / f"{wrapper}_went_on.pt"))


# ----------------------------------------------------------------------- one process of a group


@pytest.fixture
def group():
    """A group of this process alone, so that none is started."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrap(m, wrapper):
    if wrapper == "ddp":
        return DistributedDataParallel(m)
    if wrapper == "fsdp1":
        return FullyShardedDataParallel(m, use_orig_params=True, device_id=torch.device("cpu"))
    return fully_shard(m, mesh=init_device_mesh("cpu", (1,)))


WRAPPERS = pytest.mark.parametrize("wrapper", ["ddp", "fsdp1", "fsdp2"])
LATE = {
    "constrain": lambda m, w: constrain(m, "1.weight", "orthogonal"),
    "constrain by a glob": lambda m, w: constrain(w, "**.bias", "positive"),
    "constrain a part": lambda m, w: constrain(m[1], "weight", "orthogonal"),
    "register": lambda m, w: ours.register_parametrization(m[1], "weight", nn.Tanh()),
    "register another": lambda m, w: ours.register_parametrization(m[0], "weight", Sphere()),
    "remove": lambda m, w: ours.remove_parametrizations(m[0], "weight"),
    "release": lambda m, w: constrained.release(m),
    "release in the wrapper": lambda m, w: constrained.release(w),
    "transfer": lambda m, w: ours.transfer_parametrizations_and_params(layer(Sphere()), m[1]),
}


@IGNORED
@WRAPPERS
@pytest.mark.parametrize("late", LATE)
def test_e39_too_late(wrapper, late, group, measured):
    m = nn.Sequential(constrain(nn.Linear(3, 3), "weight", Sphere()), nn.Linear(3, 3))
    wrapped = wrap(m, wrapper)
    before = [(n, id(p), p.detach().clone()) for n, p in wrapped.named_parameters()]
    classes = [type(each) for each in wrapped.modules()]
    with pytest.raises(RuntimeError, match="constrain before wrapping") as caught:
        LATE[late](m, wrapped)
    assert "weight'" in str(caught.value) or "bias'" in str(caught.value)
    after = [(n, id(p), p.detach().clone()) for n, p in wrapped.named_parameters()]
    assert [x[:2] for x in after] == [x[:2] for x in before]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(after, before, strict=True))
    assert classes == [type(each) for each in wrapped.modules()]
    wrapped(torch.ones(2, 3)).sum().backward()
    measured("late constraints are refused")


@IGNORED
def test_e39_the_error_names_tensor_and_wrapper(group):
    m = nn.Sequential(nn.Linear(3, 3))
    wrapped = wrap(m, "ddp")
    with pytest.raises(RuntimeError) as caught:
        constrain(m, "0.weight", "orthogonal")
    assert str(caught.value) == (
        "'0.weight' is a tensor of Linear inside a model that DistributedDataParallel has wrapped, "
        "which would miss any parameter that comes or goes: constrain before "
        "wrapping, and release a model without the wrapper."
    )
    del wrapped


# --------------------------------------------------------------------- tensor parallelism, one rank


class Parts(nn.Module):
    """Layers of every kind that torch's parallel styles cut into shards."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, i):
        return self.down(self.up(self.norm(self.table(i))).relu())


def parallel(m, *paths):
    """Cut the layers at the given paths."""
    from torch.distributed.tensor import Replicate, parallel

    styles = {
        "table": parallel.ColwiseParallel(output_layouts=Replicate()),
        "norm": parallel.SequenceParallel(),
        "up": parallel.ColwiseParallel(),
        "down": parallel.RowwiseParallel(),
    }
    mesh = init_device_mesh("cpu", (1,))
    return parallel.parallelize_module(m, mesh, {path: styles[path] for path in paths})


@IGNORED
@pytest.mark.parametrize(
    ("path", "name"),
    [("table", "weight"), *((p, n) for p in ("norm", "up", "down") for n in ("weight", "bias"))],
)
def test_e39_tensor_parallelism_and_constraints_refuse_each_other(path, name, group):
    def register(m):
        if path == "up":
            ours.register_parametrization(m.get_submodule(path), name, nn.Tanh())
        else:
            constrain(m, f"{path}.{name}", "positive")

    m = Parts()
    register(m)
    state = m.state_dict()
    with pytest.raises(RuntimeError, match=f"whose '{name}' is computed .* leave the module out"):
        parallel(m, path)
    assert all(a is not None and torch.equal(a, state[k]) for k, a in m.state_dict().items())
    m(torch.arange(3)).sum().backward()
    m = parallel(Parts(), path)
    before = dict(m.named_parameters())
    with pytest.raises(RuntimeError, match="tensor parallelism has cut .* leave the module out"):
        register(m)
    assert all(before[name] is p for name, p in m.named_parameters())


@IGNORED
@pytest.mark.parametrize("late", [False, True])
def test_e39_a_layer_outside_of_the_plan_of_tensor_parallelism_is_constrained(late, group):
    torch.manual_seed(0)
    m, i = Parts(), torch.arange(3)
    if late:
        parallel(m, "up", "down")
    constrain(m, {"table.weight": "sphere", "norm.weight": "positive"})
    if not late:
        parallel(m, "up", "down")
    optimizer, found = torch.optim.SGD(m.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = m(i).square().sum()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    assert found[-1] < found[0]
    assert_close(m.table.weight.norm(dim=1), torch.ones(5))


@pytest.mark.torch_today
@pytest.mark.slow
def test_e39_too_late_in_torch_today(measured):
    """Torch registers it, but the gradients of the new parameters are not exchanged."""
    script = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.manual_seed(0)
m = nn.Linear(3, 3)
ddp = nn.parallel.DistributedDataParallel(m)

class Split(nn.Module):
    def forward(self, a, b):
        return a * b

    def right_inverse(self, x):
        return x, torch.ones_like(x)

parametrize.register_parametrization(m, "weight", Split())
ddp(torch.full((2, 3), 1.0 + rank)).sum().backward()
g = m.parametrizations.weight.original0.grad
both = [torch.empty_like(g) for _ in range(2)]
dist.all_gather(both, g)
print("differ" if not torch.equal(*both) else "equal")
"""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", script, f"{place}/store", str(rank)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert outputs == ["differ", "differ"]
    measured("gradients silently differ between ranks")


@pytest.mark.torch_today
def test_e39_fully_shard_in_torch_today(group, measured):
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", nn.Tanh())
    wrap(m, "fsdp2")
    assert torchs.type_before_parametrizations(m).__name__ == "FSDPModule"
    late = wrap(nn.Linear(3, 3), "fsdp2")
    torchs.register_parametrization(late, "weight", nn.Tanh())
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor|FSDP"):
        late(torch.ones(2, 3)).sum().backward()
    measured("FSDPModule as the type; a DTensor error in forward")


@IGNORED
@WRAPPERS
def test_e39_the_type_before(wrapper, group):
    for m in (layer(Sphere()), constrain(nn.Linear(3, 3), "weight", "orthogonal")):
        wrap(m, wrapper)
        assert ours.type_before_parametrizations(m) is nn.Linear
        assert isinstance(m, nn.Linear) and ours.is_parametrized(m, "weight")


def test_e39_a_wrapper_that_is_gone(group):
    m = constrain(nn.Linear(3, 3), "weight", Sphere())
    wrapped = wrap(m, "ddp")
    wrapped.itself = [wrapped]
    with pytest.raises(RuntimeError, match="before wrapping"):
        constrained.release(m)
    del wrapped
    constrained.release(m)
    assert type(m) is nn.Linear
    constrain(m, "weight", "orthogonal")


def test_e39_other_models_are_free(group):
    m = layer(Sphere())
    wrapped = wrap(m, "ddp")
    other = constrain(nn.Linear(3, 3), "weight", "orthogonal")
    constrained.release(other)
    wrapped(torch.ones(1, 3)).sum().backward()


# ----------------------------------------------------------------------- values in such programs


@IGNORED
@pytest.mark.parametrize("wrapper", ["none", "ddp"])
def test_e39_one_evaluation_for_each_step(wrapper, group, measured):
    m = layer(Sphere())
    wrapped = m if wrapper == "none" else wrap(m, wrapper)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    reset(m)
    for step in range(1, 4):
        for _ in range(500):
            _ = m.weight
        for _ in range(2):
            wrapped(torch.ones(2, 3)).pow(2).sum().backward()
        assert evaluations(m) == step
        optimizer.step()
    assert_close(m.weight, m.parametrizations.weight())
    measured("DDP: 500 reads, 1 evaluation")


@IGNORED
@WRAPPERS
@pytest.mark.parametrize("change", ["step", "load_state_dict"])
@pytest.mark.parametrize("n", [3, 200])
def test_e39_never_stale(wrapper, change, n, group):
    """A forward pass uses the current parameters, however they were written."""
    m = layer(Sphere(), n=n)
    wrapped = wrap(m, wrapper)
    x = torch.randn(4, n)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
    for k in range(3):
        optimizer.zero_grad()
        out = wrapped(x)
        out.pow(2).sum().backward()
        if change == "step":
            # One row changes, so that most entries stay as they are.
            for p in wrapped.parameters():
                if p.ndim == 2 or wrapper == "fsdp1":
                    g = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
                    g.view(-1)[n:] = 0
            optimizer.step()
        else:
            state = {key: v.clone() for key, v in wrapped.state_dict().items()}
            for v in state.values():
                local = v.to_local() if hasattr(v, "to_local") else v
                local.view(-1)[k : k + 2] += 0.5
            wrapped.load_state_dict(state)
        state = wrapped.state_dict()
        full = {
            key.rpartition(".")[2]: v.full_tensor() if hasattr(v, "full_tensor") else v.clone()
            for key, v in state.items()
        }
        expected = x @ nn.functional.normalize(full["original"], dim=1).T + full["bias"]
        assert_close(wrapped(x), expected)
        assert not torch.equal(wrapped(x), out)
        if wrapper == "fsdp2":
            wrapped.reshard()


@IGNORED
@pytest.mark.parametrize("wrapper", ["fsdp1", "fsdp2"])
def test_e39_a_value_from_before_wrapping(wrapper, group):
    m = layer(Sphere())
    before = m.weight.detach().clone()
    wrapped = wrap(m, wrapper)
    assert_close(wrapped(torch.eye(3)).detach(), (before.T + m.bias).detach())
    store = m.parametrizations.weight._store
    wrapped(torch.eye(3)).sum().backward()
    gc.collect()
    assert not store._values or wrapper == "fsdp2"


def test_e39_hooks_of_ddp_see_each_gradient_once(group):
    """A gradient through a stored value is exchanged once, with the rest of its bucket."""
    m = layer(Sphere())
    wrapped = wrap(m, "ddp")
    seen = []

    def hook(state, bucket):
        seen.append([id(p) for p in bucket.parameters()])
        future = torch.futures.Future()
        future.set_result(bucket.buffer() * 10)
        return future

    wrapped.register_comm_hook(None, hook)
    expected = torch.autograd.grad(m(m(torch.ones(1, 3))).sum(), original(m))[0]
    (wrapped(torch.ones(1, 3)) @ m.weight.T + m.bias).sum().backward()
    assert sum(id(original(m)) in each for each in seen) == 1
    assert_close(original(m).grad, 10 * expected)


def test_e39_random_numbers_are_nobodys_business(group):
    """Constraining and wrapping draw no random numbers, so that processes stay equal."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    m = distributed.model()
    torch.set_rng_state(state)
    constrain(nn.Linear(3, 3).requires_grad_(False), "weight", "orthogonal")
    torch.set_rng_state(state)
    wrap(m, "ddp")(distributed.batch(0)[0])
    assert_close(torch.rand(3), expected)


def test_e39_importing_is_not_distributed():
    code = (
        "import sys, constrained; "
        "print([m for m in sys.modules if m.startswith(('torch.distributed.fsdp', "
        "'torch.distributed.tensor', 'torch.distributed.checkpoint'))])"
    )
    plain = code.replace("constrained", "torch", 1)
    run = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
        for c in (code, plain)
    ]
    assert run[0] == run[1]


# --------------------------------------------------------------------------- compiled and wrapped


class Block(nn.Module):
    def __init__(self, constraint):
        super().__init__()
        self.linear = constrain(nn.Linear(4, 4), "weight", constraint)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(*map(Block, ("orthogonal", "low_rank(rank=2)", "sphere"))).double()


@IGNORED
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("what", ["wrapper", "layers"])
def test_k6_compiled_and_wrapped(wrapper, what, group):
    """Either the whole model, or each block before wrapping, as for large models."""
    torch._dynamo.reset()
    m, alone = blocks(), blocks()
    for each in m:
        if what == "layers":
            each.compile(backend="aot_eager", fullgraph=True)
        if wrapper == "fsdp2":
            fully_shard(each, mesh=init_device_mesh("cpu", (1,)))
    wrapped = wrap(m, wrapper)
    run = torch.compile(wrapped, backend="aot_eager") if what == "wrapper" else wrapped
    optimizers = [distributed.optimizers(each.parameters(), "sgd") for each in (wrapped, alone)]
    for _ in range(3):
        x = torch.randn(5, 4).double()
        for each, optimizer in zip((run, alone), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).pow(2).sum().backward()
            optimizer.step()
    if wrapper == "fsdp2":
        distributed.reshard(wrapped)
    assert_close(distributed.full_state(wrapped, wrapper), dict(alone.state_dict()))
    constrained.assert_feasible(wrapped)


# -------------------------------------------------------------------- other ways of fully_shard


def test_e39_mixed_precision(group):
    """Gathered originals are in low precision; the shards are in full precision."""
    m = blocks().float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(m, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    optimizer = distributed.optimizers(m.parameters(), "adamw")
    seen = []
    m[0].linear.register_forward_hook(lambda each, args, out: seen.append(each.weight))
    for _ in range(3):
        optimizer.zero_grad()
        m(torch.randn(5, 4)).pow(2).sum().backward()
        optimizer.step()
        assert seen[-1].dtype is torch.bfloat16
    distributed.reshard(m)
    assert m[0].linear.weight.dtype is torch.float32
    constrained.assert_feasible(m)


def test_e39_from_the_meta_device(group):
    """A model is constrained and sharded on meta, then filled from a full state dict."""
    source = blocks()
    with torch.device("meta"):
        m = blocks()
    fully_shard(m, mesh=init_device_mesh("cpu", (1,)))
    m.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(m, source.state_dict(), options=options)
    x = torch.randn(5, 4).double()
    assert_close(m(x), source(x))
    distributed.reshard(m)
    optimizers = [distributed.optimizers(each.parameters(), "sgd") for each in (m, source)]
    for each, optimizer in zip((m, source), optimizers, strict=True):
        each(x).pow(2).sum().backward()
        optimizer.step()
    assert_close(distributed.full_state(m, "fsdp2"), dict(source.state_dict()))


def test_e39_a_parametrization_with_parameters_of_its_own(group):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x):
            return self.scale * x

        def right_inverse(self, value):
            return value / self.scale

    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Scaled())
    expected = m(torch.eye(3)).detach()
    wrap(m, "fsdp2")
    with pytest.raises(RuntimeError, match="unshard"):
        _ = m.weight
    with torch.no_grad():
        assert_close(m(torch.eye(3)), expected)
    m.unshard()
    assert_close(m.weight.T + m.bias, expected)
    m.reshard()


def test_e39_a_value_of_another_shape_is_refused(group):
    m = wrap(layer(Sphere()), "fsdp2")
    before = m.weight.detach().clone()
    with pytest.raises(ValueError, match="shape"):
        m.weight = torch.ones(4, 3)
    assert torch.equal(m.weight, before)
