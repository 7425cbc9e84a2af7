"""Manifolds of geotorch as constraints. geotorch is not imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter, register_spelling

#: By the class of geotorch's manifold: our name, and our arguments by its own.
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
    # A size and a choice of coordinates say nothing about the set.
    _all = {**dict.fromkeys(("size", "triv", "f", "lower")), **_arguments}
    register_spelling(f"geotorch:{_class}", _name, _all)


@register_adapter
def of_geotorch(manifold: Any) -> Constraint | None:
    """The entry of the catalogue with the set of one of geotorch's manifolds.

    GLp, which promises a positive determinant, is that with ``sign=1``. The coordinates (``triv``,
    ``f``) are ours. To keep a manifold's own coordinates, register the object by
    `constrained.parametrize.register_parametrization`.

    Args:
        manifold: any object.

    Returns:
        A constraint, or None for what is no manifold of geotorch.
    """
    kind: type[Any] = type(manifold)  # pyright: ignore[reportUnknownVariableType] - its library may be missing
    if kind.__module__.partition(".")[0] != "geotorch" or kind.__name__ not in _MANIFOLDS:
        return None
    name, attributes = _MANIFOLDS[kind.__name__]
    arguments = {ours: getattr(manifold, key) for key, ours in attributes.items()}
    plain = {key: v.item() if isinstance(v, Tensor) else v for key, v in arguments.items()}
    return get(name)(**plain, **({"sign": 1} if kind.__name__ == "GLp" else {}))
