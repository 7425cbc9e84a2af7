"""Optimizers that walk on the set of a constraint.

- ``riemannian``: what they have in common: the set of each parameter, gradients that are checked.
- ``riemannian_sgd``: `RiemannianSGD`, gradient descent with momentum.
- ``riemannian_adam``: `RiemannianAdam`, with a second moment for each element, or each entry.
- ``line_search``: how far to go along a curve.
- ``descent``: steps that search along a curve, from a closure that evaluates the loss.
- ``riemannian_cg``: `RiemannianCG`, conjugate gradients.
- ``riemannian_lbfgs``: `RiemannianLBFGS`, limited-memory BFGS.
- ``manifold_muon``: `ManifoldMuon`, steps of a given length in the steepest tangent direction.
- ``walked_set``: the constraint of a parameter group, as plain data that a state dict can hold.
"""

from constrained.optim.manifold_muon import ManifoldMuon
from constrained.optim.riemannian_adam import RiemannianAdam
from constrained.optim.riemannian_cg import RiemannianCG
from constrained.optim.riemannian_lbfgs import RiemannianLBFGS
from constrained.optim.riemannian_sgd import RiemannianSGD

__all__ = ["ManifoldMuon", "RiemannianAdam", "RiemannianCG", "RiemannianLBFGS", "RiemannianSGD"]
