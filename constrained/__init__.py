"""Keep the weights of PyTorch models inside constraint sets."""

from constrained import features as _features  # noqa: F401 - they take part by themselves
from constrained import parametrize
from constrained.checkpoint.state_dict import baked_state_dict, load_state_dict
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.registry import describe, get, names, register
from constrained.constraint.tolerance import tolerance
from constrained.evaluation.cached import cached
from constrained.model.constrain import constrain, rebase, release
from constrained.model.report import assert_feasible, report, spec, violations
from constrained.model.writable import writable

__all__ = [
    "Constraint",
    "InfeasibleError",
    "assert_feasible",
    "baked_state_dict",
    "cached",
    "constrain",
    "describe",
    "get",
    "load_state_dict",
    "names",
    "parametrize",
    "rebase",
    "register",
    "release",
    "report",
    "spec",
    "tolerance",
    "violations",
    "writable",
]
