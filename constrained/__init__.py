"""Keep the weights of PyTorch models inside constraint sets."""

from typing import TYPE_CHECKING

from constrained import parametrize, plot
from constrained import register_features as _register_features  # noqa: F401 # pyright: ignore[reportUnusedImport] - it is imported for its effect
from constrained.checkpoint.load import load
from constrained.checkpoint.save import save
from constrained.checkpoint.state_dict import baked_state_dict, load_state_dict
from constrained.constraint.base import Constraint
from constrained.constraint.documentation import describe
from constrained.constraint.errors import (
    ConfigErrors,
    InfeasibleError,
    NonfiniteGradientError,
    SpecError,
    UnknownNameError,
)
from constrained.constraint.moved import keep_old_paths as _keep_old_paths
from constrained.constraint.registry import get, names, register
from constrained.constraint.tolerance import tolerance
from constrained.evaluation.cached import cached
from constrained.minimizing.minimize import minimize
from constrained.model.config_file import read_config
from constrained.model.config_schema import schema
from constrained.model.constrain import constrain
from constrained.model.lagrangian import Lagrangian
from constrained.model.parameters import param_groups, parameters_of, tensor_paths
from constrained.model.penalty import penalty
from constrained.model.plan import Plan, plan
from constrained.model.rebase import rebase
from constrained.model.release import release
from constrained.model.specs import spec
from constrained.model.writable import writable
from constrained.old_paths import MOVED as _MOVED
from constrained.seeing.measured import assert_feasible, violations
from constrained.seeing.monitor import Monitor
from constrained.seeing.report import report
from constrained.training.processes import share_projections

__version__ = "0.2.0"

__all__ = [
    "ConfigErrors",
    "Constraint",
    "InfeasibleError",
    "Lagrangian",
    "Monitor",
    "NonfiniteGradientError",
    "Plan",
    "SpecError",
    "UnknownNameError",
    "assert_feasible",
    "baked_state_dict",
    "cached",
    "constrain",
    "describe",
    "get",
    "load",
    "load_state_dict",
    "minimize",
    "names",
    "param_groups",
    "parameters_of",
    "parametrize",
    "penalty",
    "plan",
    "plot",
    "read_config",
    "rebase",
    "register",
    "release",
    "report",
    "save",
    "schema",
    "share_projections",
    "spec",
    "tensor_paths",
    "tolerance",
    "violations",
    "writable",
]

# Not for type checkers, to which every name would then be one of this package.
if not TYPE_CHECKING:
    __getattr__ = _keep_old_paths(_MOVED)
