"""Constraints and foreign parametrizations that count how often they are evaluated.

The count lives in the instance's ``__dict__``: set as an attribute it would look like a changed
argument, which is a reason to evaluate anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import constrained.parametrize as parametrize
from constrained import Constraint


def evaluations(*modules: nn.Module) -> int:
    """How often the parametrizations in these modules have been evaluated."""
    counts = {id(m): m.__dict__.get("count", 0) for root in modules for m in root.modules()}
    return sum(counts.values())


def reset(*modules: nn.Module) -> None:
    for root in modules:
        for module in root.modules():
            if "count" in module.__dict__:
                module.__dict__["count"] = 0


def original(module: nn.Module, name: str = "weight") -> nn.Parameter:
    return module.parametrizations[name].original


class _Counted(Constraint):
    """Base of the counted constraints: a counter, and trivial answers to all other methods."""

    event_dim = 0

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["count"] = 0

    def _tick(self) -> None:
        if not torch.compiler.is_compiling():
            self.__dict__["count"] += 1

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def right_inverse(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def violation(self, value: Tensor) -> Tensor:
        return torch.zeros(value.shape[: value.ndim - self.event_dim], dtype=value.dtype)

    def project(self, value: Tensor) -> Tensor:
        return value.clone()

    def sample(self, shape, *, generator=None, dtype=None, device=None) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype, device=device) + 0.1

    def dimension(self, shape) -> int:
        return 1


class Positive(_Counted):
    """Positive numbers, as ``scale * exp(x)``: nonlinear, and it saves its result."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        self._tick()
        return self.scale * x.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return (value / self.scale).log()

    def violation(self, value: Tensor) -> Tensor:
        return (-value).clamp(min=0)

    def project(self, value: Tensor) -> Tensor:
        return value.abs() + 1e-3


class Sphere(_Counted):
    """Vectors of a given length: nonlinear, and it saves its argument."""

    event_dim = 1

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        self._tick()
        return self.radius * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.clone()

    def violation(self, value: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(value, dim=-1) - self.radius).abs()

    def project(self, value: Tensor) -> Tensor:
        return self.radius * nn.functional.normalize(value, dim=-1)


class Symmetric(_Counted):
    """Symmetric matrices: linear, and it saves nothing."""

    event_dim = 2

    def forward(self, x: Tensor) -> Tensor:
        self._tick()
        return x.triu() + x.triu(1).mT

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.triu()

    def project(self, value: Tensor) -> Tensor:
        return (value + value.mT) / 2

    def violation(self, value: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(value - value.mT)


class Outer(_Counted):
    """Matrices of rank one, from two vectors: several originals."""

    event_dim = 2

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        self._tick()
        return u.unsqueeze(-1) * v.unsqueeze(-2)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(value, full_matrices=False)
        return u[..., 0] * s[..., :1], vh[..., 0, :]


class Anchored(_Counted):
    """Any tensor, as a step away from a frozen base point, with a buffer that scales the step."""

    frozen = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(()))

    def forward(self, step: Tensor, base: Tensor) -> Tensor:
        self._tick()
        return base + self.gain * torch.tanh(step)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(value), value.clone()


class Noisy(_Counted):
    """A constraint that declares its values to be random."""

    deterministic = False

    def forward(self, x: Tensor) -> Tensor:
        self._tick()
        return x + torch.randn_like(x)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.clone()


class Foreign(nn.Module):
    """A parametrization that knows nothing of constraints: ``x @ x``."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["count"] = 0

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.__dict__["count"] += 1
        return x @ x

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


class Dropped(Foreign):
    """Random in training, and only there."""

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["count"] += 1
        return nn.functional.dropout(x, 0.5, self.training)


class Averaging(Foreign):
    """Writes state whenever it runs in training, as ``spectral_norm`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["count"] += 1
        if self.training:
            self.runs += 1
        return x + self.runs


def layer(constraint: nn.Module | None = None, n: int = 3, **kwargs) -> nn.Linear:
    """A constrained linear layer that nobody has read yet; `Positive` by default."""
    constraint = Positive() if constraint is None else constraint
    linear = nn.Linear(n, n, **kwargs)
    if isinstance(constraint, Constraint):
        with torch.no_grad():
            linear.weight.copy_(constraint.project(linear.weight))
    parametrize.register_parametrization(linear, "weight", constraint)
    reset(linear)
    return linear
