"""Constraints of torch.distributions, and those that Pyro adds, as constraints of the catalogue."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import constraints as theirs

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter
from constraints.composite.product import Product

#: By the class of the object of torch.distributions: our name, and our arguments by its attributes.
_NAMES: dict[type, tuple[str, dict[str, str]]] = {
    theirs.greater_than: ("greater_than", {"bound": "lower_bound"}),
    theirs.greater_than_eq: ("at_least", {"bound": "lower_bound"}),
    theirs.less_than: ("less_than", {"bound": "upper_bound"}),
    theirs.interval: ("box", {"low": "lower_bound", "high": "upper_bound"}),
    type(theirs.unit_interval): ("box", {"low": "lower_bound", "high": "upper_bound"}),
    type(theirs.real): ("real", {}),
    type(theirs.simplex): ("simplex", {}),
    type(theirs.lower_triangular): ("lower_triangular", {}),
    type(theirs.lower_cholesky): ("cholesky_factor", {}),
    type(theirs.corr_cholesky): ("correlation_cholesky", {}),
    type(theirs.symmetric): ("symmetric", {}),
    type(theirs.positive_semidefinite): ("positive_semidefinite", {}),
    type(theirs.positive_definite): ("positive_definite", {}),
}


#: The same for the constraints that Pyro adds, by the names of their classes.
_OF_PYRO = {
    "_Sphere": "sphere",
    "_CorrMatrix": "correlation",
    "_OrderedVector": "ordered",
    "_PositiveOrderedVector": "positive_ordered",
    # These differ from what they derive from in the map only, and the maps here are ours.
    "_SoftplusPositive": "positive",
    "_SoftplusLowerCholesky": "cholesky_factor",
}


_AT_ZERO = {"greater_than": "positive", "at_least": "nonnegative", "less_than": "negative"}


@register_adapter
def of_torch_distributions(constraint: Any) -> Constraint | None:
    """The entry of the catalogue with the set of an object of ``torch.distributions.constraints``.

    Ours have what these have not: a right inverse, a projection, a distance. ``independent`` is
    that of its base, ``cat`` and ``stack`` are a `Product`. Those that Pyro adds are known too,
    without importing it; its ordered vectors are strictly so, ours may have ties.

    Args:
        constraint: any object; an ``Interval`` has numbers for bounds, not tensors of several.

    Returns:
        A constraint, or None for what is no continuous constraint of that module.

    Raises:
        ValueError: for one of that module without a counterpart, as discrete ones.

    Example:
        >>> of_torch_distributions(theirs.interval(-1.0, 1.0))
        box(low=-1.0, high=1.0)
    """
    if not isinstance(constraint, theirs.Constraint):
        return None
    kind = type(constraint)
    if isinstance(constraint, theirs.independent):
        return of_torch_distributions(constraint.base_constraint)
    if isinstance(constraint, (theirs.cat, theirs.stack)):
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
    arguments = {ours: _number(constraint, key) for ours, key in attributes.items()}
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
