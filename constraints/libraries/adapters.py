"""Constraints for objects of torch.distributions, Pyro and geotorch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import constraints as theirs

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter, register_spelling
from constraints.composite.product import Product

#: By class of torch.distributions: our name, and our argument for each of its attributes.
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


#: Our names for the constraints that Pyro adds, by the names of their classes.
_OF_PYRO = {
    "_Sphere": "sphere",
    "_CorrMatrix": "correlation",
    "_OrderedVector": "ordered",
    "_PositiveOrderedVector": "positive_ordered",
    # These differ from their base classes only in the map, and the maps here are ours.
    "_SoftplusPositive": "positive",
    "_SoftplusLowerCholesky": "cholesky_factor",
}


_AT_ZERO = {"greater_than": "positive", "at_least": "nonnegative", "less_than": "negative"}


#: By class of geotorch: our name, and our argument for each of its own.
_MANIFOLDS: dict[str, tuple[str, dict[str, str]]] = {
    "Symmetric": ("symmetric", {}),
    "Skew": ("skew", {}),
    "SO": ("special_orthogonal", {}),
    "Stiefel": ("orthogonal", {}),
    "Grassmannian": ("grassmann", {}),
    "Sphere": ("sphere", {"radius": "radius"}),
    "SphereEmbedded": ("sphere", {"radius": "radius"}),
    "LowRank": ("low_rank", {"rank": "rank"}),
    "FixedRank": ("fixed_rank", {"rank": "rank"}),
    "AlmostOrthogonal": ("almost_orthogonal", {"lam": "radius"}),
    "GLp": ("invertible", {}),
    "SL": ("special_linear", {}),
    "PSD": ("positive_definite", {}),
    "PSSD": ("positive_semidefinite", {}),
    "PSSDLowRank": ("psd_low_rank", {"rank": "rank"}),
    "PSSDFixedRank": ("psd_fixed_rank", {"rank": "rank"}),
    "Hurwitz": ("hurwitz", {"alpha": "alpha"}),
}


for _class, (_name, _arguments) in _MANIFOLDS.items():
    # The size and the choice of coordinates do not affect the set.
    _all = {**dict.fromkeys(("size", "triv", "f", "lower")), **_arguments}
    register_spelling(f"geotorch:{_class}", _name, _all)


@register_adapter
def of_geotorch(manifold: Any) -> Constraint | None:
    """The constraint of the catalogue with the set of one of geotorch's manifolds.

    For GLp, which promises a positive determinant, it is `invertible` with ``sign=1``. The
    coordinates (``triv``, ``f``) are ours. To keep a manifold's own coordinates, register the
    object by `constrained.parametrize.register_parametrization`.

    Args:
        manifold: any object.

    Returns:
        A constraint, or None if the object is not a manifold of geotorch.
    """
    kind = cast("type[Any]", type(manifold))
    if kind.__module__.partition(".")[0] != "geotorch" or kind.__name__ not in _MANIFOLDS:
        return None
    name, attributes = _MANIFOLDS[kind.__name__]
    arguments = {ours: getattr(manifold, key) for key, ours in attributes.items()}
    plain = {key: v.item() if isinstance(v, Tensor) else v for key, v in arguments.items()}
    return get(name)(**plain, **({"sign": 1} if kind.__name__ == "GLp" else {}))


@register_adapter
def of_torch_distributions(constraint: Any) -> Constraint | None:
    """The constraint of the catalogue with the set of one of ``torch.distributions.constraints``.

    Ours add a right inverse, a projection and a distance. ``independent`` gives the constraint of
    its base; ``cat`` and ``stack`` give a `Product`. The constraints that Pyro adds are known too,
    without importing Pyro. Its ordered vectors are strictly increasing; ours may have ties.

    Args:
        constraint: any object. Bounds must be numbers, or tensors of one number.

    Returns:
        A constraint, or None if the object is not a constraint of torch.distributions.

    Raises:
        ValueError: for a constraint without a counterpart, such as a discrete one.

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
