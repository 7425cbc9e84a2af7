"""The catalogue: ready-made constraints, each a set with a map onto it and a right inverse.

Importing this package adds all of them to the registry of `constrained`. The registry does that
itself when it looks up a name that it does not know yet. One file holds one constraint, or a family
with the same mathematics.
"""

from typing import TYPE_CHECKING

from constrained.constraint.moved import keep_old_paths as _keep_old_paths
from constraints.adapters import geoopt as _geoopt  # noqa: F401 # pyright: ignore[reportUnusedImport] - registers what it holds
from constraints.adapters import geotorch as _geotorch  # noqa: F401 # pyright: ignore[reportUnusedImport] - the same
from constraints.adapters import torch_distributions as _distributions  # noqa: F401 # pyright: ignore[reportUnusedImport] - the same
from constraints.composite.chain import Chain
from constraints.composite.masked import Masked
from constraints.composite.product import Product
from constraints.kernels.orthogonal_conv import OrthogonalConv
from constraints.kernels.spectral_norm_conv import SpectralNormConv
from constraints.matrices.cholesky_factor import CholeskyFactor
from constraints.matrices.correlation import Correlation, CorrelationCholesky
from constraints.matrices.doubly_stochastic import DoublyStochastic, SoftPermutation
from constraints.matrices.fixed_rank import FixedRank, PSDFixedRank
from constraints.matrices.grassmann import Grassmann
from constraints.matrices.hurwitz import Hurwitz
from constraints.matrices.linear_group import Invertible, SpecialLinear
from constraints.matrices.low_rank import LowRank, RankOne
from constraints.matrices.orthogonal import Orthogonal
from constraints.matrices.positive_definite import PositiveDefinite
from constraints.matrices.positive_semidefinite import PositiveSemidefinite, PSDLowRank
from constraints.matrices.schur import Schur
from constraints.matrices.singular_values import AlmostOrthogonal, SingularValues
from constraints.matrices.special_orthogonal import SpecialOrthogonal
from constraints.matrices.spectral_norm import SpectralNorm
from constraints.matrices.stochastic import ColumnStochastic, RowStochastic
from constraints.matrices.symmetric import Hamiltonian, Hermitian, Skew, Symmetric, Traceless
from constraints.matrices.symplectic import Symplectic
from constraints.matrices.toeplitz import Circulant, Hankel, Toeplitz
from constraints.matrices.unitary import Unitary
from constraints.matrices.zero_pattern import (
    Banded,
    BlockDiagonal,
    Diagonal,
    LowerTriangular,
    UpperTriangular,
)
from constraints.old_paths import MOVED as _MOVED
from constraints.scalars.angle import Angle
from constraints.scalars.box import Box
from constraints.scalars.interval import Interval
from constraints.scalars.nonnegative import AtLeast, AtMost, Nonnegative, Nonpositive
from constraints.scalars.positive import GreaterThan, LessThan, Negative, Positive
from constraints.scalars.real import Real
from constraints.vectors.affine import Affine, SumToZero
from constraints.vectors.ball import Ball, L1Ball, MaxNorm
from constraints.vectors.hyperbolic import Lorentz, PoincareBall
from constraints.vectors.norm_shell import MinMaxNorm
from constraints.vectors.ordered import Ordered, PositiveOrdered
from constraints.vectors.simplex import Simplex
from constraints.vectors.sphere import FrobeniusNorm, Oblique, Sphere
from constraints.vectors.weight_norm import WeightNorm

__all__ = [
    "Affine",
    "AlmostOrthogonal",
    "Angle",
    "AtLeast",
    "AtMost",
    "Ball",
    "Banded",
    "BlockDiagonal",
    "Box",
    "Chain",
    "CholeskyFactor",
    "Circulant",
    "ColumnStochastic",
    "Correlation",
    "CorrelationCholesky",
    "Diagonal",
    "DoublyStochastic",
    "FixedRank",
    "FrobeniusNorm",
    "Grassmann",
    "GreaterThan",
    "Hamiltonian",
    "Hankel",
    "Hermitian",
    "Hurwitz",
    "Interval",
    "Invertible",
    "L1Ball",
    "LessThan",
    "Lorentz",
    "LowRank",
    "LowerTriangular",
    "Masked",
    "MaxNorm",
    "MinMaxNorm",
    "Negative",
    "Nonnegative",
    "Nonpositive",
    "Oblique",
    "Ordered",
    "Orthogonal",
    "OrthogonalConv",
    "PSDFixedRank",
    "PSDLowRank",
    "PoincareBall",
    "Positive",
    "PositiveDefinite",
    "PositiveOrdered",
    "PositiveSemidefinite",
    "Product",
    "RankOne",
    "Real",
    "RowStochastic",
    "Schur",
    "Simplex",
    "SingularValues",
    "Skew",
    "SoftPermutation",
    "SpecialLinear",
    "SpecialOrthogonal",
    "SpectralNorm",
    "SpectralNormConv",
    "Sphere",
    "SumToZero",
    "Symmetric",
    "Symplectic",
    "Toeplitz",
    "Traceless",
    "Unitary",
    "UpperTriangular",
    "WeightNorm",
]

# Not for type checkers, to which every name would then be one of this package.
if not TYPE_CHECKING:
    __getattr__ = _keep_old_paths(_MOVED)
