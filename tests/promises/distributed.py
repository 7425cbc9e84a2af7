"""Checks that several processes run together: a script, started by the tests of E39.

``python -m tests.promises.distributed FOLDER WRAPPER RANK`` runs every check that is
meant for a wrapper, each on models of its own, and writes the outcomes.
"""

from __future__ import annotations

import copy
import datetime
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import constrained
import constrained.parametrize as parametrize
from constrained import constrain
from tests.promises.counting import Anchored, Sphere, evaluations, reset

WORLD = 2
WRAPPERS = ("ddp", "fsdp2", "fsdp2_layers", "fsdp2_kept", "fsdp1")
#: FSDP2 uses a method of streams that some versions of torch define for GPUs only. With these,
#: not even a plain model can be trained on the CPU.
HAS_FSDP2 = hasattr(torch.cpu.current_stream(), "record_event")
FSDP2 = ("fsdp2", "fsdp2_layers", "fsdp2_kept")
SPECS = {
    "0.weight": "orthogonal",
    "2.weight": "low_rank(rank=2)",
    "2.bias": "positive",
    "4.weight": {"name": "spectral_norm", "bound": 0.9},
    "6.weight": "orthogonal(map='cayley')",
    "8.weight": nn.Tanh(),
    "10.weight": "sphere",
}

_checks: list[tuple[Callable[..., str | None], tuple[str, ...]]] = []


def check(*wrappers: str) -> Callable[[Any], Any]:
    """Register a check ``(wrapper, rank, folder) -> what was measured`` for these wrappers."""

    def register(function: Callable[..., str | None]) -> Callable[..., str | None]:
        _checks.append((function, wrappers))
        return function

    return register


def checks() -> list[tuple[str, str]]:
    """All pairs of a check and a wrapper."""
    return [(f.__name__, wrapper) for f, wrappers in _checks for wrapper in wrappers]


# ------------------------------------------------------------------------------ models and training


def model(seed: int = 0) -> nn.Sequential:
    """Constraints of the catalogue and a foreign module, in double precision."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(6, 6), nn.Tanh()]
    m = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        m[8].weight.clamp_(-0.9, 0.9)
    constrain(m, SPECS)
    return m


def wrap(m: nn.Module, wrapper: str, **options: Any) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(m, **options)
    if wrapper == "fsdp1":
        return FullyShardedDataParallel(m, use_orig_params=True, device_id=torch.device("cpu"))
    mesh = init_device_mesh("cpu", (WORLD,))
    if wrapper != "fsdp2":
        for child in m.children():
            if next(child.parameters(), None) is not None:
                fully_shard(child, mesh=mesh, reshard_after_forward=wrapper == "fsdp2_layers")
    return fully_shard(m, mesh=mesh)


def optimizers(parameters: Any, kind: str) -> torch.optim.Optimizer:
    parameters = list(parameters)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.05)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 8, 6, generator=generator, dtype=torch.double)
    return x, y


def loss_of(m: nn.Module, step: int, rank: int = 0, world: int = 1) -> Tensor:
    x, y = (t.chunk(world)[rank] for t in batch(step))
    return (m(x) - y).pow(2).mean()


def train(
    m: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    rank: int = 0,
    world: int = 1,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(m, step, rank, world).backward()
        optimizer.step()


def reshard(m: nn.Module) -> None:
    for each in m.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def full_state(m: nn.Module, wrapper: str) -> dict[str, Tensor]:
    """The whole state dict, with the names that it has without a wrapper."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
    state = {}
    if wrapper == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(m):
            state = {
                name.replace("_fsdp_wrapped_module.", ""): t.detach().clone()
                for name, t in [*m.named_parameters(), *m.named_buffers()]
            }
    else:
        for name, t in get_model_state_dict(m, options=options).items():
            state[name] = t.detach().clone()
    return state


def assert_same_everywhere(tensors: dict[str, Tensor]) -> None:
    """All processes have the same numbers, bit for bit."""
    for name, tensor in tensors.items():
        found = [torch.empty_like(tensor) for _ in range(WORLD)]
        dist.all_gather(found, tensor.contiguous())
        assert all(torch.equal(t, tensor) for t in found), name


