"""Run functions in several threads at the same time."""

import threading

import torch

from tests.promises.counting import original


def run_all(*functions):
    """Run functions in threads at the same time, and re-raise the first error."""
    errors = []
    start = threading.Barrier(len(functions))

    def guarded(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def train(m, steps=30, seed=0):
    optimizer = torch.optim.SGD(m.parameters(), lr=0.05)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    for _ in range(steps):
        optimizer.zero_grad()
        (m(m(x)).tanh().pow(2).sum() + m.weight.pow(2).sum()).backward()
        assert original(m).grad is not None
        optimizer.step()
    return m
