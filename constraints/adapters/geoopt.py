"""Manifolds of geoopt as constraints. geoopt is not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter, register_spelling
from constraints.composite.product import Product
from constraints.scalars.real import Real
from constraints.vectors.hyperbolic import Lorentz, PoincareBall

#: What says nothing about the set: geometry, rounding, and how distances are scaled.
_IGNORED: dict[str, str | None] = dict.fromkeys(
    ("ndim", "default_metric", "max_iter", "tol", "eps", "learnable")
)


#: By the class of geoopt's manifold, our name.
_NAMES = {
    "Euclidean": "real",
    "Stiefel": "orthogonal",
    "CanonicalStiefel": "orthogonal",
    "EuclideanStiefel": "orthogonal",
    "EuclideanStiefelExact": "orthogonal",
    "Sphere": "sphere",
    "SphereExact": "sphere",
    "SymmetricPositiveDefinite": "positive_definite",
    "BirkhoffPolytope": "doubly_stochastic",
}


_BALLS = ("PoincareBall", "PoincareBallExact")


for _class, _name in _NAMES.items():
    register_spelling(f"geoopt:{_class}", _name, _IGNORED)

for _class in _BALLS:
    register_spelling(f"geoopt:{_class}", "poincare_ball", {**_IGNORED, "c": "curvature"})


@register_adapter
def of_geoopt(manifold: Any) -> Constraint | None:
    """The entry of the catalogue with the set of one of geoopt's manifolds.

    A metric, and the scale of one, say nothing about the set. To train by Riemannian gradients, as
    geoopt does, is not what this gives.

    Args:
        manifold: any object.

    Returns:
        A constraint, or None for what is no manifold of geoopt.

    Raises:
        ValueError: for a manifold without a counterpart: in a subspace, of a curvature that is
            learned, of complex matrices, or a product with parts of several dimensions.
    """
    kind: type[Any] = type(manifold)  # pyright: ignore[reportUnknownVariableType] - its library may be missing
    if kind.__module__.partition(".")[0] != "geoopt" or not hasattr(manifold, "reversible"):
        return None
    if any(parameter.requires_grad for parameter in manifold.parameters()):
        raise _no_counterpart(manifold, "it is learned, and a constraint here is a constant set")
    if getattr(manifold, "projector", None) is not None:
        raise _no_counterpart(manifold, "it lies in a subspace")
    make = _MAKE.get(kind.__name__)
    if make is not None:
        return make(manifold)
    if kind.__name__ not in _NAMES:
        raise _no_counterpart(manifold, "there is none with its set")
    return get(_NAMES[kind.__name__])()


def _no_counterpart(manifold: Any, reason: str) -> ValueError:
    return ValueError(
        f"geoopt.{type(manifold).__name__} has no counterpart among the constraints here: {reason}."
    )


def _stereographic(manifold: Any) -> Constraint:
    # For a positive curvature the chart of a sphere: all of space.
    curvature = float(manifold.k)
    return PoincareBall(curvature=-curvature) if curvature < 0 else Real()


def _lorentz(manifold: Any) -> Constraint:
    # Their k is what the inner product of a point with itself is, up to its sign.
    return Lorentz(curvature=1 / float(manifold.k))


def _product(manifold: Any) -> Constraint:
    if any(len(shape) > 1 for shape in manifold.shapes):
        raise _no_counterpart(
            manifold, "a part with several dimensions is flattened there; give each its own tensor"
        )
    parts = [of_geoopt(part) for part in manifold.manifolds]
    sizes = [part.stop - part.start for part in manifold.slices]
    return Product(parts=parts, sizes=sizes, dim=-1)


_MAKE: dict[str, Callable[[Any], Constraint | None]] = {
    **dict.fromkeys(_BALLS, _stereographic),
    "Stereographic": _stereographic,
    "StereographicExact": _stereographic,
    "SphereProjection": _stereographic,
    "SphereProjectionExact": _stereographic,
    "Lorentz": _lorentz,
    "ProductManifold": _product,
    "StereographicProductManifold": _product,
    "Scaled": lambda manifold: of_geoopt(manifold.base),
}
