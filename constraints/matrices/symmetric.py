"""Symmetric, skew, Hermitian, Hamiltonian and traceless matrices: linear spaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained import register
from constraints.bases.linear_space import LinearSpace
from constraints.bases.shapes import EvenMatrices, SquareMatrices
from constraints.math.autograd import needs_derivative
from constraints.math.matrix import symmetric_part
from constraints.math.scaled_sum import centred_by
from constraints.math.transpose import minus_transpose, plus_transpose


@register("symmetric")
class Symmetric(SquareMatrices, LinearSpace):
    r"""Symmetric matrices.

    **Use**: interactions without direction: undirected graphs, Hopfield networks, quadratic forms,
    Hessians, tied bilinear layers.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = W^\top\}$. Dimension $n (n + 1) / 2$, a linear
    space.

    **Map**: $X \mapsto (X + X^\top) / 2$, onto the set. The gradient with respect to $X$ is
    symmetric.

    **Right inverse**: the identity.

    **Reference**: Higham, Functions of Matrices (2008), section 8.1: the symmetric part is the
    nearest symmetric matrix in every unitarily invariant norm.

    Example:
        >>> Symmetric()(torch.tensor([[1.0, 4.0], [0.0, 1.0]]))
        tensor([[1., 2.],
                [2., 1.]])
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def part(self, X: Tensor) -> Tensor:
        """``(X + X') / 2``."""
        return (X + X.mT) / 2 if needs_derivative(X) else plus_transpose(X).mul_(0.5)

    def averaged(self, scale: Tensor) -> Tensor:
        """The symmetric part of the scale."""
        return symmetric_part(scale)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2


@register("skew", aliases=("skew_symmetric", "antisymmetric"))
class Skew(SquareMatrices, LinearSpace):
    r"""Skew-symmetric matrices.

    **Use**: dynamics that keep energy (antisymmetric RNNs, port-Hamiltonian networks), generators
    of rotations, scores of games between players.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : W = -W^\top\}$. Dimension $n (n - 1) / 2$, a linear
    space.

    **Map**: $X \mapsto (X - X^\top) / 2$, onto the set. The gradient with respect to $X$ is
    skew-symmetric.

    **Right inverse**: the identity.

    **Reference**: as for `Symmetric`.

    Example:
        >>> Skew()(torch.tensor([[1.0, 4.0], [0.0, 1.0]]))
        tensor([[ 0.,  2.],
                [-2.,  0.]])
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def part(self, X: Tensor) -> Tensor:
        """``(X - X') / 2``."""
        return (X - X.mT) / 2 if needs_derivative(X) else minus_transpose(X).mul_(0.5)

    def averaged(self, scale: Tensor) -> Tensor:
        """The symmetric part of the scale: opposite entries differ in sign only."""
        return symmetric_part(scale)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2


@register("hermitian", aliases=("self_adjoint",))
class Hermitian(SquareMatrices, LinearSpace):
    r"""Hermitian matrices: complex ones that equal their conjugate transpose.

    **Use**: observables and Hamiltonians of quantum systems, spectral matrices of signals, the
    generators of unitary matrices.

    **Set**: $\{W \in \mathbb{C}^{n \times n} : W = W^*\}$, a linear space over the real numbers, of
    dimension $n^2$. A real tensor counts as a complex one without imaginary part, so that the set
    is that of the symmetric matrices.

    **Map**: $X \mapsto (X + X^*) / 2$, onto the set.

    **Right inverse**: the identity.

    **Reference**: as for `Symmetric`.

    Example:
        >>> Hermitian()(torch.tensor([[1.0 + 1.0j, 4.0j], [0.0, 1.0]]))
        tensor([[1.+0.j, 0.+2.j],
                [0.-2.j, 1.+0.j]])
    """

    complex = True
    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (4, 4)))

    def part(self, X: Tensor) -> Tensor:
        """``(X + X*) / 2``."""
        return (X + X.mH) * 0.5 if needs_derivative(X) else plus_transpose(X).mul_(0.5)

    def averaged(self, scale: Tensor) -> Tensor:
        """The symmetric part of the scale, which is real."""
        return (scale + scale.mH) * 0.5

    def dimension(self, shape: Sequence[int]) -> int:
        """``n^2``, of complex matrices over the real numbers."""
        return shape[-1] ** 2


