"""The fold at a boundary: where a point goes that an optimizer has moved outside."""

from __future__ import annotations

import torch
from torch import Tensor

#: How much steeper a map is inside than outside; a power of two rounds nothing.
STEEPNESS = 2.0**20


#: What is left after a step of how far outside a parameter is: see `relax_to_boundary`.
_LINGERING = 0.9


def inwards(excess: Tensor, room: float) -> Tensor:
    """How far inside of a boundary a point goes that lies ``excess`` outside of it.

    It grows from 0 with the slope 2^-20 and stays below ``room``: what an optimizer moved out has a
    value on the boundary, up to a millionth of how far it went, and a gradient that leads back.

    Args:
        excess: distances from the boundary, 0 or more.
        room: how much room there is inside.
    """
    s = excess / (STEEPNESS * room)
    return room * (s / (1 + s))


def relax_to_boundary(y: Tensor, member: Tensor, event_dim: int) -> Tensor:
    """A parameter that a step has led outside, on its way back to the boundary.

    To put it there at once is a projection in the Euclidean metric, while a step of Adam is one in
    another metric: together they come to rest beside an optimum on the boundary, where the step
    leads outwards and the projection back to the same point (measured: a loss up to a seventh above
    the optimum). Outside, the derivative of a projection has no component across the boundary, and
    what is along it leads to the optimum. So a parameter stays there for about a hundred steps, and
    is then inside for one, from where it can leave the boundary. A single number has no such
    trouble, and goes back at once.

    Args:
        y: parameters.
        member: their elements, of the same shape.
        event_dim: how many trailing dimensions make one element.
    """
    if torch.Size(y.shape[y.ndim - event_dim :]).numel() == 1:
        return member
    return member + _LINGERING * (y - member)
