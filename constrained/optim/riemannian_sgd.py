"""Stochastic gradient descent with momentum on a set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from constrained.optim.riemannian import RiemannianOptimizer, Walker, expect_setting


class RiemannianSGD(RiemannianOptimizer):
    r"""Gradient descent with momentum, each step along the set of the parameter.

    With the Riemannian gradient $g_t$ at a member $W_t$ and the momentum $\mu$ a step is

    $$m_t = \mu \, T(m_{t-1}) + g_t, \qquad W_{t+1} = R(W_t, -\eta \, m_t),$$

    where T transports a tangent vector from the last member to this one, and R moves along a
    tangent vector (`Constraint.riemannian_gradient`, `transport`, `move`). Where a set has a
    boundary the step ends with the projection onto it. For a plain parameter it is
    `torch.optim.SGD`.

    Args:
        params: parameters, named parameters, or groups of them, as for every optimizer of torch. A
            group may have its own value of each setting.
        lr: the learning rate, $\eta$.
        momentum: $\mu$, from 0 to below 1.
        nesterov: whether the direction is $g_t + \mu m_t$, or else $m_t$.
        weight_decay: a multiple of the value that is added to the gradient.
        constraint: the set that the parameters lie in, as `constrained.constrain` takes it. By
            default each parameter has the one that `constrained.constrain` gave it with
            ``mode="project"``, and one without a constraint is a plain parameter.

    Raises:
        InfeasibleError: if a parameter does not lie in its set.
        ValueError: if a setting is out of range. In a step, if a gradient holds NaN or infinity:
            then nothing of this step has been done.

    Example:
        >>> import torch, constrained
        >>> from torch import nn
        >>> layer = constrained.constrain(nn.Linear(8, 8), "weight", "orthogonal", mode="project")
        >>> optimizer = RiemannianSGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> layer(torch.ones(2, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(layer.weight.T @ layer.weight, torch.eye(8), atol=1e-5)
        True

    Reference:
        Bonnabel, Stochastic gradient descent on Riemannian manifolds (IEEE Transactions on
        Automatic Control 58, 2013).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        constraint: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, constraint)

    def check_group(self, group: dict[str, Any]) -> None:
        """See `RiemannianOptimizer`."""
        expect_setting("momentum", group["momentum"], 0, 1)
        expect_setting("weight_decay", group["weight_decay"], 0, float("inf"))
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov=True needs a momentum above 0.")
        super().check_group(group)

    def walk(self, group: dict[str, Any], walker: Walker) -> None:
        """See `RiemannianOptimizer`."""
        constraint, value = walker.constraint, walker.value
        gradient = walker.gradient()
        if group["weight_decay"]:
            gradient = gradient.add(value, alpha=float(group["weight_decay"]))
        gradient = constraint.riemannian_gradient(value, gradient)
        direction, momentum = gradient, float(group["momentum"])
        state = self.state[walker.parameter]
        average = gradient
        if momentum:
            if "momentum_buffer" in state:
                average = gradient.add(state["momentum_buffer"], alpha=momentum)
            direction = gradient.add(average, alpha=momentum) if group["nesterov"] else average
        step = direction * -float(group["lr"])
        if not walker.may_take(step):
            return
        new = constraint.move(value, step)
        if not walker.may_take(new):
            return
        if momentum:
            moved = constraint.transport(average, new)
            state["momentum_buffer"] = moved.to(walker.parameter.dtype)
        walker.arrive(new)
