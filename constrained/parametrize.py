"""``torch.nn.utils.parametrize`` under the same names: registering and removing parametrizations.

Semantics, ``state_dict`` keys, error types and messages are torch's; the docstrings here state
what is different. Modules of either engine work with the functions of the other.
"""

from __future__ import annotations

from torch import nn

from constrained.evaluation.cached import cached
from constrained.parametrized.module_class import base_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import is_parametrized
from constrained.registration.add import Function as Function  # models pickled before 0.2
from constrained.registration.add import register_parametrization
from constrained.registration.remove import remove_parametrizations
from constrained.registration.transfer import transfer_parametrizations_and_params

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "transfer_parametrizations_and_params",
    "type_before_parametrizations",
]


def type_before_parametrizations(module: nn.Module) -> type:
    """The class of a module before its first parametrization, or its class if it has none."""
    return base_class(module)
