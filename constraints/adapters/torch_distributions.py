"""Constraints of torch.distributions, and those that Pyro adds, as constraints of the catalogue."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import constraints as distributions

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter
from constraints.composite.product import Product

#: By the class in torch.distributions: the name here, and its attribute for each argument here.
_NAMES: dict[type, tuple[str, dict[str, str]]] = {
    distributions.greater_than: ("greater_than", {"bound": "lower_bound"}),
    distributions.greater_than_eq: ("at_least", {"bound": "lower_bound"}),
    distributions.less_than: ("less_than", {"bound": "upper_bound"}),
    distributions.interval: ("box", {"low": "lower_bound", "high": "upper_bound"}),
    type(distributions.unit_interval): ("box", {"low": "lower_bound", "high": "upper_bound"}),
    type(distributions.real): ("real", {}),
    type(distributions.simplex): ("simplex", {}),
    type(distributions.lower_triangular): ("lower_triangular", {}),
    type(distributions.lower_cholesky): ("cholesky_factor", {}),
    type(distributions.corr_cholesky): ("correlation_cholesky", {}),
    type(distributions.symmetric): ("symmetric", {}),
    type(distributions.positive_semidefinite): ("positive_semidefinite", {}),
    type(distributions.positive_definite): ("positive_definite", {}),
}


#: The same for the constraints that Pyro adds, by the names of their classes.
_OF_PYRO = {
    "_Sphere": "sphere",
    "_CorrMatrix": "correlation",
    "_OrderedVector": "ordered",
    "_PositiveOrderedVector": "positive_ordered",
    # These differ from their base classes in the map only, which does not matter here.
    "_SoftplusPositive": "positive",
    "_SoftplusLowerCholesky": "cholesky_factor",
}


_AT_ZERO = {"greater_than": "positive", "at_least": "nonnegative", "less_than": "negative"}


@register_adapter
def of_torch_distributions(constraint: Any) -> Constraint | None:
    """The constraint here with the same set as an object of ``torch.distributions.constraints``.

    It has a right inverse, a projection and a distance too. ``independent`` becomes the constraint
    of its base, ``cat`` and ``stack`` a `Product`. The constraints that Pyro adds are known by
    name; Pyro is not imported. Its ordered vectors have no equal entries, those here may.

    Args:
        constraint: any object. The bounds of an ``Interval`` must be numbers, or tensors of one.

    Returns:
        A constraint, or None for an object of any other kind.

    Raises:
        ValueError: for a constraint of that module that has no counterpart here, such as a discrete
            one.

    Example:
        >>> of_torch_distributions(distributions.interval(-1.0, 1.0))
        box(low=-1.0, high=1.0)
    """
    if not isinstance(constraint, distributions.Constraint):
        return None
    kind = type(constraint)
    if isinstance(constraint, distributions.independent):
        return of_torch_distributions(constraint.base_constraint)
    if isinstance(constraint, (distributions.cat, distributions.stack)):
        parts = [of_torch_distributions(part) for part in cast("list[Any]", constraint.cseq)]
        sizes = getattr(constraint, "lengths", [1] * len(parts))
        return Product(parts=parts, sizes=list(sizes), dim=constraint.dim)
    if kind.__module__ == "pyro.distributions.constraints" and kind.__name__ in _OF_PYRO:
        return get(_OF_PYRO[kind.__name__])()
    if kind not in _NAMES:
        raise ValueError(
            f"torch.distributions.constraints: {constraint} has no counterpart among the "
            "constraints here, which are sets with a differentiable map onto them."
        )
    name, attributes = _NAMES[kind]
    arguments = {argument: _number(constraint, key) for argument, key in attributes.items()}
    if arguments == {"bound": 0.0} and name in _AT_ZERO:
        return get(_AT_ZERO[name])()
    return get(name)(**arguments)


def _number(constraint: Any, key: str) -> float:
    value = getattr(constraint, key)
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"torch.distributions.constraints: {constraint}: one {key} for all entries is "
                f"needed, got a tensor of shape {tuple(value.shape)}."
            )
        value = torch.as_tensor(value).item()
    return float(value)
