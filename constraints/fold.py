"""The fold at a boundary: how far inside a point goes that has been moved outside."""

from __future__ import annotations

from torch import Tensor

#: How much steeper a map is inside than outside; a power of two rounds nothing.
STEEPNESS = 2.0**20


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
