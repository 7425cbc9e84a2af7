"""Experiments in files: train a model with its constraints and without, and compare.

``constrained run EXPERIMENT.yaml``, or `run` in Python. An experiment names its data, its model and
its optimizer, built in or by an import path, and gives the constraints as a config. The modules of
these import paths are imported, so they run code; the constraints of an experiment never do.
"""

from __future__ import annotations

from constrained.experiments.experiment import ExperimentError, read_experiment
from constrained.experiments.runner import Outcome, run
from constrained.experiments.task import Task

__all__ = ["ExperimentError", "Outcome", "Task", "read_experiment", "run"]
