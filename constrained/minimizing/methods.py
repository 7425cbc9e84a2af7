"""The methods of `scipy.optimize.minimize`, and what each of them takes."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from constrained.constraint.plain_data import short
from constrained.constraint.registry import did_you_mean


class Method(NamedTuple):
    """What a method of SciPy takes.

    Attributes:
        name: as SciPy has it.
        gradient: whether it takes gradients.
        curvature: whether it takes products of the Hessian with vectors.
        bounds: whether it takes bounds.
        linear: whether it takes linear constraints.
    """

    name: str
    gradient: bool = True
    curvature: bool = False
    bounds: bool = False
    linear: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("L-BFGS-B", bounds=True),
        Method("trust-constr", curvature=True, bounds=True, linear=True),
        Method("trust-ncg", curvature=True),
        Method("Newton-CG", curvature=True),
        Method("SLSQP", bounds=True, linear=True),
        Method("BFGS"),
        Method("CG"),
        Method("TNC", bounds=True),
        Method("Nelder-Mead", gradient=False, bounds=True),
        Method("COBYLA", gradient=False, bounds=True, linear=True),
    )
}

#: Methods of SciPy that are refused, and why.
_REFUSED = {
    "dogleg": "takes the whole Hessian, of which `minimize` has products with vectors only",
    "trust-exact": "takes the whole Hessian, of which `minimize` has products with vectors only",
    "trust-krylov": "multiplies the Hessian by NaN where the map of a constraint has a kink",
    "Powell": (
        "searches along one coordinate to its end, and on a simplex it calls that a success beside "
        "the optimum"
    ),
    "COBYQA": "is not among those that are tested here",
}


def find(name: str) -> Method:
    """The method of a name, in whatever case.

    Raises:
        ValueError: if there is none, or it is refused.
        TypeError: if the name is not a string.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"The method is a name such as 'L-BFGS-B', got {short(name)}.")
    by_lower = {known.lower(): method for known, method in METHODS.items()}
    found = by_lower.get(name.lower())
    if found is not None:
        return found
    listed = f"Choose one of {', '.join(METHODS)}."
    for refused, reason in _REFUSED.items():
        if name.lower() == refused.lower():
            raise ValueError(f"The method {refused!r} {reason}. {listed}")
    raise ValueError(f"Unknown method {short(name)}.{did_you_mean(name, METHODS)} {listed}")


def scipy_optimize() -> Any:
    """The module ``scipy.optimize``.

    Raises:
        ImportError: if SciPy is not installed.
    """
    # Imported here, so that `import constrained` stays fast.
    try:
        return import_module("scipy.optimize")
    except ImportError:
        raise ImportError(
            "constrained.minimize runs the methods of SciPy, which is not installed: "
            "pip install 'constrained-layers[scipy]'."
        ) from None
