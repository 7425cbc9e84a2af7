"""Adam on a set: with one second moment for each element, or for each entry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.optim.riemannian import RiemannianOptimizer, Walker, expect_setting

#: Of what the mean square is taken.
SecondMoment = Literal["element", "entry"]


def sum_over_elements(constraint: Constraint, square: Tensor) -> Tensor:
    """The sum over the entries of each element, of shape ``(*batch, 1, ...)``."""
    dims = square.ndim if constraint.event_dim is None else constraint.event_dim
    return square.sum(tuple(range(-dims, 0)), keepdim=True) if dims else square


class RiemannianAdam(RiemannianOptimizer):
    r"""Adam, each step along the set of the parameter.

    With the Riemannian gradient $g_t$ at a member $W_t$ a step is

    $$m_t = \beta_1 T(m_{t-1}) + (1 - \beta_1) g_t, \qquad
    v_t = \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \qquad
    W_{t+1} = R\Bigl(W_t, -\eta \, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} +
    \varepsilon}\Bigr),$$

    where T transports a tangent vector from the last member to this one, R moves along a tangent
    vector, and the norm is that of the metric of the set. So there is one second moment for each
    element: for each matrix of an `orthogonal` tensor, each row of a `sphere`, each number of a
    plain parameter, whose steps are those of `torch.optim.Adam`. A learning rate is the length of a
    step of an element. Where a set has a boundary the step ends with the projection onto it.

    With ``second_moment="entry"`` each entry has its own, as in plain Adam, and the direction is
    made tangent again. The length of a step then grows with the root of the number of entries.

    Args:
        params: parameters, named parameters, or groups of them, as for every optimizer of torch. A
            group may have its own value of each setting.
        lr: the learning rate, $\eta$.
        betas: the decay rates, $\beta_1$ and $\beta_2$.
        eps: $\varepsilon$.
        weight_decay: a multiple of the value that is added to the gradient.
        amsgrad: whether to divide by the root of the largest $v_t$ so far.
        second_moment: ``"element"`` or ``"entry"``.
        constraint: the set that the parameters lie in, as `constrained.constrain` takes it. By
            default each parameter has the one that `constrained.constrain` gave it with
            ``mode="project"``, and one without a constraint is a plain parameter.

    Raises:
        InfeasibleError: if a parameter does not lie in its set.
        ValueError: if a setting is out of range, or a set with a boundary has no projection in
            the metric that ``second_moment="entry"`` needs. In a step, if a gradient holds NaN or
            infinity: then nothing of this step has been done.

    Example:
        >>> import torch, constrained
        >>> from torch import nn
        >>> layer = constrained.constrain(nn.Linear(8, 8), "weight", "orthogonal", mode="project")
        >>> optimizer = RiemannianAdam(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(2, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[layer.weight]["exp_avg_sq"].shape
        torch.Size([1, 1])

    Reference:
        Bécigneul and Ganea, Riemannian adaptive optimization methods (ICLR 2019), algorithm 1a.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        second_moment: SecondMoment = "element",
        constraint: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "second_moment": second_moment,
        }
        super().__init__(params, defaults, constraint)

    def check_group(self, group: dict[str, Any]) -> None:
        """See `RiemannianOptimizer`."""
        for i, beta in enumerate(group["betas"]):
            expect_setting(f"betas[{i}]", beta, 0, 1)
        expect_setting("eps", group["eps"], 0, float("inf"))
        expect_setting("weight_decay", group["weight_decay"], 0, float("inf"))
        if group["second_moment"] not in get_args(SecondMoment):
            raise ValueError(
                f"second_moment must be 'element' or 'entry', not {group['second_moment']!r}."
            )
        super().check_group(group)

    def check_parameter(
        self, group: dict[str, Any], constraint: Constraint, parameter: Tensor
    ) -> None:
        """See `RiemannianOptimizer`."""
        if group["second_moment"] == "element" or not constraint.has_boundary():
            return
        value = parameter.detach()
        if constraint.project_scaled(value, torch.ones_like(value)) is None:
            raise ValueError(
                f"{constraint!r} has a boundary, and no projection in the metric of a second "
                "moment for each entry; take second_moment='element'."
            )

    def walk(self, group: dict[str, Any], walker: Walker) -> None:
        """See `RiemannianOptimizer`."""
        constraint, value = walker.constraint, walker.value
        gradient = walker.gradient()
        if group["weight_decay"]:
            gradient = gradient.add(value, alpha=float(group["weight_decay"]))
        gradient = constraint.riemannian_gradient(value, gradient)
        by_entry = group["second_moment"] == "entry"
        square = gradient.abs().square()
        if not by_entry:
            square = sum_over_elements(constraint, square)
        state, (beta1, beta2) = self.state[walker.parameter], map(float, group["betas"])
        step = state.get("step", 0) + 1
        first = gradient * (1 - beta1)
        second = square * (1 - beta2)
        if state:
            first = first.add(state["exp_avg"], alpha=beta1)
            second = second.add(state["exp_avg_sq"], alpha=beta2)
        largest = second
        if group["amsgrad"] and state:
            largest = torch.maximum(second, state["max_exp_avg_sq"])
        scale = (largest / (1 - beta2**step)).sqrt() + float(group["eps"])
        vector = first / scale / (1 - beta1**step) * -float(group["lr"])
        if not walker.may_take(vector):
            return
        if by_entry and constraint.has_boundary():
            new = constraint.project_scaled(value + vector, scale)
            assert new is not None
        else:
            vector = constraint.tangent(value, vector) if by_entry else vector
            new = constraint.move(value, vector)
        if not walker.may_take(new):
            return
        dtype, real = walker.parameter.dtype, walker.parameter.real.dtype
        moved = constraint.transport(first, new)
        state.update(step=step, exp_avg=moved.to(dtype), exp_avg_sq=second.to(real))
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = largest.to(real)
        walker.arrive(new)
