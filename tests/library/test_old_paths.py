"""The paths and names of version 0.1, imported or in a pickle, go on working until 0.4."""

from __future__ import annotations

import copy
import gzip
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import constrained
import constraints
from constrained import Constraint, InfeasibleError, constrain, old_paths, parametrize
from constraints import Orthogonal
from constraints import old_paths as old_paths_of_sets

MOVED = {**old_paths.MOVED, **old_paths_of_sets.MOVED}


@pytest.mark.parametrize("old", MOVED)
def test_all_that_a_module_had_is_found(old):
    for now, names in MOVED[old].items():
        for entry in names.split():
            name, _, present = entry.partition(":")
            present = present or name
            with pytest.warns(DeprecationWarning, match=rf"{old}.{name} is {now}.{present} now"):
                found = getattr(import_module(old), name)
            assert found is getattr(import_module(now), present)


def test_every_way_to_import():
    code = """
        import constraints.orthogonal, constrained.registry
        from constrained.spec import SpecError
        from constrained.constraint import InfeasibleError, has_values
        assert constraints.orthogonal.Orthogonal is constraints.Orthogonal
        assert constrained.registry.get("sphere") is constraints.Sphere
        # A function, and no module, though it has the name of one that was.
        assert callable(constrained.spec) and callable(constrained.tolerance)
    """
    lines = [line.strip() for line in code.strip().splitlines()]
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    # Each warning points to the user's line.
    assert result.stderr.count("<string>:") == result.stderr.count("Warning") == 5


def test_what_never_was_is_not_found():
    with pytest.raises(ImportError, match="nothing"):
        exec("from constrained.registry import nothing")
    with pytest.raises(AttributeError, match="module 'constrained' has no attribute 'nothing'"):
        constrained.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="module 'constraints' has no attribute 'nothing'"):
        constraints.nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        import_module("constrained.nothing")


def test_a_model_that_version_0_1_pickled_loads():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(
        model, {"0.weight": "orthogonal", "1.weight": {"name": "ball", "view": "a b -> (a b)"}}
    )
    parametrize.register_parametrization(model[1], "bias", torch.tanh)
    text = pickle.dumps(model, protocol=0)
    parametrizations = model[1].parametrizations
    tanh, view = parametrizations.bias[0], parametrizations.weight[0]
    for found, old in (
        (type(parametrizations.weight), "constrained.parametrization_list"),
        (type(parametrizations), "constrained.parametrized_class"),
        (model[1].__reduce_ex__(2)[0], "constrained.parametrized_class"),
        (type(view), "constrained.view"),
        (type(view.constraint), "constraints.ball"),
        (type(tanh), "constrained.parametrize"),
        (Orthogonal, "constraints.orthogonal"),
    ):
        now = found.__module__
        assert text.count(f"c{now}\n".encode()) > 0, now
        text = text.replace(f"c{now}\n".encode(), f"c{old}\n".encode())
    with pytest.warns(DeprecationWarning, match="save anew what was pickled"):
        loaded = pickle.loads(text)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(loaded[1], name), getattr(model[1], name))
    torch.testing.assert_close(loaded[0].weight, model[0].weight)


MEMBERS = {
    "ambient": ("value_index", 0),
    "exempt": ("expected_failures", {"nearest": "why"}),
    "keeps": ("preserves", ("positive",)),
    "recomputes": ("recompute_in_backward", True),
}


@pytest.mark.parametrize("old", MEMBERS)
def test_a_member_of_a_constraint_under_its_old_name(old):
    new, value = MEMBERS[old]
    with pytest.warns(DeprecationWarning, match=f"Constraint.{old} is called {new} now"):
        mine = type("Mine", (Orthogonal,), {old: value})
    assert getattr(mine, new) == value
    assert getattr(mine(), old) == value
    with pytest.warns(DeprecationWarning, match=f"Constraint.{old} is called {new} now"):
        assert getattr(Orthogonal(), old) == getattr(Orthogonal(), new)
    constraint = Orthogonal()
    with pytest.warns(DeprecationWarning, match=f"Constraint.{old} is called {new} now"):
        setattr(constraint, old, value)
    assert getattr(constraint, new) == value and old not in vars(constraint)


