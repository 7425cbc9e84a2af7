"""Conjugate gradients on a set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from constrained.optim.descent import DescentOptimizer, Point, Vectors, inner
from constrained.optim.line_search import Trial


class RiemannianCG(DescentOptimizer):
    r"""Nonlinear conjugate gradients, each step along the sets of all parameters.

    With the Riemannian gradient $g_k$ at $W_k$ the direction is

    $$d_k = -g_k + \beta_k T(d_{k-1}), \qquad
    \beta_k = \max\Bigl(0, \frac{\langle g_k, g_k - T(g_{k-1}) \rangle}{\langle g_{k-1}, g_{k-1}
    \rangle}\Bigr),$$

    where T transports a tangent vector from the last member to this one, and
    $W_{k+1} = R(W_k, t_k d_k)$ with a length $t_k$ that satisfies the strong Wolfe conditions. It
    remembers two tensors for each parameter. For smooth sets, and for losses without noise: the
    closure has to evaluate the same function each time.

    Args:
        params: parameters, named parameters, or groups of them, as for every optimizer of torch. A
            group may have its own constraint.
        lr: a factor of the first length that a line search tries.
        max_iter: how many steps a call of `step` makes at most.
        max_eval: how often it evaluates the loss at most. By default 5/4 of ``max_iter``, and at
            least 20.
        tolerance_grad: it stops once no entry of the Riemannian gradients is larger.
        constraint: the set that the parameters lie in, as `constrained.constrain` takes it. By
            default each parameter has the one that `constrained.constrain` gave it with
            ``mode="project"``, and one without a constraint is a plain parameter.

    Raises:
        InfeasibleError: if a parameter does not lie in its set.
        ValueError: if a setting is out of range, or a set has a boundary. In a step, if the loss or
            a gradient is NaN or infinite at its beginning: then nothing of this step has been done.

    Example:
        >>> import torch, constrained
        >>> A = torch.diag(torch.arange(1.0, 9))
        >>> x = torch.nn.Parameter(torch.ones(1, 8) / 8**0.5)
        >>> optimizer = RiemannianCG([x], constraint="sphere", max_iter=100)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x @ A @ x.T).sum()
        ...     loss.backward()
        ...     return loss
        >>> start = optimizer.step(closure)
        >>> round(closure().item(), 4)
        1.0

    Reference:
        Absil, Mahony and Sepulchre, Optimization algorithms on matrix manifolds (2008), section
        8.3.
    """

    curvature = 0.4

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        *,
        constraint: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max(20, 5 * max_iter // 4) if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
        }
        super().__init__(params, defaults, constraint)

    def direction(self, point: Point) -> Vectors:
        """See `DescentOptimizer`."""
        states = [self.state[w.parameter] for w in point.walkers]
        if not all(states):
            return [-g for g in point.gradients]
        last = [state["gradient"].to(g) for state, g in zip(states, point.gradients, strict=True)]
        changed = [g - old for g, old in zip(point.gradients, last, strict=True)]
        beta = max(0.0, inner(point.gradients, changed) / states[0]["gradient_square"])
        return [
            state["direction"].to(g).mul(beta).sub(g)
            for state, g in zip(states, point.gradients, strict=True)
        ]

    def first_length(self, point: Point, slope: float) -> float | None:
        """The length that would change the loss as much as the last step, to first order."""
        state = self.state[point.walkers[0].parameter]
        return state["decrease"] / slope if state else None

    def remember(self, before: Point, direction: Vectors, trial: Trial, after: Point) -> None:
        """See `DescentOptimizer`."""
        slope = inner(before.gradients, direction)
        square = inner(before.gradients, before.gradients)
        directions = after.transported(direction)
        gradients = after.transported(before.gradients)
        for walker, d, g in zip(after.walkers, directions, gradients, strict=True):
            dtype = walker.parameter.dtype
            self.state[walker.parameter] = {"direction": d.to(dtype), "gradient": g.to(dtype)}
        first = self.state[after.walkers[0].parameter]
        first["decrease"], first["gradient_square"] = trial.length * slope, square
