"""Monitors as callbacks of Lightning and of the Trainer of transformers.

Their classes derive from classes of these libraries, which are imported when one is asked for::

    from constrained.seeing import LightningMonitor, TransformersMonitor
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from constrained.seeing.monitor import Monitor
from constrained.seeing.sinks import Record

_LIGHTNING = "lightning.pytorch", "pytorch_lightning"


class _Callback:
    """What both share: a monitor, which is made when training starts.

    Args:
        every: how many steps apart.
        to: where to write, beside the logs of the library; see `Monitor`.
        progress: see `Monitor`.
        spectrum: see `Monitor`.
        drift: see `Monitor`.

    Attributes:
        monitor: the monitor, once training has started.
    """

    def __init__(
        self,
        every: int = 50,
        to: Any = None,
        *,
        progress: bool = False,
        spectrum: bool | None = None,
        drift: bool = True,
    ) -> None:
        super().__init__()
        self.every, self.to = every, to
        self._more: dict[str, Any] = {"progress": progress, "spectrum": spectrum, "drift": drift}
        self.monitor: Monitor | None = None

    def _begin(self, model: Any, log: Callable[[int, dict[str, float]], None], first: bool) -> None:
        """Make the monitor; only the first of several processes writes."""
        more = self._more if first else {**self._more, "progress": False}
        self.monitor = Monitor(
            model, every=self.every, to=[self.to, log] if first else None, **more
        )

    def _end(self, step: int) -> Record | None:
        return None if self.monitor is None else self.monitor.record(step)


@functools.cache
def _lightning_monitor() -> type[Any]:
    library = next((name for name in _LIGHTNING if name in sys.modules), None)
    try:
        base: Any = import_module(library or _LIGHTNING[0]).Callback
    except ImportError:
        raise ImportError(
            "LightningMonitor is a callback of Lightning, which is not installed: "
            "pip install lightning."
        ) from None

    class LightningMonitor(_Callback, base):
        """A `Monitor` as a callback of Lightning: ``Trainer(callbacks=[LightningMonitor()])``.

        It reads between the backward pass and the step of the optimizer, after gradients are
        unscaled and before they are clipped, and once more when training ends. All loggers of the
        trainer get what was read.
        """

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Make the monitor."""

            def log(step: int, metrics: dict[str, float]) -> None:
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=step)

            self._begin(pl_module, log, trainer.is_global_zero)

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            """Read, if it is time to."""
            if self.monitor is not None:
                self.monitor(trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """Read what training has led to."""
            self._end(trainer.global_step)

    return _named(LightningMonitor)


@functools.cache
def _transformers_monitor() -> type[Any]:
    try:
        base: Any = import_module("transformers").TrainerCallback
    except ImportError:
        raise ImportError(
            "TransformersMonitor is a callback of the Trainer of transformers, which is not "
            "installed: pip install transformers."
        ) from None
    if not hasattr(base, "on_pre_optimizer_step"):
        raise ImportError(
            "TransformersMonitor needs a version of transformers whose TrainerCallback has "
            "on_pre_optimizer_step: upgrade transformers."
        )

    class TransformersMonitor(_Callback, base):
        """A `Monitor` as a callback of the Trainer: ``Trainer(callbacks=[TransformersMonitor()])``.

        It reads between the backward pass and the step of the optimizer, after gradients are
        clipped, and once more when training ends. What was read is in the ``log_history`` of the
        trainer's state, and in the ``trainer_state.json`` of checkpoints. The Trainer hands its
        callbacks no logger: ``to=lambda step, metrics: trainer.log(metrics)`` writes to all that it
        reports to.
        """

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            """Make the monitor."""

            def log(step: int, metrics: dict[str, float]) -> None:
                state.log_history.append({**metrics, "epoch": state.epoch, "step": step})

            self._begin(model, log, state.is_world_process_zero)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Read, if it is time to."""
            if self.monitor is not None:
                self.monitor(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Read what training has led to."""
            self._end(state.global_step)

    return _named(TransformersMonitor)


def _named(cls: type[Any]) -> type[Any]:
    """A class that pickle finds where users find it."""
    cls.__module__, cls.__qualname__ = "constrained.seeing", cls.__name__
    return cls


def made(name: str) -> type[Any]:
    """The class of that name.

    Raises:
        ImportError: if its library is not installed.
    """
    return _lightning_monitor() if name == "LightningMonitor" else _transformers_monitor()
