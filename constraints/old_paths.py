"""The paths of modules before version 0.2, which go on working until 0.4.

Only what others could have imported, or what is in a pickled model, is listed.
"""

from __future__ import annotations

from constrained.constraint.moved import Names

#: The sets that each module had. They are all in `constraints` itself.
_SETS = {
    "affine": "Affine SumToZero",
    "angle": "Angle",
    "ball": "Ball L1Ball MaxNorm",
    "box": "Box",
    "chain": "Chain",
    "cholesky_factor": "CholeskyFactor",
    "correlation": "Correlation CorrelationCholesky",
    "doubly_stochastic": "DoublyStochastic SoftPermutation",
    "fixed_rank": "FixedRank PSDFixedRank",
    "grassmann": "Grassmann",
    "hurwitz": "Hurwitz",
    "hyperbolic": "PoincareBall Lorentz",
    "interval": "Interval",
    "linear_group": "Invertible SpecialLinear",
    "low_rank": "LowRank RankOne",
    "masked": "Masked",
    "nonnegative": "Nonnegative Nonpositive AtLeast AtMost",
    "orthogonal": "Orthogonal",
    "orthogonal_conv": "OrthogonalConv",
    "positive": "Positive Negative GreaterThan LessThan",
    "positive_definite": "PositiveDefinite",
    "positive_semidefinite": "PositiveSemidefinite PSDLowRank",
    "product": "Product",
    "real": "Real",
    "schur": "Schur",
    "shell": "MinMaxNorm",
    "simplex": "Simplex",
    "special_orthogonal": "SpecialOrthogonal",
    "spectral_norm": "SpectralNorm",
    "spectral_norm_conv": "SpectralNormConv",
    "sphere": "Sphere Oblique FrobeniusNorm",
    "stochastic": "RowStochastic ColumnStochastic",
    "symmetric": "Symmetric Skew Hermitian Hamiltonian Traceless",
    "symplectic": "Symplectic",
    "toeplitz": "Toeplitz Hankel Circulant",
    "unitary": "Unitary",
    "weight_norm": "WeightNorm",
    "zeros": "Diagonal LowerTriangular UpperTriangular Banded BlockDiagonal",
}

#: The names of each module by the modules that define them now.
MOVED: dict[str, Names] = {
    f"constraints.{old}": {"constraints": sets} for old, sets in _SETS.items()
}
MOVED |= {
    "constraints.bounds": {
        "constraints.bases.argument_checks": "checked_bound checked_positive checked_rank"
    },
    "constraints.half_line": {
        "constraints.bases.half_line": "HalfLine OpenHalfLine ClosedHalfLine"
    },
    "constraints.layer": {"constraints.bases.convolution_settings": "Layer:ConvolutionSettings"},
    "constraints.linear_space": {"constraints.bases.linear_space": "LinearSpace"},
    "constraints.ordered": {"constraints.vectors.ordered": "Increments Ordered PositiveOrdered"},
    "constraints.singular_values": {
        "constraints.matrices.singular_values": "SpectrumBound SingularValues AlmostOrthogonal"
    },
}
