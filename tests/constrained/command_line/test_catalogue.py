"""``list``, ``show`` and ``schema``."""

from __future__ import annotations

import json

import pytest

import constrained

CONSTRAINT = '''
import torch
import constrained

@constrained.register("thirds_of_somebody")
class Thirds(constrained.Constraint):
    """Numbers that are a third."""
    event_dim = 0
    def forward(self, x): return torch.full_like(x, 1 / 3)
    def right_inverse(self, value): return value
    def violation(self, value): return (value - 1 / 3).abs()
    def project(self, value): return torch.full_like(value, 1 / 3)
    def draw(self, shape, random): return torch.full(shape, 1 / 3)
'''


def test_list_has_every_name_once_by_family(run):
    for columns in (80, 140):
        result = run("list", columns=columns)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= columns
        listed = [line.split()[0] for line in lines if line[:2] == "  " and line[2] != " "]
        assert sorted(listed) == constrained.names()
        families = [line for line in lines if line and not line.startswith(" ")]
        assert families[:5] == ["scalars", "vectors", "matrices", "kernels", "composite"]


def test_list_by_words(run, problem):
    def found(*words: str) -> list[str]:
        return [each["name"] for each in json.loads(run("list", "--json", *words).stdout)]

    assert found("covariance") == ["positive_definite"]
    assert found("LIPSCHITZ") == ["spectral_norm"]
    assert found("zeros", "diagonal") == ["banded", "lower_triangular", "upper_triangular"]
    # Only in the text of the documentation.
    assert "hurwitz" in found("Lyapunov")
    assert problem("list", "ortogonal") == (
        "No constraint is about 'ortogonal'. Did you mean 'orthogonal'?"
    )


def test_show_is_what_describe_says(run):
    result = run("show", "stiefel", columns=140)
    assert result.stdout.rstrip("\n") == constrained.describe("orthogonal")
    assert max(map(len, run("show", "orthogonal").stdout.splitlines())) <= 80
    # As it stands in a config.
    assert run("show", "ball(radius=2)").stdout == run("show", "ball").stdout


def test_show_as_json(run):
    shown = json.loads(run("show", "low_rank", "--json").stdout)
    assert shown["name"] == "low_rank"
    assert shown["arguments"][0]["values"] == "a whole number at least 1"
    assert shown["spec"] == '"low_rank(rank=1)"'
    assert shown["picture"] is None


@pytest.mark.parametrize(
    "name", ["orthogonal", "simplex", "positive", "unitary", "toeplitz", "spectral_norm_conv"]
)
def test_pictures(run, folder, name):
    result = run("show", name, "--picture", "set.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\nPicture: set.png\n")
    data = (folder / "set.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5_000


def test_show_what_is_not_there(problem):
    assert problem("show", "orthgonal").startswith("Unknown constraint 'orthgonal'. Did you mean")
    assert "none/set.png: No such file" in problem("show", "ball", "--picture", "none/set.png")
    assert "set.docx: " in problem("show", "ball", "--picture", "set.docx")
    assert problem("show", "ball", "--import", "no_such_package").startswith(
        "'no_such_package' cannot be imported: ModuleNotFoundError: No module named"
    )


def test_schema(run):
    assert json.loads(run("schema").stdout) == json.loads(json.dumps(constrained.schema()))
    assert run("schema", "--json").stdout == run("schema").stdout


def test_constraints_of_another_package(run, folder, monkeypatch):
    from constrained.constraint import registry

    monkeypatch.setattr(registry, "_constraints", dict(registry._constraints))
    (folder / "others_constraints.py").write_text(CONSTRAINT, "utf-8")
    result = run("list", "thirds", "--import", "others_constraints")
    assert result.stdout == "others_constraints\n  thirds_of_somebody  Numbers that are a third.\n"
    shown = run("show", "thirds_of_somebody")
    assert shown.stdout.startswith("thirds_of_somebody()\n\nNumbers that are a third.\n")
    assert "constraint-thirds_of_somebody" in json.loads(run("schema").stdout)["$defs"]
