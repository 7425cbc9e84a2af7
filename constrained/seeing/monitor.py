"""How the constraints of a model hold during training."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from constrained.constraint.base import Constraint
from constrained.constraint.plain_data import short
from constrained.parametrized.tensor_locations import Holder, check_model, constrained_tensors
from constrained.seeing.reading import Reading, reading_of, value_of
from constrained.seeing.sinks import Record, progress_line, sinks_of


class Monitor:
    """Read the constrained tensors of a model every so many steps, and write down what was read.

    Violation, drift since the monitor was made, the largest and the smallest singular value and the
    condition of matrices, and the gradient along the set: `Reading` says what each of them is. Call
    it between the backward pass and the step of the optimizer, or by a hook::

        monitor = Monitor(model, every=100, to="runs/log.csv")
        for step, batch in enumerate(batches):
            loss(model, batch).backward()
            monitor(step)
            optimizer.step()
            optimizer.zero_grad()

        optimizer.register_step_pre_hook(monitor)       # instead of the call

    After the step (``register_step_post_hook``) all is told as well, but the gradient is that of
    the parameters before it. With a gradient scaler, unscale the gradients first.

    Training is the same with a monitor and without one, bit for bit: it evaluates each tensor by
    itself, draws no random numbers, and changes neither stored values nor gradients. It costs an
    evaluation and its forward derivative for each tensor, and its singular values.

    Not read are tensors that foreign modules parametrize, and those whose value is no function of
    their parameters alone, with a warning: to evaluate them once more might change them.

    Args:
        model: the model. Tensors that are constrained later are read as well.
        every: how many steps apart.
        to: the path of a CSV file, which is appended to; an object with ``add_scalar``, as the
            ``SummaryWriter`` of TensorBoard; an object with ``log_metrics``, as the loggers of
            Lightning; a function of the step and a dict of numbers; or a list of these. NaN and
            infinity are written as such.
        progress: also tell the worst numbers in one line on the terminal.
        spectrum: whether to read singular values: of all matrices (True), of none (False), or of
            those with up to 1024 rows or columns (None), since those of larger ones take seconds.
        drift: whether to keep a copy of each value at the start, on its device, and tell how far
            the tensor is from there.

    Attributes:
        records: what was read, step by step.
        start: the values at the start, by the paths of the tensors, as `constrained.report` takes
            them.

    Raises:
        TypeError: if the model is no module, or ``to`` is none of these.
        ValueError: if ``every`` is less than 1, or the file was not written by a monitor.

    Example:
        >>> import torch, constrained
        >>> model = constrained.constrain(torch.nn.Linear(3, 3), "weight", "orthogonal")
        >>> monitor = constrained.Monitor(model, every=10)
        >>> for step in range(30):
        ...     monitor(step)
        >>> print(*(record.step for record in monitor.records))
        0 10 20
        >>> monitor.records[-1].tensors["weight"].drift
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        to: Any = None,
        progress: bool = False,
        spectrum: bool | None = None,
        drift: bool = True,
    ) -> None:
        check_model(model)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:  # pyright: ignore[reportUnnecessaryIsInstance] - users
            raise ValueError(f"every must be a whole number of steps, 1 or more, got {every!r}.")
        self.model, self.every, self.spectrum, self.drift = model, every, spectrum, drift
        self.records: list[Record] = []
        self.start: dict[str, Tensor] = {}
        self._sinks = [*sinks_of(to), *([progress_line()] if progress else [])]
        self._calls = 0
        self._told: set[str] = set()
        for path, found, _ in self._readable():
            self._remember(path, found)

    def __call__(self, step: int | Optimizer | None = None, *_: Any) -> None:
        """Read all tensors if it is time to.

        Args:
            step: the number of the step, of which every multiple of ``every`` is recorded; without
                one, calls are counted, from 1 on. A hook of an optimizer gives the optimizer.
        """
        self._calls += 1
        number = self._calls if step is None or isinstance(step, Optimizer) else _whole(step)
        if number % self.every == 0:
            self.record(number)

    def record(self, step: int) -> Record:
        """Read all tensors now. A step that was recorded last is not recorded twice."""
        if self.records and self.records[-1].step == step:
            return self.records[-1]
        readings: dict[str, Reading] = {}
        for path, found, constraint in self._readable():
            self._remember(path, found)
            start = self.start.get(path)
            if start is not None and start.shape != found.shape:
                # The tensor was replaced by one of another shape.
                start = None
            readings[path] = reading_of(path, found, constraint, start, self.spectrum)
        record = Record(step, readings)
        self.records.append(record)
        for write in self._sinks:
            write(record)
        return record

    def _remember(self, path: str, found: Holder) -> None:
        if self.drift and path not in self.start:
            value = value_of(found)
            if value is not None:
                self.start[path] = value.detach().clone()

    def _readable(self) -> list[tuple[str, Holder, Constraint]]:
        """The tensors whose value is a function of their parameters alone."""
        found = list(constrained_tensors(self.model))
        for path, parametrizations, _ in found:
            if not parametrizations.is_pure() and path not in self._told:
                self._told.add(path)
                warnings.warn(
                    f"'{path}' is not monitored: under {parametrizations.described()} its value is "
                    "no function of its parameters alone, and reading it might change it.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return [item for item in found if item[1].is_pure()]


def _whole(step: Any) -> int:
    try:
        return int(step)
    except (ValueError, TypeError, OverflowError):
        raise TypeError(
            f"The step of a monitor is a whole number, got {short(step)} ({type(step).__name__})."
        ) from None
