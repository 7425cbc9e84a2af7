"""Errors about values, and about how constraints are written down."""

from __future__ import annotations


class InfeasibleError(ValueError):
    """A value that does not lie in the set it was offered to."""


class OutOfRangeError(ValueError):
    """Finite numbers, at the ends of the range of their dtype, that no algorithm works on."""


class SpecError(TypeError, ValueError):
    """A spec that is no description of a constraint."""


class UnknownNameError(KeyError, ValueError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the sentence in quotes.
        return str(self.args[0])
