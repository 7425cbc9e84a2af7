"""Threads and tasks that work on one model at the same time (E10).

Each thread has its own values: a value and its graph are never returned to another thread. If an
original changes during an evaluation, the value is computed again, a few times at most. If it
still changed during the last evaluation, the value is returned, as by a plain module, but not
stored. A step between another thread's forward and backward pass raises there, as it does on a
plain module.
"""

import asyncio
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from constrained.evaluation import stored_value
from constrained.evaluation.value_store import _ATTEMPTS
from tests.promises.counting import (
    Foreign,
    Sphere,
    evaluations,
    layer,
    original,
    reset,
)
from tests.promises.threads import run_all, train

# ---------------------------------------------------- an original moves during an evaluation


class Interrupted(Sphere):
    """Vectors of length one; something happens between the two reads of the argument."""

    def __init__(self):
        super().__init__()
        self.__dict__["_meanwhile"] = []

    def forward(self, x):
        self._tick()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self.__dict__["_meanwhile"]:
            # In another thread, as the step of an optimizer would be.
            run_all(self.__dict__["_meanwhile"].pop())
        return x / norm


WRITES = {
    "in place": lambda p, k: p.add_(torch.full_like(p, 1.0 + k)),
    "data": lambda p, k: p.data.copy_(torch.randn(p.shape)),
    "one entry": lambda p, k: p.data[0, 0].add_(1.0 + k),
}


def interrupted(write, times):
    m = layer(Interrupted())
    p = original(m)

    def act(k):
        with torch.no_grad():
            WRITES[write](p, k)

    m.parametrizations.weight[0].__dict__["_meanwhile"] = [lambda k=k: act(k) for k in range(times)]
    return m


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("times", range(_ATTEMPTS))
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_e10_a_value_that_was_torn_is_computed_again(write, times, mode):
    m = interrupted(write, times)
    with mode():
        w = m.weight
        assert evaluations(m) == times + 1
        assert_close(w, nn.functional.normalize(original(m), dim=1))
        assert m.weight is w and evaluations(m) == times + 1
    if w.requires_grad:
        w.sin().sum().backward()
        fresh = nn.functional.normalize(original(m), dim=1).sin().sum()
        assert_close(original(m).grad, torch.autograd.grad(fresh, original(m))[0])


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_e10_a_torn_value_is_never_stored(write, mode, measured):
    m = interrupted(write, _ATTEMPTS)
    with mode():
        torn = m.weight
        assert evaluations(m) == _ATTEMPTS
        assert not m.parametrizations.weight._store._values
        if torn.requires_grad and write == "in place":
            # It has a gradient: without one, training would silently lose it.
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(torn.sum(), original(m))
        w = m.weight
        assert evaluations(m) == _ATTEMPTS + 1
        assert_close(w, nn.functional.normalize(original(m), dim=1))
        assert m.weight is w
    measured(f"at most {_ATTEMPTS} evaluations a read; torn ones are not stored")


@pytest.mark.parametrize("times", [1, _ATTEMPTS])
def test_e10_a_step_when_a_value_is_about_to_be_stored(times, monkeypatch):
    """The graph has been built, but the nodes of its inputs have been replaced."""
    m = layer(Sphere())
    left = [1.0] * times

    def replay(graph, *inputs):
        if left:
            run_all(lambda: original(m).detach().add_(left.pop()))
        return replay_of(graph, *inputs)

    replay_of = stored_value.replay
    monkeypatch.setattr(stored_value, "replay", replay)
    w = m.weight
    assert evaluations(m) == min(times + 1, _ATTEMPTS)
    if times < _ATTEMPTS:
        (found,) = torch.autograd.grad(w.sin().sum(), original(m))
        fresh = nn.functional.normalize(original(m), dim=1).sin().sum()
        assert_close(found, torch.autograd.grad(fresh, original(m))[0])
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(w.sin().sum(), original(m))


