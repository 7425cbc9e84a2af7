"""The catalogue: ready-made constraints, each a set with a map onto it and a right inverse.

Importing this package puts them all into the registry of `constrained`, which does so by itself
when it looks up a name it does not know yet. One file holds one constraint, or a family that shares
its mathematics.
"""

from constraints import adapters as _adapters  # noqa: F401 - registers what it holds
from constraints import geoopt as _geoopt  # noqa: F401 - the same
from constraints.affine import Affine, SumToZero
from constraints.angle import Angle
from constraints.ball import Ball, L1Ball, MaxNorm
from constraints.box import Box
from constraints.chain import Chain
from constraints.cholesky_factor import CholeskyFactor
from constraints.correlation import Correlation, CorrelationCholesky
from constraints.doubly_stochastic import DoublyStochastic, SoftPermutation
from constraints.fixed_rank import FixedRank, PSDFixedRank
from constraints.grassmann import Grassmann
from constraints.hurwitz import Hurwitz
from constraints.hyperbolic import Lorentz, PoincareBall
from constraints.interval import Interval
from constraints.linear_group import Invertible, SpecialLinear
from constraints.low_rank import LowRank, RankOne
from constraints.masked import Masked
from constraints.nonnegative import AtLeast, AtMost, Nonnegative, Nonpositive
from constraints.ordered import Ordered, PositiveOrdered
from constraints.orthogonal import Orthogonal
from constraints.orthogonal_conv import OrthogonalConv
from constraints.positive import GreaterThan, LessThan, Negative, Positive
from constraints.positive_definite import PositiveDefinite
from constraints.positive_semidefinite import PositiveSemidefinite, PSDLowRank
from constraints.product import Product
from constraints.real import Real
from constraints.schur import Schur
from constraints.shell import MinMaxNorm
from constraints.simplex import Simplex
from constraints.singular_values import AlmostOrthogonal, SingularValues
from constraints.special_orthogonal import SpecialOrthogonal
from constraints.spectral_norm import SpectralNorm
from constraints.spectral_norm_conv import SpectralNormConv
from constraints.sphere import FrobeniusNorm, Oblique, Sphere
from constraints.stochastic import ColumnStochastic, RowStochastic
from constraints.symmetric import Hamiltonian, Hermitian, Skew, Symmetric, Traceless
from constraints.symplectic import Symplectic
from constraints.toeplitz import Circulant, Hankel, Toeplitz
from constraints.unitary import Unitary
from constraints.weight_norm import WeightNorm
from constraints.zeros import Banded, BlockDiagonal, Diagonal, LowerTriangular, UpperTriangular

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
