"""Threads, tasks and generators: a value is never returned to another reader (E10)."""

import asyncio
import copy
import gc
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained.evaluation.cached import active_context
from tests.promises.counting import (
    Foreign,
    Positive,
    Sphere,
    evaluations,
    layer,
    original,
    reset,
)
from tests.promises.threads import run_all, train


@pytest.mark.parametrize("make", [Sphere, Foreign])
@pytest.mark.parametrize("inside_cached", [False, True])
def test_e10_threads_that_train_a_copy_each(make, inside_cached, fast_switching):
    models = [layer(make()) for _ in range(4)]
    with torch.no_grad():
        for m in models:
            original(m).mul_(0.5)
    expected = [train(copy.deepcopy(m), seed=i) for i, m in enumerate(models)]

    def work(i):
        if inside_cached:
            with ours.cached():
                train(models[i], seed=i)
        else:
            train(models[i], seed=i)

    run_all(*[lambda i=i: work(i) for i in range(4)])
    for m, twin in zip(models, expected, strict=True):
        for p, q in zip(m.parameters(), twin.parameters(), strict=True):
            assert_close(p, q)


@pytest.mark.torch_today
def test_e10_a_training_and_an_evaluating_thread_in_torch_today():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Foreign())
    entered, left = threading.Event(), threading.Event()

    def evaluating():
        with torch.no_grad(), torchs.cached():
            _ = m.weight
            entered.set()
            left.wait()

    thread = threading.Thread(target=evaluating)
    thread.start()
    entered.wait()
    try:
        assert not m.weight.requires_grad
    finally:
        left.set()
        thread.join()


def test_e10_a_thread_outside_is_not_inside():
    m = layer(Foreign())
    entered, left = threading.Event(), threading.Event()

    def inside():
        with torch.no_grad(), ours.cached():
            _ = m.weight
            entered.set()
            left.wait()

    thread = threading.Thread(target=inside)
    thread.start()
    entered.wait()
    try:
        assert active_context() is None
        assert m.weight.requires_grad and m.weight is not m.weight
    finally:
        left.set()
        thread.join()


def test_e10_many_short_threads(fast_switching):
    """Each leaves a stored value behind, which is dropped and never returned to another thread."""
    m = layer(Sphere())

    def read():
        for _ in range(20):
            assert_close(m.weight.norm(dim=1).detach(), torch.ones(3))
            m.weight.sum().backward(inputs=[original(m)])

    for _ in range(5):
        run_all(*[read] * 8)
    run_all(read)
    _ = m.weight
    store = m.parametrizations.weight._store
    assert len(store._values) <= 2


def test_e10_threads_come_and_go_while_originals_move(fast_switching):
    m = layer(Sphere())

    def once():
        _ = m.weight

    def often():
        for _ in range(40):
            with torch.no_grad():
                original(m).add_(1e-3)
            _ = m.weight

    for _ in range(15):
        run_all(*[once, often] * 10)
    assert_close(m.weight, m.parametrizations.weight())


def test_e10_a_backward_pass_in_another_thread():
    m = layer(Sphere())
    loss = m.weight.sin().sum()
    expected = torch.autograd.grad(m.parametrizations.weight().sin().sum(), original(m))[0]
    run_all(loss.backward)
    assert_close(original(m).grad, expected)
    m.weight.sin().sum().backward()
    assert_close(original(m).grad, 2 * expected)


def test_e10_two_backward_passes_at_once(fast_switching):
    m = layer(Sphere())
    losses = [m.weight.sin().sum() for _ in range(8)]
    expected = torch.autograd.grad(m.parametrizations.weight().sin().sum(), original(m))[0]
    found = []
    run_all(*[lambda x=loss: found.extend(torch.autograd.grad(x, original(m))) for loss in losses])
    assert len(found) == 8
    for g in found:
        assert_close(g, expected)


def test_e10_copying_and_saving_while_others_read(fast_switching):
    m = layer(Sphere())
    done = threading.Event()

    def reading():
        while not done.is_set():
            _ = m.weight

    def copying():
        try:
            for _ in range(20):
                twin = copy.deepcopy(m)
                assert_close(twin.weight, m.weight)
        finally:
            done.set()

    run_all(reading, reading, copying)


