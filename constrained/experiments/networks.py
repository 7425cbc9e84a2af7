"""The network of an experiment, its twin without constraints, and the judge of both."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.constraint.errors import OutOfRangeError
from constrained.experiments.experiment import Experiment, ExperimentError
from constrained.experiments.models import Recurrent, mlp
from constrained.experiments.parts import call, find, told
from constrained.experiments.parts import check as check_arguments
from constrained.experiments.task import Task
from constrained.model.constrain import constrain
from constrained.model.plan import Plan, plan
from constrained.model.release import release
from constrained.parametrized.tensor_locations import constrained_tensors, resolve
from constrained.seeing.spectrum import LONGEST_SIDE, seen, singular_values
from constrained.torch_internals.linalg import LinAlgError

_BUILT_IN = {"recurrent": Recurrent, "mlp": mlp}


def build(experiment: Experiment, task: Task, device: torch.device) -> nn.Module:
    """The network as the file says, without constraints.

    Raises:
        ExperimentError: if it cannot be made, or does not take the examples.
    """
    part = experiment.model
    model = call("model", part, find("model", part.name, _BUILT_IN), offered=task.offers)
    if not isinstance(model, nn.Module):
        raise ExperimentError(
            f"model.name: {part.name!r} returned a {type(model).__name__}, and no torch.nn.Module."
        )
    model.to(device)
    _try(model, task, device)
    return model


def check(experiment: Experiment) -> None:
    """Check the name and the arguments of the model, where there are no data to build it for.

    Raises:
        ExperimentError: if there is no such model, or it does not take the arguments.
    """
    part = experiment.model
    check_arguments("model", part, find("model", part.name, _BUILT_IN), 0, None)


@torch.no_grad()
def _try(model: nn.Module, task: Task, device: torch.device) -> None:
    """Apply the network to some examples, which also gives lazy modules their shapes."""
    inputs, targets = (t[:2].to(device) for t in next(task.test_batches()))
    model.eval()
    try:
        outputs: Any = model(inputs)
    except Exception as error:
        raise ExperimentError(
            f"model: {type(model).__name__} raised {told(error)}, applied to inputs of the shape "
            f"{tuple(inputs.shape)} and {inputs.dtype}."
        ) from error
    finally:
        model.train()
    for name, measure in task.measures().items():
        try:
            float(measure(outputs, targets))
        except Exception as error:
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ExperimentError(
                f"model: the {name} of outputs ({shape}) and targets ({tuple(targets.shape)}, "
                f"{targets.dtype}) cannot be computed: {told(error)}."
            ) from error


def constrained(model: nn.Module, experiment: Experiment) -> tuple[Plan, list[ExperimentError]]:
    """Constrain a network as the file says, if nothing is wrong with that.

    Returns:
        The plan, and all that is wrong; the network is changed only if nothing is.
    """
    found = plan(model, experiment.constraints)
    errors = [ExperimentError(f"constraints: {error}") for error in found.errors]
    if not errors and not found.rows:
        errors = [ExperimentError("constraints: no tensor of the model is constrained by them.")]
    if not errors:
        with warnings.catch_warnings():
            # They stand in the plan.
            warnings.simplefilter("ignore")
            constrain(model, found)
    return found, errors


def twin_of(model: nn.Module) -> nn.Module:
    """The same network without constraints.

    It starts at the same weights: those that the constrained one has after `constrain` moved what
    lay outside its set.
    """
    twin = copy.deepcopy(model)
    release(twin)
    return twin


class Judge:
    """How far networks are from the sets that one of them is constrained to.

    What the twin violates is what the other one is constrained to, so it is judged by the
    constraints of the other one.

    Args:
        model: the constrained network.

    Attributes:
        matrix: the path of the first constrained tensor whose elements are matrices, or None.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sets: dict[str, Constraint] = {p: c for p, _, c in constrained_tensors(model)}
        self.matrix = next((path for path in self._sets if self._is_matrix(model, path)), None)

    @torch.no_grad()
    def violation(self, model: nn.Module) -> float:
        """The largest violation in a network, of this kind or of the twin's."""
        worst = 0.0
        for path, constraint in self._sets.items():
            try:
                found = float(constraint.violation(_tensor(model, path)).max())
            except (OutOfRangeError, LinAlgError):
                # The numbers are too large to compute with.
                found = math.inf
            worst = found if math.isnan(found) or found > worst else worst
        return worst

    @torch.no_grad()
    def singular_values(self, model: nn.Module) -> list[float]:
        """Of the matrix, largest first; those of the first element, if it holds several."""
        if self.matrix is None:
            return []
        _, value = seen(self._sets[self.matrix], _tensor(model, self.matrix))
        if not bool(torch.isfinite(value).all()):
            return []
        first: Any = singular_values(value.reshape(-1, *value.shape[-2:])[0])
        return first.tolist()

    def _is_matrix(self, model: nn.Module, path: str) -> bool:
        constraint, value = seen(self._sets[path], _tensor(model, path))
        sides = value.shape[-2:]
        return constraint.event_dim == 2 and 1 < min(sides) <= LONGEST_SIDE


@torch.no_grad()
def _tensor(model: nn.Module, path: str) -> Tensor:
    owner, name = resolve(model, path)
    return getattr(owner, name).detach()
