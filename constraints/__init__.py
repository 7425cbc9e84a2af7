"""The catalogue: ready-made constraints, each a set with a map onto it and a right inverse.

Importing this package puts them all into the registry of `constrained`, which does so by itself
when it looks up a name it does not know yet. One file holds one constraint, or a family that shares
its mathematics.
"""

from constraints.cholesky_factor import CholeskyFactor
from constraints.interval import Interval
from constraints.low_rank import LowRank, RankOne
from constraints.orthogonal import Orthogonal
from constraints.positive import Nonnegative, Positive
from constraints.positive_definite import PositiveDefinite
from constraints.simplex import Simplex
from constraints.spectral_norm import SpectralNorm
from constraints.sphere import Sphere
from constraints.symmetric import Hamiltonian, Hermitian, Skew, Symmetric, Traceless
from constraints.toeplitz import Circulant, Hankel, Toeplitz
from constraints.zeros import Banded, BlockDiagonal, Diagonal, LowerTriangular, UpperTriangular

__all__ = [
    "Banded",
    "BlockDiagonal",
    "CholeskyFactor",
    "Circulant",
    "Diagonal",
    "Hamiltonian",
    "Hankel",
    "Hermitian",
    "Interval",
    "LowRank",
    "LowerTriangular",
    "Nonnegative",
    "Orthogonal",
    "Positive",
    "PositiveDefinite",
    "RankOne",
    "Simplex",
    "Skew",
    "SpectralNorm",
    "Sphere",
    "Symmetric",
    "Toeplitz",
    "Traceless",
    "UpperTriangular",
]