# ------------------------------------------------------------------------------------------- checks


@check(*WRAPPERS)
def training(wrapper: str, rank: int, folder: Path) -> str:
    """The processes stay equal, bit for bit, in 200 steps."""
    for kind in ("sgd", "adamw"):
        m = model(seed=0 if wrapper.startswith("fsdp") else rank)
        wrapped = wrap(m, wrapper)
        optimizer = optimizers(wrapped.parameters(), kind)
        for start in range(0, 200, 50):
            train(wrapped, optimizer, range(start, start + 50), rank, WORLD)
            state = full_state(wrapped, wrapper)
            assert_same_everywhere(state)
        if rank == 0:
            torch.save(state, folder / f"{wrapper}_{kind}.pt")
    return "200 steps on 2 ranks: bit-equal"


@check("ddp", *FSDP2)
def accumulation(wrapper: str, rank: int, folder: Path) -> None:
    """Gradients of several batches, exchanged with the last batch only."""
    m, alone = model(), model()
    wrapped = wrap(m, wrapper)
    ours, theirs = optimizers(wrapped.parameters(), "sgd"), optimizers(alone.parameters(), "sgd")
    for step in range(0, 9, 3):
        ours.zero_grad(), theirs.zero_grad()
        for k in range(3):
            if wrapper == "ddp" and k < 2:
                with wrapped.no_sync():
                    loss_of(wrapped, step + k, rank, WORLD).backward()
            else:
                if wrapper != "ddp":
                    wrapped.set_requires_gradient_sync(k == 2)
                loss_of(wrapped, step + k, rank, WORLD).backward()
            loss_of(alone, step + k).backward()
        ours.step(), theirs.step()
    state = full_state(wrapped, wrapper)
    assert_same_everywhere(state)
    assert_close(state, dict(alone.state_dict()))


@check(*WRAPPERS)
def evaluation(wrapper: str, rank: int, folder: Path) -> str:
    """The number of evaluations of a tensor, and that the values read are right."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = constrain(nn.Linear(4, 4), {"weight": Sphere(), "bias": Anchored()})

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(500):
                x = torch.tanh(x @ self.linear.weight.T + self.linear.bias)
            return x

    torch.manual_seed(0)
    cell = nn.Sequential(Cell())
    # Some versions write all buffers before a forward pass, which makes stored values stale.
    wrapped = wrap(cell, wrapper, broadcast_buffers=False)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    counts = []
    for _ in range(2):
        reset(cell)
        for _ in range(2):
            wrapped(torch.ones(2, 4)).pow(2).sum().backward()
        counts.append(evaluations(cell) // 2)
        optimizer.step()
        optimizer.zero_grad()
    if wrapper == "ddp":
        assert counts == [1, 1], counts
        with torch.no_grad():
            for _ in range(3):
                wrapped(torch.ones(2, 4))
        assert evaluations(cell) == 4
    # Tensors that FSDP manages are evaluated at each read.
    return f"{wrapper}: 500 reads, {counts[-1] if counts[-1] == 1 else counts[-1] // 2} evaluations"


@check("ddp")
def no_wrapper(wrapper: str, rank: int, folder: Path) -> None:
    """A model without a wrapper, in a program with several processes."""
    m = constrain(nn.Linear(4, 4), "weight", Sphere())
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    reset(m)
    for step in range(1, 4):
        optimizer.zero_grad()
        for _ in range(500):
            _ = m.weight
        m(torch.ones(1, 4)).sum().backward()
        assert evaluations(m) == step
        optimizer.step()


@check("ddp")
def written_by_collectives(wrapper: str, rank: int, folder: Path) -> None:
    """Collectives move no version counter."""
    torch.manual_seed(rank)
    for n in (4, 200):
        m = constrain(nn.Linear(n, n), "weight", Sphere())
        p = m.parametrizations.weight.original
        with torch.no_grad():
            for write in (
                lambda p=p: dist.broadcast(p, 0),
                lambda p=p: dist.all_reduce(p),
                lambda p=p: dist.broadcast(p.data.normal_(), 0),
                lambda p=p: dist.all_reduce(p.data),
            ):
                _ = m.weight
                write()
                assert_close(m.weight, m.parametrizations.weight())
            assert_same_everywhere({"weight": m.weight})


@check("ddp")
def wrapped_anew(wrapper: str, rank: int, folder: Path) -> None:
    """Wrapping overwrites the numbers of all other processes with those of the first."""
    m = constrain(nn.Linear(64, 64), "weight", Sphere())
    with torch.no_grad():
        m.parametrizations.weight.original[7, 3] += rank
        _ = m.weight
    DistributedDataParallel(m)
    assert_close(m.weight, m.parametrizations.weight())
    assert_same_everywhere({"weight": m.weight.detach()})


@check("ddp")
def redundancy_free_optimizer(wrapper: str, rank: int, folder: Path) -> None:
    """Each process steps some of the parameters; collectives write the others."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.manual_seed(0)
    m = nn.ModuleList(nn.Embedding(3000, 4) for _ in range(4))
    for layer in m:
        constrain(layer, "weight", Sphere())
    optimizer = ZeroRedundancyOptimizer(m.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range(3):
        for layer in m:
            layer(torch.tensor([5, 6])).sum().backward()
        optimizer.step()
        for layer in m:
            assert_close(layer.weight, layer.parametrizations.weight())
            assert_same_everywhere({"weight": layer.weight.detach()})


@check("ddp")
def options(wrapper: str, rank: int, folder: Path) -> None:
    """The options of DDP that change how it collects gradients."""
    alone = model()
    theirs = optimizers(alone.parameters(), "sgd")
    train(alone, theirs, range(3))
    for option in ("find_unused_parameters", "static_graph", "gradient_as_bucket_view"):
        wrapped = wrap(model(), wrapper, **{option: True})
        train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(3), rank, WORLD)
        assert_close(full_state(wrapped, wrapper), dict(alone.state_dict()))


