"""The laws run on constraints of other packages, found by their entry point."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from constrained import testing

ROOT = Path(__file__).parents[2]
LAWS = "tests/constraints/test_laws.py"

MODULE = '''
import torch
from constrained import Constraint, register


@register("toy_palindrome")
class Palindrome(Constraint):
    """Vectors that read the same backwards.

    **Set**: {x in R^n : x_i = x_(n + 1 - i)}. Dimension n / 2, rounded up, closed.
    **Map**: y -> (y + reversed y) / 2, onto the set.
    **Right inverse**: the identity.
    **Reference**: made up for a test.
    """

    event_dim = 1
    examples = (({}, (1,)), ({}, (4,)), ({}, (5,)))

    def forward(self, y):
        return (y + y.flip(-1)) / 2

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return torch.linalg.vector_norm(value - value.flip(-1), dim=-1) / 2

    def project(self, value):
        return (value + value.flip(-1)) / 2

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.project(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape):
        return (shape[-1] + 1) // 2
'''


@pytest.fixture
def package(tmp_path: Path):
    """A folder that looks like an installed package with an entry point."""
    (tmp_path / "toy_constraints.py").write_text(MODULE)
    info = tmp_path / "toy_constraints-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-constraints\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[constrained.constraints]\ntoy = toy_constraints\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(environment, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_it_is_found_by_name(package):
    code = (
        "import torch, constrained as c; "
        "layer = c.constrain(torch.nn.Linear(3, 3), 'bias', 'toy_palindrome', init='sample'); "
        "print(bool(layer.bias[0] == layer.bias[2]), 'toy_palindrome' in c.names())"
    )
    assert run(package, "-c", code) == "True True\n"


@pytest.mark.slow
def test_its_laws_are_tried(package):
    shown = run(package, "-m", "pytest", "-q", "-n0", LAWS, "-k", "toy_palindrome")
    passed = re.search(r"(\d+) passed", shown)
    assert passed and int(passed[1]) >= len(testing.laws())
    assert "failed" not in shown
