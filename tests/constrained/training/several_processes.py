"""Checks of ``mode="project"`` that several processes run together, started by test_processes.

``python -m tests.constrained.training.several_processes FOLDER RANK WORLD WRAPPER`` runs the checks
for a wrapper, each on models of its own, and writes what came of it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, parallel
from torch.nn.parallel import DistributedDataParallel

import constraints
from constrained import assert_feasible, constrain, penalty, share_projections, violations
from constrained.constraint.errors import NonfiniteGradientError, OutOfRangeError

#: How a model is wrapped; "shared" is DDP after `share_projections`.
WRAPPERS = ("ddp", "shared", "fsdp2", "tp")

SETS = {
    "0.weight": "orthogonal",
    "1.weight": "simplex",
    "2.weight": "nonnegative",
    "3.weight": "spectral_norm(bound=1)",
    "4.weight": "sphere",
    "5.weight": "low_rank(rank=2)",
    "6.weight": "orthogonal",
    # Its elements are columns.
    "7.weight": {"name": "sphere", "view": "o i -> i o"},
    "0.bias": "l1_ball(radius=1)",
}

#: With an element in each entry, in each row and in the whole of the tensor.
FEW = {
    "0.weight": "orthogonal",
    "1.weight": "simplex",
    "2.weight": "nonnegative",
    "3.weight": "spectral_norm(bound=1)",
}

#: The checks, each with the wrappers and the numbers of processes that it is for.
CHECKS = []


def check(*wrappers, least=2, most=2):
    def register(function):
        CHECKS.append((function, wrappers or WRAPPERS, range(least, most + 1)))
        return function

    return register


def checks(wrapper, world):
    """The checks that this many processes run for a wrapper."""
    return [f for f, wrappers, worlds in CHECKS if wrapper in wrappers and world in worlds]


class Counted(constraints.Orthogonal):
    """Orthogonal matrices; notes how many have been brought back."""

    is_broken = False

    def canonical(self, value):
        restored.append(value.shape[:-2].numel())
        return super().canonical(value)

    def retract(self, value):
        restored.append(value.shape[:-2].numel())
        if Counted.is_broken:
            raise OutOfRangeError("broken on purpose")
        return self.project(value)


#: How many matrices each call that has brought some back was given.
restored: list[int] = []


def layers(seed=0, sets=SETS, width=6, count=8, mode="project", **options):
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(count))).double()
    rules = {
        path: {**(set_ if isinstance(set_, dict) else {"name": set_}), **options}
        for path, set_ in sets.items()
    }
    return constrain(model, rules, mode=mode) if sets else model


def wrap(model, wrapper):
    world = dist.get_world_size()
    if wrapper in ("ddp", "shared"):
        if wrapper == "shared":
            share_projections(model)
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (world,))
    if wrapper == "fsdp2":
        return fully_shard(model, mesh=mesh)
    styles = parallel.ColwiseParallel, parallel.RowwiseParallel
    return parallel.parallelize_module(model, mesh, {str(i): styles[i % 2]() for i in range(8)})


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def state_of(model):
    """The whole parameters, by the names that they have without a wrapper."""
    found = {name.removeprefix("module."): whole(p) for name, p in model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_same_everywhere(state):
    for name, tensor in state.items():
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(found, tensor.contiguous())
        assert all(torch.equal(found[0], each) for each in found), name


def backward(model, step, wrapper, optimizer, width=6):
    """Gradients of one batch, of which each process has its part, but for tensor parallelism."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, width, generator=generator, dtype=torch.double)
    if wrapper is not None and wrapper != "tp":
        x = x.chunk(dist.get_world_size())[dist.get_rank()]
    optimizer.zero_grad()
    loss = (model(x) - 0.5).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, steps, wrapper, width=6):
    for step in steps:
        backward(model, step, wrapper, optimizer, width)
        optimizer.step()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.05)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)


# ----------------------------------------------------------------------------------------- checks


def is_as_alone(wrapped, alone, tolerance):
    """Whether a model that several processes have trained is near to that of one."""
    found, expected = state_of(wrapped), state_of(alone)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=tolerance)
    return True


