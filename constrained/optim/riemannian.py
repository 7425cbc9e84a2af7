"""What optimizers on sets have in common: the set of each parameter, gradients that are checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from constrained.atomic.contents import is_finite, store
from constrained.atomic.sharded import is_shard
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError, NonfiniteGradientError, OutOfRangeError
from constrained.constraint.precision import raise_precision
from constrained.optim.walked_set import as_plain_data, attached_to, set_of
from constrained.training.nonfinite import gradient_faults, left_out


class Walker(NamedTuple):
    """A parameter that walks on a set.

    Attributes:
        parameter: the parameter.
        constraint: its set. That of a plain parameter is all of space.
        tensor: what is known of it, if `constrained.constrain` gave it its constraint.
        name: what messages call it.
        is_plain: whether it has no constraint.
    """

    parameter: Tensor
    constraint: Constraint
    tensor: AttachedConstraint | None
    name: str
    is_plain: bool

    @property
    def value(self) -> Tensor:
        """Its value, at least in single precision."""
        return raise_precision(self.parameter.detach())

    def gradient(self) -> Tensor:
        """The gradient that a backward pass has left, at least in single precision."""
        gradient: Any = self.parameter.grad
        return raise_precision(gradient)

    def may_take(self, *tensors: Tensor) -> bool:
        """Whether the numbers of a step are finite; for a plain parameter they may be anything.

        Raises:
            OutOfRangeError: if they are not, unless the parameter has ``on_nonfinite="skip"``.
        """
        if self.is_plain or all(map(is_finite, tensors)):
            return True
        if self.tensor is None:
            raise OutOfRangeError(
                f"{self.name}: this step of it ends in NaN or infinity; make shorter steps."
            )
        if self.tensor.on_nonfinite == "raise":
            raise OutOfRangeError(
                f"'{self.tensor.path}': optimizer step {self.tensor.steps + 1} ends in NaN or "
                "infinity; make shorter steps, or constrain it with on_nonfinite='skip', which "
                "leaves such steps out."
            )
        return False

    def arrive(self, value: Tensor) -> None:
        """Write where a step has ended."""
        store(self.parameter, value)
        self.note_step()

    def note_step(self) -> None:
        """Note that an optimizer step has moved the parameter, within its set."""
        if self.tensor is not None:
            self.tensor.steps += 1
            self.tensor.mark_clean(self.parameter)


class RiemannianOptimizer(Optimizer):
    """Base of optimizers that walk on sets.

    A parameter has the constraint of its group, or else the one that `constrained.constrain` gave
    it with ``mode="project"``. Without one it is a plain parameter, and its set is all of space.
    """

    #: The hooks of ``mode="project"`` leave its steps alone.
    keeps_sets = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], constraint: Any) -> None:
        plain = None if constraint is None else as_plain_data(constraint)
        super().__init__(params, {**defaults, "constraint": plain})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`."""
        group = dict(param_group)
        if group.get("constraint") is not None:
            group["constraint"] = as_plain_data(group["constraint"])
        super().add_param_group(group)
        try:
            self.check_group(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise unless the settings of a group, and its parameters, suit the optimizer."""
        expect_setting("lr", group["lr"], 0, math.inf)
        for i, parameter in enumerate(group["params"]):
            try:
                constraint = set_of(group["constraint"], parameter)
                constraint.check_member(parameter.detach())
                self.check_parameter(group, constraint, parameter)
            except (ValueError, TypeError) as error:
                kind = InfeasibleError if isinstance(error, InfeasibleError) else ValueError
                raise kind(f"{_name(group, i)}: {error}") from error

    def check_parameter(
        self, group: dict[str, Any], constraint: Constraint, parameter: Tensor
    ) -> None:
        """Raise unless the optimizer can walk on a set."""

    def walkers(self, group: dict[str, Any]) -> list[Walker]:
        """The parameters of a group that have gradients."""
        found: list[Walker] = []
        for i, parameter in enumerate(group["params"]):
            gradient = parameter.grad
            if gradient is None:
                continue
            name = _name(group, i)
            if gradient.layout is not torch.strided:
                raise TypeError(
                    f"{name}: its gradient is sparse; make the layer with sparse=False."
                )
            if is_shard(parameter):
                raise TypeError(
                    f"{name}: it is sharded over processes, and manifold optimizers need whole "
                    "tensors; take an optimizer of torch, with mode='project'."
                )
            constraint, tensor = set_of(group["constraint"], parameter), attached_to(parameter)
            is_plain = group["constraint"] is None and tensor is None
            found.append(Walker(parameter, constraint, tensor, name, is_plain))
        return found

    def moving(self) -> list[tuple[dict[str, Any], list[Walker]]]:
        """The parameters of each group that are to move, after a look at all gradients.

        Raises:
            NonfiniteGradientError: if a gradient of a constrained parameter holds NaN or infinity.
                With ``on_nonfinite="skip"`` it is left out.
        """
        groups = [(group, self.walkers(group)) for group in self.param_groups]
        known = [w for _, walkers in groups for w in walkers if w.tensor is not None]
        faults = gradient_faults(self, [w.parameter for w in known])
        broken = left_out([w.tensor for w in known if w.tensor], faults)
        skipped = {id(known[i].parameter) for i in broken}
        for group, walkers in groups:
            for walker in walkers:
                is_told = group["constraint"] is not None and walker.tensor is None
                if is_told and not is_finite(walker.gradient()):
                    raise NonfiniteGradientError(
                        f"{walker.name}: its gradient holds NaN or infinity, and no parameter has "
                        "been changed; look for the loss that became so."
                    )
        return [
            (group, [w for w in walkers if id(w.parameter) not in skipped])
            for group, walkers in groups
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step.

        Args:
            closure: computes the loss and the gradients, and returns the loss.

        Returns:
            The loss that the closure returned; None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, walkers in self.moving():
            for walker in walkers:
                self.walk(group, walker)
        return loss

    def walk(self, group: dict[str, Any], walker: Walker) -> None:
        """Move one parameter."""
        raise NotImplementedError


def expect_setting(name: str, value: Any, least: float, below: float) -> None:
    """Raise unless a setting is a number from ``least`` to below another."""
    if not least <= float(value) < below:
        end = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be at least {least:g} and {end}, not {float(value)}.")


def _name(group: dict[str, Any], index: int) -> str:
    """What messages call a parameter of a group."""
    names = group.get("param_names")
    return f"'{names[index]}'" if names else f"parameter {index} of its group"
