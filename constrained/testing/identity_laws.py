"""Laws about a constraint's name, spec, repr, documentation, copies and state dict."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from typing import Any, cast

import torch

from constrained.constraint import registry
from constrained.constraint.base import Constraint
from constrained.testing.case import POINTS, Case, expect
from constrained.testing.points import params
from constrained.testing.runner import Scope, law, laws

ONCE = Scope(dtypes=(torch.float32,), batches=((),))
HEADINGS = ("Set", "Map", "Right inverse", "Reference")


@law(ONCE)
def arguments_are_stored(case: Case) -> None:
    """Every argument of the constructor is stored unchanged under its own name."""
    constraint = case.build()
    for name, parameter in inspect.signature(case.cls.__init__).parameters.items():
        if name == "self":
            continue
        expect(
            parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
            case,
            f"constructor: expected named arguments, found {parameter}.",
        )
        expect(hasattr(constraint, name), case, f"expected the argument {name!r} as an attribute.")
        given = case.kwargs.get(name, parameter.default)
        stored = getattr(constraint, name)
        expect(
            _plain(stored) == _plain(given),
            case,
            f"expected the argument {name} = {given!r} as it was given, found {stored!r}.",
        )


@law(ONCE)
def spec_rebuilds(case: Case) -> None:
    """The spec survives JSON and rebuilds a constraint with the same spec and values."""
    constraint = case.build()
    spec = constraint.spec()
    text = json.dumps(spec, allow_nan=False)
    kwargs: dict[str, Any] = json.loads(text)
    name = kwargs.pop("name")
    if case.cls.name:
        expect(
            registry.get(name) is case.cls,
            case,
            f"expected the registry to know {name!r} as {case.cls.__qualname__}.",
        )
    rebuilt = case.cls(**kwargs)
    found = json.dumps(rebuilt.spec(), allow_nan=False)
    expect(found == text, case, f"expected the spec {text} again, found {found}.")
    _expect_same_values(rebuilt, constraint, case, "the constraint rebuilt from its spec")


@law(ONCE)
def repr_is_short(case: Case) -> None:
    """The repr is one short line that starts with the constraint's name."""
    shown = repr(case.build())
    name = case.cls.name or case.cls.__name__
    expect(
        shown.startswith(f"{name}(") and len(shown) < 200 and "\n" not in shown,
        case,
        f"expected a repr of one short line that starts with {name}, found {shown!r}.",
    )


@law(ONCE)
def copies_are_equal(case: Case) -> None:
    """Pickling, copying and deep copying give a constraint with the same spec and values."""
    constraint = case.build()
    constraint(*params(case, constraint))
    for what, twin in (
        ("pickle", pickle.loads(pickle.dumps(constraint))),
        ("copy.copy", copy.copy(constraint)),
        ("copy.deepcopy", copy.deepcopy(constraint)),
    ):
        expect(
            twin.spec() == constraint.spec(),
            case,
            f"{what}: expected the spec {constraint.spec()}, found {twin.spec()}.",
        )
        _expect_same_values(twin, constraint, case, what)


@law(ONCE)
def state_dict_restores(case: Case) -> None:
    """A new instance that loads the state dict gives the same values."""
    constraint, twin = case.build(), case.build()
    constraint(*params(case, constraint))
    twin.load_state_dict(constraint.state_dict(), strict=True)
    _expect_same_values(twin, constraint, case, "the constraint with the loaded state")
    expect(
        not list(constraint.parameters()),
        case,
        "expected a constraint without parameters of its own: those are made by right_inverse.",
    )


@law(Scope())
def samples_are_reproducible(case: Case) -> None:
    """``sample`` draws from the generator it is given, else from the global one, never both."""
    constraint = case.build()

    def draw(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return constraint.sample(case.shape, generator=generator, dtype=case.dtype)

    before = torch.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    expect(
        torch.equal(torch.get_rng_state(), before),
        case,
        "sample with a generator: expected the global one untouched, found it advanced.",
    )
    expect(torch.equal(first, again), case, "sample: expected the same from the same seed.")
    moves = constraint.dimension(case.event) > 0
    expect(
        not moves or not torch.equal(first, other),
        case,
        "sample: expected other elements from another seed, found the same.",
    )
    if case.batch:
        expect(
            not moves or not torch.equal(first[0], first[1]),
            case,
            "sample: expected another element in each place of the batch, found the same.",
        )
    torch.manual_seed(3)
    first = draw(None)
    torch.manual_seed(3)
    expect(torch.equal(first, draw(None)), case, "sample: expected torch.manual_seed to fix it.")
    expect(
        first.shape == case.shape and first.dtype == case.dtype and not first.requires_grad,
        case,
        f"sample: expected {case.dtype} of shape {case.shape} without a gradient, "
        f"found {first.dtype} of shape {tuple(first.shape)}.",
    )
    default = constraint.sample(case.shape).dtype
    expect(
        default == torch.get_default_dtype() or default.is_complex,
        case,
        f"sample without dtype: expected torch's default one, found {default}.",
    )


@law(ONCE)
def dimension_counts(case: Case) -> None:
    """The dimension is a whole number between 0 and the number of (real) entries."""
    found = case.build().dimension(case.event)
    entries = torch.Size(case.event).numel() * (2 if case.cls.complex else 1)
    expect(
        type(found) is int and 0 <= found <= entries,
        case,
        f"dimension({case.event}): expected an int from 0 to {entries}, found {found!r}.",
    )


@law(Scope(dtypes=(torch.float32,), batches=((),), one_shape=True))
def documented(case: Case) -> None:
    """The docstring states set, map, right inverse and reference; the declarations are valid."""
    text = inspect.getdoc(case.cls) or ""
    for heading in HEADINGS:
        expect(
            re.search(rf"(^|\n)\W*{heading}\W", text),
            case,
            f"docstring: expected a paragraph that starts with {heading}.",
        )
    for kwargs, event in case.cls.examples:
        expect(
            (example := case.cls(**kwargs)).event_dim in (None, len(event)),
            case,
            f"examples: expected event shapes of {example.event_dim} dimensions, found {event}.",
        )
        example.check_shape(event)
    known = {law.__name__ for law in laws()}
    for key, reason in {**case.cls.expected_failures, **case.build().expected_failures}.items():
        name, _, point = key.partition(":")
        expect(
            name in known and point in ("", *POINTS),
            case,
            f"exempt: expected the name of a law, or law:point, found {key!r}.",
        )
        expect(len(reason.split()) > 2, case, f"exempt: expected a reason for {key}.")


def _expect_same_values(found: Constraint, expected: Constraint, case: Case, what: str) -> None:
    free = params(case, expected)
    expect(
        found is not expected and torch.equal(found(*free), expected(*free)),
        case,
        f"{what}: expected the same values of forward, found others.",
    )
    outside = case.gaussian()
    expect(
        torch.equal(found.violation(outside), expected.violation(outside)),
        case,
        f"{what}: expected the same violations, found others.",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        data: Any = cast(Any, value).tolist()
        return data
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any] | tuple[Any, ...]", value)]
    return value
