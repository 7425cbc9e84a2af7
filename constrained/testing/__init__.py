"""The laws that every constraint obeys, as public functions that run on any `Constraint`.

A package that adds a constraint tests it in one line, or in one pytest function that shows every
law and case as a test of its own::

    from constrained import testing

    def test_all_laws_at_once():
        testing.check(MyConstraint)

    @pytest.mark.parametrize("trial", testing.trials(MyConstraint), ids=str)
    def test_law(trial):
        if trial.exemption:
            pytest.skip(trial.exemption)
        trial.run()

A law is a function of a `Case` (a class, its arguments, a shape, a dtype) that raises an
`AssertionError` of one sentence. Cases come from the class attribute ``examples``. A law is left
out only where the class declares it in ``expected_failures``: a mapping from the law's name, or
from ``"law:point"`` for a law about derivatives at one of `POINTS`, to the reason. The bounds of
all laws follow from `constrained.tolerance`; no class has its own.

``python -m constrained.testing sphere`` runs them from a shell; so does ``make laws NAME=sphere``.

>>> from constrained import testing
>>> [law.__name__ for law in testing.laws()][:2]
['lands_in_the_set', 'right_inverse_inverts']
"""

# The order of these imports is the order of the laws.
# ruff: noqa: I001
from constrained.testing.case import MEMBERS, POINTS, Case
from constrained.testing.runner import Scope, Trial, check, laws, stale_exemptions, trials
from constrained.testing.set_laws import (
    canonical_keeps_the_element,
    empty_batches_pass,
    factors_give_the_element,
    graded_members_return,
    keeps_what_it_says,
    lands_in_the_set,
    malformed_is_rejected,
    members_are_accepted,
    outsiders_are_rejected,
    right_inverse_inverts,
)
from constrained.testing.distance_laws import (
    nearest,
    projects,
    slack_is_not_negative,
    violation_grows,
    violation_separates,
)
from constrained.testing.geometry_laws import (
    admissible_gradients_descend,
    admissible_gradients_vanish,
    retracts,
    scaled_projection_is_nearest,
    tangent_is_a_projection,
    tangent_space_has_the_dimension,
    tangents_lead_along_the_set,
)
from constrained.testing.walking_laws import (
    gradients_represent_derivatives,
    moves_stay_in_the_set,
    steepest_directions_are_steepest,
    steepest_directions_are_tangent,
    transports,
)
from constrained.testing.purity_laws import draws_nothing, repeats, writes_nothing
from constrained.testing.derivative_laws import (
    first_derivative,
    forward_mode,
    gradient_is_finite,
    no_dead_directions,
    pullback_is_the_gradient,
    thin_pullback_is_the_gradient,
    second_derivative,
)
from constrained.testing.start_laws import every_start_trains, flat_members_are_told, members_stay
from constrained.testing.batch_laws import batch_is_a_loop, strides_do_not_matter, vmap_is_a_loop
from constrained.testing.precision_laws import (
    agrees_with_double,
    autocast_changes_nothing,
    moves_between_dtypes,
)
from constrained.testing.identity_laws import (
    arguments_are_stored,
    copies_are_equal,
    dimension_counts,
    documented,
    repr_is_short,
    samples_are_reproducible,
    spec_rebuilds,
    state_dict_restores,
)
from constrained.testing.graph_laws import compiles, meta_tensors_pass
from constrained.testing.engine_laws import (
    checkpoints_restore,
    constrain_keeps_a_member,
    training_stays_in_the_set,
)
from constrained.testing.optimum_laws import adam_reaches_the_optimum

__all__ = [
    "MEMBERS",
    "POINTS",
    "Case",
    "Scope",
    "Trial",
    "adam_reaches_the_optimum",
    "admissible_gradients_descend",
    "admissible_gradients_vanish",
    "agrees_with_double",
    "arguments_are_stored",
    "autocast_changes_nothing",
    "batch_is_a_loop",
    "canonical_keeps_the_element",
    "check",
    "checkpoints_restore",
    "compiles",
    "constrain_keeps_a_member",
    "copies_are_equal",
    "dimension_counts",
    "documented",
    "draws_nothing",
    "empty_batches_pass",
    "every_start_trains",
    "factors_give_the_element",
    "first_derivative",
    "flat_members_are_told",
    "forward_mode",
    "graded_members_return",
    "gradient_is_finite",
    "gradients_represent_derivatives",
    "keeps_what_it_says",
    "lands_in_the_set",
    "laws",
    "malformed_is_rejected",
    "members_are_accepted",
    "members_stay",
    "meta_tensors_pass",
    "moves_between_dtypes",
    "moves_stay_in_the_set",
    "nearest",
    "no_dead_directions",
    "outsiders_are_rejected",
    "projects",
    "pullback_is_the_gradient",
    "repeats",
    "repr_is_short",
    "retracts",
    "right_inverse_inverts",
    "samples_are_reproducible",
    "scaled_projection_is_nearest",
    "second_derivative",
    "slack_is_not_negative",
    "spec_rebuilds",
    "stale_exemptions",
    "state_dict_restores",
    "steepest_directions_are_steepest",
    "steepest_directions_are_tangent",
    "strides_do_not_matter",
    "tangent_is_a_projection",
    "tangent_space_has_the_dimension",
    "tangents_lead_along_the_set",
    "thin_pullback_is_the_gradient",
    "training_stays_in_the_set",
    "transports",
    "trials",
    "violation_grows",
    "violation_separates",
    "vmap_is_a_loop",
    "writes_nothing",
]
