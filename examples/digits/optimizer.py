"""The optimizer of an experiment: which learning rate each tensor gets, and when."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from constrained.model.targets import select
from examples.digits.experiment import ExperimentError, Training


def build(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of the experiment, with the learning rates that it gives to single tensors.

    Raises:
        ExperimentError: if a learning rate is given to a tensor that there is not.
    """
    selection = select(model, training.learning_rates)
    for error in selection.errors:
        raise ExperimentError(f"training.learning_rates: {error}") from error
    rates = dict.fromkeys(model.parameters(), training.learning_rate)
    for choice in selection.choices:
        tensor, rate = choice.places[0].tensor, choice.value
        # The free parameters of a constrained tensor stand for it.
        free = tensor.parameters() if isinstance(tensor, nn.Module) else [tensor]
        rates |= {parameter: rate for parameter in free if isinstance(parameter, nn.Parameter)}
    groups = [
        {"params": [p for p, given in rates.items() if given == rate], "lr": rate}
        for rate in sorted(set(rates.values()))
    ]
    return getattr(torch.optim, training.optimizer)(groups)


def schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps_per_epoch: int
) -> LRScheduler:
    """How the learning rates change from step to step."""
    if training.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=training.epochs * steps_per_epoch)
    return LambdaLR(optimizer, lambda step: 1.0)
