"""The orthogonal factor of the polar decomposition, with exact derivatives of every order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.torch_internals import linalg
from constraints.math.autograd import differentiable, may_branch
from constraints.math.gram import gram
from constraints.math.matrix import adjoint
from constraints.math.svd import svd
from constraints.math.symmetric_lyapunov import lyapunov, right_divide, spectrum
from constraints.math.transpose import plus_transpose

#: ||X' X - I||_F / sqrt(p), in units of the machine epsilon, up to which X counts as orthogonal.
#: One Newton-Schulz step ends between 0.5 and 5 for n up to 1024, an SVD between 2 and 40.
ROUNDING = 8.0

#: Sums over many rows are split into blocks of this many.
BLOCK = 1024


def polar(X: Tensor) -> Tensor:
    r"""The matrix with orthonormal columns nearest to X, or with orthonormal rows if X is wide.

    A tall X of full rank is ``X = W H`` in a single way, with ``W' W = I`` and H symmetric
    positive definite: the result is W, which minimizes $\lVert W - X \rVert$ in every
    unitarily invariant norm. It is the gradient of the nuclear norm and does not depend on a
    positive factor of X. An orthogonal X is returned bit for bit (as a copy), and there the
    derivative is the projection onto the tangent space.

    At a matrix without full rank W is not unique and not differentiable. The result is one of the
    nearest matrices, a symmetric one if X is symmetric (Hermitian if X is complex). Derivatives are
    finite: their undefined part is set to zero. NaN or infinity in an element gives NaN in that
    element.

    Args:
        X: shape ``(*batch, n, p)``, single or double precision, real or complex (then W is unitary,
            and ``'`` the conjugate transpose).

    Returns:
        Tensor of the same shape.

    Example:
        >>> polar(torch.tensor([[3.0, 0.0], [0.0, -2.0]]))
        tensor([[ 1.,  0.],
                [ 0., -1.]])

    Reference:
        Higham, Functions of Matrices (2008), chapter 8; Kenney and Laub, Polar decomposition and
        matrix sign function condition estimates (1991), for the derivative.
    """
    if X.shape[-2] < X.shape[-1]:
        return polar(X.mH).mH.contiguous()
    return _polar(X)


def polar_factor(X: Tensor) -> Tensor:
    """The value of `polar`, without its derivatives."""
    if not may_branch(X):
        return polar(X)
    return _factor(X) if X.shape[-2] >= X.shape[-1] else _factor(X.mH).mH.contiguous()


def polar_gradient(X: Tensor, W: Tensor, V: Tensor) -> Tensor:
    """The gradient at X from that at its polar factor W, without derivatives of its own.

    Args:
        X: shape ``(*batch, n, p)``.
        W: the polar factor of X.
        V: the gradient with respect to W.

    Returns:
        Tensor of the same shape.
    """
    if X.shape[-2] >= X.shape[-1]:
        return _gradient(X, W, V)
    tall = W.mH
    return _gradient(tall if X is W else X.mH, tall, V.mH).mH.contiguous()


def thin_polar_gradient(W: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """`polar_gradient` at an orthogonal W for the gradient ``G = left' right``.

    The projection ``G - W (W' G + G' W) / 2`` can be computed from ``left W`` and ``right W'``,
    which have as few rows as the factors.

    Args:
        W: shape ``(n, p)``, with orthonormal columns or rows.
        left: shape ``(b, n)``.
        right: shape ``(b, p)``.

    Returns:
        Tensor of shape ``(n, p)``, or None where it is cheaper to project the product.
    """
    (n, p), b = W.shape, len(left)
    # The cost in units of n p: products with few rows, versus one for G and two with W' G.
    if (4 if n == p else 5) * b > b + 2 * min(n, p):
        return None
    back, out = left @ W, right @ W.mT
    # For a square W both of these would be the factor itself.
    if n > p:
        left = 2 * left - back @ W.mT
    elif n < p:
        right = 2 * right - out @ W
    return torch.cat((left, out.neg_())).mT @ torch.cat((right, back)).mul_(0.5)


# ------------------------------------------------------------------------------------ the value


def _factor(X: Tensor) -> Tensor:
    """The polar factor of a tall X, by the cheapest way that its numbers allow."""
    if X.numel() == 0:
        return _copy(X)
    p = X.shape[-1]
    rounding = ROUNDING * torch.finfo(X.dtype).eps * math.sqrt(p)
    excess = _own_defect(X)
    if X.ndim > 2:
        distances = linalg.vector_norm(excess, dim=(-2, -1))
        distance = float(distances.amax())
    else:
        distances = linalg.vector_norm(excess)
        distance = float(distances)
    if distance <= rounding:
        return _copy(X)
    Y = X
    if not distance < 0.9:
        Y = _balanced(X, excess)
        excess = _own_defect(Y)
        distance = float(linalg.vector_norm(excess, dim=(-2, -1)).amax())
    if distance < 0.9:
        W = _newton_schulz(Y, excess, distance, rounding)
    else:
        W = _svd_factor(X)
    if W.ndim > 2 and bool((distances <= rounding).any()):
        # An orthogonal element is returned as it is, whatever else the batch contains.
        W = torch.where((distances <= rounding)[..., None, None], X, W)
    return W.contiguous()


def _copy(X: Tensor) -> Tensor:
    return X.clone(memory_format=torch.contiguous_format)


def defect(W: Tensor, X: Tensor) -> Tensor:
    """``W' X - I``, computed so that rounding errors do not grow with the number of rows.

    Args:
        W: shape ``(*batch, n, p)``.
        X: shape ``(*batch, n, p)``.
    """
    blocks = X.shape[-2] // BLOCK
    if blocks < 8:
        product = W.mH @ X
    else:
        end = blocks * BLOCK
        left, right = (
            x[..., :end, :].reshape(*x.shape[:-2], blocks, BLOCK, x.shape[-1]) for x in (W, X)
        )
        product = (left.mH @ right).sum(-3) + W[..., end:, :].mH @ X[..., end:, :]
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    return product


def _own_defect(X: Tensor) -> Tensor:
    """``defect(X, X)``."""
    if X.shape[-2] >= 8 * BLOCK:
        return defect(X, X)
    E = gram(X)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    return E


def _minus_half(V: Tensor, W: Tensor, S: Tensor) -> Tensor:
    """``V - W S / 2``, in one pass over memory for a matrix or a batch of them."""
    if V.ndim == 2:
        return torch.addmm(V, W, S, alpha=-0.5)
    if V.ndim == 3:
        return torch.baddbmm(V, W, S, alpha=-0.5)
    return V - W @ (S / 2)


def _balanced(X: Tensor, E: Tensor) -> Tensor:
    """A multiple of X whose columns have the mean squared length 1; E is the defect of X.

    A long step from an orthogonal matrix lengthens all columns, alike if the step is orthogonal.
    """
    squares = 1 + E.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    return X / squares.sqrt()[..., None, None]


def _newton_schulz(X: Tensor, E: Tensor, distance: float, rounding: float) -> Tensor:
    # The polar factor is X (I + E)^(-1/2) with E = X' X - I. The first two terms of the series
    # I - E/2 + 3/8 E^2 - ... are the Newton-Schulz iteration, which leaves an error of at most
    # 3/4 ||E||^2. One more term leaves 5/8 ||E||^3, and costs a product of p x p matrices but no
    # other Gram matrix. It converges if ||E|| < 1. The error that is left may be a quarter of what
    # counts as rounding, so that the result counts as orthogonal.
    while True:
        if 0.75 * distance**2 <= rounding / 4:
            return _minus_half(X, X, E)
        X = _minus_half(X, X, _minus_half(E, E, 1.5 * E))
        if 0.75 * distance**3 <= rounding / 4:
            return X
        E = _own_defect(X)
        before, distance = distance, float(linalg.vector_norm(E, dim=(-2, -1)).amax())
        if distance <= rounding / 4 or not distance < before:
            return X


def _svd_factor(X: Tensor) -> Tensor:
    # Scaled by the largest entry: LAPACK works at every scale, but squares and products do not.
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    finite = torch.isfinite(largest)
    X = torch.where(finite & (largest > 0), X / largest, 0)
    if X.shape[-2] == X.shape[-1] and torch.equal(X, adjoint(X)):
        W = _sign(X)
    else:
        U, _, Vh = svd(X)
        W = U @ Vh
        W = W - W @ (defect(W, W) / 2)
    return torch.where(finite, W, torch.nan)


def _sign(X: Tensor) -> Tensor:
    # The factor of a symmetric X is its sign, a reflection. On the null space of X, the U and V of
    # a singular value decomposition are not related, so that U V' would not be symmetric.
    eigenvalues, Q = linalg.eigh(X)
    W = (Q * torch.where(eigenvalues < 0, -1, 1).to(X.dtype).unsqueeze(-2)) @ Q.mH
    W = W - W @ (defect(W, W) / 2)
    # Not / 2: torch 2.6 divides complex numbers by 2 with a rounding error.
    return (W + adjoint(W)) * 0.5


# ------------------------------------------------------------------------------- its derivative

# Derivation. With X = W H for a tall X, W' W = I and H = W' X, differentiate, and split dW into
# its parts inside and outside the range of W, dW = W Y + (I - W W') dW. From W' dX = Y H + dH, with
# Y skew and dH symmetric, minus its transpose:
#
#     H Y + Y H = W' dX - dX' W,          (I - W W') dX = (I - W W') dW H.
#
# The second term vanishes for a square X. The map dX -> dW is self-adjoint, W being the gradient
# of the nuclear norm, so it serves as the backward too. At an orthogonal X, where H = I, it is the
# projection onto the tangent space, dX - W (W' dX + dX' W) / 2: two matrix products. It contains no
# difference of singular values, so it is smooth where they are equal.


def derivative(X: Tensor, W: Tensor, V: Tensor) -> Tensor:
    """The derivative of the polar factor W of a tall X in direction V; differentiable."""
    WV = W.mH @ V
    H = W.mH @ X
    H = (H + adjoint(H)) * 0.5
    h, Q = spectrum(H)
    result = W @ lyapunov(H, WV - adjoint(WV), h, Q)
    if X.shape[-2] > X.shape[-1]:
        result = result + right_divide(V - W @ WV, H, h, Q)
    return result


def _gradient(X: Tensor, W: Tensor, V: Tensor) -> Tensor:
    """`derivative`, not differentiable, but cheaper where X is almost orthogonal."""
    WV = W.mH @ V
    if X is W or torch.equal(X, W):
        return _minus_half(V, W, plus_transpose(WV)).contiguous()
    E = defect(W, X)
    distance = float(linalg.vector_norm(E, dim=(-2, -1)).amax())
    if not distance < 0.1:
        return derivative(X, W, V).contiguous()
    # With H = I + E, iterate 2 Y = C - E Y - Y E, where Y E = -(E Y)' because Y is skew and E is
    # symmetric, and Z = M - Z E for Z H = M: each time the error shrinks by ||E||.
    rounds = max(0, math.ceil(math.log(torch.finfo(X.dtype).eps, max(distance, 1e-300))) - 1)
    C = WV - adjoint(WV)
    Y = C / 2
    for _ in range(rounds):
        product = E @ Y
        Y = (C - product + adjoint(product)) * 0.5
    result = W @ Y
    if X.shape[-2] > X.shape[-1]:
        M = Z = V - W @ WV
        for _ in range(rounds):
            Z = M - Z @ E
        result = result + Z
    return result.contiguous()


_polar = differentiable(
    "constraints::polar_factor", _factor, "constraints::polar_gradient", _gradient, derivative
)
