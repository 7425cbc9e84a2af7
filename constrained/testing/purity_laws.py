"""Laws that methods have no side effects."""

from __future__ import annotations

import pickle
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.testing.case import Case, call, expect
from constrained.testing.points import params
from constrained.testing.runner import Scope, law

ONCE = Scope(dtypes=(torch.float32,))


@law(ONCE)
def writes_nothing(case: Case) -> None:
    """No method changes the constraint or its arguments."""
    constraint = case.build()
    for method, arguments in _calls(case, constraint).items():
        versions = [argument._version for argument in arguments]
        before = [_snapshot(argument) for argument in arguments]
        state = _snapshot(constraint)
        call(constraint, method, *arguments)
        expect(
            _snapshot(constraint) == state,
            case,
            f"{method}: expected the constraint to be left as it is, found its state changed.",
        )
        expect(
            [_snapshot(argument) for argument in arguments] == before
            and [argument._version for argument in arguments] == versions,
            case,
            f"{method}: expected its argument to be left as it is, found it written to.",
        )


@law(ONCE)
def draws_nothing(case: Case) -> None:
    """No method, nor the constructor, draws from or seeds a global random generator."""
    with _as_nobody_seeds_them():
        before = _random_state()
        constraint = case.build()
        expect(_random_state() == before, case, "constructor: found a global generator advanced.")
        for method, arguments in _calls(case, constraint).items():
            before = _random_state()
            call(constraint, method, *arguments)
            expect(_random_state() == before, case, f"{method}: found a global generator advanced.")


@law(ONCE)
def repeats(case: Case) -> None:
    """The same arguments give the same bits again, also from another instance."""
    constraint, other = case.build(), case.build()
    for method, arguments in _calls(case, constraint).items():
        if method == "forward" and not constraint.deterministic:
            continue  # The class declares that its values are random.
        first = call(constraint, method, *arguments)
        for again in (constraint, other):
            second = call(again, method, *arguments)
            expect(
                all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
                case,
                f"{method}: expected the same bits from the same arguments, found others.",
            )


def _calls(case: Case, constraint: Constraint) -> dict[str, tuple[Tensor, ...]]:
    value = case.sample(constraint)
    return {
        "forward": params(case, constraint),
        "canonical": params(case, constraint),
        "right_inverse": (value,),
        "violation": (value + 0.1 * case.gaussian(),),
        "project": (value + 0.1 * case.gaussian(),),
        "contains": (value,),
    }


def _snapshot(thing: Any) -> Any:
    """The content of a module, container or tensor, as something that can be compared."""
    if isinstance(thing, Tensor):
        return (thing.dtype, thing.shape, thing.detach().cpu().flatten().tolist().__repr__())
    if isinstance(thing, nn.Module):
        return (id(thing), _snapshot(vars(thing)))
    if isinstance(thing, Mapping):
        return [(key, _snapshot(value)) for key, value in cast("Mapping[Any, Any]", thing).items()]
    if isinstance(thing, list | tuple):
        return [_snapshot(value) for value in cast("list[Any] | tuple[Any, ...]", thing)]
    if isinstance(thing, str | int | float | complex | bool | type(None)):
        return repr(thing)
    return id(thing)


@contextmanager
def _as_nobody_seeds_them() -> Generator[None]:
    """Advance the global generators to states that no seed gives; restore them afterwards.

    Otherwise code that seeds a generator with the seed it was last given would change nothing and
    stay unnoticed.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.rand(())
        np.random.random()
        random.random()
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _random_state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state(legacy=False)),
        random.getstate(),
    )
