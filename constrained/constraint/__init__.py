"""What a constraint is, what it is called, and how it is written down.

* `base`: the class `Constraint`, and what a new one defines;
* `optional_methods`: what it may define beside that, to be trained faster or better;
* `guards`: the checks and the precision around the methods that it defines;
* `arguments`: its constructor arguments: compared, written as data, set later;
* `argument_schema`: what values they may have, as a JSON schema and in words;
* `documentation`: what the docstring of a constraint says, as text for a terminal;
* `latex`: its formulas as text;
* `sampling`, `membership`: how members are drawn, and how values are measured and checked;
* `view`, `named_views`: a constraint on a rearrangement of a tensor, and rearrangements by name;
* `registry`: the names of all constraints;
* `spec`, `spec_strings`: how a user writes a constraint down, and how that is parsed;
* `description`: how a checkpoint writes it down;
* `plain_data`: limits to data from outside, and its quotation in messages;
* `errors`, `tolerance`, `precision`, `elements`: what all of these use;
* `deprecated`, `moved`: old names of members, and old paths of modules.
"""

from typing import TYPE_CHECKING

from constrained.constraint.moved import find_moved as _find_moved

# What the module had that this package was.
if not TYPE_CHECKING:
    __getattr__ = _find_moved(
        __name__,
        {
            "constrained.constraint.base": "Constraint FLAT START unguarded",
            "constrained.constraint.elements": "Params",
            "constrained.constraint.errors": "InfeasibleError OutOfRangeError",
            "constrained.constraint.optional_methods": "recomputed",
            "constrained.constraint.precision": "autocast_disabled is_autocast",
            "constrained.torch_internals.tensors": "has_values is_transformed",
        },
    )
