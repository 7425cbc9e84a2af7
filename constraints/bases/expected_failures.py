"""Laws that a constraint cannot hold, with the reason: values of `Constraint.expected_failures`."""

from __future__ import annotations


def no_derivative(reason: str, *points: str) -> dict[str, str]:
    """The laws of the first and second derivatives fail at these points."""
    return failing(reason, "first_derivative", "second_derivative", at=points)


def failing(reason: str, *laws: str, at: tuple[str, ...] = ()) -> dict[str, str]:
    """These laws fail for one reason: at given points, or altogether."""
    names = [f"{law}:{point}" for law in laws for point in at] if at else laws
    return dict.fromkeys(names, reason)


#: The reason of all maps that divide by a length or a norm.
NO_DIRECTION = "y / ||y|| has no limit at y = 0"


#: The reason of all maps by a polar factor.
NO_POLAR_FACTOR = "the polar factor has no limit at X = 0, nor at any matrix that has not full rank"
