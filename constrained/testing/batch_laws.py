"""Laws about batches: each element is treated alone, whatever its position and memory layout."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from constrained.testing.bounds import expect_close, slack
from constrained.testing.case import Case, expect, unpack
from constrained.testing.points import params
from constrained.testing.runner import Scope, law

BATCHED = Scope(batches=((2, 3),))


@law(BATCHED)
def batch_is_a_loop(case: Case) -> None:
    """Every method gives for a batch what it gives for each element alone."""
    constraint = case.build()
    inside = case.sample(constraint)
    outside = inside + case.gaussian()
    random = params(case, constraint)
    inverse = unpack(constraint.right_inverse(inside))
    values, again = constraint(*random), constraint(*inverse)
    projections, violations = constraint.project(outside), constraint.violation(outside)
    for index in itertools.product(*map(range, case.batch)):
        one = Case(case.cls, case.kwargs, case.event, (), case.dtype)
        value = constraint(*(param[index] for param in random))
        expect_close(values[index], value, one, f"forward, element {index} of a batch")
        single = unpack(constraint.right_inverse(inside[index]))
        expect(
            [p.shape for p in single] == [p[index].shape for p in inverse],
            case,
            f"right_inverse, element {index} of a batch: expected the shapes of a single element.",
        )
        value = constraint(*(param[index] for param in inverse))
        expect_close(value, inside[index], one, f"right_inverse, element {index} of a batch")
        expect_close(again[index], inside[index], one, f"forward(right_inverse)[{index}]")
        value = constraint.project(outside[index])
        expect_close(projections[index], value, one, f"project, element {index} of a batch")
        violation = constraint.violation(outside[index])
        expect(
            (violations[index] - violation).abs() <= slack(outside[index], one),
            case,
            f"violation, element {index} of a batch: expected {float(violation):.6g} as for a "
            f"single element, found {float(violations[index]):.6g}.",
        )


@law(BATCHED)
def vmap_is_a_loop(case: Case) -> None:
    """`torch.vmap` of ``forward`` over both batch dimensions gives what the batch gives."""
    constraint = case.build()
    random = params(case, constraint)
    found = torch.vmap(torch.vmap(constraint))(*random)
    expect_close(found, constraint(*random), case, "vmap of forward")


@law(Scope(dtypes=(torch.float32,), batches=((2,),)))
def strides_do_not_matter(case: Case) -> None:
    """A tensor that is not contiguous in memory gives what its contiguous copy gives."""
    constraint = case.build()
    inside = case.sample(constraint)
    outside = inside + case.gaussian()
    random = params(case, constraint)
    expect_close(
        constraint(*map(_strided, random)), constraint(*random), case, "forward of strided tensors"
    )
    back = constraint(*unpack(constraint.right_inverse(_strided(inside))))
    expect_close(back, inside, case, "right_inverse of a strided tensor")
    value = constraint.project(_strided(outside))
    expect_close(value, constraint.project(outside), case, "project of a strided tensor")


def _strided(value: Tensor) -> Tensor:
    """The same numbers, with the order of strides reversed and gaps between entries."""
    backwards = tuple(reversed(range(value.ndim)))
    memory = torch.full((*(value.shape[i] for i in backwards), 2), torch.nan, dtype=value.dtype)
    view = memory[..., 0].permute(backwards)
    view.copy_(value)
    return view
