"""Imports the files that register features, which so are active as soon as the package is imported.

A feature adds members to the classes of modules with parametrized tensors, or is called before and
after optimizer steps, or adapts another library. The rooms below import none of these files. They
call whatever has been registered.
"""

# Importing a file registers its feature.
# ruff: noqa: F401
# pyright: reportUnusedImport=false
from constrained.checkpoint import load_hook
from constrained.interop import botorch, gpytorch_bounds, gpytorch_kernels, transformers
from constrained.model import lazy, view_warnings, writable
from constrained.parametrized import parameter_containers, pickling
from constrained.training import linear_fast_path, post_step, projected_step
