"""Limited-memory BFGS on a set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from constrained.optim.descent import DescentOptimizer, Point, Vectors, inner
from constrained.optim.line_search import Trial
from constrained.optim.riemannian import expect_setting


class RiemannianLBFGS(DescentOptimizer):
    r"""Limited-memory BFGS, each step along the sets of all parameters.

    The direction is $-H_k g_k$ with the Riemannian gradient $g_k$ and the inverse Hessian $H_k$ of
    BFGS, which is made of the last steps $s_i$ and the changes $y_i$ of the gradient along them.
    These are tangent vectors, and are transported to the new member after each step; a pair with
    $\langle s_i, y_i \rangle$ up to rounding at most 0 is left out. The length satisfies the strong
    Wolfe conditions. For smooth sets, and for losses without noise: the closure has to evaluate the
    same function each time.

    Args:
        params: parameters, named parameters, or groups of them, as for every optimizer of torch. A
            group may have its own constraint.
        lr: a factor of the first length that a line search tries.
        max_iter: how many steps a call of `step` makes at most.
        max_eval: how often it evaluates the loss at most. By default 5/4 of ``max_iter``, and at
            least 20.
        tolerance_grad: it stops once no entry of the Riemannian gradients is larger.
        history_size: how many steps it remembers. Each takes two tensors of the size of the
            parameters.
        constraint: the set that the parameters lie in, as `constrained.constrain` takes it. By
            default each parameter has the one that `constrained.constrain` gave it with
            ``mode="project"``, and one without a constraint is a plain parameter.

    Raises:
        InfeasibleError: if a parameter does not lie in its set.
        ValueError: if a setting is out of range, or a set has a boundary. In a step, if the loss or
            a gradient is NaN or infinite at its beginning: then nothing of this step has been done.

    Example:
        >>> import torch
        >>> target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> W = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = RiemannianLBFGS([W], constraint="orthogonal")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (W - target).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> start = optimizer.step(closure)
        >>> torch.allclose(W.T @ W, torch.eye(2), atol=1e-5)
        True

    Reference:
        Huang, Gallivan and Absil, A Broyden class of quasi-Newton methods for Riemannian
        optimization (SIAM Journal on Optimization 25, 2015); Nocedal and Wright, Numerical
        optimization (2006), algorithm 7.4, for the products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        history_size: int = 10,
        *,
        constraint: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max(20, 5 * max_iter // 4) if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "history_size": history_size,
        }
        super().__init__(params, defaults, constraint)

    def check_group(self, group: dict[str, Any]) -> None:
        """See `DescentOptimizer`."""
        expect_setting("history_size", group["history_size"], 1, float("inf"))
        super().check_group(group)

    def direction(self, point: Point) -> Vectors:
        """The two-loop recursion."""
        result: Vectors = [-g for g in point.gradients]
        pairs = [(s, y, inner(s, y)) for s, y in self._pairs(point)]
        pairs = [(s, y, along) for s, y, along in pairs if along > 0]
        if not pairs:
            return result
        shares: list[float] = []
        for s, y, along in reversed(pairs):
            shares.append(inner(s, result) / along)
            result = _sum(result, y, -shares[-1])
        _, y, along = pairs[-1]
        scale = along / inner(y, y)
        result = [scale * r for r in result]
        for (s, y, along), share in zip(pairs, reversed(shares), strict=True):
            result = _sum(result, s, share - inner(y, result) / along)
        return result

    def first_length(self, point: Point, slope: float) -> float | None:
        """The whole step."""
        return 1.0 if self.state[point.walkers[0].parameter] else None

    def remember(self, before: Point, direction: Vectors, trial: Trial, after: Point) -> None:
        """See `DescentOptimizer`."""
        pairs = [(after.transported(s), after.transported(y)) for s, y in self._pairs(before)]
        step = after.transported([trial.length * d for d in direction])
        old = after.transported(before.gradients)
        change = [g - was for g, was in zip(after.gradients, old, strict=True)]
        along = inner(step, change)
        eps = torch.finfo(step[0].dtype).eps
        if along > eps * (inner(step, step) * inner(change, change)) ** 0.5:
            pairs.append((step, change))
        pairs = pairs[-int(self.param_groups[0]["history_size"]) :]
        for i, walker in enumerate(after.walkers):
            self.state[walker.parameter] = {
                "steps": [s[i].to(walker.parameter.dtype) for s, _ in pairs],
                "changes": [y[i].to(walker.parameter.dtype) for _, y in pairs],
            }

    def _pairs(self, point: Point) -> list[tuple[Vectors, Vectors]]:
        """The steps and the changes that are remembered, oldest first."""
        states = [self.state[w.parameter] for w in point.walkers]
        if not all(states):
            return []
        columns = [
            [
                [v.to(g) for v in state[key]]
                for state, g in zip(states, point.gradients, strict=True)
            ]
            for key in ("steps", "changes")
        ]
        return [
            ([c[i] for c in columns[0]], [c[i] for c in columns[1]])
            for i in range(len(columns[0][0]))
        ]


def _sum(vectors: Vectors, others: Vectors, factor: float) -> Vectors:
    return [v.add(other, alpha=factor) for v, other in zip(vectors, others, strict=True)]
