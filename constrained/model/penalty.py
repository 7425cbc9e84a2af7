"""`penalty`: a term for the loss that pulls tensors with ``mode="penalize"`` towards their sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from constrained.atomic import sharded
from constrained.attached.attached_constraint import AttachedConstraint, attached_constraints
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.model.error_messages import with_path
from constrained.model.targets import matches
from constrained.parametrized.tensor_locations import check_model


def penalty(model: nn.Module, weight: float | Mapping[str, float] = 1.0) -> Tensor:
    r"""Half of the squared distances of tensors with ``mode="penalize"`` from their sets, summed.

    .. math:: \sum_k \frac{w_k}{2} \lVert x_k - P_k(x_k) \rVert_F^2

    P is `Constraint.project`. Where that is the nearest member, the gradient is
    :math:`w (x - P(x))`, and a step of size 1 / w leads into the set. A finite weight leaves a
    violation: raise it during training, as in ``penalty(model, weight=1e-2 * 1.01**step)``, or use
    a `Lagrangian`, which comes into the set with a moderate one.

    Args:
        model: the model.
        weight: of all tensors, or by patterns over their paths, of which a later one overrides an
            earlier one; 1 for a tensor that none matches.

    Returns:
        Scalar in the precision of the tensors, at least single; zero if there are none.

    Raises:
        ValueError: for a weight that is negative, NaN or infinite; for a pattern that matches no
            such tensor; if a tensor holds NaN or infinity.

    Example:
        >>> import torch, constrained
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
        >>> layer = constrained.constrain(layer, "weight", "box(low=0, high=1)", mode="penalize")
        >>> constrained.penalty(layer)
        tensor(8., grad_fn=<AddBackward0>)
    """
    check_model(model)
    held = {p: found for p, found in attached_constraints(model) if found.mode == "penalize"}
    first = next(model.parameters(), None)
    total = torch.zeros((), device=None if first is None else first.device)
    for path, each in _weights(model, held, weight).items():
        rest = residual(path, held[path])
        total = total + each / 2 * rest.abs().square().sum()
    return total


def residual(path: str, found: AttachedConstraint, shift: Tensor | None = None) -> Tensor:
    """How far a tensor is from the nearest member; its derivative takes that for fixed.

    Args:
        path: of the tensor, for messages.
        found: its constraint.
        shift: what is added to the tensor before.

    Returns:
        Tensor of the shape of the tensor, in at least single precision.
    """
    value = sharded.whole(found())
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    value = value if shift is None else value + shift
    try:
        nearest = found.constraint().project(value.detach())
    except (ValueError, TypeError) as error:
        raise with_path(path, error) from error.__cause__
    return value - nearest


def _weights(
    model: nn.Module, held: Mapping[str, AttachedConstraint], weight: float | Mapping[str, float]
) -> dict[str, float]:
    """The weight of each tensor by its path."""
    if not isinstance(weight, Mapping):
        return dict.fromkeys(held, check_weight(weight))
    found = dict.fromkeys(held, 1.0)
    for target, places in matches(model, weight):
        paths = [place.path for place in places if place.path in held]
        if not paths:
            raise SpecError(f"{short(target)} matches no tensor with mode='penalize'.")
        found |= dict.fromkeys(paths, check_weight(weight[target]))
    return found


def check_weight(weight: float) -> float:
    """The weight, if it is a finite number that is not negative."""
    number: Any = weight
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not 0 <= number < math.inf:
        raise SpecError(f"A weight is a finite number, zero or more, got {short(weight)}.")
    return float(weight)
