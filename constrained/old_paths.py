"""The paths of modules before version 0.2, which go on working until 0.4.

Only what others could have imported, or what is in a pickled model, is listed.
"""

from __future__ import annotations

from constrained.constraint.moved import Names

#: The names of each module by the modules that define them now.
MOVED: dict[str, Names] = {
    "constrained.change": {"constrained.model.lazy": "Postponed:LazyChange"},
    "constrained.registry": {
        "constrained.constraint.registry": (
            "register register_adapter register_spelling names get did_you_mean"
        ),
        "constrained.constraint.documentation": "describe",
        "constrained.constraint.errors": "UnknownNameError",
    },
    "constrained.spec": {
        "constrained.constraint.errors": "SpecError",
        "constrained.constraint.spec": "Request parse instantiate",
    },
    "constrained.plain_data": {"constrained.constraint.errors": "SpecError"},
    "constrained.tolerance": {
        "constrained.constraint.tolerance": "tolerance working_dtype STORAGE_ULPS ARITHMETIC_ULPS"
    },
    "constrained.view": {"constrained.constraint.view": "View"},
    "constrained.parametrization_list": {
        "constrained.parametrized.parametrization_list": "ParametrizationList"
    },
    "constrained.parametrized_class": {
        "constrained.parametrized.parametrizations": "Parametrizations",
        "constrained.parametrized.pickling": "_rebuild _rebuild_as_made",
    },
    "constrained.report": {
        "constrained.seeing.report": "Report report",
        "constrained.seeing.row": "Row",
        "constrained.seeing.measured": "violations assert_feasible",
        "constrained.model.specs": "spec",
    },
    "constrained.apply": {
        "constrained.model.constrain": "constrain",
        "constrained.model.rebase": "rebase",
        "constrained.model.release": "release",
    },
    "constrained.cache": {"constrained.evaluation.cached": "cached"},
    "constrained.write": {"constrained.model.writable": "writable"},
}
