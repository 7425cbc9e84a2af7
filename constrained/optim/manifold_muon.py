"""Muon on manifolds: momentum, then a step of a given length in the steepest tangent direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from constrained.atomic.contents import is_finite, store
from constrained.constraint.base import Constraint
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.view import View
from constrained.optim.walked_set import as_plain_data, constraint_of

#: Tensors of at most ``_SMALL`` entries are stepped in batches of at most ``_BATCH`` entries.
_SMALL, _BATCH = 2**16, 2**22


class ManifoldMuon(Optimizer):
    r"""Steepest descent with momentum within a set, under the norm that is natural for the set.

    With the gradient $g_t$ at a member $W_t$ and the momentum $\mu$ a step is

    $$m_t = \mu m_{t-1} + (1 - \mu) g_t, \qquad
    W_{t+1} = P\bigl(W_t + \eta \, a(W_t, \mu m_t + (1 - \mu) g_t)\bigr),$$

    where $a(W, g)$ minimizes $\langle g, a \rangle$ over the tangent vectors at W whose norm is at
    most that of W (`Constraint.steepest`), and P is the projection onto the set. The learning rate
    $\eta$ is the length of the step relative to the member, whatever the scale of the gradient. For
    `orthogonal` the norm is the spectral norm, and the step is that of manifold Muon, which is
    computed in closed form, with a relative duality gap below 1e-6. For `sphere`, `oblique` and
    `frobenius_norm` it is the Euclidean norm of each vector, or of the matrix.

    The parameters are plain ones, and stay in the set after each step. All other parameters of a
    model, such as biases, need another optimizer.

    Args:
        params: parameters, named parameters, or groups of them, as for every optimizer of torch. A
            group may have its own ``lr``, ``momentum``, ``nesterov`` and ``constraint``.
        lr: the length of a step relative to the member, $\eta$.
        momentum: $\mu$, from 0 to below 1.
        nesterov: whether the direction is that of $\mu m_t + (1 - \mu) g_t$, or else of $m_t$.
        constraint: the set that the parameters lie in, as `constrained.constrain` takes it, with an
            einops pattern as its view if it has one. In a state dict it is plain data. By default
            each parameter has the one that `constrained.constrain` gave it with
            ``mode="project"``.

    Raises:
        InfeasibleError: if a parameter does not lie in the set.
        ValueError: if an argument is out of range, the constraint has no `steepest`, or a shape
            does not suit it. In a step, if a gradient holds NaN or infinity: then nothing of this
            step has been done.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(8, 8, bias=False)
        >>> _ = nn.init.orthogonal_(layer.weight)
        >>> optimizer = ManifoldMuon(layer.parameters(), lr=0.1, constraint="orthogonal")
        >>> layer(torch.ones(2, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(layer.weight.T @ layer.weight, torch.eye(8), atol=1e-5)
        True

    Reference:
        Jordan, Muon: an optimizer for hidden layers in neural networks (2024); Bernstein, Modular
        manifolds (2025).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        constraint: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "constraint": None if constraint is None else as_plain_data(constraint),
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`."""
        group = dict(param_group)
        if group.get("constraint") is not None:
            group["constraint"] = as_plain_data(group["constraint"])
        super().add_param_group(group)
        try:
            self._check(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        lr, momentum = float(group["lr"]), float(group["momentum"])
        if not 0 <= lr < math.inf:
            raise ValueError(f"The learning rate must be a finite number from 0 on, not {lr}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"The momentum must be at least 0 and below 1, not {momentum}.")
        for i, parameter in enumerate(group["params"]):
            try:
                constraint = constraint_of(group["constraint"], parameter)
                if not constraint.has_steepest():
                    raise ValueError(
                        f"{constraint!r} has no steepest directions: its class defines no "
                        "`steepest`. Constrain the tensor, and take any other optimizer."
                    )
                constraint.check_member(parameter.detach())
            except (ValueError, TypeError) as error:
                kind = InfeasibleError if isinstance(error, InfeasibleError) else ValueError
                raise kind(f"{_name(group, i)}: {error}") from error

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step.

        Args:
            closure: computes the loss and the gradients, and returns the loss.

        Returns:
            The loss that the closure returned; None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
        ]
        self._check_gradients()
        for group, parameters in moving:
            self._step(group, parameters)
        return loss

    def _check_gradients(self) -> None:
        for group in self.param_groups:
            for i, parameter in enumerate(group["params"]):
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.layout is not torch.strided:
                    raise TypeError(
                        f"{_name(group, i)}: its gradient is sparse; make the layer with "
                        "sparse=False."
                    )
                if not is_finite(gradient):
                    raise ValueError(
                        f"{_name(group, i)}: its gradient holds NaN or infinity, and no parameter "
                        "has been changed; look for the loss that became so."
                    )

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        lr, momentum = float(group["lr"]), float(group["momentum"])
        batches: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        constraints: dict[Any, Constraint] = {}
        for parameter in parameters:
            gradient: Any = parameter.grad
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            direction = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
            constraint = constraint_of(group["constraint"], parameter)
            alone = isinstance(constraint, View) or not 0 < parameter.numel() <= _SMALL
            words = repr(constraint)
            alike = (
                id(parameter)
                if alone
                else (words, parameter.shape, parameter.dtype, parameter.device)
            )
            constraints[alike] = constraint
            batches.setdefault(alike, []).append((parameter, direction))
        for alike, batch in batches.items():
            constraint = constraints[alike]
            most = max(1, _BATCH // max(1, batch[0][0].numel()))
            for start in range(0, len(batch), most):
                _move(constraint, batch[start : start + most], lr)


def _move(constraint: Constraint, batch: list[tuple[Tensor, Tensor]], lr: float) -> None:
    """Move parameters of one shape by a step in their steepest directions."""
    parameters, gradients = zip(*batch, strict=True)
    if len(batch) == 1:
        value, gradient = parameters[0].detach(), gradients[0]
    else:
        value, gradient = torch.stack(parameters), torch.stack(gradients)
    direction = constraint.steepest(value, gradient)
    assert direction is not None
    value = constraint.project(torch.add(value, direction, alpha=lr))
    for parameter, new in zip(parameters, [value] if len(batch) == 1 else value, strict=True):
        store(parameter, new)


def _name(group: dict[str, Any], index: int) -> str:
    """What messages call a parameter of a group."""
    names = group.get("param_names")
    return f"'{names[index]}'" if names else f"parameter {index} of its group"