# ------------------------------------------------------------------------------- tasks, generators


def test_e10_tasks():
    m = layer(Foreign())

    async def inside(ready, finish):
        with ours.cached():
            w = m.weight
            ready.set()
            await finish.wait()
            again = m.weight
            return torch.equal(w, again)

    async def outside(ready, finish):
        await ready.wait()
        try:
            assert active_context() is None
            assert m.weight is not m.weight
        finally:
            finish.set()

    async def main():
        ready, finish = asyncio.Event(), asyncio.Event()
        same, _ = await asyncio.gather(inside(ready, finish), outside(ready, finish))
        assert same and active_context() is None

    asyncio.run(main())


@pytest.mark.torch_today
def test_e10_tasks_in_torch_today():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Foreign())

    async def inside(ready, finish):
        with torchs.cached():
            ready.set()
            await finish.wait()

    async def main():
        ready, finish = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(ready, finish))
        await ready.wait()
        assert m.weight is m.weight
        finish.set()
        await task

    asyncio.run(main())


def test_e10_a_task_that_outlives_the_context_it_was_started_in():
    m = layer(Foreign())

    async def child(finish):
        assert active_context() is not None
        with ours.cached():
            await finish.wait()
            return m.weight is m.weight

    async def main():
        finish = asyncio.Event()
        with ours.cached():
            task = asyncio.create_task(child(finish))
            await asyncio.sleep(0)
            assert m.weight is m.weight
        assert active_context() is None
        assert m.weight is not m.weight
        finish.set()
        assert await task
        assert active_context() is None

    asyncio.run(main())


def test_e10_a_child_that_leaves_first():
    m = layer(Foreign())

    async def child():
        with ours.cached():
            return m.weight is m.weight

    async def main():
        with ours.cached():
            assert await asyncio.create_task(child())
            assert await asyncio.to_thread(lambda: active_context() is not None)
            assert m.weight is m.weight
        assert active_context() is None

    asyncio.run(main())


def cached_generator(m):
    with ours.cached():
        yield m.weight
        yield m.weight


def test_e10_a_suspended_generator_spoils_nothing():
    m = layer(Foreign())
    g = cached_generator(m)
    next(g)
    for _ in range(3):
        m.zero_grad()
        m(torch.ones(1, 3)).pow(2).sum().backward()
        torch.optim.SGD(m.parameters(), lr=0.1).step()
        assert_close(m.weight, m.parametrizations.weight())
    assert_close(next(g), m.parametrizations.weight())
    g.close()
    assert active_context() is None


@pytest.mark.parametrize("order", ["first in, first out", "last in, first out", "collected"])
def test_e10_generators_that_end_in_any_order(order):
    m = layer(Foreign())
    a, b = cached_generator(m), cached_generator(m)
    next(a), next(b)
    if order == "collected":
        del a, b
        gc.collect()
    else:
        for g in (a, b) if order.startswith("first") else (b, a):
            g.close()
    assert active_context() is None
    assert m.weight is not m.weight
    with ours.cached():
        assert m.weight is m.weight


def test_e10_a_generator_that_ends_in_another_thread():
    m = layer(Foreign())
    g = cached_generator(m)
    next(g)
    run_all(g.close)
    assert active_context() is None
    assert m.weight is not m.weight


def test_e10_a_generator_that_ends_in_another_task():
    m = layer(Foreign())
    g = cached_generator(m)

    async def main():
        async def start():
            next(g)

        async def end():
            g.close()
            return active_context()

        await asyncio.create_task(start())
        assert await asyncio.create_task(end()) is None

    asyncio.run(main())
    assert active_context() is None


def test_e10_shared_memory_is_never_trusted():
    """Another process may write there without changing a version counter of this one."""
    m = layer(Positive())
    m.share_memory()
    reset(m)
    _ = m.weight, m.weight
    assert evaluations(m) == 2
