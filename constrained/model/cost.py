"""What a training step under a constraint is made of: single numbers, products, decompositions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.constraint.view import View
from constrained.torch_internals import linalg
from constrained.torch_internals.operations import watched

#: The classes of cost, from the cheapest on.
Cost = Literal["elementwise", "products", "decompositions"]

COSTS: tuple[Cost, ...] = get_args(Cost)

#: The longest side of an element that is tried, if the constraint admits one so small.
_SIDE = 32

#: How far a step goes that is tried, relative to the parameters: as far as one of training.
_STEP = 1e-3

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "fft_r2c", "fft_c2r", "fft_c2c")
_DECOMPOSITIONS = ("linalg_", "cholesky", "geqrf", "lu_", "ormqr", "svd", "triangular_solve")
#: These begin like decompositions, and are none.
_ELEMENTWISE = ("linalg_vector_norm", "linalg_cross", "linalg_diagonal", "linalg_vecdot")


def cost_of(constraint: Constraint, shape: Sequence[int]) -> Cost | None:
    """What a training step under a constraint does beyond that of a plain tensor.

    A step is tried, on a small random member: an evaluation, its gradient, a step of plain gradient
    descent, and the canonical form that is restored after it. What counts is the most expensive
    operation in it. The constraint is not changed, and no global random number is drawn.

    Args:
        constraint: the constraint.
        shape: of the tensor that has it.

    Returns:
        ``"elementwise"``: sums and functions of entries; ``"products"``: a few products of
        matrices, or Fourier transforms; ``"decompositions"``: of singular values, eigenvalues,
        triangular factors, or the solution of equations, for a matrix many times as expensive as a
        product. None if a step cannot be tried.

    Example:
        >>> from constrained import get
        >>> [cost_of(get(name)(), (64, 64)) for name in ("sphere", "orthogonal", "invertible")]
        ['elementwise', 'products', 'decompositions']
    """
    while isinstance(constraint, View):
        shape = constraint.seen_shape()
        constraint = constraint.constraint
    try:
        constraint = copy.deepcopy(constraint)
    except TypeError:  # another library's stand-in for a module, such as higher's: not copyable
        return None
    # Not where the caller makes tensors, which may be the meta device.
    with torch.device("cpu"):
        for small in _smaller(constraint, tuple(shape)):
            try:
                generator = torch.Generator().manual_seed(0)
                value = constraint.sample(small, generator=generator, dtype=torch.float32)
                params = constraint.right_inverse(value)
                params = (params,) if isinstance(params, Tensor) else tuple(params)
                gradient = torch.randn(value.shape, generator=generator)
            except (ValueError, TypeError, RuntimeError, NotImplementedError):
                continue
            event = value.shape[-constraint.event_dim :] if constraint.event_dim else value.shape
            return _watched_step(constraint, params, gradient, min(event[-2:], default=1))
    return None


def _watched_step(
    constraint: Constraint, params: tuple[Tensor, ...], gradient: Tensor, side: int
) -> Cost | None:
    """The class of the most expensive operation in a step.

    Args:
        constraint: the constraint.
        params: of the elements that are stepped.
        gradient: with respect to the value.
        side: the shorter side of an element. Decompositions of matrices of less than half of it,
            such as the core of a low rank, cost no more than products.
    """
    worst = 0

    def note(name: str, args: Sequence[Any]) -> None:
        nonlocal worst
        worst = max(worst, _class_of(name, args, side))

    watch = watched(note)
    if watch is None:
        return None
    # The caller may be under no_grad.
    with watch, torch.enable_grad():
        _step(constraint, params, gradient)
    return COSTS[worst]


def _class_of(name: str, args: Sequence[Any], side: int) -> int:
    sides = [min(t.shape[-2:]) for t in args if isinstance(t, Tensor) and t.ndim > 1]
    name = name.removeprefix("_")
    if name.startswith(_ELEMENTWISE) or max(sides, default=1) < 2:
        return 0
    if name.startswith(_DECOMPOSITIONS):
        return 2 if 2 * max(sides) > side else 1
    return int(name in _PRODUCTS)


def _smaller(constraint: Constraint, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of few elements with the kind of sides that a tensor has, from the smallest on."""
    event = len(shape) if constraint.event_dim is None else constraint.event_dim
    cut = len(shape) - event
    batch, whole = tuple(min(n, 2) for n in shape[:cut]), shape[cut:]
    side, longest = _SIDE, max(whole, default=1)
    found: list[tuple[int, ...]] = []
    while side < longest:
        if constraint.shape_problem(tuple(min(n, side) for n in whole)) is None:
            # Beside a rank that allows no less, four times as long, so that it is small again.
            side = side if side == _SIDE else 4 * side
            found.append(tuple(min(n, side) for n in whole))
            break
        side *= 2
    return [(*batch, *each) for each in dict.fromkeys((*found, whole))]


def _step(constraint: Constraint, params: tuple[Tensor, ...], gradient: Tensor) -> None:
    trained = [i for i in range(len(params)) if i not in constraint.frozen]
    own = constraint.has_own_map()
    leaves = [p.detach().clone().requires_grad_(i in trained) for i, p in enumerate(params)]
    value = constraint.forward(*leaves)
    found: dict[int, Any]
    if own and constraint.has_pullback():
        back = constraint.pullback(value.detach(), gradient, *(p.detach() for p in leaves))
        found = {i: back[i] for i in trained}
    else:
        wanted = [leaves[i] for i in trained]
        grads = torch.autograd.grad(value, wanted, gradient, allow_unused=True)
        found = dict(zip(trained, grads, strict=True))
    with torch.no_grad():
        first = found.get(0)
        if own and constraint.has_step_gradient() and first is not None:
            found[0] = constraint.step_gradient(first.clone(), *(p.detach() for p in leaves))
        stepped = [
            p.detach() if (g := found.get(i)) is None else p.detach() - _length(p, g) * g
            for i, p in enumerate(leaves)
        ]
        if own and constraint.has_canonical():
            constraint.canonical(*stepped)


def _length(param: Tensor, gradient: Tensor) -> Tensor:
    """The factor with which a gradient makes a step of the usual length."""
    size = linalg.vector_norm(gradient)
    return _STEP * linalg.vector_norm(param.detach()) / torch.where(size > 0, size, 1)
