"""Laws about derivatives: correct to second order, in both modes, and of full rank on the set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from constrained.constraint.base import Constraint
from constrained.testing.bounds import STEPS, half_precision, scale
from constrained.testing.case import MEMBERS, POINTS, Case, expect
from constrained.testing.points import SCALES, params, params_at
from constrained.testing.runner import Scope, law
from constrained.torch_internals import linalg

EVERYWHERE = Scope(dtypes=(torch.float64,), batches=((),), points=POINTS, effort="long")
# `dimension` takes no dtype: for a constraint that allows complex elements it counts those.
ON_THE_SET = Scope(dtypes=(torch.float64,), real=False, batches=((),), points=MEMBERS)


@law(EVERYWHERE)
def first_derivative(case: Case) -> None:
    """The gradient of ``forward`` equals the difference quotient (`torch.autograd.gradcheck`)."""
    constraint = case.build()
    function, free = _real_map(constraint, params_at(case, constraint, str(case.point)))
    _expect_checked(case, torch.autograd.gradcheck, function, free)


@law(EVERYWHERE)
def second_derivative(case: Case) -> None:
    """The second derivative equals the difference quotient (`torch.autograd.gradgradcheck`)."""
    constraint = case.build()
    function, free = _real_map(constraint, params_at(case, constraint, str(case.point)))
    _expect_checked(case, torch.autograd.gradgradcheck, function, free)


@law(EVERYWHERE)
def forward_mode(case: Case) -> None:
    """Forward-mode derivatives (`torch.func.jvp`) equal those of reverse mode."""
    constraint = case.build()
    function, free = _real_map(constraint, params_at(case, constraint, str(case.point)))
    for k in range(3):
        tangent = tuple(
            torch.randn(p.shape, dtype=p.dtype, generator=case.generator(f"tangent {k} {i}"))
            for i, p in enumerate(free)
        )
        with warnings.catch_warnings():
            # When torch imports its forward-mode rules, it warns about its own use of torch.jit.
            # The category of the warning depends on the version.
            warnings.filterwarnings("ignore", "`torch.jit.script`")
            value, found = torch.func.jvp(function, tuple(p.detach() for p in free), tangent)[:2]
        weight = torch.randn(
            value.shape, dtype=value.dtype, generator=case.generator(f"weight {k}")
        )
        gradient = torch.autograd.grad(function(*free), free, weight, allow_unused=True)
        pairs = [(g, t) for g, t in zip(gradient, tangent, strict=True) if g is not None]  # pyright: ignore[reportUnnecessaryComparison] - torch gives None for an unused leaf
        reverse = float(sum((g * t).sum() for g, t in pairs))
        forward = float((weight * found).sum())
        norms = [float((linalg.vector_norm(g) * linalg.vector_norm(t)).detach()) for g, t in pairs]
        # Where the derivative vanishes, only the rounding of the value remains.
        rounding = (
            STEPS * torch.finfo(case.dtype).eps * float(linalg.vector_norm(weight)) * scale(case)
        )
        bound = rounding + half_precision(case.dtype) * max(
            [float(linalg.vector_norm(weight) * linalg.vector_norm(found)), *norms]
        )
        expect(
            abs(forward - reverse) <= bound,
            case,
            f"expected the directional derivative {reverse:.8g} of reverse mode, "
            f"found {forward:.8g} in forward mode.",
        )


@law(Scope(dtypes=(torch.float32, torch.float64), points=POINTS))
def pullback_is_the_gradient(case: Case) -> None:
    """``pullback``, where a class defines it, gives what autograd gives for ``forward``."""
    constraint = case.build()
    if not constraint.has_pullback():
        return
    free = params_at(case, constraint, str(case.point))
    trained = [i for i in range(len(free)) if i not in constraint.frozen]
    leaves = [p.detach().requires_grad_(i in trained) for i, p in enumerate(free)]
    value = constraint(*leaves)
    weight = torch.randn(value.shape, dtype=value.dtype, generator=case.generator("weight"))
    expected = torch.autograd.grad(value, [leaves[i] for i in trained], weight)
    given = [value.detach().clone(), weight.clone(), *(p.detach().clone() for p in free)]
    with torch.no_grad():
        found = constraint.pullback(*given)
    expect(
        all(map(torch.equal, given, (value.detach(), weight, *free))),
        case,
        "pullback: expected its arguments to be left as they are, found them written to.",
    )
    for i, gradient in zip(trained, expected, strict=True):
        here = found[i]
        expect(
            here is not None and here.shape == gradient.shape and here.dtype == gradient.dtype,
            case,
            f"pullback: expected a gradient like the parameter {i}, found none, or another shape "
            "or dtype.",
        )
        difference = float((here - gradient).norm())  # type: ignore[operator] - not None: see above
        bound = half_precision(case.dtype) * float(
            torch.maximum(linalg.vector_norm(gradient), linalg.vector_norm(weight))
        )
        expect(
            difference <= bound,
            case,
            f"pullback: expected the gradient of forward with respect to the parameter {i}, found "
            f"one that is {difference:.3g} away (at most {bound:.3g} is rounding).",
        )


@law(Scope(dtypes=(torch.float32, torch.float64), batches=((),)))
def thin_pullback_is_the_gradient(case: Case) -> None:
    """``thin_pullback``, where a class defines it, gives what ``pullback`` does."""
    constraint = case.build()
    if type(constraint).thin_pullback is Constraint.thin_pullback:
        return
    free = constraint.canonical(*params(case, constraint))
    value = constraint(*free)
    generator = case.generator("factors")
    left, right = (torch.randn(1, k, dtype=value.dtype, generator=generator) for k in value.shape)
    if constraint.value_index is not None:
        free = tuple(value if i == constraint.value_index else p for i, p in enumerate(free))
    given = [t.clone() for t in (value, left, right, *free)]
    with torch.no_grad():
        found = constraint.thin_pullback(value, left, right, *free)
        expected = constraint.pullback(value, left.mT @ right, *free)
    expect(
        all(map(torch.equal, given, (value, left, right, *free))),
        case,
        "thin_pullback: expected its arguments to be left as they are, found them written to.",
    )
    if found is None:
        return
    for i, (here, there) in enumerate(zip(found, expected, strict=True)):
        if here is None or there is None:
            expect(here is there, case, f"thin_pullback: a gradient for the parameter {i}, or not.")
            continue
        difference = float(linalg.vector_norm(here - there))
        bound = half_precision(case.dtype) * float(
            linalg.vector_norm(left) * linalg.vector_norm(right) + linalg.vector_norm(there)
        )
        expect(
            difference <= bound,
            case,
            f"thin_pullback: expected what pullback gives for the parameter {i}, found one that is "
            f"{difference:.3g} away (at most {bound:.3g} is rounding).",
        )


@law(Scope(dtypes=(torch.float32, torch.float64), effort="long"))
def gradient_is_finite(case: Case) -> None:
    """The gradient is finite at parameters of every scale, zero included."""
    constraint = case.build()
    for spread in SCALES:
        function, free = _real_map(constraint, params(case, constraint, spread))
        weight = torch.randn(
            function(*free).shape, dtype=free[0].dtype, generator=case.generator("weight")
        )
        value = function(*free)
        expect(
            value.requires_grad,
            case,
            "expected a value that depends on the parameters, found one without a gradient.",
        )
        for gradient in torch.autograd.grad(value, free, weight):
            expect(
                torch.isfinite(gradient).all(),
                case,
                f"gradient at {spread:g} * randn: expected finite numbers, found NaN or infinity.",
            )


@law(ON_THE_SET)
def no_dead_directions(case: Case) -> None:
    """The rank of the Jacobian of ``forward`` is the set's dimension at every member.

    A singular value counts if it exceeds the square root of the machine epsilon times the largest
    one. On a closed set it must also exceed that share of the largest one at a random member,
    because the boundary belongs to the set.
    """
    constraint = case.build()
    expected = constraint.dimension(case.event)
    found = singular_values(case, constraint, str(case.point))
    reference = float(found.amax()) if found.numel() else 0.0
    if case.cls.closed:
        reference = max(reference, float(singular_values(case, constraint, "random").amax()))
    rank = int((found > half_precision(case.dtype) * reference).sum())
    expect(
        rank == expected,
        case,
        f"expected a Jacobian of rank {expected}, the dimension of the set, found rank {rank}.",
    )


def _expect_checked(
    case: Case, check: Callable[..., Any], function: Callable[..., Tensor], free: tuple[Tensor, ...]
) -> None:
    try:
        # Fast mode takes one random projection instead of a difference quotient per entry.
        check(function, free, fast_mode=len(free) * free[0].numel() > 16)
    except GradcheckError as error:
        # The rest of the message is a whole Jacobian in numbers.
        sentence = " ".join(str(error).split()).partition(", numerical")[0]
        raise AssertionError(
            f"{case}: expected the difference quotient: {sentence:.300}."
        ) from None


def singular_values(case: Case, constraint: Constraint, point: str) -> Tensor:
    """The singular values of the Jacobian of ``forward`` with respect to its free parameters."""
    return singular_values_at(constraint, params_at(case, constraint, point))


def singular_values_at(constraint: Constraint, params: tuple[Tensor, ...]) -> Tensor:
    """The singular values of the Jacobian of ``forward`` at some parameters."""
    function, free = _real_map(constraint, params)
    blocks: tuple[Tensor, ...] = cast(Any, torch.autograd.functional).jacobian(function, free)
    rows = int(function(*free).numel())
    jacobian = torch.cat([block.reshape(rows, -1) for block in blocks], dim=1)
    return linalg.svdvals(jacobian)


def _real_map(
    constraint: Constraint, params: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """``forward`` as a function of the free parameters, with real numbers on both sides."""
    free = [i for i in range(len(params)) if i not in constraint.frozen]

    def function(*leaves: Tensor) -> Tensor:
        full = list(params)
        for i, leaf in zip(free, leaves, strict=True):
            full[i] = torch.view_as_complex(leaf) if params[i].is_complex() else leaf
        value = constraint(*full)
        return torch.view_as_real(value) if value.is_complex() else value

    leaves = (params[i].detach() for i in free)
    real = (torch.view_as_real(p) if p.is_complex() else p for p in leaves)
    return function, tuple(p.clone().requires_grad_() for p in real)
