"""Optimizers that walk on the set of a constraint.

- ``manifold_muon``: `ManifoldMuon`, steps of a given length in the steepest tangent direction.
- ``walked_set``: the constraint of a parameter group, as plain data that a state dict can hold.
"""

from constrained.optim.manifold_muon import ManifoldMuon

__all__ = ["ManifoldMuon"]
