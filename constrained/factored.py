"""Linear layers whose weight is a product of thin matrices: applied factor by factor.

The product need not be formed, which costs more than the layer itself. It is formed all the same
where somebody has read the weight since the last step: what was asked of that tensor (a hook,
``retain_grad``, a write) holds for the layer as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def factored_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """``forward`` of a class derived from ``base``, where that is the one of ``nn.Linear``."""
    if getattr(base, "forward", None) is not nn.Linear.forward or "weight" not in names:
        return {}
    return {"forward": _forward}


def _forward(self: Any, input: Tensor) -> Tensor:
    """``x W' + b``, by factors of W if it is worth it."""
    factors = _factors(self)
    if factors is None:
        return self._base_class.forward(self, input)
    left, right = factors
    return F.linear(F.linear(input, right), left, self.bias)


def _factors(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    if torch.compiler.is_compiling() or "_overrides" in layer.__dict__:
        return None
    parametrizations = layer._modules.get("parametrizations")
    found: Any = parametrizations and parametrizations._modules.get("weight")
    return found.factors() if found and "_has_factors" in found.__dict__ else None
