"""How far a matrix is from having all its eigenvalues in a region of the plane."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Condition number of an eigenvalue beyond which the first-order estimate is checked.
ILL = 1.2


def eigenvalues(A: Tensor) -> Tensor:
    """The eigenvalues of each matrix, in double precision."""
    return torch.linalg.eigvals(A.double())


def spectral_distance(A: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
    r"""An estimate of the distance from A to the matrices with all eigenvalues in a region.

    A perturbation of the norm e moves an eigenvalue by :math:`\kappa e` to first order, where
    :math:`\kappa` is its condition number, 1 for normal matrices. So the distance to the region
    divided by :math:`\kappa`, the largest of these numbers, is the distance of A to first order.

    For a defective eigenvalue :math:`\kappa` is infinite: rounding moves it by the k-th root of
    eps, and the estimate vanishes, rightly so within rounding; for one that is repeated it depends
    on the choice of eigenvectors. There the smallest singular value of ``A - z I`` counts, the norm
    of the least perturbation that has z as an eigenvalue, for z at half of the way into the region
    and at its end.

    Args:
        A: shape ``(*batch, n, n)``, finite, real.
        way: from eigenvalues to the complex numbers that lead from each into the region, 0 inside.

    Returns:
        Tensor of shape ``batch``; 0 exactly where all eigenvalues lie in the region.
    """
    M = A.double()
    with torch.no_grad():
        if not bool((way(torch.linalg.eigvals(M)) != 0).any()):
            return M.new_zeros(M.shape[:-2]).to(A.dtype)
    values, vectors = torch.linalg.eig(M)
    steps = way(values)
    far = steps.abs()
    with torch.no_grad():
        condition = _condition(vectors)
    first_order = far / condition
    distance = first_order.amax(-1)
    hidden = far.detach().amax(-1) > ILL * distance
    if bool(hidden.any()):
        found = _farther_off(M[hidden], values[hidden], steps[hidden], first_order[hidden])
        distance = torch.maximum(
            distance, torch.zeros_like(distance).masked_scatter(hidden, found.detach())
        )
    return distance.to(A.dtype)


def _condition(vectors: Tensor) -> Tensor:
    """The norms of left and right eigenvectors, scaled so that their product is 1, multiplied."""
    inverse, _ = torch.linalg.inv_ex(vectors)
    norms = torch.linalg.vector_norm(inverse, dim=-1) * torch.linalg.vector_norm(vectors, dim=-2)
    # An inverse that does not exist holds infinity or NaN.
    return norms.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp(min=1)


def _farther_off(M: Tensor, values: Tensor, steps: Tensor, first_order: Tensor) -> Tensor:
    # The eigenvalue that is farthest off, and the one that first-order theory deems so.
    chosen = torch.stack([first_order.argmax(-1), steps.abs().argmax(-1)], dim=-1)
    values, steps = values.gather(-1, chosen), steps.gather(-1, chosen)
    targets = torch.cat([values - steps / 2, values - steps], dim=-1)
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    moved = M.unsqueeze(-3) - targets[..., None, None] * identity
    least = torch.linalg.svdvals(moved)[..., -1]
    return least.amax(-1)
