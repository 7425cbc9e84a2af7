"""The metric in which an optimizer makes its step, read from its state.

Adam and its kin divide each entry of a step by a scale of its own, the root of a second moment.
After such a step, the projection onto a set has to be made in the metric with these weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Optimizer

#: Where optimizers keep the mean of recent gradients, or what the next step continues.
_FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "mu_product_avg", "z_avg")

#: Steps of these are multiples of the gradient and of earlier ones.
_EUCLIDEAN = (SGD, ASGD, LBFGS)


def first_moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The tensors of an optimizer's state that its next step will follow.

    Args:
        optimizer: the optimizer.
        parameter: one of its parameters.
    """
    state: Any = optimizer.state.get(parameter, {})
    found = [state.get(key) for key in _FIRST_MOMENTS]
    return [m for m in found if isinstance(m, Tensor) and m.shape == parameter.shape]


def is_euclidean(optimizer: Optimizer) -> bool:
    """Whether each step of an optimizer is a combination of gradients, all entries alike."""
    return isinstance(optimizer, _EUCLIDEAN)


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
    if not state:
        return None
    eps = _eps(optimizer, parameter)
    squares = next((state[k] for k in ("max_exp_avg_sq", "exp_avg_sq") if k in state), None)
    if squares is not None and "exp_avg" in state:
        step = state.get("step")
        beta = _group(optimizer, parameter).get("betas", (0, 0))[1]
        unbiased = 1.0 if step is None or not beta else 1 - float(beta) ** float(step)
        found = (squares / max(unbiased, 1e-12)).sqrt() + eps
    elif "acc_delta" in state:
        found = ((state["square_avg"] + eps) / (state["acc_delta"] + eps)).sqrt()
    elif "square_avg" in state:
        mean = state.get("grad_avg")
        squares = state["square_avg"] if mean is None else state["square_avg"] - mean.square()
        found = squares.clamp(min=0).sqrt() + eps
    elif "exp_inf" in state:
        found = state["exp_inf"]
    elif "sum" in state and "row_var" not in state:
        found = state["sum"].sqrt() + eps
    else:
        return None
    if not isinstance(found, Tensor) or found.shape != parameter.shape:
        return None
    return found.clamp(min=torch.finfo(found.dtype).tiny)


def _group(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def _eps(optimizer: Optimizer, parameter: Tensor) -> float:
    eps: Any = _group(optimizer, parameter).get("eps", 0.0)
    return float(eps) if isinstance(eps, (int, float)) else 0.0
