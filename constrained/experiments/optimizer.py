"""The optimizer of an experiment: which options each tensor gets, and the schedule."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from constrained.constraint.errors import ConfigErrors
from constrained.experiments.experiment import Experiment, ExperimentError
from constrained.experiments.parts import call, find
from constrained.experiments.parts import check as check_arguments
from constrained.model.parameters import param_groups


def build(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """The optimizer of the experiment, with the options that it gives to single tensors.

    Raises:
        ExperimentError: if there is no such optimizer, or its options are not valid.
    """
    made: Any = find("optimizer", experiment.optimizer.name, _built_in())
    try:
        groups = param_groups(model, experiment.param_groups)
    except ConfigErrors as errors:
        raise ExperimentError(f"optimizer.param_groups: {errors.exceptions[0]}") from errors
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"optimizer.param_groups: {error}") from error
    optimizer = call("optimizer", experiment.optimizer, made, groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ExperimentError(
            f"optimizer.name: {experiment.optimizer.name!r} returned a {type(optimizer).__name__}, "
            "and no torch.optim.Optimizer."
        )
    known = {key for group in optimizer.param_groups for key in group} & {*optimizer.defaults}
    for target, options in experiment.param_groups.items():
        for key in dict[str, Any](options or {}):
            if key not in known:
                raise ExperimentError(
                    f"optimizer.param_groups: {target!r} has the option {key!r}, which "
                    f"{type(optimizer).__name__} does not have; it has {', '.join(sorted(known))}."
                )
    return optimizer


def check(experiment: Experiment) -> None:
    """Check the name and the arguments of the optimizer, where there is no model to optimize.

    Raises:
        ExperimentError: if there is no such optimizer, or it does not take the arguments.
    """
    part = experiment.optimizer
    check_arguments("optimizer", part, find("optimizer", part.name, _built_in()), 1, {})


def _built_in() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step evaluates the loss several times, as that of L-BFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def schedule(optimizer: torch.optim.Optimizer, kind: str, steps: int) -> LRScheduler:
    """How the learning rates change from step to step.

    Args:
        optimizer: whose.
        kind: ``"constant"``, or ``"cosine"``: down to 0 at the end.
        steps: how many steps there will be.
    """
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, lambda step: 1.0)