@register("hamiltonian")
class Hamiltonian(EvenMatrices, LinearSpace):
    r"""Hamiltonian matrices: the linear vector fields that keep the symplectic form.

    **Use**: linear dynamics of mechanical systems, $z' = W z$ with positions and momenta, and
    learned quadratic Hamiltonians.

    **Set**: $\{W \in \mathbb{R}^{2n \times 2n} : (J W)^\top = J W\}$ with
    $J = \begin{pmatrix} 0 & I \\ -I & 0 \end{pmatrix}$. Dimension $n (2 n + 1)$, a linear space.
    $\exp(W)$ is symplectic. If $z$ is an eigenvalue of $W$, so is $-z$.

    **Map**: $X \mapsto (X + J X^\top J) / 2$, onto the set.

    **Right inverse**: the identity.

    **Reference**: Golub and Van Loan, Matrix Computations (4th edition, 2013), section 1.3.10.

    Example:
        >>> Hamiltonian()(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        tensor([[-2.,  2.],
                [ 3.,  2.]])
    """

    examples = (({}, (2, 2)), ({}, (4, 4)), ({}, (6, 6)))

    def part(self, X: Tensor) -> Tensor:
        """``(X + J X' J) / 2``."""
        # With X in four blocks [[A, B], [C, D]]: J X' J = [[-D', B'], [C', -A']].
        half = X.shape[-1] // 2
        A, B = X[..., :half, :half], X[..., :half, half:]
        C, D = X[..., half:, :half], X[..., half:, half:]
        drift = (A - D.mT) / 2
        top = torch.cat((drift, (B + B.mT) / 2), dim=-1)
        bottom = torch.cat(((C + C.mT) / 2, -drift.mT), dim=-1)
        return torch.cat((top, bottom), dim=-2)

    def averaged(self, scale: Tensor) -> Tensor:
        """The scale without signs, averaged over the places that `part` averages."""
        half = scale.shape[-1] // 2
        A, B = scale[..., :half, :half], scale[..., :half, half:]
        C, D = scale[..., half:, :half], scale[..., half:, half:]
        drift = (A + D.mT) / 2
        top = torch.cat((drift, symmetric_part(B)), dim=-1)
        return torch.cat((top, torch.cat((symmetric_part(C), drift.mT), dim=-1)), dim=-2)

    def dimension(self, shape: Sequence[int]) -> int:
        """``n (2 n + 1)`` for ``2 n`` rows."""
        n = shape[-1] // 2
        return n * (2 * n + 1)


@register("traceless", aliases=("trace_zero", "zero_trace"))
class Traceless(SquareMatrices, LinearSpace):
    r"""Matrices of trace zero.

    **Use**: generators of maps that keep volumes, divergence-free linear vector fields, deviatoric
    stress and strain.

    **Set**: $\{W \in \mathbb{R}^{n \times n} : \operatorname{tr} W = 0\}$. Dimension $n^2 - 1$, a
    linear space: the Lie algebra of the matrices of determinant 1,
    $\det \exp(W) = \exp(\operatorname{tr} W)$.

    **Map**: $X \mapsto X - (\operatorname{tr} X / n) I$, onto the set.

    **Right inverse**: the identity.

    **Reference**: Hall, Lie Groups, Lie Algebras, and Representations (2015), section 3.4.

    Example:
        >>> Traceless()(torch.tensor([[1.0, 4.0], [0.0, 3.0]]))
        tensor([[-1.,  4.],
                [ 0.,  1.]])
    """

    examples = (({}, (1, 1)), ({}, (2, 2)), ({}, (5, 5)))

    def part(self, X: Tensor) -> Tensor:
        """``X - (tr X / n) I``."""
        diagonal = X.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.mean(-1, keepdim=True)
        # Subtracting a large mean leaves a trace by rounding, which may be large beside the rest.
        left = (diagonal - mean).mean(-1, keepdim=True)
        for trace in (mean, left):
            X = X - torch.diag_embed(trace.expand_as(diagonal))
        return X

    def project_scaled(self, value: Tensor, scale: Tensor) -> Tensor:
        """Entries of the diagonal give up shares of the trace in proportion to 1 / scale."""
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        rest = centred_by(diagonal, scale.diagonal(dim1=-2, dim2=-1)) - diagonal
        return self.part(value + torch.diag_embed(rest))

    def dimension(self, shape: Sequence[int]) -> int:
        """``n^2 - 1``."""
        return shape[-1] ** 2 - 1
