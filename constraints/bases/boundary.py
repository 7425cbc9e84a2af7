"""How a parameter that an optimizer has moved outside of a set comes back to the boundary."""

from __future__ import annotations

import torch
from torch import Tensor

#: How much steeper a map is inside than outside. Division by a power of two is exact.
STEEPNESS = 2.0**20


#: Each step multiplies the distance to the boundary by this: see `relax_to_boundary`.
_DECAY = 0.9


def inwards(excess: Tensor, room: float) -> Tensor:
    """The distance inside of a boundary for points at the distance ``excess`` outside.

    It grows from 0 with the slope 2^-20 and stays below ``room``. So a point that an optimizer has
    moved outside has a value on the boundary, up to a millionth of the distance, and a gradient
    that leads back.

    Args:
        excess: distances from the boundary, 0 or more.
        room: an upper bound of the result, such as half the width of the set.
    """
    s = excess / (STEEPNESS * room)
    return room * (s / (1 + s))


def relax_to_boundary(y: Tensor, member: Tensor, event_dim: int) -> Tensor:
    """A parameter that a step has led outside, moved a tenth of the way back to the boundary.

    Moving it onto the boundary at once would be a projection in the Euclidean metric, but a step of
    Adam is one in another metric. Together they can come to rest beside an optimum on the boundary,
    where the step leads outwards and the projection back to the same point (measured: a loss up to
    a seventh above the optimum). Outside, the derivative of a projection has no component across
    the boundary, and its component along the boundary leads to the optimum. So a parameter stays
    outside for about a hundred steps. Then it is inside for one step, from where it can leave the
    boundary. For a single number the two metrics are the same, so it is moved back at once.

    Args:
        y: parameters.
        member: their elements, of the same shape.
        event_dim: how many trailing dimensions make one element.
    """
    if torch.Size(y.shape[y.ndim - event_dim :]).numel() == 1:
        return member
    return member + _DECAY * (y - member)
