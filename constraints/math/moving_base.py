"""Orthogonal matrices in moving coordinates: a base, and a skew matrix that is reset to zero."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import needs_derivative
from constraints.math.gram import gram
from constraints.math.polar import ROUNDING, defect, polar, polar_factor
from constraints.math.transpose import minus_transpose

# For a skew S, the series I + S + S^2 / 2 agrees with the exponential and the Cayley transform up
# to third order. It is orthogonal up to S^4 / 4, and its polar factor differs from it by half of
# that. So after a small step B <- B (I + S + S^2 / 2) is enough: a product for S^2 = -S' S, which
# is symmetric, and one with B. With the gradient, skew(B' G), that is less than three products.

#: How many columns of a large matrix are checked for orthogonality.
SAMPLED = 16


def quadratic(B: Tensor, X: Tensor) -> Tensor:
    """``B (I + S + S^2 / 2)`` with the skew part S of X; a copy of B at S = 0.

    If S is large it is a multiple of that, with the same polar factor.

    Args:
        B: shape ``(*batch, n, n)``, orthogonal.
        X: the same shape.
    """
    S = (X - X.mT) / 2
    unit = S.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1)
    S = S / unit
    along = B @ S
    return B / unit.square() + along / unit + along @ S / 2


def rebased(X: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Zero and the polar factor of ``quadratic(B, X)``: parameters of the same matrix.

    The results have no derivative.
    """
    if needs_derivative(X.detach()):
        return torch.zeros_like(X), polar(quadratic(B, X)).detach()
    S = minus_transpose(X).mul_(0.5)
    square = gram(S)
    size = float(linalg.matrix_norm(square).amax())
    if not size < 1:
        return torch.zeros_like(X), polar_factor(quadratic(B, X))
    B = B + B @ S.sub_(square, alpha=0.5)
    return torch.zeros_like(X), B if _is_orthogonal(B, size**2 / 4) else polar_factor(B)


def rebased_gradient(value: Tensor, gradient: Tensor, X: Tensor, B: Tensor) -> Tensor:
    """The gradient with respect to X from that with respect to the value; not differentiable."""
    if torch.any(X):
        X = X.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(polar(quadratic(B, X)), X, gradient)[0]
    product = value.mT @ gradient
    return minus_transpose(product).mul_(0.5)


def _is_orthogonal(W: Tensor, excess: float) -> bool:
    """Whether W counts as its own polar factor.

    Args:
        W: shape ``(*batch, n, n)``.
        excess: an upper bound of ``||W' W - I||_F`` without rounding.
    """
    n = W.shape[-1]
    rounding = ROUNDING * torch.finfo(W.dtype).eps * n**0.5
    if not excess <= rounding / 4:
        return False
    if n <= 4 * SAMPLED:
        E = defect(W, W)
    else:
        columns = torch.arange(0, n, n // SAMPLED, device=W.device)
        E = W.mT @ W[..., columns]
        E[..., columns, torch.arange(len(columns), device=W.device)] -= 1
        # Half the limit, because other columns may be worse.
        rounding *= 0.5 * (len(columns) / n) ** 0.5
    return float(linalg.matrix_norm(E).amax()) <= rounding
