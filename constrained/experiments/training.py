"""An ordinary training loop: nothing in it knows of constraints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from constrained.constraint.errors import OutOfRangeError
from constrained.experiments import optimizer
from constrained.experiments.experiment import Experiment
from constrained.experiments.networks import Judge
from constrained.experiments.random_state import RandomState
from constrained.experiments.task import Task
from constrained.torch_internals.linalg import LinAlgError


@dataclass
class History:
    """What is written down while a network trains.

    Attributes:
        test: the loss and each metric on the test examples, before the first epoch and after each.
        loss: mean training loss of each epoch.
        violation: largest violation before the first optimizer step and after each.
        seconds: what each epoch's training took, measurements not counted.
        singular_values: of the first constrained matrix, before and after training.
        stopped: why training ended early, in a sentence; "" if it did not.
    """

    test: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    loss: list[float] = field(default_factory=list[float])
    violation: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])
    singular_values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    stopped: str = ""


class NotFiniteError(ArithmeticError):
    """The loss or the gradient is NaN or infinite."""


class Trainer:
    """Trains one network, an epoch at a time, and writes its history.

    Args:
        model: the network.
        task: what it is to learn.
        experiment: how.
        judge: of its violation.
        device: where the network is.
        monitor: what is called with the number of the step, between the backward pass and the step.

    Raises:
        ExperimentError: if the optimizer cannot be made.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        experiment: Experiment,
        judge: Judge,
        device: torch.device,
        monitor: Callable[[int], object] | None = None,
    ) -> None:
        training = experiment.training
        self.model, self.task, self.judge, self.device = model, task, judge, device
        self.batch, self.clip, self.monitor = training.batch, training.clip, monitor
        self.optimizer = optimizer.build(model, experiment)
        self.needs_closure = optimizer.needs_closure(self.optimizer)
        steps = training.epochs * task.steps(training.batch)
        self.schedule = optimizer.schedule(self.optimizer, training.schedule, steps)
        # Generators of its own, so that every network sees the same batches and the same noise,
        # and drops out the same units, whether there is another network or not.
        self.generator = torch.Generator().manual_seed(training.seed)
        self.random = RandomState(training.seed)
        self.history = History()
        self.steps = 0

    def begin(self) -> None:
        """Measure the network as it starts."""
        with self.random.entered():
            self._test()
        self.history.violation.append(self.judge.violation(self.model))
        self.history.singular_values["before"] = self.judge.singular_values(self.model)

    def epoch(self) -> None:
        """One pass over the training examples; nothing if training has stopped."""
        history = self.history
        if history.stopped:
            return
        losses: list[float] = []
        seconds = 0.0
        number = len(history.loss) + 1
        with self.random.entered():
            try:
                for inputs, targets in self.task.batches(self.batch, self.generator):
                    seconds += self._step(inputs.to(self.device), targets.to(self.device), losses)
                    history.violation.append(self.judge.violation(self.model))
            except (NotFiniteError, OutOfRangeError, LinAlgError) as error:
                sentence = str(error).rstrip(".")
                history.stopped = f"in epoch {number}, at step {self.steps}: {sentence}."
                return
            history.loss.append(sum(losses) / len(losses))
            history.seconds.append(seconds)
            self._test()
        broken = [name for name, values in history.test.items() if not math.isfinite(values[-1])]
        if broken:
            history.stopped = f"after epoch {number}: the test {broken[0]} is not finite."
        history.singular_values["after"] = self.judge.singular_values(self.model)

    def _step(self, inputs: Tensor, targets: Tensor, losses: list[float]) -> float:
        """One optimizer step on one batch; returns the seconds that it took."""
        self.steps += 1
        start = time.perf_counter()
        losses.append(self._backward(inputs, targets))
        seconds = time.perf_counter() - start
        if self.monitor is not None:
            self.monitor(self.steps)
        start = time.perf_counter()
        if self.needs_closure:
            self.optimizer.step(lambda: self._backward(inputs, targets))
        else:
            self.optimizer.step()
        self.schedule.step()
        return seconds + time.perf_counter() - start

    def _backward(self, inputs: Tensor, targets: Tensor) -> float:
        loss = self.task.loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            if not math.isfinite(norm):
                raise NotFiniteError(f"the norm of the gradient is {float(norm)}")
        number = loss.item()
        if not math.isfinite(number):
            raise NotFiniteError(f"the loss is {number}")
        return number

    @torch.no_grad()
    def _test(self) -> None:
        """The loss and the metrics on the test examples."""
        sums = dict.fromkeys(self.task.measures(), 0.0)
        count = 0
        self.model.eval()
        for inputs, targets in self.task.test_batches():
            outputs = self.model(inputs.to(self.device))
            count += len(targets)
            for name, measure in self.task.measures().items():
                sums[name] += float(measure(outputs, targets.to(self.device))) * len(targets)
        self.model.train()
        for name, total in sums.items():
            self.history.test.setdefault(name, []).append(total / count)