@check("ddp", "shared", "fsdp2", most=4)
def two_hundred_steps(wrapper):
    """The processes stay equal bit for bit, and near to what one process alone computes."""
    make, kinds = (sgd, SETS) if dist.get_world_size() == 2 else (adam, FEW)
    model, alone = (layers(sets=kinds, count=8 if kinds is SETS else 4) for _ in range(2))
    wrapped = wrap(model, wrapper)
    optimizer = make(wrapped)
    for start in range(0, 200, 50):
        train(wrapped, optimizer, range(start, start + 50), wrapper)
        assert_feasible(model)
        assert_same_everywhere(state_of(wrapped))
    train(alone, make(alone), range(200), None)
    assert is_as_alone(wrapped, alone, 1e-6)


@check("ddp", "fsdp2", least=4, most=4)
def two_hundred_steps_of_free_parameters(wrapper):
    """The same with ``mode="parametrize"``."""
    model, alone = (layers(sets=FEW, count=4, mode="parametrize") for _ in range(2))
    wrapped = wrap(model, wrapper)
    optimizer = sgd(wrapped)
    for start in range(0, 200, 50):
        train(wrapped, optimizer, range(start, start + 50), wrapper)
        assert_feasible(model)
        assert_same_everywhere(state_of(wrapped))
    train(alone, sgd(alone), range(200), None)
    assert is_as_alone(wrapped, alone, 1e-6)


@check("tp")
def tensor_parallelism(wrapper):
    """Layers cut by rows and by columns are trained as in one process."""
    model, alone = layers(), layers()
    wrapped = wrap(model, wrapper)
    train(wrapped, adam(wrapped), range(60), wrapper)
    train(alone, adam(alone), range(60), None)
    assert_feasible(model)
    assert_same_everywhere(state_of(wrapped))
    assert is_as_alone(wrapped, alone, 1e-6)


@check("fsdp2", least=4, most=4)
def replicas_of_shards(wrapper):
    """Two replicas, each in two shards."""
    model, alone = (layers(sets=FEW, count=4) for _ in range(2))
    wrapped = fully_shard(
        model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    )
    train(wrapped, adam(wrapped), range(20), wrapper)
    train(alone, adam(alone), range(20), None)
    assert_feasible(model)
    assert_same_everywhere(state_of(wrapped))
    assert is_as_alone(wrapped, alone, 1e-6)


def counted(mode):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(8))).double()
    return constrain(model, {f"{i}.weight": Counted() for i in range(8)}, mode=mode)


@check("ddp", "shared", "fsdp2", most=4)
def restorations_of_each_process(wrapper):
    """Eight equal layers: each process brings back its part of them, once a step."""
    for mode in ("project", "parametrize") if wrapper == "fsdp2" else ("project",):
        model = counted(mode)
        wrapped = wrap(model, wrapper)
        optimizer = sgd(wrapped)
        train(wrapped, optimizer, range(1), wrapper)
        restored.clear()
        train(wrapped, optimizer, range(1, 4), wrapper)
        each = 8 if wrapper == "ddp" else 8 // dist.get_world_size()
        assert sum(restored) == 3 * each, restored
        assert_feasible(model)


@check("ddp", "shared", "fsdp2", most=4)
def a_nan_that_one_process_has(wrapper):
    """All raise the same error and have changed nothing, and training goes on."""
    for on_nonfinite in ("raise", "skip"):
        model = layers(on_nonfinite=on_nonfinite)
        wrapped = wrap(model, wrapper)
        optimizer = adam(wrapped)
        train(wrapped, optimizer, range(3), wrapper)
        before = state_of(wrapped)
        backward(wrapped, 3, wrapper, optimizer)
        # In the last process, and in its own piece.
        gradient = model[6].weight.grad
        piece = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        if wrapper == "ddp" or dist.get_rank() == max(
            r for r in range(dist.get_world_size()) if r * piece.shape[0] < 6
        ):
            piece.view(-1)[:1] = float("nan")
        if on_nonfinite == "raise":
            try:
                optimizer.step()
            except NonfiniteGradientError as error:
                assert "'6.weight'" in str(error) and "step 4" in str(error), error
            else:
                raise AssertionError("no error")
            after = state_of(wrapped)
            assert all(torch.equal(before[name], after[name]) for name in before)
        else:
            optimizer.step()
            after = state_of(wrapped)
            assert torch.equal(before["6.weight"], after["6.weight"])
            assert not torch.equal(before["0.weight"], after["0.weight"])
        train(wrapped, optimizer, range(4, 7), wrapper)
        assert_feasible(model)
        assert_same_everywhere(state_of(wrapped))


