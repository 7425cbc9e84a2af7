"""Minimizing a loss by the methods of SciPy, from full gradients and without a training loop."""
