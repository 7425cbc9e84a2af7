"""Models as one would write them without any constraint in mind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from constrained.experiments.arguments import one_of, whole

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "identity": nn.Identity}


class ModReLUCell(nn.Module):
    """An RNN cell with modReLU, which keeps the sign of a number and moves its size by a bias.

    With a bias near 0 it is nearly the identity, and a state lasts as long as the recurrent kernel
    keeps its norm. Arjovsky, Shah and Bengio (2016) have it for complex networks, Helfrich,
    Willmott and Ye (2018) for real ones.

    Args:
        inputs: values per time step.
        hidden: length of the state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(hidden, hidden))
        self.bias = nn.Parameter(torch.empty(hidden))
        nn.init.kaiming_normal_(self.weight_ih, nonlinearity="linear")
        nn.init.orthogonal_(self.weight_hh)
        nn.init.uniform_(self.bias, -0.01, 0.01)

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """Values of shape ``(n, inputs)`` and the state ``(n, hidden)`` to the next state."""
        moved = values @ self.weight_ih.T + state @ self.weight_hh.T
        return moved.sign() * (moved.abs() + self.bias).relu()


class Recurrent(nn.Module):
    """Reads a sequence with an RNN cell, and classifies its last state, or every one.

    The recurrent kernel, ``cell.weight_hh``, starts as a random orthogonal matrix, the usual start
    of a network that is to remember; all else starts as PyTorch has it.

    Args:
        inputs: values per time step.
        hidden: length of the state.
        outputs: number of classes.
        every_step: whether each state is classified.
        nonlinearity: of the cell, ``"tanh"``, ``"relu"`` or ``"modrelu"``.

    Raises:
        ValueError: for other arguments.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        every_step: bool = False,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__()
        self.hidden = whole("hidden", hidden, 1)
        self.every_step = every_step
        whole("inputs", inputs, 1)
        one_of("nonlinearity", nonlinearity, ("tanh", "relu", "modrelu"))
        if nonlinearity == "modrelu":
            self.cell = ModReLUCell(inputs, hidden)
        else:
            self.cell = nn.RNNCell(inputs, hidden, nonlinearity=nonlinearity)
        self.classify = nn.Linear(hidden, whole("outputs", outputs, 1))
        nn.init.orthogonal_(self.cell.weight_hh)

    def forward(self, sequence: Tensor) -> Tensor:
        """Inputs ``(n, steps, inputs)`` to logits ``(n, outputs)`` or ``(n, steps, outputs)``."""
        state = sequence.new_zeros(len(sequence), self.hidden)
        states: list[Tensor] = []
        for values in sequence.unbind(dim=1):
            state = self.cell(values, state)
            if self.every_step:
                states.append(state)
        return self.classify(torch.stack(states, dim=1) if self.every_step else state)


def mlp(
    inputs: int, outputs: int, hidden: Sequence[int] = (32,), activation: str = "relu"
) -> nn.Sequential:
    """Linear layers with an activation between them, called ``0``, ``2``, ``4`` and so on.

    Args:
        inputs: values per example.
        outputs: number of classes.
        hidden: the widths of the hidden layers.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"identity"``.

    Raises:
        ValueError: for other arguments.
    """
    given: Any = hidden
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"hidden must be a list of whole numbers, got {given!r}.")
    one_of("activation", activation, _ACTIVATIONS)
    widths = [whole("inputs", inputs, 1), *hidden, whole("outputs", outputs, 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(whole("hidden", width, 1) for width in widths):
        layers += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