def test_e10_a_foreign_module_is_not_run_again():
    class Meddling(Foreign):
        def forward(self, x):
            self.__dict__["count"] += 1
            run_all(lambda: original(m).data.add_(1))
            return x * 2

    m = layer(Foreign())
    m.parametrizations.weight[0] = Meddling()
    with torch.no_grad(), ours.cached():
        _ = m.weight
        assert evaluations(m) == 1
        assert not m.parametrizations.weight._store._values


# ------------------------------------------------------------------ one trains, others evaluate


@pytest.mark.parametrize("make", [Sphere, Foreign])
def test_e10_one_model_in_a_training_and_two_evaluating_threads(make, fast_switching):
    m = layer(make())
    with torch.no_grad():
        original(m).mul_(0.5)
    twin = train(copy.deepcopy(m), steps=60)
    done = threading.Event()
    looks = []

    def training():
        try:
            with ours.cached():
                train(m, steps=60)
        finally:
            done.set()

    def evaluating(mode):
        with mode(), ours.cached():
            while not done.is_set():
                out = m(torch.ones(1, 3))
                assert not out.requires_grad and torch.isfinite(out).all()
                if make is Sphere:
                    before = original(m)._version
                    w = m.weight.clone()
                    # If nothing changed meanwhile, the value belongs to one state of the original.
                    if original(m)._version == before:
                        assert_close(w.norm(dim=1), torch.ones(3))
                        looks.append(1)

    run_all(training, lambda: evaluating(torch.no_grad), lambda: evaluating(torch.inference_mode))
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        assert_close(p, q)
    with torch.no_grad():
        assert_close(m.weight, m.parametrizations.weight())


# -------------------------------------------------------------------------------- several train


def plain_or_constrained(constrained):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    if constrained:
        constrain(m, {"0.weight": Sphere(), "2.weight": "orthogonal"})
    return m


@pytest.mark.parametrize("inside_cached", [False, True])
def test_e10_threads_accumulate_gradients_of_one_model(inside_cached, fast_switching, measured):
    """Concurrent forward and backward passes, then one step, give what one thread gives."""
    m, alone = plain_or_constrained(True), plain_or_constrained(True)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (m, alone)]
    x = torch.randn(4, 5, 4, dtype=torch.double)

    def work(part):
        if inside_cached:
            with ours.cached():
                m(part).pow(2).sum().backward()
        else:
            m(part).pow(2).sum().backward()

    for _ in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        run_all(*[lambda part=part: work(part) for part in x])
        for part in x:
            alone(part).pow(2).sum().backward()
        for p, q in zip(m.parameters(), alone.parameters(), strict=True):
            assert_close(p.grad, q.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert_close(dict(m.state_dict()), dict(alone.state_dict()))
    measured("4 threads: gradients as of one")


def test_e10_threads_that_take_steps_by_turns(fast_switching):
    """Steps under a lock give what one thread gives; no stale value is used."""
    m, alone = plain_or_constrained(True), plain_or_constrained(True)
    x = torch.randn(5, 4, dtype=torch.double)
    lock = threading.Lock()
    reset(m)

    def step(module, optimizer):
        optimizer.zero_grad()
        module(x).pow(2).sum().backward()
        optimizer.step()

    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)

    def work():
        for _ in range(10):
            with lock:
                step(m, optimizer)

    run_all(work, work, work)
    assert evaluations(m) == 30
    theirs = torch.optim.SGD(alone.parameters(), lr=0.1)
    for _ in range(30):
        step(alone, theirs)
    assert_close(dict(m.state_dict()), dict(alone.state_dict()))


