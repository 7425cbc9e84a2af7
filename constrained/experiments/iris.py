"""The iris flowers: 150 of three species, by four lengths."""

# Not strict: scikit-learn leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

import torch

from constrained.experiments.arguments import number
from constrained.experiments.task import Task


def iris(test_fraction: float = 0.3, seed: int = 0) -> Task:
    """The data set that scikit-learn ships, with lengths of mean 0 and variance 1.

    Args:
        test_fraction: the share of the flowers that is tested on.
        seed: of the split.

    Raises:
        ValueError: for other arguments.
    """
    # Imported here, so that other data need no scikit-learn.
    from sklearn.datasets import load_iris
    from sklearn.model_selection import train_test_split

    number("test_fraction", test_fraction, 0.05, 0.95)
    lengths, species = (torch.tensor(array) for array in load_iris(return_X_y=True))
    train, test = train_test_split(
        range(len(species)), test_size=test_fraction, stratify=species, random_state=seed
    )
    standard = ((lengths - lengths[train].mean(0)) / lengths[train].std(0)).float()
    return Task.classification(
        train=(standard[train], species[train]),
        test=(standard[test], species[test]),
        offers={"inputs": 4, "outputs": 3},
    )
