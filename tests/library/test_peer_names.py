"""Names that other libraries use for a set find the constraint with that set."""

import re

import pytest
from torch import nn

import constrained

PEERS = {
    "torch.distributions": {
        "positive": "positive",
        "nonnegative": "nonnegative",
        "interval": "interval",
        "greater_than": "greater_than",
        "greater_than_eq": "at_least",
        "less_than": "less_than",
        "simplex": "simplex",
        "lower_cholesky": "cholesky_factor",
        "corr_cholesky": "correlation_cholesky",
        "lower_triangular": "lower_triangular",
        "symmetric": "symmetric",
        "positive_definite": "positive_definite",
        "positive_semidefinite": "positive_semidefinite",
        "cat": "product",
    },
    "Pyro and NumPyro": {
        "ordered_vector": "ordered",
        "positive_ordered_vector": "positive_ordered",
        "sphere": "sphere",
        "circular": "angle",
        "l1_ball": "l1_ball",
        "softplus_positive": "positive",
        "zero_sum": "sum_to_zero",
        "corr_matrix": "correlation",
    },
    "Stan": {
        "ordered": "ordered",
        "positive_ordered": "positive_ordered",
        "unit_vector": "sphere",
        "sum_to_zero_vector": "sum_to_zero",
        "cholesky_factor_corr": "correlation_cholesky",
        "cholesky_factor_cov": "cholesky_factor",
        "corr_matrix": "correlation",
        "cov_matrix": "positive_definite",
        "row_stochastic_matrix": "row_stochastic",
        "column_stochastic_matrix": "column_stochastic",
    },
    "geotorch": {
        "skew": "skew",
        "sphere": "sphere",
        "orthogonal": "orthogonal",
        "grassmannian": "grassmann",
        "almost_orthogonal": "almost_orthogonal",
        "low_rank": "low_rank",
        "fixed_rank": "fixed_rank",
        "invertible": "invertible",
        "sln": "special_linear",
        "positive_definite": "positive_definite",
        "positive_semidefinite": "positive_semidefinite",
        "positive_semidefinite_low_rank": "psd_low_rank",
        "positive_semidefinite_fixed_rank": "psd_fixed_rank",
        "alpha_stable": "hurwitz",
        "psd": "positive_semidefinite",
    },
    "geoopt and pymanopt": {
        "stiefel": "orthogonal",
        "sphere": "sphere",
        "oblique": "oblique",
        "grassmann": "grassmann",
        "symmetric_positive_definite": "positive_definite",
        "birkhoff_polytope": "doubly_stochastic",
        "poincare_ball": "poincare_ball",
        "lorentz": "lorentz",
        "hyperboloid": "lorentz",
        "special_orthogonal_group": "special_orthogonal",
        "unitary_group": "unitary",
        "fixed_rank_embedded": "fixed_rank",
        "psd_fixed_rank": "psd_fixed_rank",
        "elliptope": "correlation",
        "skew_symmetric": "skew",
    },
    "Keras": {
        "non_neg": "nonnegative",
        "unit_norm": "sphere",
        "max_norm": "max_norm",
        "min_max_norm": "min_max_norm",
    },
    "torch.nn.utils and torchlip": {
        "orthogonal": "orthogonal",
        "spectral_norm": "spectral_norm",
        "weight_norm": "weight_norm",
        "frobenius_norm": "frobenius_norm",
        "lipschitz": "spectral_norm",
    },
    "manifolds by their letters": {
        "spd": "positive_definite",
        "so": "special_orthogonal",
        "gl": "invertible",
        "sl": "special_linear",
        "birkhoff": "doubly_stochastic",
        "rotation": "special_orthogonal",
        "l2_ball": "ball",
    },
}
CASES = [(peer, word, ours) for peer, words in PEERS.items() for word, ours in words.items()]


@pytest.mark.parametrize(("peer", "word", "ours"), CASES, ids=[f"{p}: {w}" for p, w, _ in CASES])
def test_a_peers_name_finds_the_set(peer, word, ours):
    assert constrained.get(word).name == ours


@pytest.mark.parametrize(
    ("word", "ours"), [("NonNeg", "non_neg"), ("UnitNorm", "unit_norm"), ("Stiefel", "stiefel")]
)
def test_class_names_are_guessed(word, ours):
    with pytest.raises(ValueError, match=f"Did you mean '{ours}'"):
        constrained.get(word)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("geotorch:orthogonal", "'geotorch:Stiefel', or 'orthogonal' without a prefix"),
        ("geotorch:stiefel", "'geotorch:Stiefel', or 'stiefel' without a prefix"),
        ("geotorch:low_rank(rank=2)", "'geotorch:LowRank', or 'low_rank' without a prefix"),
        ("orthogonal:geotorch", "'geotorch:Stiefel', or 'orthogonal' without a prefix"),
        ("geotorch.orthogonal", "'geotorch:Stiefel', or 'orthogonal' without a prefix"),
        ("geoopt:low_rank", "'low_rank', without a prefix? A prefix is geoopt or geotorch"),
        ("pyro:positive", "'positive', without a prefix? A prefix is geoopt or geotorch"),
        ("torch:orthogonal", "'orthogonal', without a prefix? A prefix is geoopt or geotorch"),
    ],
)
def test_our_name_with_the_prefix_of_a_peer(name, guess):
    with pytest.raises(ValueError, match=f"Did you mean {re.escape(guess)}"):
        constrained.constrain(nn.Linear(3, 3), "weight", name)


def test_get_takes_no_arguments():
    match = r"get takes the name alone.*: get\('low_rank'\)\(\.\.\.\)\.$"
    with pytest.raises(ValueError, match=match):
        constrained.get("low_rank(rank=3)")
    assert constrained.get("low_rank")(rank=3).rank == 3
