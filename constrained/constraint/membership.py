"""Whether a tensor lies in a set: the checks and questions that follow from `violation`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from constrained.constraint.arguments import WithArguments
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals.tensors import has_values


class Membership(WithArguments):
    """The part of `Constraint` that tells members of the set from other tensors.

    Class attributes:
        event_dim, complex: see `Constraint`.
    """

    event_dim: int | None
    complex: ClassVar[bool] = False
    name: ClassVar[str | None] = None

    @abstractmethod
    def violation(self, value: Tensor) -> Tensor:
        """How far ``value`` lies from the set: distance-like, shape ``batch``, 0 on its closure."""

    def slack(self, value: Tensor) -> Tensor | None:
        """How far members lie from the boundary of the set, in the units of `violation`.

        A class defines it where its set has a boundary: for an upper bound of a norm, the bound
        less the norm. It is 0 on the boundary, and says nothing about tensors outside of the set.

        Args:
            value: members, of shape ``(*batch, *event)``.

        Returns:
            Real tensor of shape ``batch``, NaN where an element is not finite; None if the set has
            no boundary, as orthogonal matrices have none, or the class does not say.

        Example:
            >>> from constrained import get
            >>> get("box")(low=0, high=1).slack(torch.tensor([0.0, 0.25, 0.9]))
            tensor([0.0000, 0.2500, 0.1000])
        """
        del value
        return None

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """What is wrong with an event shape, as in ``"must be square"``; None if nothing is."""
        del event
        return None

    def contains(self, value: Tensor, tol: float | None = None) -> Tensor:
        """Whether each element of the batch lies in the set, up to ``tol``.

        Args:
            value: shape ``(*batch, *event)``.
            tol: the largest violation that is accepted; `constrained.tolerance` by default.

        Returns:
            Boolean tensor of shape ``batch``. False where an element is not finite.
        """
        violation, granted = self.measured(value)
        return (violation <= (granted if tol is None else tol)) & torch.isfinite(violation)

    def measured(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The violation of each element of the batch, and how much of it may be due to rounding.

        An element is a member if its violation is finite and not larger than the second number.
        """
        return self.violation(value), tolerance(value, self.event_dim)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise a `ValueError` if a tensor of this shape cannot carry the constraint."""
        shape = tuple(shape)
        event = len(shape) if self.event_dim is None else self.event_dim
        if len(shape) < event:
            dims = "one dimension" if event == 1 else f"{event} dimensions"
            raise ValueError(
                f"{self!r} needs a tensor of at least {dims}, but the shape is {shape}."
            )
        problem = self.shape_problem(shape[len(shape) - event :])
        if problem:
            raise ValueError(f"{self!r}: each element {problem}, but the shape is {shape}.")

    def check_tensor(self, value: Tensor) -> None:
        """Raise unless ``value`` is a finite floating-point tensor of an admissible shape.

        Raises:
            TypeError: if it is no tensor, sparse, or of another dtype.
            ValueError: if its shape is not admissible, or an entry is NaN or infinite.
        """
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - users
            raise TypeError(f"{self!r} needs a tensor, got {type(value).__name__}.")
        if not (value.is_floating_point() or (self.complex and value.is_complex())):
            kind = "floating-point or complex" if self.complex else "real floating-point"
            raise TypeError(f"{self!r} needs a {kind} tensor, got {value.dtype}.")
        if value.dtype.itemsize < 2:
            raise TypeError(
                f"{self!r} needs a floating-point tensor of at least 16 bits, got {value.dtype}, "
                "which torch does not compute with."
            )
        if value.layout is not torch.strided:
            raise TypeError(
                f"{self!r} needs a dense tensor, got one that is sparse ({value.layout}): make it "
                "dense first, by to_dense()."
            )
        self.check_shape(value.shape)
        if has_values(value) and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{self!r} needs finite values, but {count} of {value.numel()} are NaN or infinite."
            )

    def check_member(self, value: Tensor) -> None:
        """Raise an `InfeasibleError` unless every element of ``value`` lies in the set."""
        self.check_tensor(value)
        if not has_values(value) or value.numel() == 0:
            return
        violations, granted = self.measured(value)
        inside = (violations <= granted) & torch.isfinite(violations)
        if bool(inside.all()):
            return
        # Infinity minus infinity would be NaN.
        excess = torch.where(torch.isfinite(violations), violations - granted, torch.inf)
        worst = int(excess.flatten().argmax())
        violation = float(violations.flatten()[worst])
        allowed = float(granted.flatten()[worst])
        name = type(self).name
        project = f"get({name!r})(...).project(value)" if name else "its project(value)"
        where = ""
        if excess.ndim:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape))
            where = f" at index {index}"
        raise InfeasibleError(
            f"{self!r}: the value violates the constraint by {violation:.3g}{where} "
            f"(at most {allowed:.3g} is rounding); {project} gives a nearby "
            "member, and a write inside of writable(module) goes to it."
        )
