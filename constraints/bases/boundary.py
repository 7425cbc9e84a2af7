"""What happens at a boundary to a parameter that an optimizer has moved outside."""

from __future__ import annotations

import torch
from torch import Tensor

#: How much steeper a map is inside than outside; a power of two rounds nothing.
STEEPNESS = 2.0**20


#: By this factor each step reduces the distance to the boundary: see `relax_to_boundary`.
_DECAY = 0.9


def inwards(excess: Tensor, room: float) -> Tensor:
    """The distance inside of a boundary to which a point at the distance ``excess`` outside goes.

    It grows from 0 with the slope 2^-20 and stays below ``room``: a point that an optimizer moved
    out has a value on the boundary, up to a millionth of how far it went, and a gradient that leads
    back.

    Args:
        excess: distances from the boundary, 0 or more.
        room: an upper bound of the result: how much room there is inside.
    """
    s = excess / (STEEPNESS * room)
    return room * (s / (1 + s))


def relax_to_boundary(y: Tensor, member: Tensor, event_dim: int) -> Tensor:
    """A parameter that a step has led outside, moved a tenth of the way back to the boundary.

    To put it onto the boundary at once is a projection in the Euclidean metric, while a step of
    Adam is one in another metric. Together they can come to rest beside an optimum on the boundary,
    where the step leads outwards and the projection back to the same point (measured: a loss up to
    a seventh above the optimum). Outside, the derivative of a projection has no component across
    the boundary, and its component along the boundary leads to the optimum. So a parameter stays
    outside for about a hundred steps; then it is inside for one step, from where it can leave the
    boundary. With a single number the two metrics are the same, and it goes back at once.

    Args:
        y: parameters.
        member: their elements, of the same shape.
        event_dim: how many trailing dimensions make one element.
    """
    if torch.Size(y.shape[y.ndim - event_dim :]).numel() == 1:
        return member
    return member + _DECAY * (y - member)
