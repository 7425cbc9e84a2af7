"""Bases of sets of vectors and of matrices: the shapes that one element may have."""

from __future__ import annotations

from constrained import Constraint


class Vectors(Constraint):
    """Base of sets of vectors: an element is the last dimension of a tensor, and not empty."""

    event_dim = 1

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one entry."""
        return None if event[0] > 0 else "must have at least one entry"


class Matrices(Constraint):
    """Base of sets of matrices: an element is the last two dimensions, and not empty."""

    event_dim = 2

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has at least one row and one column."""
        return None if min(event) > 0 else "must have at least one row and one column"


class SquareMatrices(Matrices):
    """Base of sets of square matrices."""

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element has as many rows as columns, and at least one."""
        square = event[-2] == event[-1] > 0
        return None if square else "must be a square matrix with a row or more"


class EvenMatrices(SquareMatrices):
    """Base of sets of square matrices of four equal blocks."""

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """An element is a square matrix with an even number of rows."""
        even = super().shape_problem(event) is None and event[-1] % 2 == 0
        return None if even else "must be a square matrix with an even number of rows, not 0"


def thinner_than(event: tuple[int, ...], rank: int) -> str | None:
    """The problem of a matrix with fewer rows or columns than a rank that it may have."""
    if min(event) >= rank:
        return None
    return f"must have at least {rank} rows and columns to hold a matrix of that rank"


def too_small(event: tuple[int, ...], rank: int) -> str | None:
    """The problem of a square matrix with fewer rows than its rank."""
    return None if event[-1] >= rank else f"must have at least {rank} rows to be of that rank"
