"""Constraints for manifolds of geoopt, which is not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from constrained import Constraint, get
from constrained.constraint.registry import register_adapter, register_spelling
from constraints.composite.product import Product
from constraints.scalars.real import Real
from constraints.vectors.hyperbolic import Lorentz, PoincareBall

#: Arguments that do not affect the set: of its geometry, of rounding, of the scale of distances.
_IGNORED: dict[str, str | None] = dict.fromkeys(
    ("ndim", "default_metric", "max_iter", "tol", "eps", "learnable")
)


#: Our names by class of geoopt.
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
    """The constraint of the catalogue with the set of one of geoopt's manifolds.

    Only the set is taken over, not the metric or its scale. Training does not use Riemannian
    gradients, as geoopt's optimizers do.

    Args:
        manifold: any object.

    Returns:
        A constraint, or None if the object is not a manifold of geoopt.

    Raises:
        ValueError: for a manifold without a counterpart: one in a subspace, with a learned
            curvature, of complex matrices, or a product with parts of several dimensions.
    """
    kind = cast("type[Any]", type(manifold))
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
    # With a positive curvature it is a chart of the sphere, and the set is all of space.
    curvature = float(manifold.k)
    return PoincareBall(curvature=-curvature) if curvature < 0 else Real()


def _lorentz(manifold: Any) -> Constraint:
    # Their k is the inner product of a point with itself, up to its sign; ours is 1 / k.
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