@pytest.mark.parametrize("constrained", [False, True], ids=["plain", "constrained"])
def test_e10_threads_that_step_without_asking(constrained, fast_switching, measured):
    """A step between another thread's forward and backward raises, and is the only error."""
    m = plain_or_constrained(constrained)
    x = torch.randn(5, 4, dtype=torch.double)
    found = {"steps": 0, "found out": 0}

    def work():
        for _ in range(40):
            try:
                gradients = torch.autograd.grad(m(x).pow(2).sum(), list(m.parameters()))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error), error
                found["found out"] += 1
                continue
            with torch.no_grad():
                for p, g in zip(m.parameters(), gradients, strict=True):
                    assert torch.isfinite(g).all()
                    p.sub_(0.01 * g)
            found["steps"] += 1

    run_all(work, work)
    assert sum(found.values()) == 80 and found["steps"] > 0
    if constrained:
        for k in (0, 2):
            assert_close(m[k].weight, m[k].parametrizations.weight())
    if constrained:
        measured("2 threads without a lock: wrong gradients raise, nothing else does")


@pytest.mark.parametrize("constrained", [False, True], ids=["plain", "constrained"])
def test_e10_a_step_between_forward_and_backward_of_another_thread(constrained):
    m = plain_or_constrained(constrained)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    x = torch.randn(5, 4, dtype=torch.double)
    loss = m(x).pow(2).sum()

    def other():
        optimizer.zero_grad()
        m(x).pow(2).sum().backward()
        optimizer.step()

    run_all(other)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    optimizer.zero_grad()
    m(x).pow(2).sum().backward()
    twin = copy.deepcopy(m)
    twin.zero_grad()
    twin(x).pow(2).sum().backward()
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        assert_close(p.grad, q.grad)


@pytest.mark.torch_today
def test_e10_two_training_threads_in_torch_today(measured):
    """Inside ``cached()`` both share one value, and the second backward pass fails."""
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", nn.Tanh())
    errors = []
    both = threading.Barrier(2)

    def work():
        with torchs.cached():
            both.wait()
            out = m(torch.ones(1, 3)).pow(2).sum()
            both.wait()
            try:
                out.backward()
            except RuntimeError as error:
                errors.append(str(error))
            both.wait()

    # The first fills the cache for both.
    with torchs.cached():
        _ = m.weight
        run_all(work, work)
    assert len(errors) == 1 and "second time" in errors[0]
    measured("1 of 2 backward passes raises")


# ------------------------------------------------------------------------------- tasks, generators


@pytest.mark.parametrize("inside_cached", [False, True])
def test_e10_tasks_that_train_and_evaluate_by_turns(inside_cached):
    """Tasks in one thread are interrupted between a read and its use."""
    m = layer(Sphere())
    with torch.no_grad():
        original(m).mul_(0.5)
    twin = copy.deepcopy(m)
    x = torch.randn(4, 3)

    async def training(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            out = module(x)
            await asyncio.sleep(0)
            loss = module(out).tanh().pow(2).sum()
            await asyncio.sleep(0)
            loss.backward()
            await asyncio.sleep(0)
            optimizer.step()

    async def evaluating():
        for _ in range(60):
            # Gradient modes belong to a thread: a task sets its own, and leaves it before it waits.
            with torch.no_grad():
                w = m.weight
                assert not w.requires_grad
                assert_close(w, m.parametrizations.weight())
            await asyncio.sleep(0)

    async def guarded(task):
        if inside_cached:
            with ours.cached():
                await task
        else:
            await task

    async def main():
        await asyncio.gather(guarded(training(m)), guarded(evaluating()), evaluating())

    asyncio.run(main())
    asyncio.run(training(twin))
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        assert_close(p, q)


@pytest.mark.parametrize("make", [Sphere, Foreign])
def test_e10_a_generator_without_gradients_is_left_in_the_middle(make):
    """Gradients stay off while it is suspended; its value is not reused in training."""
    m = layer(make())

    @torch.no_grad()
    def rows():
        with ours.cached():
            for k in range(3):
                yield m.weight[k]

    for row in rows():
        assert not row.requires_grad
        m.zero_grad()
        m(torch.ones(1, 3)).sum().backward()
        assert original(m).grad is not None
        torch.optim.SGD(m.parameters(), lr=0.1).step()
        assert_close(m.weight, m.parametrizations.weight())
