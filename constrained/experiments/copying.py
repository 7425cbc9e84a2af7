"""The copying-memory task: symbols, a long wait, and the same symbols again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.experiments.arguments import whole
from constrained.experiments.task import Task, accuracy, cross_entropy


def copying(
    wait: int = 100,
    symbols: int = 8,
    length: int = 10,
    train: int = 6400,
    test: int = 500,
    seed: int = 0,
) -> Task:
    """Read ``length`` symbols, wait ``wait`` steps, and write them down again.

    A sequence has ``wait + 2 * length`` steps: the symbols, blanks, of which the last but
    ``length`` is the signal to write, and what is to be written is blank until then. Of T blank
    steps the best that can be done without memory, to guess the symbols, has the cross entropy
    ``length * ln(symbols) / (T + 2 * length)``; both are in the outcome. The accuracy is that of
    the symbols alone. Inputs are one-hot, shape ``(n, steps, symbols + 2)``; targets are classes,
    shape ``(n, steps)``.

    Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks" (ICML 2016), after
    Hochreiter and Schmidhuber (1997).

    Args:
        wait: T, the steps between.
        symbols: how many different symbols there are.
        length: how many are to be remembered.
        train: the number of training sequences.
        test: the number of test sequences.
        seed: of both.

    Raises:
        ValueError: for other arguments.
    """
    whole("wait", wait, 1)
    whole("symbols", symbols, 2)
    whole("length", length, 1)
    whole("train", train, 1)
    whole("test", test, 1)
    generator = torch.Generator().manual_seed(seed)
    blank, signal, steps = symbols, symbols + 1, wait + 2 * length

    def examples(n: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(symbols, (n, length), generator=generator)
        read = torch.full((n, steps), blank)
        read[:, :length] = drawn
        read[:, -length - 1] = signal
        written = torch.full((n, steps), blank)
        written[:, -length:] = drawn
        return torch.eye(symbols + 2)[read], written

    def recalled(outputs: Tensor, targets: Tensor) -> Tensor:
        return accuracy(outputs[:, -length:], targets[:, -length:])

    return Task(
        train=examples(train),
        test=examples(test),
        loss=cross_entropy,
        metrics={"accuracy": recalled},
        baselines={"loss": length * math.log(symbols) / steps, "accuracy": 1 / symbols},
        offers={"inputs": symbols + 2, "outputs": symbols + 1, "every_step": True},
    )
