"""The orthogonal projection onto the range of a derivative: the tangent space of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from constrained.constraint.elements import beside

#: The most iterations; a well-conditioned map takes ten to fifty. After any number of them the
#: result v_k is in the range, and ``<v_k, v> = ||v_k||^2``.
MOST = 100

#: The error of double precision that ends the iteration, relative to the norm of the vector.
ROUNDING = 64 * torch.finfo(torch.float64).eps


def onto_range(
    function: Callable[..., Tensor],
    params: Sequence[Tensor],
    vector: Tensor,
    event_dim: int,
    exactness: float,
) -> Tensor:
    """The orthogonal projection of a vector onto the range of the derivative of a function.

    With the derivative J it is ``J u`` for a u of least ``||J u - v||``. The method of conjugate
    gradients finds it with products by J and its transpose; J may have any rank.

    Args:
        function: twice differentiable, takes the parameters.
        params: where the derivative is taken; batch dimensions first.
        vector: of the shape of the function's value, in double precision.
        event_dim: how many trailing dimensions of the value make one element.
        exactness: the error that is allowed, relative to the norm of the vector.

    Reference:
        Bjorck, Numerical methods for least squares problems (1996), section 7.4, for CGLS.
    """
    batch = vector.ndim - event_dim
    leaves = [p.detach().requires_grad_() for p in params]
    with torch.enable_grad():
        value = function(*leaves)
        weights = torch.zeros_like(value).requires_grad_()
        # J' w is linear in w, so that its derivative with respect to w is J'.
        pulled = torch.autograd.grad(value, leaves, weights, create_graph=True)

    def transposed(w: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(value, leaves, w, retain_graph=True)

    def times(u: Sequence[Tensor]) -> Tensor:
        return torch.autograd.grad(pulled, weights, u, retain_graph=True)[0]

    def squares(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([t.square().flatten(batch).sum(-1) for t in tensors]).sum(0)

    rest, slope = vector, transposed(vector)
    direction, size = slope, squares(slope)
    target = max(exactness, ROUNDING) ** 2 * squares([vector])
    for _ in range(MOST):
        going = size > target
        if not bool(going.any()):
            break
        image = times(direction)
        curvature = squares([image])
        length = torch.where(going & (curvature > 0), size / curvature, 0)
        rest = rest - beside(length, rest) * image
        slope = transposed(rest)
        before, size = size, squares(slope)
        ratio = torch.where(going, size / before, 0)
        direction = [s + beside(ratio, s) * d for s, d in zip(slope, direction, strict=True)]
    return vector - rest
