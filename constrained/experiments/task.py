"""The data of an experiment: examples to train and to test on, and how outputs are judged."""

# Not strict: torch leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

Measure = Callable[[Tensor, Tensor], Tensor]

#: How many examples are tested at a time.
_TESTED = 1000


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of logits, shape ``(*, classes)``, and classes, shape ``(*)``."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of targets, shape ``(*)``, that have the largest of logits ``(*, classes)``."""
    return (outputs.argmax(dim=-1) == targets).double().mean()


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared difference of two tensors of one shape."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"the outputs have the shape {tuple(outputs.shape)}, and the targets "
            f"{tuple(targets.shape)}"
        )
    return nn.functional.mse_loss(outputs, targets)


@dataclass(frozen=True)
class Task:
    """What a model is to learn. The data of an experiment are a function that returns one.

    Attributes:
        train: inputs and targets, a pair of tensors whose first dimension counts the examples; or
            a ``torch.utils.data.Dataset`` of such pairs, with a length.
        test: the same, of other examples.
        loss: of the model's outputs and the targets, as a scalar tensor.
        metrics: what else is measured on the test examples, by name, in the same way; the mean
            over batches is taken.
        baselines: what is known to be reached without learning, by the name of a metric, or
            ``"loss"``.
        alter: what is done to the inputs of each batch in training, such as fresh noise. It gets
            the inputs and the generator to draw from.
        offers: arguments that a model gets which takes some of that name, such as ``inputs``,
            unless the file has them.

    Example:
        >>> import torch
        >>> from constrained.experiments import Task
        >>> def parity(bits, seed=0):
        ...     generator = torch.Generator().manual_seed(seed)
        ...     inputs = torch.randint(2, (512, bits), generator=generator).float()
        ...     targets = inputs.sum(-1).long() % 2
        ...     train, test = (inputs[:384], targets[:384]), (inputs[384:], targets[384:])
        ...     return Task.classification(train, test, offers={"inputs": bits, "outputs": 2})
    """

    train: Any
    test: Any
    loss: Measure = cross_entropy
    metrics: Mapping[str, Measure] = field(default_factory=dict[str, Measure])
    baselines: Mapping[str, float] = field(default_factory=dict[str, float])
    alter: Callable[[Tensor, torch.Generator], Tensor] | None = None
    offers: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def classification(cls, train: Any, test: Any, **others: Any) -> Task:
        """A task whose targets are classes: cross entropy, and the accuracy beside it.

        Args:
            train: as in the class.
            test: as in the class.
            others: other attributes of the class.
        """
        given: dict[str, Any] = {"metrics": {"accuracy": accuracy}, **others}
        return cls(train, test, **given)

    @classmethod
    def of(cls, returned: Any) -> Task:
        """What a function of the user returned: a task, or the pair of its examples.

        Of a pair the targets tell what is meant: whole numbers are classes, others have the mean
        squared error.

        Raises:
            ValueError: if it is neither, or holds no examples.
        """
        if not isinstance(returned, Task):
            if not isinstance(returned, (tuple, list)) or len(returned) != 2:
                raise ValueError(
                    "it must return a constrained.experiments.Task, or a pair of the training and "
                    f"the test examples, and returned a {type(returned).__name__}."
                )
            train, test = returned
            _check(train, "training")
            targets = _taken(train, torch.arange(1))[1]
            whole = not (targets.is_floating_point() or targets.is_complex())
            task = (
                cls.classification(train, test) if whole else cls(train, test, mean_squared_error)
            )
        else:
            task = returned
        _check(task.train, "training")
        _check(task.test, "test")
        return task

    def steps(self, batch: int) -> int:
        """How many batches there are in an epoch."""
        return -(-_count(self.train) // batch)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of training batches, in random order."""
        for chosen in torch.randperm(_count(self.train), generator=generator).split(size):
            inputs, targets = _taken(self.train, chosen)
            yield (inputs if self.alter is None else self.alter(inputs, generator)), targets

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test examples, many at a time."""
        for chosen in torch.arange(_count(self.test)).split(_TESTED):
            yield _taken(self.test, chosen)

    def measures(self) -> dict[str, Measure]:
        """What is measured on the test examples, by name: the loss, and the metrics."""
        return {"loss": self.loss, **self.metrics}


def _is_pair(examples: Any) -> bool:
    return isinstance(examples, (tuple, list)) and all(isinstance(t, Tensor) for t in examples)


def _count(examples: Any) -> int:
    return len(examples[0] if _is_pair(examples) else examples)


def _taken(examples: Any, chosen: Tensor) -> tuple[Tensor, Tensor]:
    if _is_pair(examples):
        inputs, targets = examples
        return inputs[chosen], targets[chosen]
    inputs, targets = default_collate([examples[i] for i in chosen.tolist()])
    return inputs, targets


def _check(examples: Any, kind: str) -> None:
    """Raise a `ValueError` unless these are examples."""
    if _is_pair(examples):
        lengths = [len(t) if t.dim() else None for t in examples]
        if len(lengths) != 2 or lengths[0] != lengths[1] or lengths[0] is None:
            raise ValueError(
                f"its {kind} examples must be inputs and targets of one length, and are tensors of "
                f"the shapes {', '.join(str(tuple(t.shape)) for t in examples)}."
            )
    elif not (hasattr(examples, "__getitem__") and hasattr(examples, "__len__")):
        raise ValueError(
            f"its {kind} examples must be a pair of tensors or a Dataset with a length, and are a "
            f"{type(examples).__name__}."
        )
    if not _count(examples):
        raise ValueError(f"it has no {kind} examples.")
    try:
        pair = _taken(examples, torch.arange(1))
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or not _is_pair(pair):
        raise ValueError(f"its {kind} examples must be pairs of an input and a target.")