@check("ddp")
def unused(wrapper: str, rank: int, folder: Path) -> None:
    """A constrained tensor that a forward does not use."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = constrain(nn.Linear(4, 4), "weight", Sphere())
            self.b = constrain(nn.Linear(4, 4), "weight", Sphere())

        def forward(self, x: Tensor, which: str) -> Tensor:
            return getattr(self, which)(x)

    torch.manual_seed(0)
    m = Branches()
    wrapped = DistributedDataParallel(m, find_unused_parameters=True)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for which in ("a", "b", "a", "a"):
        optimizer.zero_grad()
        wrapped(torch.full((2, 4), 1.0 + rank), which).pow(2).sum().backward()
        optimizer.step()
    assert_same_everywhere({n: p.detach() for n, p in m.named_parameters()})


@check(*WRAPPERS)
def two_forwards_one_backward(wrapper: str, rank: int, folder: Path) -> None:
    """Two forward passes and one backward pass, as for the critic of a GAN."""
    m, alone = model(), model()
    # Some versions write all buffers before each forward pass, so that backward passes raise.
    wrapped = wrap(m, wrapper, broadcast_buffers=False)
    ours, theirs = optimizers(wrapped.parameters(), "sgd"), optimizers(alone.parameters(), "sgd")
    for step in range(3):
        ours.zero_grad(), theirs.zero_grad()
        (loss_of(wrapped, step, rank, WORLD) + loss_of(wrapped, step + 7, rank, WORLD)).backward()
        (loss_of(alone, step) + loss_of(alone, step + 7)).backward()
        ours.step(), theirs.step()
    if wrapper != "fsdp1":
        assert_close(full_state(wrapped, wrapper), dict(alone.state_dict()))


@check(*WRAPPERS)
def two_backwards(wrapper: str, rank: int, folder: Path) -> None:
    """Two losses in a step, each with a backward pass of its own."""
    wrapped, alone = wrap(model(), wrapper), model()
    ours, theirs = optimizers(wrapped.parameters(), "sgd"), optimizers(alone.parameters(), "sgd")
    for step in range(3):
        ours.zero_grad(), theirs.zero_grad()
        for k in range(2):
            loss_of(wrapped, step + k, rank, WORLD).backward()
            loss_of(alone, step + k).backward()
        ours.step(), theirs.step()
    if wrapper != "fsdp1":
        assert_close(full_state(wrapped, wrapper), dict(alone.state_dict()))


@check("ddp", *FSDP2)
def looking(wrapper: str, rank: int, folder: Path) -> None:
    """Reports, values and plain state dicts of a wrapped model."""
    m, alone = model(), model()
    wrapped = wrap(m, wrapper)
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(4), rank, WORLD)
    train(alone, optimizers(alone.parameters(), "sgd"), range(4))
    found, expected = constrained.violations(wrapped), constrained.violations(alone)
    assert [k.removeprefix("module.") for k in found] == list(expected)
    assert max(found.values()) < 1e-6
    constrained.assert_feasible(wrapped)
    assert [row.holds for row in constrained.report(wrapped).rows] == [
        row.holds for row in constrained.report(alone).rows
    ]
    str(constrained.report(wrapped))
    baked = constrained.baked_state_dict(wrapped)
    assert all(type(t) is Tensor for t in baked.values())
    baked = {k.removeprefix("module."): v for k, v in baked.items()}
    assert_close(baked, constrained.baked_state_dict(alone))
    assert_same_everywhere(baked)
    for k in (0, 2, 6, 8, 10):
        assert_close(m[k].weight, alone[k].weight, check_stride=False)
    # The gradient of a read outside of the forward pass arrives at the parameters.
    wrapped.zero_grad(), alone.zero_grad()
    m[10].weight.sin().sum().backward()
    alone[10].weight.sin().sum().backward()
    (g,) = (p.grad for p in m[10].parametrizations.weight.parameters())
    (h,) = (p.grad for p in alone[10].parametrizations.weight.parameters())
    assert_close(g.full_tensor() if wrapper != "ddp" else g, h)


@check(*WRAPPERS)
def files(wrapper: str, rank: int, folder: Path) -> str:
    """Processes save one file, which a plain model loads, and each of them again."""
    wrapped = wrap(model(), wrapper)
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(3), rank, WORLD)
    reshard(wrapped)
    file = folder / f"{wrapper}.safetensors"
    constrained.save(wrapped, file)
    expected = full_state(wrapped, wrapper)
    alone = model(seed=1)
    constrained.load(file, alone)
    state = {k.removeprefix("module."): v for k, v in expected.items()}
    assert state.keys() == alone.state_dict().keys()
    assert all(torch.equal(alone.state_dict()[key], value) for key, value in state.items())
    again = wrap(model(seed=2), wrapper)
    constrained.load(file, again)
    found = full_state(again, wrapper)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    dist.barrier()
    return "saved once, loaded in one process and in all"


@check("fsdp1")
def looking_through_flat_parameters(wrapper: str, rank: int, folder: Path) -> None:
    m, alone = model(), model()
    wrapped = wrap(m, wrapper)
    for look in (
        lambda: m[0].weight,
        lambda: constrained.violations(wrapped),
        lambda: constrained.report(wrapped),
        lambda: constrained.assert_feasible(wrapped),
        lambda: constrained.baked_state_dict(wrapped),
        lambda: setattr(m[0], "weight", torch.eye(6).double()),
    ):
        before = [p.detach().clone() for p in wrapped.parameters()]
        try:
            look()
        except RuntimeError as error:
            assert "summon_full_params" in str(error), error
        else:
            raise AssertionError("no error")
        assert_close([p.detach() for p in wrapped.parameters()], before, rtol=0, atol=0)
    with FullyShardedDataParallel.summon_full_params(wrapped):
        assert_close(m[0].weight, alone[0].weight)
        constrained.assert_feasible(wrapped)
        m[0].weight = torch.eye(6).double()
    with FullyShardedDataParallel.summon_full_params(wrapped):
        assert_close(m[0].weight.detach(), torch.eye(6).double())


@check(*FSDP2)
def assignment(wrapper: str, rank: int, folder: Path) -> None:
    """The next forward pass uses a value that all processes have assigned."""
    m, alone = model(), model()
    wrapped = wrap(m, wrapper)
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(2), rank, WORLD)
    train(alone, optimizers(alone.parameters(), "sgd"), range(2))
    new = torch.eye(6).double().roll(1, 0)
    for each in (m, alone):
        each[0].weight = new
        each[2].weight = torch.ones(6, 6).double()
        each[2].bias = torch.ones(6).double()
    assert_close(m[0].weight.detach(), new)
    x, _ = batch(0)
    assert_close(wrapped(x), alone(x))
    # The forward pass has left some tensors gathered; they are written once they are sharded.
    reshard(wrapped)
    constrained.rebase(wrapped), constrained.rebase(alone)
    assert_close(wrapped(x), alone(x))
    reshard(wrapped)
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(2), rank, WORLD)
    train(alone, optimizers(alone.parameters(), "sgd"), range(2))
    assert_close(full_state(wrapped, wrapper), dict(alone.state_dict()))
    gathered = m[10] if isinstance(m[10], FSDPModule) else wrapped
    gathered.unshard()
    try:
        m[10].weight = nn.functional.normalize(torch.ones(6, 6).double(), dim=1)
    except RuntimeError as error:
        assert "reshard()" in str(error), error
    else:
        raise AssertionError("a lost write")
    finally:
        gathered.reshard()


@check(*WRAPPERS)
def refusals(wrapper: str, rank: int, folder: Path) -> None:
    """Constraining and releasing a wrapped model is refused with the cure; nothing changes."""

    m = model()
    wrapped = wrap(m, wrapper)
    inner = "_fsdp_wrapped_module." if wrapper == "fsdp1" else "module." * (wrapper == "ddp")
    before = {n: type(x) for n, x in wrapped.named_modules()}
    parameters = [id(p) for p in wrapped.parameters()]
    state = [p.detach().clone() for p in wrapped.parameters()]
    actions = [
        lambda: constrain(m, "0.bias", "positive"),
        lambda: constrain(wrapped, f"{inner}0.bias", "positive"),
        lambda: constrain(m[0], "bias", "positive"),
        lambda: constrain(m, {"0.bias": "positive", "8.bias": "sphere"}),
        lambda: parametrize.register_parametrization(m, "0.bias", nn.Tanh()),
        lambda: parametrize.register_parametrization(m[0], "weight", nn.Tanh()),
        lambda: parametrize.register_parametrization(m[0], "bias", nn.Tanh(), unsafe=True),
        lambda: parametrize.remove_parametrizations(m, "0.weight"),
        lambda: parametrize.remove_parametrizations(m[0], "weight", leave_parametrized=False),
        lambda: constrained.release(m),
        lambda: constrained.release(wrapped, f"{inner}2.weight"),
        lambda: parametrize.transfer_parametrizations_and_params(model()[10], m[8], "weight"),
    ]
    for k, act in enumerate(actions):
        try:
            act()
        except RuntimeError as error:
            assert "before wrapping" in str(error), (k, error)
        else:
            raise AssertionError(f"action {k} was not refused")
        assert before == {n: type(x) for n, x in wrapped.named_modules()}
        assert parameters == [id(p) for p in wrapped.parameters()]
        assert_close([p.detach() for p in wrapped.parameters()], state, rtol=0, atol=0)
    assert parametrize.type_before_parametrizations(m[0]) is nn.Linear
    if wrapper != "fsdp1":
        assert parametrize.type_before_parametrizations(m[1]) is nn.Tanh
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(2), rank, WORLD)
    # Other models are not affected, nor is a model whose wrapper is gone.
    constrain(nn.Linear(4, 4), "weight", "orthogonal")
    if wrapper == "ddp":
        plain = copy.deepcopy(wrapped.module)
        constrained.release(plain)
        x, _ = batch(0)
        assert_close(plain(x), m(x))
        # The actions keep it alive too.
        del wrapped, actions, act
        constrained.release(m)


@check("ddp", *FSDP2)
def saved_by_many(wrapper: str, rank: int, folder: Path) -> None:
    """Two processes save model and optimizer in two ways, for a test that loads them in one."""
    wrapped = wrap(model(), wrapper)
    optimizer = optimizers(wrapped.parameters(), "adamw")
    train(wrapped, optimizer, range(4), rank, WORLD)
    states, moments = get_state_dict(wrapped, optimizer)
    dcp.save({"model": states, "optimizer": moments}, checkpoint_id=folder / f"{wrapper}_dcp")
    options = StateDictOptions(full_state_dict=True)
    states, moments = get_state_dict(wrapped, optimizer, options=options)
    states = {k: v.clone() for k, v in states.items()}
    if rank == 0:
        torch.save({"model": states, "optimizer": moments}, folder / f"{wrapper}_saved.pt")
    train(wrapped, optimizer, range(4, 8), rank, WORLD)
    state = full_state(wrapped, wrapper)
    if rank == 0:
        torch.save(state, folder / f"{wrapper}_went_on.pt")


@check("ddp", *FSDP2)
def saved_by_one(wrapper: str, rank: int, folder: Path) -> None:
    """Two processes load what one has saved, in two ways, and train on as it did."""
    expected = torch.load(folder / "went_on.pt")
    x, _ = batch(0)
    for way in ("dcp", "full"):
        wrapped = wrap(model(seed=5), wrapper)
        optimizer = optimizers(wrapped.parameters(), "adamw")
        # Store a value before loading, which must be dropped.
        wrapped(x)
        reshard(wrapped)
        if way == "dcp":
            states, moments = get_state_dict(wrapped, optimizer)
            both = {"model": states, "optimizer": moments}
            dcp.load(both, checkpoint_id=folder / "one_dcp")
            options = StateDictOptions()
        else:
            both = torch.load(folder / "one.pt")
            options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            wrapped,
            optimizer,
            model_state_dict=both["model"],
            optim_state_dict=both["optimizer"],
            options=options,
        )
        train(wrapped, optimizer, range(4, 8), rank, WORLD)
        state = full_state(wrapped, wrapper)
        assert_same_everywhere(state)
        assert_close(state, expected)


@check("ddp", *FSDP2)
def released_copy(wrapper: str, rank: int, folder: Path) -> None:
    """The full state of a wrapped model, loaded into a model without a wrapper."""
    wrapped = wrap(model(), wrapper)
    train(wrapped, optimizers(wrapped.parameters(), "sgd"), range(2), rank, WORLD)
    plain = model(seed=3)
    set_model_state_dict(plain, full_state(wrapped, wrapper))
    constrained.release(plain)
    x, _ = batch(0)
    assert_close(plain(x), wrapped(x), check_stride=False)


# -------------------------------------------------------------------------------- the processes


def run(folder: Path, wrapper: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store_{wrapper}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    outcomes: dict[str, dict[str, str | None]] = {}
    for function, wrappers in _checks:
        if wrapper not in wrappers:
            continue
        outcome: dict[str, str | None] = {"error": None, "measured": None}
        try:
            outcome["measured"] = function(wrapper, rank, folder)
        except Exception:
            outcome["error"] = traceback.format_exc()
        outcomes[function.__name__] = outcome
        (folder / f"{wrapper}_{rank}.json").write_text(json.dumps(outcomes))
        if outcome["error"]:
            # The other process may be at any point of this check, so the two cannot go on together.
            return
    dist.barrier()
    dist.destroy_process_group()


def start(folder: Path, wrapper: str) -> list[dict[str, dict[str, str | None]]]:
    """Start two processes, and return the outcomes of the checks of each."""
    module = "tests.promises.distributed"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, str(folder), wrapper, str(rank)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [folder / f"{wrapper}_{rank}.json" for rank in range(WORLD)]
    assert all(path.exists() for path in found), errors[0][-3000:] + errors[1][-3000:]
    return [json.loads(path.read_text()) for path in found]


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
