"""What an optimizer does with a gradient: the metric of its step, its moments, its weight decay.

Adam and its kin divide each entry of a step by a scale of its own, the root of a second moment.
After such a step, the projection onto a set has to be made in the metric with these weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

#: Where optimizers keep means of recent gradients, which the next step continues.
_FIRST_MOMENTS = ("exp_avg", "exp_avg_fast", "exp_avg_slow", "momentum_buffer")

#: Steps of these are multiples of the gradient and of earlier ones.
_EUCLIDEAN = (SGD, ASGD, LBFGS)

#: `metric_of` finds the metric of these in their state; AdamW is an Adam.
_ADAPTIVE = (Adadelta, Adafactor, Adagrad, Adam, Adamax, NAdam, RAdam, RMSprop)

#: RAdam divides by its second moments once the variance of these is finite: section 3.3 of Liu et
#: al., On the variance of the adaptive learning rate and beyond (ICLR 2020).
_RECTIFIED_FROM = 5.0


def is_euclidean(optimizer: Optimizer) -> bool:
    """Whether each step of an optimizer is a combination of gradients, all entries alike."""
    return isinstance(optimizer, _EUCLIDEAN)


def has_metric(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether `metric_of` will tell the metric of the step that comes next."""
    if isinstance(optimizer, _ADAPTIVE):
        # The centered variance of a constant gradient, as there is at a bound, is rounding.
        return not (isinstance(optimizer, RMSprop) and _group(optimizer, parameter)["centered"])
    return metric_of(optimizer, parameter) is not None


def metric_of(optimizer: Optimizer, parameter: Tensor) -> Tensor | None:
    """The scale by which an optimizer has divided each entry of its last step.

    A factor that all entries have in common does not matter.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters.

    Returns:
        Tensor of the shape of the parameter, or None if the state does not tell. The state tells it
        for Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta and Adafactor of torch,
        and for those of others that call their second moments the same.
    """
    state: Any = optimizer.state.get(parameter)
    if not state or "grad_avg" in state or _average(optimizer, parameter) is not None:
        return None
    group = _group(optimizer, parameter)
    eps: Any = group.get("eps")
    found: Any = None
    if "row_var" in state:
        found = _factored(state, _number(eps[0]), parameter)
        return _positive(found, parameter)
    eps = _number(eps)
    if "exp_avg_sq" in state:
        found = _root_of_second_moment(optimizer, state, group, eps)
    elif "acc_delta" in state:
        found = ((state["square_avg"] + eps) / (state["acc_delta"] + eps)).sqrt()
    elif "square_avg" in state:
        found = state["square_avg"].sqrt() + eps
    elif "exp_inf" in state:
        found = state["exp_inf"]
    elif isinstance(optimizer, Adagrad):
        found = state["sum"].sqrt() + eps
    return _positive(found, parameter)


def _positive(found: Any, parameter: Tensor) -> Tensor | None:
    if not isinstance(found, Tensor) or found.shape != parameter.shape:
        return None
    found = found.real if found.is_complex() else found
    return found.clamp(min=torch.finfo(found.dtype).tiny).to(parameter.dtype)


def _root_of_second_moment(
    optimizer: Optimizer, state: Any, group: dict[str, Any], eps: float
) -> Any:
    squares = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    step, betas = state.get("step", group.get("k")), group.get("betas", ())
    if not isinstance(squares, Tensor) or step is None or len(betas) < 2:
        return squares.sqrt() + eps if isinstance(squares, Tensor) else None
    if not isinstance(step, Tensor) or step.device.type == "cpu":
        # Elsewhere a capturable optimizer has it, which must not wait for the device.
        step = float(step)
    beta: Any = betas[1]
    unbiased = 1 - beta**step
    if isinstance(optimizer, RAdam):
        root, length = squares.sqrt(), 2 / (1 - beta) - 1 - 2 * step * beta**step / unbiased
        is_rectified = torch.as_tensor(length > _RECTIFIED_FROM, device=root.device)
        return torch.where(is_rectified, root + eps, 1)
    if "d" in group:
        # Prodigy multiplies the gradients by its estimate of the distance, and eps likewise.
        return squares.sqrt() + eps * _number(group["d"])
    return (squares / unbiased).sqrt() + eps


def _factored(state: Any, eps: float, parameter: Tensor) -> Tensor:
    eps = eps or torch.finfo(parameter.dtype).eps
    rows, columns, variance = state["row_var"], state["col_var"], state.get("variance")
    if rows is None:
        return variance.clamp(min=eps**2).sqrt()
    mean = rows.mean(dim=-2, keepdim=True).clamp(min=eps)
    return (rows @ columns / mean).clamp(min=eps**2).sqrt()


class Moment(NamedTuple):
    """Something in the state of an optimizer that its next step will follow.

    Attributes:
        value: the tensor in the state.
        scale: by what each of its entries has been divided already; None if by nothing.
    """

    value: Tensor
    scale: Tensor | None


def first_moments(optimizer: Optimizer, parameter: Tensor) -> Iterator[Moment]:
    """The tensors of an optimizer's state that its next step will follow.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters.
    """
    state: Any = optimizer.state.get(parameter, {})
    for key in _FIRST_MOMENTS:
        found = state.get(key)
        if isinstance(found, Tensor) and found.shape == parameter.shape:
            is_scaled = key == "momentum_buffer" and "square_avg" in state
            yield Moment(found, metric_of(optimizer, parameter) if is_scaled else None)


def keeps_points(optimizer: Optimizer) -> bool:
    """Whether an optimizer is schedule-free: it keeps points beside the parameters."""
    return any("train_mode" in group for group in optimizer.param_groups)


def points_of(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The tensors of an optimizer's state that are points, as the parameter is.

    These are the iterates that schedule-free optimizers keep beside the mean of these.
    """
    found = _average(optimizer, parameter)
    return [] if found is None else [found]


def _average(optimizer: Optimizer, parameter: Tensor) -> Tensor | None:
    found = optimizer.state.get(parameter, {}).get("z")
    is_free = isinstance(found, Tensor) and "train_mode" in _group(optimizer, parameter)
    return found if is_free and found.shape == parameter.shape else None


class Descent(NamedTuple):
    """How an optimizer turns a gradient g at x into a direction: ``sign * g + decay * x``."""

    sign: int
    decay: float


def descents(optimizer: Optimizer) -> dict[int, Descent]:
    """How an optimizer turns gradients into directions, by the ids of its parameters.

    Parameters whose gradient is the direction are left out. Decoupled weight decay, as that of
    AdamW, is no part of the direction.
    """
    found: dict[int, Descent] = {}
    for group in optimizer.param_groups:
        if not (group.get("weight_decay") or group.get("maximize")):
            continue
        is_coupled = isinstance(optimizer, (*_ADAPTIVE, SGD, ASGD))
        is_coupled = is_coupled and not isinstance(optimizer, Adafactor)
        is_coupled = is_coupled and not group.get("decoupled_weight_decay", False)
        decay = _number(group.get("weight_decay")) if is_coupled else 0.0
        sign = -1 if group.get("maximize", False) else 1
        if decay or sign < 0:
            found.update((id(p), Descent(sign, decay)) for p in group["params"])
    return found


def wraps_another(optimizer: Optimizer) -> bool:
    """Whether an optimizer has others that make its steps, as SAM and Lookahead have."""
    for value in vars(optimizer).values():
        if any(isinstance(each, Optimizer) for each in (value if _is_sequence(value) else [value])):
            return True
    return False


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _group(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
