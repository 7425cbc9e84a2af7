"""The digits as sequences: one row or one pixel per time step, and then noise."""

# Not strict: scikit-learn leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from constrained.experiments.arguments import number, one_of, whole
from constrained.experiments.task import Task

_ORDERS = {
    "rows": "n (row column) -> n row column",
    "pixels": "n (row column) -> n (row column) 1",
}


def digits(
    order: str = "rows",
    noise_steps: int = 0,
    noise_scale: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Task:
    """The 1,797 digits that scikit-learn ships, with pixels of mean 0 and variance 1.

    Args:
        order: ``"rows"``, one image row per time step, or ``"pixels"``, one pixel per time step.
        noise_steps: how many steps of Gaussian noise follow each image, drawn anew for each batch.
        noise_scale: their standard deviation.
        test_fraction: the share of the images that is tested on.
        seed: of the split, and of the noise in the test images.

    Raises:
        ValueError: for other arguments.
    """
    # Imported here, so that other data need no scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    one_of("order", order, _ORDERS)
    whole("noise_steps", noise_steps, 0)
    number("noise_scale", noise_scale, 0)
    number("test_fraction", test_fraction, 0.05, 0.95)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    train, test = train_test_split(
        range(len(labels)), test_size=test_fraction, stratify=labels, random_state=seed
    )
    # The statistics of the training images serve both, as they would for images yet unseen.
    standard = (images - images[train].mean()) / images[train].std()
    sequences = rearrange(standard.float(), _ORDERS[order], row=8)

    def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return with_noise(inputs, noise_steps, noise_scale, generator)

    return Task.classification(
        train=(sequences[train], labels[train]),
        test=(noisy(sequences[test], torch.Generator().manual_seed(seed)), labels[test]),
        alter=noisy,
        offers={"inputs": sequences.shape[-1], "outputs": 10},
    )


def with_noise(sequences: Tensor, steps: int, scale: float, generator: torch.Generator) -> Tensor:
    """Append ``steps`` steps of Gaussian noise to sequences of shape ``(n, steps, inputs)``."""
    n, _, inputs = sequences.shape
    noise = scale * torch.randn(n, steps, inputs, generator=generator)
    return torch.cat([sequences, noise], dim=1)
