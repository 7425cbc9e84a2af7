"""What a constraint is, what it is called, and how it is written down."""

from typing import TYPE_CHECKING

from constrained.constraint.moved import find_moved as _find_moved

# What the module had that this package was.
if not TYPE_CHECKING:
    __getattr__ = _find_moved(
        __name__,
        {
            "constrained.constraint.base": "Constraint FLAT START unguarded",
            "constrained.constraint.elements": "Params",
            "constrained.constraint.errors": "InfeasibleError OutOfRangeError",
            "constrained.constraint.fast_paths": "recomputed",
            "constrained.constraint.precision": "autocast_disabled is_autocast",
            "constrained.torch_internals.tensors": "has_values is_transformed",
        },
    )
