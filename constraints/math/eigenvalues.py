"""How far a matrix is from having all its eigenvalues in a region of the plane."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.norm import norm

#: An estimate is improved if the distance of the eigenvalues exceeds it by more than this factor.
ILL = 1.2

#: How many eigenvalues are tried as centres of a cluster, and the largest size of a cluster.
CENTRES, CLUSTER = 16, 32

#: Perturbations in units of rounding, which are tried one after another until QR converges.
NUDGES = 1, 4, 16, 64


def eigenvalues(A: Tensor) -> Tensor:
    """The eigenvalues of each matrix, in double precision; see `eigenvectors`."""
    M, scale = _scaled(A.double())
    try:
        return linalg.eigvals(M) * scale
    except linalg.LinAlgError:
        return _each_nudged(M)[0] * scale


def eigenvectors(M: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues and eigenvectors of each matrix, up to rounding.

    LAPACK's QR algorithm does not converge on some matrices of rank one, such as one of equal
    entries, where numbers that should be zero become subnormal. It does after a small perturbation.

    Args:
        M: shape ``(*batch, n, n)``, in double precision.

    Raises:
        torch.linalg.LinAlgError: if it converges for no perturbed matrix either.
    """
    M, scale = _scaled(M)
    try:
        values, vectors = linalg.eig(M)
    except linalg.LinAlgError:
        values, vectors = _each_nudged(M)
    return values * scale, vectors


def _scaled(M: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices with a largest entry near 1, and the powers of two that they were divided by.

    With subnormal numbers LAPACK was observed to write beyond the end of its memory.
    """
    largest = M.detach().abs().amax((-2, -1))
    exponent = torch.frexp(largest).exponent.clamp(-1000, 1000)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return M / scale[..., None, None], scale.unsqueeze(-1)


def _each_nudged(M: Tensor) -> tuple[Tensor, Tensor]:
    # One by one: an element of a batch must not change because another one is perturbed.
    each = [_nudged(matrix) for matrix in M.reshape(-1, *M.shape[-2:])]
    values, vectors = zip(*each, strict=True)
    return torch.stack(values).reshape(M.shape[:-1]), torch.stack(vectors).reshape(M.shape)


def _nudged(M: Tensor) -> tuple[Tensor, Tensor]:
    for nudge in NUDGES:
        try:
            return linalg.eig(M + nudge * _generic(M))
        except linalg.LinAlgError:
            if nudge == NUDGES[-1]:
                raise
    raise AssertionError("the last attempt raises")


def spectral_distance(A: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
    r"""An estimate of the distance from A to the matrices with all eigenvalues in a region.

    A perturbation of norm e moves the mean of m eigenvalues by up to
    $e \lVert P \rVert_F / \sqrt m$ to first order, where P is the spectral projector of
    these eigenvalues. (For a single eigenvalue the factor is its condition number, 1 if A is
    normal.) So the distance of the mean from the region, divided by that factor, is a lower bound
    of the distance of A. The result is the largest such bound for single eigenvalues and for
    clusters of nearest ones.

    Clusters matter where eigenvalues are defective: rounding scatters k of them by the k-th root of
    eps, the condition number of each is infinite, and yet their mean is well-conditioned. So a
    stable Jordan block counts as stable after rounding, and an unstable one as unstable.

    Args:
        A: shape ``(*batch, n, n)``, finite, real.
        way: from eigenvalues to the shortest complex numbers whose addition leads each of them into
            the region; 0 inside.

    Returns:
        Tensor of shape ``batch``; 0 exactly where all eigenvalues lie in the region.
    """
    M = A.double()
    with torch.no_grad():
        outside = way(eigenvalues(M)).abs().amax(-1) > 0
        if not bool(outside.any()):
            return A.new_zeros(A.shape[:-2])
    values, vectors = eigenvectors(M + _generic(M))
    with torch.no_grad():
        # Where the inverse does not exist, it holds infinity or NaN.
        inverse = linalg.inv_ex(vectors)[0].nan_to_num(nan=torch.inf, posinf=torch.inf)
        condition = linalg.vector_norm(inverse, dim=-1)
        condition = (condition * linalg.vector_norm(vectors, dim=-2)).clamp(min=1)
    far = way(values).abs()
    distance = (far / condition).amax(-1)
    hidden = outside & (far.detach().amax(-1) > ILL * distance)
    if bool(hidden.any()):
        found = _clusters(values[hidden], vectors[hidden].detach(), inverse[hidden], way)
        found = torch.zeros_like(distance).masked_scatter(hidden, found)
        distance = torch.maximum(distance, found)
    return torch.where(outside, distance, 0).to(A.dtype)


def _generic(M: Tensor) -> Tensor:
    """A perturbation of the size of rounding, with which M has a basis of eigenvectors.

    It is symmetric, so that those of a repeated eigenvalue of a symmetric M are orthogonal.
    """
    n = torch.arange(1, M.shape[-1] + 1, dtype=M.dtype, device=M.device)
    noise = torch.cos(n.unsqueeze(-1) * n + n.unsqueeze(-1) + n)
    size = norm(M.detach() / M.shape[-1])
    return torch.finfo(M.dtype).eps * size * noise


def _clusters(
    values: Tensor, vectors: Tensor, inverse: Tensor, way: Callable[[Tensor], Tensor]
) -> Tensor:
    """For each matrix the largest bound from the mean of a cluster; see `spectral_distance`."""
    n = values.shape[-1]
    count, largest = min(CENTRES, n), min(CLUSTER, n)
    centres = way(values.detach()).abs().topk(count).indices
    apart = (values.unsqueeze(-2) - values.gather(-1, centres).unsqueeze(-1)).abs().detach()
    order = apart.argsort(-1)[..., :largest]
    matrices = torch.arange(values.shape[0], device=values.device)[:, None]
    projector = torch.zeros((), dtype=values.dtype, device=values.device)
    total = torch.zeros((), dtype=values.dtype, device=values.device)
    best = values.real.new_zeros(values.shape[:-1])
    for m in range(largest):
        member = order[..., m]
        right, left = vectors.mT[matrices, member], inverse[matrices, member]
        projector = projector + right.unsqueeze(-1) * left.unsqueeze(-2)
        total = total + values.gather(-1, member)
        norm = linalg.matrix_norm(projector).nan_to_num(nan=torch.inf)
        condition = (norm / (m + 1) ** 0.5).clamp(min=1)
        best = torch.maximum(best, (way(total / (m + 1)).abs() / condition).amax(-1))
    if largest < n:
        best = torch.maximum(best, way(values.mean(-1)).abs())
    return best
