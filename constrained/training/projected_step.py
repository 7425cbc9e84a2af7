"""Hooks before and after each optimizer step that keep plain parameters in their sets.

Before a step the gradient of a tensor with ``mode="project"`` is checked, and made admissible: for
a smooth set that is the projection onto the tangent space. After the step the tensor is brought
back, and what the optimizer remembers of earlier gradients is made admissible at the new point.

A set with a boundary, such as a ball, needs more care. Where the gradient points out of the set at
the optimum, a step of Adam followed by the Euclidean projection comes to rest elsewhere. So the
projection is made in the metric of the step (`project_scaled`), or, where there is no formula, the
step is made with one scale for each element. For an optimizer whose metric is unknown, the gradient
is replaced by the gradient mapping, which vanishes at the optimum (`Geometry.admissible`).
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from constrained.atomic.contents import store
from constrained.atomic.first_use import at_first_use
from constrained.attached.attached_constraint import (
    are_there_any,
    projected_by_parameter,
    revision,
)
from constrained.training.in_place import plain_rates
from constrained.training.lbfgs_points import OutsidePoints
from constrained.training.moment_transport import transport_rows
from constrained.training.nonfinite import (
    go_back,
    gradient_faults,
    is_finite_point,
    left_out,
    step_fault,
    step_too_long,
)
from constrained.training.optimizer_metric import (
    Descent,
    descents,
    has_metric,
    is_euclidean,
    wraps_another,
)
from constrained.training.processes import Processes, carry_out
from constrained.training.sparse_rows import prepare_rows
from constrained.training.step_end import admissible, end_of_step
from constrained.training.step_rollback import Rollback, moves_before_closure
from constrained.training.tasks import Task
from constrained.training.tensor_step import TensorStep
from constrained.training.wrapped_parameters import check_wrapped


class _Steps(list[TensorStep]):
    """The projected tensors that an optimizer trains.

    Args:
        optimizer: the optimizer.

    Attributes:
        found_for: the ids of the optimizer's parameters, and the `revision`, for which they were
            found.
        is_outer: whether the optimizer leaves the steps to others that it has. Their hooks prepare
            the gradients, and its own ones bring the tensors back from where it has put them.
        outside: the points outside of the sets from which L-BFGS goes on.
        rollback: undoes the step that is running, if it evaluates the loss after it has moved.
        processes: those that hold the tensors together; None if no others do.
    """

    rollback: Rollback | None = None

    def __init__(self, optimizer: Optimizer) -> None:
        parameters = list(_parameters(optimizer))
        # Those of `constrained.optim` keep their parameters in the sets themselves.
        by_id = {} if getattr(optimizer, "keeps_sets", False) else projected_by_parameter()
        check_wrapped(parameters, by_id)
        super().__init__(TensorStep(by_id[id(p)], p) for p in parameters if id(p) in by_id)
        self.found_for = tuple(map(id, parameters)), revision()
        self.is_outer = wraps_another(optimizer)
        self.outside: OutsidePoints | None = None
        tensors, own = [s.tensor for s in self], [s.parameter for s in self]
        self.processes = Processes.of(own, [each.group for each in tensors])
        if self.processes is not None:
            for step in self:
                # Whether a tensor goes the fast way depends on the numbers that a process has.
                step.in_place = None
        if isinstance(optimizer, LBFGS):
            self.outside = OutsidePoints(optimizer, tensors, own)


_known: weakref.WeakKeyDictionary[Optimizer, _Steps] = weakref.WeakKeyDictionary()


def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


at_first_use(_watch_steps)


def _parameters(optimizer: Optimizer) -> Iterator[torch.nn.Parameter]:
    return itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _steps_of(optimizer: Optimizer) -> _Steps | None:
    """The projected tensors that an optimizer trains, in the order of its parameters."""
    if not are_there_any():
        return None
    known = _known.get(optimizer)
    now = tuple(map(id, _parameters(optimizer))), revision()
    if known is None or known.found_for != now or any(s.is_stale() for s in known):
        known = _known[optimizer] = _Steps(optimizer)
    return known


# ------------------------------------------------------------------------------ before the step


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    steps = _steps_of(optimizer)
    if not steps:
        return None
    steps.rollback = None
    for step in steps:
        # After an error nobody has ended the step before.
        step.forget()
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        if not steps.is_outer:
            _prepare(optimizer, steps)
        return None
    if moves_before_closure(optimizer):
        steps.rollback = Rollback(optimizer, [step.parameter for step in steps])
    if steps.outside is not None:
        steps.outside.begin()
        check = functools.partial(_without_nonfinite, optimizer, steps, steps.processes)
        closure = steps.outside.evaluating_inside(closure, check)
    elif not steps.is_outer:
        closure = _preparing_after(optimizer, steps, closure)
    if steps.rollback is not None:
        closure = steps.rollback.undoing(closure)
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}


def _preparing_after(optimizer: Optimizer, steps: _Steps, closure: Any) -> Any:
    """A closure that computes gradients and then prepares those of the projected tensors."""

    def call(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        _prepare(optimizer, steps)
        return loss

    return call


@torch.no_grad()
def _prepare(optimizer: Optimizer, steps: _Steps) -> None:
    """Check the gradients of projected tensors, and make them admissible."""
    euclidean, turned = is_euclidean(optimizer), descents(optimizer)
    dense: list[TensorStep] = []
    others: list[TensorStep] = steps
    if steps.processes is None:
        others = _not_in_place(optimizer, steps, euclidean, turned)
    if not others:
        return
    for step in _without_nonfinite(optimizer, others, steps.processes):
        constraint, parameter = step.constraint, step.parameter
        step.rows = step.before = step.last = None
        assert parameter.grad is not None
        if step.tensor.on_nonfinite == "skip":
            step.last = parameter.detach().clone()
        if parameter.grad.layout is not torch.strided:
            sign = turned[id(parameter)].sign if id(parameter) in turned else 1
            step.rows = prepare_rows(step.tensor, parameter, sign)
        elif constraint.is_smooth():
            dense.append(step)
        elif euclidean or has_metric(optimizer, parameter):
            if not euclidean and constraint.event_dim != 0:
                step.before = parameter.detach().clone()
        else:
            dense.append(step)
    unlike = [step for step in dense if id(step.parameter) in turned]
    scale: Any = getattr(optimizer, "grad_scale", None)
    scale = 1 if scale is None else scale
    for step in unlike:
        sign, decay = turned[id(step.parameter)]
        gradient: Any = step.parameter.grad
        store(gradient, sign * gradient + decay * scale * step.parameter)
    tasks: list[Task] = []
    for step in dense:
        gradient = step.parameter.grad
        tasks.append(Task.of(step.tensor, admissible, [step.parameter, gradient], [gradient]))
    carry_out(tasks, steps.processes)
    for step in unlike:
        sign, decay = turned[id(step.parameter)]
        gradient = step.parameter.grad
        store(gradient, sign * (gradient - decay * scale * step.parameter))


def _not_in_place(
    optimizer: Optimizer, steps: Sequence[TensorStep], euclidean: bool, turned: dict[int, Descent]
) -> list[TensorStep]:
    """Prepare the gradients of the tensors that go the fast way, and return the others."""
    if getattr(optimizer, "found_inf", None) is not None:
        return list(steps)
    rates = plain_rates(optimizer)
    others: list[TensorStep] = []
    for step in steps:
        parameter, fast = step.parameter, step.in_place
        if parameter.grad is None:
            continue
        rate = rates.get(id(parameter))
        # A fused optimizer takes no sparse gradients.
        is_sparse = rate is not None and not optimizer.defaults.get("fused")
        is_sparse = is_sparse and step.zero_rows.make_sparse(parameter)
        if fast is None or is_sparse or id(parameter) in turned:
            others.append(step)
            continue
        # Where a set has a boundary, only a step in the Euclidean metric ends with a projection.
        is_simple = euclidean or fast.is_smooth
        if not is_simple and step.constraint.event_dim == 0:
            is_simple = has_metric(optimizer, parameter)
        if not (is_simple and fast.prepare(parameter, rate)):
            others.append(step)
    return others


def _without_nonfinite(
    optimizer: Optimizer, steps: Sequence[TensorStep], processes: Processes | None
) -> list[TensorStep]:
    """The tensors with finite gradients. A gradient that is not is an error, or is left out."""
    faults = gradient_faults(optimizer, [step.parameter for step in steps])
    if processes is not None:
        faults = _agreed(steps, faults, processes)
    for i in left_out([step.tensor for step in steps], faults):
        steps[i].skipped, steps[i].parameter.grad = steps[i].parameter.grad, None
    return [step for step in steps if step.parameter.grad is not None]


def _agreed(steps: Sequence[TensorStep], faults: Sequence[int], processes: Processes) -> list[int]:
    """The faults that any process has found; all notice if another has written a tensor."""
    has = [step.parameter.grad is not None for step in steps]
    written = [step.was_moved() for step in steps]
    n, found = len(steps), [*has, *(not each for each in has), *written, *faults]
    found = processes.highest([*map(int, found)])
    for step, some, others, moved in zip(
        steps, found, found[n:], found[2 * n : 3 * n], strict=False
    ):
        step.was_written = bool(moved)
        if some and others:
            raise RuntimeError(
                f"'{step.tensor.path}': it has a gradient in some processes, and in others of its "
                "group none; let each process compute a loss that depends on it."
            )
    return found[3 * n :]


# ------------------------------------------------------------------------------- after the step


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    # Found before the step; anew only if a constraint has come or gone meanwhile.
    steps = _known.get(optimizer)
    if steps is None or steps.found_for[1] != revision():
        steps = _steps_of(optimizer)
    if not steps or _has_left_out(optimizer):
        return
    moved = _moved(optimizer, steps)
    try:
        if steps.outside is None:
            _bring_back(optimizer, moved, steps)
        elif moved:
            steps.outside.end()
    except Exception as error:
        for step in moved:
            if not is_finite_point(step.parameter):
                raise step_too_long(step.tensor, step.tensor.steps) from error
        raise
    for step in moved:
        step.forget()
        step.tensor.mark_clean(step.parameter)


def _has_left_out(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer has left its step out, as a GradScaler has told it to."""
    found: Any = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _moved(optimizer: Optimizer, steps: _Steps) -> list[TensorStep]:
    """The tensors that a step has moved; those that it was to leave out are where they were."""
    skipped = [step for step in steps if step.skipped is not None]
    for step in skipped:
        step.parameter.grad, step.skipped = step.skipped, None
    if skipped and steps.rollback is not None:
        steps.rollback.put_back([step.parameter for step in skipped])
        if isinstance(optimizer, LBFGS):
            return []
    faults = [0 if s.last is None else step_fault(optimizer, s.parameter) for s in steps]
    if steps.processes is not None and any(step.last is not None for step in steps):
        faults = steps.processes.highest(faults)
    moved: list[TensorStep] = []
    for step, fault in zip(steps, faults, strict=True):
        has_moved = step.parameter.grad is not None or step.was_written
        if steps.processes is None or steps.is_outer:
            has_moved = has_moved or step.was_moved()
        if not has_moved or step in skipped:
            continue
        if not steps.is_outer:
            step.tensor.steps += 1
        if step.last is not None and fault:
            go_back(optimizer, step.parameter, step.last, fault)
            continue
        moved.append(step)
    return moved


def _bring_back(optimizer: Optimizer, moved: Sequence[TensorStep], steps: _Steps) -> None:
    tasks: list[Task] = []
    for step in moved:
        is_back = step.in_place is not None and step.in_place.is_on
        if step.in_place is not None and is_back:
            step.in_place.bring_back(step.parameter)
        elif step.rows is not None:
            rows = step.parameter[step.rows]
            step.parameter[step.rows] = step.constraint.retract(rows)
            if not steps.is_outer:
                transport_rows(optimizer, step.parameter, step.constraint, step.rows)
            continue
        task = end_of_step(
            optimizer,
            step.tensor,
            step.parameter,
            step.before,
            is_back=is_back,
            is_outer=steps.is_outer,
        )
        tasks += [] if task is None else [task]
    carry_out(tasks, steps.processes)
