"""`Lagrangian`: constraints as terms of the loss, whose multipliers make them hold exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from constrained.attached.attached_constraint import AttachedConstraint, attached_constraints
from constrained.constraint.errors import SpecError
from constrained.constraint.plain_data import short
from constrained.model.penalty import check_weight, residual
from constrained.parametrized.tensor_locations import check_model


class Lagrangian(nn.Module):
    r"""The augmented Lagrangian of a model's constraints.

    It adds to the loss, for each tensor x with ``mode="penalize"`` and its set with the projection
    P, and for each function g of the model that shall not be positive,

    .. math::
        \frac{\rho}{2} \left\lVert x + \frac{y}{\rho} - P\!\left(x + \frac{y}{\rho}\right)
        \right\rVert^2
        \quad\text{and}\quad
        \frac{\rho}{2} \left\lVert \max\!\left(0, g + \frac{\lambda}{\rho}\right) \right\rVert^2 .

    Both are the same, since the numbers that are not positive are a set, too. `update` moves the
    multipliers y and :math:`\lambda` after a step of the optimizer, or after several. They come to
    rest where the constraints hold, whatever the weight :math:`\rho`: a small one makes that slow,
    a large one makes the loss hard to minimize. The multipliers are buffers: `state_dict` has them.

    Args:
        model: the model. Its tensors with ``mode="penalize"`` take part, as they are now.
        functions: functions of the model, by names, each with a tensor of numbers that shall be at
            most zero, as in ``{"energy": lambda m: m.energy() - 1}``.
        weight: :math:`\rho`, positive.
        damping: the share by which `update` shrinks the multipliers, at least 0 and below 1. A
            positive one keeps them from oscillating, and leaves a violation in proportion to it.

    Raises:
        ValueError: for arguments out of range, or if the model has no tensor with
            ``mode="penalize"`` and no functions are given.

    Example:
        >>> import torch, constrained
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> layer = constrained.constrain(layer, "weight", "box(low=0, high=1)", mode="penalize")
        >>> lagrangian = constrained.Lagrangian(layer, weight=10.0)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     loss = (layer.weight - 3).square().sum()
        ...     lagrangian(loss).backward()
        ...     optimizer.step()
        ...     lagrangian.update()
        >>> round(layer.weight.item(), 4)
        1.0

    Reference:
        Rockafellar, Augmented Lagrange multiplier functions and duality in nonconvex programming
        (1974); Platt and Barr, Constrained differential optimization (1988), for damping.
    """

    def __init__(
        self,
        model: nn.Module,
        functions: Mapping[str, Callable[[Any], Tensor]] | None = None,
        *,
        weight: float = 1.0,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        check_model(model)
        if not check_weight(weight):
            raise SpecError("The weight of a Lagrangian is positive, got 0.")
        if not 0 <= damping < 1:
            raise SpecError(f"The damping is at least 0 and below 1, got {short(damping)}.")
        self.weight, self.damping = float(weight), float(damping)
        # Not a submodule: the parameters of the model are not those of the Lagrangian.
        self.__dict__["_model"] = model
        self._functions = dict(functions or {})
        self._held: dict[str, AttachedConstraint] = {
            path: found for path, found in attached_constraints(model) if found.mode == "penalize"
        }
        if not self._held and not self._functions:
            raise SpecError(
                f"{type(model).__name__} has no tensor with mode='penalize', and no functions are "
                "given."
            )
        for path, found in self._held.items():
            rest = residual(path, found).detach()
            self.register_buffer(_key("tensor", path), torch.zeros_like(rest))
        with torch.no_grad():
            for name, value in self._values().items():
                self.register_buffer(_key("function", name), torch.zeros_like(value))

    def forward(self, loss: Tensor) -> Tensor:
        """The loss with the terms of the constraints.

        Args:
            loss: scalar.
        """
        for rest in self._shifted().values():
            loss = loss + self.weight / 2 * rest.abs().square().sum()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        """Move each multiplier by the violation that is left at the present parameters."""
        for key, rest in self._shifted().items():
            self.get_buffer(key).copy_((1 - self.damping) * self.weight * rest)

    @torch.no_grad()
    def violations(self) -> dict[str, float]:
        """The largest violation of each constraint, by the path of the tensor or the name."""
        found = {path: residual(path, held).abs() for path, held in self._held.items()}
        found |= {name: value.clamp(min=0) for name, value in self._values().items()}
        return {name: float(v.max()) if v.numel() else 0.0 for name, v in found.items()}

    def multipliers(self) -> dict[str, Tensor]:
        """The multipliers, by the path of the tensor or the name of the function."""
        found = {path: self.get_buffer(_key("tensor", path)) for path in self._held}
        return found | {n: self.get_buffer(_key("function", n)) for n in self._functions}

    def _shifted(self) -> dict[str, Tensor]:
        """How far each constrained quantity, with its multiplier, is from its set."""
        found: dict[str, Tensor] = {}
        for path, held in self._held.items():
            key = _key("tensor", path)
            found[key] = residual(path, held, self.get_buffer(key) / self.weight)
        for name, value in self._values().items():
            key = _key("function", name)
            found[key] = (value + self.get_buffer(key) / self.weight).clamp(min=0)
        return found

    def _values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for name, function in self._functions.items():
            value: Any = function(self.__dict__["_model"])
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(
                    f"The function '{name}' gives a tensor of real numbers that shall be at most "
                    f"zero, got {short(value)}."
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"The function '{name}' gives NaN or infinity.")
            values[name] = value
        return values


def _key(kind: str, name: str) -> str:
    # The name of a buffer has no dots.
    return f"{kind}:{name.replace('.', '/')}"
