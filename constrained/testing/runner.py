"""The registry of laws: the cases each is tried on, and how all are run on a constraint."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from constrained.constraint.base import Constraint
from constrained.constraint.plain_data import short
from constrained.testing.case import Case
from constrained.testing.points import points

LawFunction = Callable[[Case], None]

#: How long a law takes. The fast tests try a long law on the first arguments of each class only,
#: and leave out laws that call a compiler, which is slow even for the smallest matrix.
Effort = Literal["short", "long", "compiler"]

_laws: dict[str, LawFunction] = {}
_scopes: dict[str, Scope] = {}

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True)
class Scope:
    """The cases on which a law is tried.

    Attributes:
        dtypes: real dtypes; their complex counterparts are added for a constraint that declares
            ``complex``.
        real: whether a constraint that declares ``complex`` is also tried on real dtypes.
        batches: batch shapes.
        points: points of `POINTS`, each of which is a case of its own; none by default.
        one_shape: whether the largest shape is enough for each choice of constructor arguments,
            because the law is expensive.
        effort: how long the law takes; see `Effort`.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    real: bool = True
    batches: tuple[tuple[int, ...], ...] = ((), (2,))
    points: tuple[str, ...] = ()
    one_shape: bool = False
    effort: Effort = "short"

    def cases(self, cls: type[Constraint], examples: Iterable[tuple[Any, Any]]) -> list[Case]:
        """The cases of a class on some examples."""
        chosen = list(examples)
        if self.one_shape:
            by_size = sorted(chosen, key=lambda example: torch.Size(example[1]).numel())
            chosen = list({repr(kwargs): (kwargs, event) for kwargs, event in by_size}.values())
        dtypes = list(self.dtypes) if self.real or not cls.complex else []
        if cls.complex:
            dtypes += [_COMPLEX[dtype] for dtype in self.dtypes if dtype in _COMPLEX]
        return [
            Case(cls, kwargs, tuple(event), batch, dtype, place)
            for kwargs, event in chosen
            for dtype, batch, place in itertools.product(
                dtypes, self._batches(cls(**kwargs)), self._places(cls, len(event))
            )
        ]

    def _batches(self, constraint: Constraint) -> list[tuple[int, ...]]:
        # event_dim is None where the whole tensor is one element, so there are no batches.
        return [batch for batch in self.batches if not batch or constraint.event_dim is not None]

    def _places(self, cls: type[Constraint], event_dim: int) -> Sequence[str | None]:
        if not self.points:
            return [None]
        return [place for place in points(cls, event_dim) if place in self.points]


@dataclass(frozen=True)
class Trial:
    """A law and a case to try it on.

    Attributes:
        law: the law.
        case: the case.
        is_slow: whether only the slow tests run it: because of the law's `Effort`, or because
            other cases try the same example, the same dtype and the same batch.
    """

    law: LawFunction
    case: Case
    is_slow: bool = False

    @property
    def effort(self) -> Effort:
        """How long the law takes."""
        return _scopes[self.law.__name__].effort

    @property
    def exemption(self) -> str | None:
        """The declared reason why the law cannot hold here, if there is one."""
        # An instance may declare more than its class, depending on its arguments.
        exempt, name = self.case.build().expected_failures, self.law.__name__
        return exempt.get(f"{name}:{self.case.point}") or exempt.get(name)

    def run(self) -> None:
        """Try the law.

        Raises:
            AssertionError: if it is broken.
        """
        self.law(self.case)

    def __str__(self) -> str:
        return f"{self.case}-{self.law.__name__}"


def law(scope: Scope = Scope()) -> Callable[[LawFunction], LawFunction]:
    """Decorator that makes a function of a `Case` one of the laws.

    The law sees the same random numbers in every run. Whatever it raises becomes an
    `AssertionError` that names the case.

    Args:
        scope: the cases on which the law is tried.
    """

    def decorate(function: LawFunction) -> LawFunction:
        @functools.wraps(function)
        def wrapped(case: Case) -> None:
            with torch.random.fork_rng(devices=[]):
                # Not `torch.manual_seed`, which also seeds generators that are not restored here.
                torch.default_generator.manual_seed(zlib.crc32(str(case).encode()))
                try:
                    function(case)
                except AssertionError:
                    raise
                except Exception as error:
                    raise AssertionError(
                        f"{case}: {wrapped.__name__} raised {type(error).__name__}: {error}"
                    ) from error

        _laws[function.__name__] = wrapped
        _scopes[function.__name__] = scope
        return wrapped

    return decorate


def laws() -> list[LawFunction]:
    """All laws, in the order to read them."""
    return list(_laws.values())