@check()
def a_step_that_ends_in_infinity_for_one_process(wrapper):
    """``on_nonfinite="skip"`` goes back to where the step began, in all processes."""
    model = layers(on_nonfinite="skip")
    wrapped = wrap(model, wrapper)
    optimizer = adam(wrapped)
    train(wrapped, optimizer, range(3), wrapper)
    before = state_of(wrapped)
    optimizer.param_groups[0]["lr"] = float("nan")
    backward(wrapped, 3, wrapper, optimizer)
    optimizer.step()
    after = state_of(wrapped)
    assert all(torch.equal(before[name], after[name]) for name in SETS)


@check("shared", "fsdp2", "tp")
def a_gradient_that_one_process_alone_has(wrapper):
    """An error in all of them instead of a wait without end."""
    model = layers()
    wrapped = wrap(model, wrapper)
    optimizer = sgd(wrapped)
    backward(wrapped, 0, wrapper, optimizer)
    if dist.get_rank() == 0:
        model[3].weight.grad = None
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "'3.weight': it has a gradient in some processes" in str(error), error
    else:
        raise AssertionError("no error")
    train(wrapped, optimizer, range(3), wrapper)
    assert_feasible(model)


@check("shared", "fsdp2", most=4)
def a_process_that_fails(wrapper):
    """Where one process cannot bring its tensors back, all raise, and none waits."""
    model = counted("project")
    wrapped = wrap(model, wrapper)
    optimizer = sgd(wrapped)
    backward(wrapped, 0, wrapper, optimizer)
    Counted.is_broken = dist.get_rank() == 1
    try:
        optimizer.step()
    except OutOfRangeError as error:
        assert dist.get_rank() == 1 and str(error) == "broken on purpose"
    except RuntimeError as error:
        assert dist.get_rank() != 1 and "another process has failed" in str(error), error
    else:
        raise AssertionError("no error")
    finally:
        Counted.is_broken = False
    train(wrapped, optimizer, range(1, 4), wrapper)
    assert_feasible(model)
    assert_same_everywhere(state_of(wrapped))


@check()
def a_write_by_hand_without_a_gradient(wrapper):
    """What was written is mended by the next step, also if one process only has noticed it."""
    model = layers()
    wrapped = wrap(model, wrapper)
    optimizer = sgd(wrapped)
    train(wrapped, optimizer, range(2), wrapper)
    with torch.no_grad():
        model[0].weight.mul_(3)
    assert violations(model)["0.weight"] > 1
    optimizer.zero_grad()
    optimizer.step()
    assert_feasible(model)


@check()
def clipped_gradients(wrapper):
    model, alone = layers(), layers()
    wrapped = wrap(model, wrapper)
    for made, optimizer, kind in ((wrapped, sgd(wrapped), wrapper), (alone, sgd(alone), None)):
        for step in range(20):
            backward(made, step, kind, optimizer)
            gradients = [p.grad for p in made.parameters()]
            norm = torch.nn.utils.get_total_norm(gradients)
            assert torch.isfinite(whole(norm))
            torch.nn.utils.clip_grad_norm_(made.parameters(), 0.1)
            optimizer.step()
    assert_feasible(model)
    assert is_as_alone(wrapped, alone, 1e-8)


@check("ddp", "fsdp2", "tp")
def penalized(wrapper):
    """``mode="penalize"``: the penalty, and its gradient, are those of the whole tensors."""
    model, alone = layers(mode="penalize", init="keep"), layers(mode="penalize", init="keep")
    with torch.no_grad():
        for layer, other in zip(model, alone, strict=True):
            layer.weight.mul_(2)
            other.weight.mul_(2)
    wrapped = wrap(model, wrapper)
    for made, optimizer, kind in ((wrapped, sgd(wrapped), wrapper), (alone, sgd(alone), None)):
        for step in range(20):
            backward(made, step, kind, optimizer)
            term = penalty(model if kind else alone, weight=2.0)
            term.backward()
            optimizer.step()
    assert is_as_alone(wrapped, alone, 1e-8)


