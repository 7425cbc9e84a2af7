"""The digits as sequences: one row or one pixel per time step, and then noise."""

# Not strict: scikit-learn leaves types of what is used here unknown.
# pyright: basic
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.digits.experiment import Data

ORDERS = {
    "rows": "n (row column) -> n row column",
    "pixels": "n (row column) -> n (row column) 1",
}


@dataclass(frozen=True)
class Digits:
    """Images and labels, split into training and test.

    Attributes:
        train: sequences of shape ``(n, steps, inputs)``, without noise.
        train_labels: shape ``(n,)``.
        test: sequences with noise, which is drawn once.
        test_labels: shape ``(n,)``.
        noise_steps: how many steps of noise follow each sequence.
        noise_scale: standard deviation of the noise.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    noise_steps: int
    noise_scale: float

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, with fresh noise."""
        for chosen in torch.randperm(len(self.train), generator=generator).split(size):
            noisy = with_noise(self.train[chosen], self.noise_steps, self.noise_scale, generator)
            yield noisy, self.train_labels[chosen]


def load(config: Data, seed: int) -> Digits:
    """The 1,797 digits that scikit-learn ships, with pixels of mean 0 and variance 1."""
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    train, test = train_test_split(
        range(len(labels)), test_size=config.test_fraction, stratify=labels, random_state=seed
    )
    # The statistics of the training images serve both, as they would for images yet unseen.
    standard = (images - images[train].mean()) / images[train].std()
    sequences = rearrange(standard.float(), ORDERS[config.order], row=8)
    generator = torch.Generator().manual_seed(seed)
    return Digits(
        train=sequences[train],
        train_labels=labels[train],
        test=with_noise(sequences[test], config.noise_steps, config.noise_scale, generator),
        test_labels=labels[test],
        noise_steps=config.noise_steps,
        noise_scale=config.noise_scale,
    )


def with_noise(sequences: Tensor, steps: int, scale: float, generator: torch.Generator) -> Tensor:
    """Append ``steps`` steps of Gaussian noise to sequences of shape ``(n, steps, inputs)``."""
    n, _, inputs = sequences.shape
    noise = scale * torch.randn(n, steps, inputs, generator=generator)
    return torch.cat([sequences, noise], dim=1)