def trials(
    cls: type[Constraint],
    laws: Iterable[LawFunction] | None = None,
    examples: Sequence[tuple[Any, Any]] | None = None,
) -> list[Trial]:
    """Every law on every case of a constraint class.

    Args:
        cls: the class.
        laws: these laws only.
        examples: pairs ``(constructor kwargs, event shape)``; ``cls.examples`` by default.

    Raises:
        TypeError: if an example is not such a pair.
        ValueError: if the class has no examples, so that nothing would be tried.
    """
    chosen = list(_laws.values() if laws is None else laws)
    pairs = cls.examples if examples is None else examples
    _check_pairs(cls, pairs)
    found: list[Trial] = []
    for law in chosen:
        scope = _scopes[law.__name__]
        cases = scope.cases(cls, pairs)
        short = set[int]() if scope.effort == "compiler" else _diagonal(cases)
        if scope.effort == "long":
            first = repr(cases[0].kwargs) if cases else ""
            short = {i for i in short if repr(cases[i].kwargs) == first}
        found += [Trial(law, case, is_slow=i not in short) for i, case in enumerate(cases)]
    return found


def _diagonal(cases: Sequence[Case]) -> set[int]:
    """The indices of cases that cover each example in each dtype and with each batch.

    A law has a case for every combination of example, dtype, batch and point. This selection tries
    an example in each dtype and with each batch, but not in all pairs of them. The pairs change
    from one example to the next, like the diagonals of a square, so that two examples cover all
    pairs. All faults of ``tests/constrained/testing/test_planted_faults.py`` are still found by the
    same laws, except for one, which 16 laws find instead of 18.
    """
    examples: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        examples.setdefault(f"{case.kwargs} {case.event}", []).append(i)
    chosen: set[int] = set()
    for number, indices in enumerate(examples.values()):
        batches = list(dict.fromkeys(cases[i].batch for i in indices))
        dtypes = list(dict.fromkeys(cases[i].dtype for i in indices))
        period = min(len(batches), len(dtypes))
        chosen |= {
            i
            for i in indices
            if (dtypes.index(cases[i].dtype) - batches.index(cases[i].batch) + number) % period == 0
        }
    return chosen


def _check_pairs(cls: type[Constraint], pairs: Sequence[Any]) -> None:
    if isinstance(pairs, (list, tuple)) and not pairs:
        raise ValueError(
            f"{cls.__name__} has no examples, so that no law would be tried on it: give it "
            "pairs of constructor arguments and the shape of one element, such as "
            "`examples = (({}, (4,)),)`."
        )
    for pair in pairs if isinstance(pairs, (list, tuple)) else [pairs]:
        is_pair = isinstance(pair, (list, tuple)) and len(cast("Sequence[Any]", pair)) == 2
        if not (
            is_pair
            and isinstance(pair[0], Mapping)
            and isinstance(pair[1], Sequence)
            and all(isinstance(n, int) for n in cast("Sequence[Any]", pair[1]))
        ):
            raise TypeError(
                f"{cls.__name__}.examples must be a tuple of pairs of constructor arguments and "
                f"the shape of one element, and holds {short(pair)}: write `examples = (({{}}, "
                "(4,)),)`, commas included."
            )


def check(
    constraint: Constraint | type[Constraint],
    *,
    event: Sequence[int] | None = None,
    laws: Iterable[LawFunction] | None = None,
) -> list[Trial]:
    """Try all laws on a constraint.

    Args:
        constraint: a class, tried on its examples, or an instance, tried on ``event``.
        event: the shape of one element, for an instance.
        laws: these laws only.

    Returns:
        The trials that were left out because the class declares that the law cannot hold.

    Raises:
        AssertionError: if laws are broken, with one line for each.
        TypeError: if ``event`` is missing for an instance, or given for a class.
        ValueError: if the class has no examples, so that nothing would be tried.
    """
    if isinstance(constraint, Constraint):
        if event is None:
            raise TypeError(f"check({constraint!r}) needs event=, the shape of one element.")
        cls = type(constraint)
        examples = [(constraint.arguments(), tuple(event))]
    elif event is not None:
        raise TypeError("event= goes with an instance; a class is tried on its examples.")
    else:
        cls, examples = constraint, None
    exempt: list[Trial] = []
    broken: list[str] = []
    for trial in trials(cls, laws, examples):
        if trial.exemption:
            exempt.append(trial)
            continue
        try:
            trial.run()
        except AssertionError as error:
            broken.append(f"{trial.law.__name__}: {error}")
    if broken:
        raise AssertionError(f"{len(broken)} broken laws:\n" + "\n".join(broken))
    return exempt


def stale_exemptions(cls: type[Constraint]) -> list[str]:
    """The superfluous keys of ``cls.expected_failures``, which name no law or one that holds.

    Args:
        cls: the class.
    """
    needed: set[str] = set()
    for trial in trials(cls):
        name = trial.law.__name__
        keys = {name, f"{name}:{trial.case.point}"} & set(cls.expected_failures) - needed
        if keys:
            try:
                trial.run()
            except AssertionError:
                needed |= keys
    return sorted(set(cls.expected_failures) - needed)