@pytest.mark.parametrize("old", MEMBERS)
def test_an_old_name_that_is_added_to_a_class_later(old):
    new, value = MEMBERS[old]
    base = type("Base", (Orthogonal,), {})
    mine = type("Mine", (base,), {})
    made = mine()
    setattr(base, old, value)
    with pytest.warns(DeprecationWarning, match=f"Constraint.{old} is called {new} now") as told:
        # A constraint is copied for each tensor that it constrains.
        copied = copy.deepcopy(made)
    assert len(told) == 1
    assert getattr(copied, new) == getattr(mine(), new) == getattr(base(), new) == value
    setattr(mine, old, None)
    with pytest.warns(DeprecationWarning, match=f"Constraint.{old} is called {new} now"):
        mine()
    assert getattr(mine, new) is None and getattr(base, new) == value


def test_a_constraint_that_was_pickled_with_a_member_of_the_old_name():
    constraint = Orthogonal()
    constraint.__setstate__({**constraint.__getstate__(), "keeps": ("positive",)})
    assert constraint.preserves == ("positive",)
    assert isinstance(constraint, Constraint) and issubclass(InfeasibleError, ValueError)


@pytest.fixture(scope="module")
def pickled():
    """Every example of every set, and a model, as version 0.1 has pickled them."""
    with gzip.open(Path(__file__).parent / "pickled_by_0_1.gz") as file:
        return pickle.load(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", constrained.names())
def test_a_constraint_that_version_0_1_pickled(name, pickled):
    cls = constrained.get(name)
    stored = pickled["constraints"][name]
    # Examples with arguments that version 0.1 did not have come last.
    for old, (arguments, event) in zip(stored, cls.examples[: len(stored)], strict=True):
        loaded, fresh = pickle.loads(old), cls(**arguments)
        assert type(loaded) is cls and loaded.spec() == fresh.spec()
        assert loaded.has_boundary() == fresh.has_boundary()
        value = fresh.sample(event, generator=torch.Generator().manual_seed(0))
        params = fresh.right_inverse(value)
        params = (params,) if isinstance(params, torch.Tensor) else params
        assert torch.equal(loaded(*params), fresh(*params))
        assert torch.equal(loaded.project(value), fresh.project(value))
        assert torch.equal(loaded.violation(value), fresh.violation(value))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_in_a_file_of_version_0_1(pickled):
    model = pickle.loads(pickled["model"])
    for path, expected in pickled["values"].items():
        owner, _, name = path.rpartition(".")
        value = getattr(model.get_submodule(owner), name)
        torch.testing.assert_close(value, torch.tensor(expected))
    # The constraint postponed by the lazy layer is applied when the layer gets its shape.
    model[3](torch.ones(1, 5))
    assert constrained.spec(model)["3.weight"] == {"name": "sphere"}


class Mixin:
    ambient = 0
    keeps = ("simplex",)


def test_old_names_in_a_mixin_and_by_super():
    with pytest.warns(DeprecationWarning, match=r"Constraint.(ambient|keeps) is called"):
        mine = type("Mine", (Mixin, Orthogonal), {})
    assert mine.value_index == 0 and mine.preserves == ("simplex",)
    with pytest.warns(DeprecationWarning, match="Constraint.keeps is called preserves now"):

        class First(Orthogonal):
            keeps = ("positive",)

        class Second(First):
            @property
            def keeps(self):
                return (*super().keeps, "simplex")

    assert Second().preserves == ("positive", "simplex")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_name_that_is_deleted_again():
    constraint = Orthogonal()
    constraint.keeps = ("positive",)
    del constraint.keeps
    assert constraint.preserves == Orthogonal.preserves
