"""A recurrent classifier, written as one would write it without any constraint in mind."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Reads a sequence with a tanh cell and classifies its last state.

    The recurrent kernel starts as a random orthogonal matrix, the usual start of a network that
    is to remember; all else starts as PyTorch has it.

    Args:
        inputs: values per time step.
        hidden: length of the state.
        classes: number of classes.
    """

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.RNNCell(inputs, hidden)
        self.classify = nn.Linear(hidden, classes)
        nn.init.orthogonal_(self.cell.weight_hh)

    def forward(self, sequence: Tensor) -> Tensor:
        """Sequences of shape ``(n, steps, inputs)`` to logits of shape ``(n, classes)``."""
        state = sequence.new_zeros(len(sequence), self.hidden)
        for values in sequence.unbind(dim=1):
            state = self.cell(values, state)
        return self.classify(state)

    @torch.no_grad()
    def kernel(self) -> Tensor:
        """The recurrent kernel as it is now, of shape ``(hidden, hidden)``."""
        return self.cell.weight_hh.detach().clone()
