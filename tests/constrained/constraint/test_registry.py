"""Names, aliases, entry points, and guesses at what was meant."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap

import pytest

import constrained
from constrained.constraint import registry
from constrained.constraint.errors import UnknownNameError
from constrained.constraint.registry import did_you_mean
from tests.healthy import NonNegative, Sphere


@pytest.fixture
def empty(monkeypatch):
    """A registry without entries, whose entry points have been read."""
    monkeypatch.setattr(registry, "_constraints", {})
    monkeypatch.setattr(registry, "_aliases", {})
    monkeypatch.setattr(registry, "_loaded", set())
    monkeypatch.setattr(registry, "entry_points", lambda group: ())
    for cls in (Sphere, NonNegative):
        monkeypatch.setattr(cls, "name", None)
        monkeypatch.setattr(cls, "aliases", ())


def new_class(name="Cone", module="somewhere"):
    return type(name, (constrained.Constraint,), {"__module__": module, "event_dim": 0})


# ----------------------------------------------------------------------------------------- register


@pytest.mark.usefixtures("empty")
def test_the_name_follows_from_the_class():
    assert constrained.register()(NonNegative) is NonNegative
    assert NonNegative.name == "non_negative"
    assert constrained.names() == ["non_negative"]
    assert constrained.get("non_negative") is NonNegative


@pytest.mark.usefixtures("empty")
def test_a_name_and_aliases_can_be_given():
    constrained.register("sphere", aliases=("unit_norm", "ball_surface"))(Sphere)
    assert Sphere.aliases == ("unit_norm", "ball_surface")
    assert constrained.get("unit_norm") is constrained.get("sphere") is Sphere
    assert constrained.names() == ["sphere"]


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("name", "aliases"), [("sphere", ()), ("other", ("sphere",)), ("unit_norm", ())]
)
def test_a_clash_is_refused_and_changes_nothing(name, aliases):
    constrained.register("sphere", aliases=("unit_norm",))(Sphere)
    other = new_class()
    with pytest.raises(ValueError, match=r"belongs to tests\.healthy\.Sphere already") as caught:
        constrained.register(name, aliases=aliases)(other)
    assert "register somewhere.Cone under another" in str(caught.value)
    assert constrained.names() == ["sphere"]
    assert constrained.get("unit_norm") is Sphere
    assert other.name is None


@pytest.mark.usefixtures("empty")
def test_a_reloaded_class_takes_its_name_back():
    constrained.register("cone")(new_class())
    again = new_class()
    constrained.register("cone")(again)
    assert constrained.get("cone") is again


# ---------------------------------------------------------------------------------------------- get


def test_aliases_of_the_catalogue_are_not_names():
    assert constrained.get("stiefel") is constrained.get("orthogonal")
    assert "stiefel" not in constrained.names()


def test_names_are_sorted_snake_case():
    names = constrained.names()
    assert names == sorted(names)
    assert all(name == name.lower() and name.isidentifier() for name in names)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ortogonal", "orthogonal"),
        ("Orthogonal", "orthogonal"),
        ("low-rank", "low_rank"),
        ("lowrank", "low_rank"),
        ("PositiveDefinite", "positive_definite"),
        ("stiefl", "stiefel"),
    ],
)
def test_an_unknown_name_is_answered_with_a_guess(word, meant):
    with pytest.raises(KeyError) as caught:
        constrained.get(word)
    assert str(caught.value) == (
        f"Unknown constraint {word!r}. Did you mean {meant!r}? constrained.names() lists them all."
    )
    assert isinstance(caught.value, ValueError)


def test_far_from_all_names_there_is_no_guess():
    with pytest.raises(UnknownNameError) as caught:
        constrained.get("xyzzy")
    assert "Did you mean" not in str(caught.value)


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="must be a string, got int"):
        constrained.get(3)


def test_did_you_mean():
    assert did_you_mean("bond", ["bound", "radius"]) == " Did you mean 'bound'?"
    assert did_you_mean("zzz", ["bound"]) == ""
    assert did_you_mean("bound", []) == ""


# ------------------------------------------------------------------------------------- entry points

THIRD_PARTY = """
    import constrained
    from tests.healthy import Sphere

    @constrained.register("third_party_sphere", aliases=("tps",))
    class ThirdPartySphere(Sphere):
        '''A sphere of another package.'''
