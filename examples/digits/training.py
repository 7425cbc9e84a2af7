"""An ordinary training loop: nothing in it knows of constraints."""

# Not strict: torch leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from examples.digits import optimizer
from examples.digits.data import Digits
from examples.digits.experiment import Training
from examples.digits.model import Recurrent
from examples.digits.networks import Measure


@dataclass
class History:
    """What is written down while a network trains.

    Attributes:
        accuracy: on the test set, before the first epoch and after each.
        loss: mean training loss of each epoch.
        violation: largest violation before the first optimizer step and after each.
        seconds: what each epoch's training took, measurements not counted.
        singular_values: of the recurrent kernel, before and after training.
    """

    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    violation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    singular_values: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """Trains one network, an epoch at a time, and writes its history."""

    def __init__(
        self, model: Recurrent, digits: Digits, training: Training, measure: Measure
    ) -> None:
        self.model = model
        self.digits = digits
        self.training = training
        self.measure = measure
        self.optimizer = optimizer.build(model, training)
        steps = math.ceil(len(digits.train) / training.batch)
        self.schedule = optimizer.schedule(self.optimizer, training, steps)
        # A generator of its own, so that every network sees the same batches and the same noise.
        self.generator = torch.Generator().manual_seed(training.seed)
        self.history = History(
            accuracy=[self.accuracy()],
            violation=[measure(model)],
            singular_values={"before": self.singular_values()},
        )

    def epoch(self) -> None:
        """One pass over the training images."""
        losses, seconds = [], 0.0
        for sequences, labels in self.digits.batches(self.training.batch, self.generator):
            start = time.perf_counter()
            losses.append(self.step(sequences, labels))
            seconds += time.perf_counter() - start
            self.history.violation.append(self.measure(self.model))
        self.history.loss.append(sum(losses) / len(losses))
        self.history.seconds.append(seconds)
        self.history.accuracy.append(self.accuracy())
        self.history.singular_values["after"] = self.singular_values()

    def step(self, sequences: Tensor, labels: Tensor) -> float:
        """One optimizer step on one batch; returns the loss."""
        loss = nn.functional.cross_entropy(self.model(sequences), labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self) -> float:
        """Accuracy on the test set."""
        right = self.model(self.digits.test).argmax(dim=-1) == self.digits.test_labels
        return right.double().mean().item()

    def singular_values(self) -> list[float]:
        """Of the recurrent kernel, largest first."""
        return torch.linalg.svdvals(self.model.kernel()).tolist()
