"""The features that take part by themselves, in whatever a user calls.

Each of these files adds members to the classes of modules with parametrized tensors, or is called
after steps of optimizers, or knows another library. The engine below imports none of them, and asks
those that are there.
"""

# ruff: noqa: F401
from constrained.checkpoint import load_hook
from constrained.libraries import botorch, gpytorch_bounds, gpytorch_kernels, transformers
from constrained.model import advice, lazy, writable
from constrained.parametrized import parameter_containers, pickling
from constrained.training import linear_fast_path, post_step