"""


def install(directory, module, source, monkeypatch):
    """A package with an entry point, as pip would lay it out."""
    (directory / f"{module}.py").write_text(textwrap.dedent(source))
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[constrained.constraints]\nmine = {module}\n")
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    monkeypatch.setattr(registry, "_constraints", dict(registry._constraints))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_a_third_party_package_adds_its_constraints(tmp_path, monkeypatch):
    install(tmp_path, "third_party_constraints", THIRD_PARTY, monkeypatch)
    assert "third_party_sphere" in constrained.names()
    cls = constrained.get("tps")
    assert cls.__module__ == "third_party_constraints"
    assert float(cls(radius=2.0).project(cls().sample((3,))).norm()) == pytest.approx(2)


def test_a_broken_package_warns_once_and_leaves_the_others(tmp_path, monkeypatch):
    install(tmp_path, "broken_constraints", "raise RuntimeError('out of order')", monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"'mine = broken_constraints'.*out of order") as caught:
        assert "orthogonal" in constrained.names()
    assert len(caught) == 1
    assert constrained.names()  # Warnings are errors here: there is no second one.


EARLY = """
    import torch
    import constrained

    class Mine(constrained.Constraint):
        event_dim = 0
        forward = right_inverse = violation = project = sample = dimension = lambda self, x: x

    {}
"""

TAKERS = [
    "constrained.register('orthogonal')(Mine)",
    "constrained.register('stiefel')(Mine)",
    "constrained.register('mine', aliases=('orthogonal',))(Mine)",
    "constrained.register('mine', aliases=('stiefel',))(Mine)",
    "constrained.constraint.registry.register_spelling('geotorch:Sphere', 'mine', {})",
    "constrained.constraint.registry.register_adapter(lambda thing: Mine())",
]


def test_nobody_takes_a_name_of_the_catalogue(tmp_path):
    """A package that takes a name of the catalogue is told once; the catalogue keeps all names."""
    for i, taker in enumerate(TAKERS):
        (tmp_path / f"taker{i}.py").write_text(textwrap.dedent(EARLY).format(taker))
        info = tmp_path / f"a_taker{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-taker{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[constrained.constraints]\naaa = taker{i}\n")
    code = """
        import sys, warnings
        sys.path.insert(0, sys.argv[1])
        import constrained, torch
        try:
            import taker0  # before anybody has looked up a name
        except ValueError as error:
            print(error)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = constrained.names()
        assert all(constrained.get(n).__module__.startswith("constraints.") for n in names)
        assert len(names) >= 70
        assert constrained.get("stiefel").__module__ == "constraints.matrices.orthogonal"
        positive = torch.distributions.constraints.positive
        assert repr(constrained.constraint.registry.adapted(positive)) == "positive()"
        assert constrained.constraint.registry.respelled("geotorch:Sphere")[0] == "sphere"
        print(*(w.message for w in caught), sep="\\n")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    first, *told = result.stdout.splitlines()
    assert first == (
        "The name 'orthogonal' belongs to constraints.matrices.orthogonal.Orthogonal already; "
        "register taker0.Mine under another one."
    )
    # The adapter is asked after those of the catalogue.
    assert len(told) == len(TAKERS) - 1
    for line in told:
        assert re.match("The constraints of the entry point 'aaa = taker.' could not be", line)
        assert "already" in line


def test_the_engine_finds_the_catalogue_only_when_it_is_asked():
    code = """
        import sys
        import constrained
        assert "constraints" not in sys.modules
        assert constrained.get("orthogonal").__module__ == "constraints.matrices.orthogonal"
        assert "constraints" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_the_catalogue_exports_what_it_registers():
    import constraints

    registered = {
        cls.__name__
        for cls in map(constrained.get, constrained.names())
        if cls.__module__.startswith("constraints.")
    }
    assert set(constraints.__all__) == registered
