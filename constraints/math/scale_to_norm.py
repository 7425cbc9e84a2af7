"""Scale matrices back to a bound on the spectral norm, which is tracked from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import goes_by_operator, needs_derivative, operator
from constraints.math.krylov_norm import leading
from constraints.math.matrix import all_finite
from constraints.math.svd import svdvals
from constraints.math.top_singular_value import largest_singular_value

#: A norm above the bound by no more than this, in units of ``eps ||X||_F``, counts as equal to it:
#: half of the library's tolerance.
_ROUNDING = 4.0

#: Between these no square of an entry leaves the range of single precision.
_MODERATE = 1e-10, 1e10


def radial(X: Tensor, directions: Tensor, bound: float) -> Tensor:
    """``X min(1, bound / ||X||)`` with the spectral norm; a member is returned bit for bit.

    NaN or infinity in an element gives NaN in that element. In traced code the norm is found by
    iteration from the given directions, elsewhere by a decomposition.

    Args:
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, those that a similar matrix stretches most.
        bound: greater than zero.
    """
    return _tracked_operator(X, directions, bound)[0] if goes_by_operator() else _radial(X, bound)


def _radial(X: Tensor, bound: float) -> Tensor:
    finite = all_finite(X)
    # In units of the largest entry no square overflows.
    unit = torch.where(finite, X, 0).detach().abs().amax((-2, -1), keepdim=True)
    unit = torch.where(unit < torch.finfo(X.dtype).tiny, 1, unit)
    scaled = torch.where(finite, X, 0) / unit
    norm = largest_singular_value(scaled) if needs_derivative(X) else svdvals(scaled)[..., 0]
    norm = norm[..., None, None]
    size = linalg.matrix_norm(scaled.detach(), keepdim=True)
    outside = norm > bound / unit + _ROUNDING * torch.finfo(X.dtype).eps * size
    shrunk = scaled * (bound / torch.where(outside, norm, 1))
    return torch.where(finite, torch.where(outside, shrunk, X), torch.nan)


def tracked_radial(X: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """``radial(X, directions, bound)`` and the directions that X stretches most; no derivatives.

    Args:
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, those of a similar matrix.
        bound: greater than zero.
    """
    # LAPACK refuses NaN, and the iteration assumes that no square overflows.
    size = linalg.matrix_norm(X)
    low, high = _MODERATE
    if not bool(((size > low) & (size < high)).all()):
        return _radial(X, bound), directions
    norm, directions = leading(X, directions, size)
    return X * (bound / norm).clamp(max=1)[..., None, None], directions


def radial_gradient(gradient: Tensor, X: Tensor, directions: Tensor, bound: float) -> Tensor:
    """The gradient at X from that at ``radial(X, directions, bound)``.

    Where X was scaled down, the result is orthogonal to X. Inside and on the boundary it is the
    gradient itself.

    Args:
        gradient: with respect to the value, of shape ``(*batch, n, p)``.
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, the one that X stretches most first.
        bound: greater than zero.
    """
    u, v, norm, rounding = _largest(X, directions)
    outside = norm > bound * (1 + rounding)
    tangent = _without(gradient, X, u, v, norm, outside)
    return tangent.mul_(torch.where(outside, bound / norm, 1)) if bool(outside.any()) else tangent


def radial_step(gradient: Tensor, X: Tensor, directions: Tensor, bound: float) -> Tensor:
    """The gradient without the component that would lead a step from the boundary outside.

    Args:
        gradient: with respect to X, of shape ``(*batch, n, p)``.
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, the one that X stretches most first.
        bound: greater than zero.
    """
    u, v, norm, rounding = _largest(X, directions)
    outwards = u.mT @ (gradient @ v) < 0
    boundary = (norm - bound).abs() <= bound * rounding
    return _without(gradient, X, u, v, norm, outwards & boundary)


def _largest(X: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """The image of the first direction, the direction, the norm, and its relative rounding."""
    v = directions[..., :1, :].mT
    # Its length was 1 in the dtype in which it was found, which may be a lower precision.
    v = v / linalg.vector_norm(v, dim=-2, keepdim=True)
    u = X @ v
    norm = linalg.vector_norm(u, dim=-2, keepdim=True)
    # The Frobenius norm is at most sqrt(min(n, p)) times the spectral norm.
    return u, v, norm, _ROUNDING * torch.finfo(X.dtype).eps * min(X.shape[-2:]) ** 0.5


def _without(
    gradient: Tensor, X: Tensor, u: Tensor, v: Tensor, norm: Tensor, where: Tensor
) -> Tensor:
    """The gradient, made orthogonal to X by a multiple of ``u v'`` where ``where`` is true."""
    along = linalg.vecdot(gradient.flatten(-2), X.flatten(-2))[..., None, None]
    along = torch.where(where, along / norm.square(), 0)
    return torch.addcmul(gradient, along * u, v.mT, value=-1)


# -------------------------------------------------------------------------------- in traced code


def _tracked(X: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    value, found = tracked_radial(X, directions, bound)
    return value, found.clone(memory_format=torch.contiguous_format)


def _gradient(G: Tensor, X: Tensor, directions: Tensor, bound: float) -> Tensor:
    return radial_gradient(G, X, directions, bound).contiguous()


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    X, _, ctx.bound = inputs
    ctx.save_for_backward(X, output[1])


def _backward(ctx: Any, G: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return _gradient_operator(G, *ctx.saved_tensors, ctx.bound), None, None


_tracked_operator = operator(
    "constraints::radial",
    _tracked,
    fake=lambda *inputs: tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:2]
    ),
)
_gradient_operator = operator("constraints::radial_gradient", _gradient)
_tracked_operator.register_autograd(_backward, setup_context=_save)
