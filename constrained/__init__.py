"""Keep the weights of PyTorch models inside constraint sets."""

from constrained.constraint import Constraint, InfeasibleError
from constrained.registry import describe, get, names, register
from constrained.tolerance import tolerance

__all__ = [
    "Constraint",
    "InfeasibleError",
    "describe",
    "get",
    "names",
    "register",
    "tolerance",
]
