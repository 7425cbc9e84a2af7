"""Laws about code that cannot see the numbers: meta tensors and compiled graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from constrained.testing.bounds import expect_close
from constrained.testing.case import Case, expect, unpack
from constrained.testing.points import params
from constrained.testing.runner import Scope, law


@law(Scope(dtypes=(torch.float32,)))
def meta_tensors_pass(case: Case) -> None:
    """``right_inverse`` and ``forward`` of meta tensors give meta tensors of the right shapes."""
    constraint = case.build()
    inside = case.sample(constraint)
    expected = unpack(constraint.right_inverse(inside))
    found = unpack(constraint.right_inverse(inside.to("meta")))
    expect(
        [(p.shape, p.dtype, p.device.type) for p in found]
        == [(p.shape, p.dtype, "meta") for p in expected],
        case,
        f"right_inverse of a meta tensor: expected meta tensors of the shapes "
        f"{[tuple(p.shape) for p in expected]}, found "
        f"{[(p.device.type, tuple(p.shape)) for p in found]}.",
    )
    value = constraint(*found)
    expect(
        value.is_meta and value.shape == case.shape and value.dtype == case.dtype,
        case,
        f"forward of meta tensors: expected a meta tensor of shape {case.shape}, "
        f"found {value.device} of shape {tuple(value.shape)}.",
    )


@law(Scope(dtypes=(torch.float32,), batches=((),), one_shape=True, effort="compiler"))
def compiles(case: Case) -> None:
    """``torch.compile(fullgraph=True)`` gives the values and gradients of eager mode."""
    constraint = case.build()
    free = params(case, constraint)
    weight = case.gaussian(salt="weight")

    def run(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = [p.clone().requires_grad_(i not in constraint.frozen) for i, p in enumerate(free)]
        value = function(*leaves)
        (value * weight).sum().abs().backward()
        return [value.detach(), *(p.grad for p in leaves if p.grad is not None)]

    torch.compiler.reset()
    try:
        expected = run(constraint)
        found = run(torch.compile(constraint, fullgraph=True, backend="aot_eager"))
    finally:
        torch.compiler.reset()
    expect(len(found) == len(expected), case, "expected as many gradients as in eager mode.")
    expect_close(found[0], expected[0], case, "compiled forward")
    for i, (a, b) in enumerate(zip(found[1:], expected[1:], strict=True)):
        rounding = torch.finfo(b.dtype).eps ** 0.5 * (1 + float(b.abs().max()))
        expect(
            a.shape == b.shape and (a - b).abs().max() <= rounding,
            case,
            f"compiled gradient {i}: expected that of eager mode up to {rounding:.3g}, "
            f"found {float((a - b).abs().max()):.3g} apart.",
        )