@check()
def in_half_precision(wrapper):
    """Pieces in bfloat16, which share a message with moments of the same dtype."""
    model = layers().bfloat16()
    wrapped = wrap(model, wrapper)
    optimizer = adam(wrapped)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator).bfloat16()
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
    assert_feasible(model)
    assert_same_everywhere(state_of(wrapped))


@check("fsdp2")
def gathered_by_an_evaluation(wrapper):
    """FSDP2 would use what a forward pass has gathered before the step: an error says so."""
    for first in (True, False):
        model = layers()
        wrapped = wrap(model, wrapper)
        optimizer = sgd(wrapped)
        if not first:
            train(wrapped, optimizer, range(2), wrapper)
        backward(wrapped, 2, wrapper, optimizer)
        with torch.no_grad():
            wrapped(torch.zeros(1, 6, dtype=torch.double))
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "call reshard()" in str(error), error
        else:
            raise AssertionError("no error")
        wrapped.reshard()
        optimizer.step()
        assert_feasible(model)


@check("fsdp2")
def an_optimizer_for_each_parameter(wrapper):
    """Each steps in the backward pass, as soon as its gradient is there."""
    model, alone = (layers(sets=FEW, count=4) for _ in range(2))
    wrapped = wrap(model, wrapper)
    for made, kind in ((wrapped, wrapper), (alone, None)):
        own = {p: torch.optim.Adam([p], 0.02) for p in made.parameters()}

        def step(parameter, own=own):
            own[parameter].step()

        for parameter in own:
            parameter.register_post_accumulate_grad_hook(step)
        for number in range(10):
            backward(made, number, kind, torch.optim.SGD(made.parameters()))
    assert_feasible(model)
    assert is_as_alone(wrapped, alone, 1e-8)


@check("ddp", "fsdp2")
def scaled_gradients(wrapper):
    """A GradScaler leaves a step out in all processes if one has infinity."""
    model = layers()
    wrapped = wrap(model, wrapper)
    optimizer = adam(wrapped)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(5):
        optimizer.zero_grad()
        before = state_of(wrapped)
        x = torch.ones(2, 6, dtype=torch.double)
        loss = wrapped(x).square().mean()
        if step == 3 and dist.get_rank() == 1:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after = state_of(wrapped)
        is_same = all(torch.equal(before[name], after[name]) for name in before)
        assert is_same == (step == 3), step
        assert_feasible(model)


@check("ddp")
def flat_pieces(wrapper):
    """FSDP1 leaves flat pieces, from which only sets of numbers can be kept."""
    for name in ("orthogonal", "nonnegative"):
        model = layers(sets={"0.weight": name})
        wrapped = FullyShardedDataParallel(
            model, use_orig_params=True, device_id=torch.device("cpu")
        )
        optimizer = sgd(wrapped)
        backward(wrapped, 0, "fsdp1", optimizer)
        try:
            optimizer.step()
        except RuntimeError as error:
            assert name == "orthogonal" and "fully_shard" in str(error), error
        else:
            assert name == "nonnegative"


# -------------------------------------------------------------------------------- the processes


def run(folder, rank, world, wrapper):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store_{world}_{wrapper}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {}
    for function in checks(wrapper, world):
        name = function.__name__
        try:
            found[name] = {"error": None, "result": function(wrapper)}
        except Exception:
            found[name] = {"error": traceback.format_exc(), "result": None}
        (folder / f"{world}_{wrapper}_{rank}.json").write_text(json.dumps(found))
        if found[name]["error"]:
            # The others may be at any point of this check.
            return
    dist.barrier()
    dist.destroy_process_group()


def start(folder, world, wrapper):
    """Start the processes, and return what came of the checks in each."""
    module = "tests.constrained.training.several_processes"
    command = [sys.executable, "-W", "ignore", "-m", module, str(folder)]
    own = [
        subprocess.Popen(
            [*command, str(rank), str(world), wrapper], stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in own]
    finally:
        for process in own:
            process.kill()
    places = [folder / f"{world}_{wrapper}_{rank}.json" for rank in range(world)]
    assert all(place.exists() for place in places), "\n".join(each[-2000:] for each in errors)
    return [json.loads(place.read_text()) for place in places]


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
