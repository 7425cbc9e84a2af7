"""The two networks that are compared, and the judges of both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from constrained import Constraint, constrain, release, violations
from examples.digits.experiment import Experiment, ExperimentError
from examples.digits.model import Recurrent

Measure = Callable[[nn.Module], float]


def build(experiment: Experiment, inputs: int) -> dict[str, Recurrent]:
    """The constrained network, and its twin without constraints.

    Both start at the same weights: those that the constrained one has after `constrain` moved
    what lay outside its set.

    Raises:
        ExperimentError: if a constraint does not fit the network.
    """
    torch.manual_seed(experiment.training.seed)
    model = Recurrent(inputs, experiment.model.hidden, classes=10)
    try:
        constrain(model, experiment.constraints)
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"constraints: {error}") from error
    twin = copy.deepcopy(model)
    release(twin)
    return {"constrained": model, "unconstrained": twin}


def measures(networks: dict[str, Recurrent]) -> dict[str, Measure]:
    """For each network, how to find its largest violation.

    What the twin violates is what the other one is constrained to, so it is judged by the
    constraints of the other one.
    """
    judges = _constraints(networks["constrained"])

    @torch.no_grad()
    def of_twin(twin: nn.Module) -> float:
        return max(
            float(judge.violation(_tensor(twin, path)).max()) for path, judge in judges.items()
        )

    return {
        "constrained": lambda model: max(violations(model).values()),
        "unconstrained": of_twin,
    }


def _constraints(model: nn.Module) -> dict[str, Constraint]:
    return {
        path: _owner(model, path).parametrizations[_name(path)][0] for path in violations(model)
    }


def _tensor(model: nn.Module, path: str) -> Tensor:
    return getattr(_owner(model, path), _name(path))


def _owner(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path.rpartition(".")[0])


def _name(path: str) -> str:
    return path.rpartition(".")[2]
