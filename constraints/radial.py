"""Matrices scaled back to a bound of their norm, as steps find them that know where they were."""

from __future__ import annotations

import torch
from torch import Tensor

from constraints.derivatives import needs_derivative
from constraints.largest import largest_singular_value
from constraints.operator_norm import leading
from constraints.svd import svdvals

#: In units of ``eps ||X||_F``: how far above the bound a norm is rounding; half of the tolerance.
_ROUNDING = 4.0

#: Between these no square of an entry leaves the range of single precision.
_MODERATE = 1e-10, 1e10


def radial(X: Tensor, bound: float) -> Tensor:
    """``X min(1, bound / ||X||)``, in the spectral norm; a member comes back bit for bit.

    NaN and infinity in an element give NaN in that element.

    Args:
        X: shape ``(*batch, n, p)``.
        bound: greater than zero.
    """
    finite = torch.isfinite(X).all(-1, keepdim=True).all(-2, keepdim=True)
    # In units of the largest entry no square overflows.
    unit = torch.where(finite, X, 0).detach().abs().amax((-2, -1), keepdim=True)
    unit = torch.where(unit < torch.finfo(X.dtype).tiny, 1, unit)
    scaled = torch.where(finite, X, 0) / unit
    norm = largest_singular_value(scaled) if needs_derivative(X) else svdvals(scaled)[..., 0]
    norm = norm[..., None, None]
    size = torch.linalg.matrix_norm(scaled.detach(), keepdim=True)
    outside = norm > bound / unit + _ROUNDING * torch.finfo(X.dtype).eps * size
    shrunk = scaled * (bound / torch.where(outside, norm, 1))
    return torch.where(finite, torch.where(outside, shrunk, X), torch.nan)


def tracked_radial(X: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """``radial(X, bound)``, and the directions that X stretches most; without a derivative.

    Args:
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, those of a similar matrix.
        bound: greater than zero.
    """
    # LAPACK refuses NaN; of an element that is not finite, nothing is known about the others' size.
    size = torch.linalg.matrix_norm(X)
    low, high = _MODERATE
    if not bool(((size > low) & (size < high)).all()):
        X = radial(X, bound)
        return X, directions
    norm, directions = leading(X, directions, size)
    return X * (bound / norm).clamp(max=1)[..., None, None], directions


def radial_gradient(gradient: Tensor, X: Tensor, directions: Tensor, bound: float) -> Tensor:
    """The gradient at a member X from that at ``radial(X, bound)``, which is X.

    On the boundary there are two, one for each side. Where the descent leads inside it is the
    gradient itself; where it leads outside, that of the scaled matrix, which has no part along X.

    Args:
        gradient: with respect to the value, of shape ``(*batch, n, p)``.
        X: shape ``(*batch, n, p)``.
        directions: shape ``(*batch, r, p)``, the one that X stretches most first.
        bound: greater than zero.
    """
    v = directions[..., :1, :].mT
    u = X @ v
    norm = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
    outwards = u.mT @ (gradient @ v) < 0
    # The Frobenius norm is at most so many times the other one.
    rounding = _ROUNDING * torch.finfo(X.dtype).eps * min(X.shape[-2:]) ** 0.5
    on = outwards & (norm >= bound * (1 - rounding))
    along = torch.linalg.vecdot(gradient.flatten(-2), X.flatten(-2))[..., None, None]
    along = torch.where(on, along / (bound * norm), 0)
    return torch.addcmul(gradient, along * u, v.mT, value=-1)
