"""Keep the weights of PyTorch models inside constraint sets."""

from constrained import parametrize
from constrained.apply import constrain, rebase, release
from constrained.cache import cached
from constrained.checkpoint import baked_state_dict, load_state_dict
from constrained.constraint import Constraint, InfeasibleError
from constrained.registry import describe, get, names, register
from constrained.report import assert_feasible, report, spec, violations
from constrained.tolerance import tolerance
from constrained.write import writable

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
