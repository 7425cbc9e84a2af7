"""The types of error that are raised about values, and about how constraints are written down."""

from __future__ import annotations


class InfeasibleError(ValueError):
    """A value does not lie in the set of a constraint."""


class OutOfRangeError(ValueError):
    """Finite numbers are so large or small for their dtype that an algorithm fails on them."""


class SpecError(TypeError, ValueError):
    """A spec is not valid: its syntax, its arguments or their types are wrong.

    Example:
        >>> from constrained import SpecError, constrain
        >>> from torch import nn
        >>> try:
        ...     constrain(nn.Linear(2, 2), "weight", "low_rank(rnak=1)")
        ... except SpecError as error:
        ...     print(str(error).partition(" low_rank takes")[0])
        'weight': low_rank has no argument 'rnak'. Did you mean 'rank'?
    """


class UnknownNameError(KeyError, ValueError):
    """No constraint is registered under a name.

    Example:
        >>> from constrained import UnknownNameError, get
        >>> try:
        ...     get("orthogonl")
        ... except UnknownNameError as error:
        ...     print(str(error).partition(" constrained.names()")[0])
        Unknown constraint 'orthogonl'. Did you mean 'orthogonal'?
    """

    def __str__(self) -> str:
        # KeyError would show the repr of the sentence, which has quotes around it.
        return str(self.args[0])
