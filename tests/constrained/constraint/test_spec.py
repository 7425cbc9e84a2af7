"""Specs: strings, dicts and objects that describe a constraint, their errors, and the way back."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from constrained import Constraint, constrain, spec
from constrained.constraint.errors import SpecError
from constrained.constraint.spec import instantiate, parse


class Probe(Constraint):
    """A constraint with arguments of many types."""

    event_dim = 0

    def __init__(
        self,
        rank: int,
        scale: float = 1.0,
        mode: str = "a",
        flag: bool = False,
        pair: tuple[float, float] = (0.0, 1.0),
        maybe: int | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.scale, self.mode, self.flag = rank, scale, mode, flag
        self.pair, self.maybe = pair, maybe

    def forward(self, x):
        return x

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return torch.zeros_like(value)

    def project(self, value):
        return value

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    def dimension(self, shape):
        return 1


PATH = f"{__name__}:Probe"


@pytest.fixture(autouse=True)
def this_module_is_imported(monkeypatch):
    # Tests are imported by path and need not be in sys.modules under their name.
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, _Namespace(Probe)))


class _Namespace(type(os)):
    def __init__(self, *classes):
        super().__init__(__name__)
        for cls in classes:
            setattr(self, cls.__name__, cls)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low_rank(rank=8)", {"name": "low_rank", "rank": 8}),
        ("low_rank(8)", {"name": "low_rank", "rank": 8}),
        (" low_rank ( rank = 8 ) ", {"name": "low_rank", "rank": 8}),
        ("interval(-1, high=2.5)", {"name": "interval", "low": -1, "high": 2.5}),
        ("orthogonal", {"name": "orthogonal"}),
        ("orthogonal()", {"name": "orthogonal"}),
        ("low_rank(\n  rank=8,\n)", {"name": "low_rank", "rank": 8}),
    ],
)
def test_strings(text, expected):
    assert parse(text).constraint.spec() == expected


def test_mappings():
    request = parse({"name": "low_rank", "rank": 2, "view": "(a b) c -> a b c", "a": 3})
    assert request.constraint.spec() == {"name": "low_rank", "rank": 2}
    assert request.view == "(a b) c -> a b c"
    assert request.sizes == {"a": 3}
    assert parse({"name": "low_rank(rank=2)", "init": "sample"}).init == "sample"


def test_a_class_path_of_an_imported_module():
    assert parse(f"{PATH}(rank=3)").constraint.rank == 3
    assert parse(f"{PATH}(3)").constraint.spec() == {"name": PATH, "rank": 3}


def test_objects_and_classes():
    probe = Probe(1)
    assert parse(probe).constraint is probe
    assert parse(probe).build() is not probe
    assert parse(Probe, rank=2).constraint.rank == 2
    identity = nn.Identity()
    assert parse(identity).constraint is identity


@pytest.mark.parametrize(
    "hostile",
    [
        "low_rank(rank=__import__('os').system('echo hacked'))",
        "low_rank(rank=open('/etc/passwd'))",
        "low_rank(rank=8)(1)",
        "low_rank(rank=8); import os",
        "low_rank(rank=(lambda: 8)())",
        "low_rank(rank=[x for x in (8,)][0])",
        "low_rank(rank=f'{8}')",
        "low_rank(*[8])",
        "low_rank(**{'rank': 8})",
        "low_rank(rank=" + "(" * 3000 + "8" + ")" * 3000 + ")",
        "low_rank(rank=8" + " " * 20_000 + ")",
        "os:system('echo hacked')",
        "os:system",
        "subprocess:Popen(['true'])",
        "torch.nn:Linear(3, 3)",
        "builtins:eval('1')",
        "",
        "()",
        "low_rank(rank=8",
        "low rank",
        "low_rank(rank=8) low_rank",
    ],
)
def test_a_hostile_or_broken_spec_is_refused_in_one_sentence(hostile, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("code was executed")

    monkeypatch.setattr(os, "system", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    with pytest.raises(ValueError) as caught:
        parse(hostile)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_class_path_imports_nothing():
    name = "wave"  # a module of the standard library that nothing here imports
    assert name not in sys.modules
    with pytest.raises(SpecError, match="not imported"):
        parse(f"{name}:Wave_read")
    assert name not in sys.modules


def test_a_class_path_runs_no_module_getattr(monkeypatch):
    lazy = type(os)("lazy_module")
    lazy.__getattr__ = lambda name: pytest.fail("module code ran")
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    with pytest.raises(SpecError, match="not a subclass"):
        parse("lazy_module:Anything")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs the argument 'rank'"),
        ({"rank": "eight"}, "'rank' must be a whole number, got 'eight' (str)"),
        ({"rank": 1.5}, "'rank' must be a whole number, got 1.5 (float)"),
        ({"rank": True}, "'rank' must be a whole number, got True (bool)"),
        ({"rank": 1, "scale": "x"}, "'scale' must be a number"),
        ({"rank": 1, "mode": 3}, "'mode' must be a string"),
        ({"rank": 1, "flag": 1}, "'flag' must be True or False"),
        ({"rank": 1, "pair": (1.0,)}, "'pair' must be"),
        ({"rank": 1, "pair": 3}, "'pair' must be"),
        ({"rank": 1, "maybe": "x"}, "'maybe' must be a whole number or None"),
        ({"rnak": 1}, "has no argument 'rnak'. Did you mean 'rank'?"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(SpecError) as caught:
        instantiate(Probe, **arguments)
    assert message in str(caught.value)
    # Callers may expect either of the builtin errors.
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_arguments_that_json_can_hold_are_accepted():
    probe = instantiate(Probe, rank=1, scale=2, pair=[0, 1], maybe=None)
    assert probe.scale == 2
    assert list(probe.pair) == [0, 1]


def test_arguments_given_twice():
    with pytest.raises(SpecError, match="twice"):
        parse("low_rank(rank=8)", rank=3)
    with pytest.raises(SpecError, match="twice"):
        parse("low_rank(8, rank=8)")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"rank": 2}, "needs the key 'name'"),
        ({1: 2}, "keys of a spec must be strings"),
        (None, "A constraint is a name"),
        (3.0, "A constraint is a name"),
        ([], "parts must be a list of constraints"),
        ([3.0], "A constraint is a name"),
        ({"name": "orthogonal", "view": 3}, "view must be an einops pattern"),
        ({"name": "orthogonl"}, "Did you mean 'orthogonal'?"),
        ("Orthogonal", "Did you mean 'orthogonal'?"),
        ("PositiveDefinite", "Did you mean 'positive_definite'?"),
        ("low-rank(rank=2)", "Did you mean 'low_rank'?"),
    ],
)
def test_messages(spec, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        parse(spec)
    assert message in str(caught.value)


def test_an_object_takes_no_arguments():
    with pytest.raises(SpecError, match="object, which has its arguments already"):
        parse(Probe(1), rank=2)


def test_the_function_spec_is_public_too():
    assert callable(spec)


def test_a_class_of_modules_is_no_constraint():
    with pytest.raises(SpecError, match=r"another nn\.Module \(an instance, not a class\), got"):
        constrain(nn.Linear(3, 3), "weight", nn.Tanh)
