"""Manifolds of geotorch as constraints. geotorch is not imported."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter, register_spelling

#: By the class in geotorch: the name here, and the argument here for each of its attributes.
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
    # The size and the coordinates do not determine the set.
    _all = {**dict.fromkeys(("size", "triv", "f", "lower")), **_arguments}
    register_spelling(f"geotorch:{_class}", _name, _all)


@register_adapter
def of_geotorch(manifold: Any) -> Constraint | None:
    """The constraint here with the same set as a manifold of geotorch.

    ``GLp``, which promises a positive determinant, becomes ``invertible(sign=1)``. The coordinates
    of the manifold (``triv``, ``f``) are not taken over. To keep them, register the object itself
    by `constrained.parametrize.register_parametrization`.

    Args:
        manifold: any object.

    Returns:
        A constraint, or None for an object of any other kind.
    """
    kind = cast("type[Any]", type(manifold))
    if kind.__module__.partition(".")[0] != "geotorch" or kind.__name__ not in _MANIFOLDS:
        return None
    name, attributes = _MANIFOLDS[kind.__name__]
    arguments = {argument: getattr(manifold, key) for key, argument in attributes.items()}
    plain = {key: v.item() if isinstance(v, Tensor) else v for key, v in arguments.items()}
    return get(name)(**plain, **({"sign": 1} if kind.__name__ == "GLp" else {}))
