"""The classes of the catalogue: which are abstract or final, and what a new one takes to write."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import ClassVar

import pytest
import torch

import constraints
from constrained import Constraint, get, names
from constrained.testing import check

# ---------------------------------------------------------------- abstract or final, and registered


def files():
    """All modules of the catalogue, imported."""
    found = pkgutil.walk_packages(constraints.__path__, "constraints.")
    return [importlib.import_module(info.name) for info in found]


def classes():
    """The classes of constraints that the files of the catalogue define."""
    return {
        cls
        for module in files()
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and issubclass(cls, Constraint)
        and cls.__module__ == module.__name__
    }


def path(cls):
    """The name of a class: doctests import a module anew, which makes other class objects."""
    return f"{cls.__module__}.{cls.__qualname__}"


REGISTERED = {
    path(get(name)) for name in names() if get(name).__module__.startswith("constraints.")
}


def test_every_class_is_abstract_or_final():
    """An abstract one has no examples; a final one has, is registered, and nothing derives from it.

    So a class that somebody forgot to register is told, and so is a base with examples.
    """
    for cls in classes():
        assert (path(cls) in REGISTERED) == bool(cls.examples), cls
        bases = set(map(path, cls.__mro__[1:]))
        assert not bases & REGISTERED, f"{cls} derives from a final class"


def test_every_constraint_is_imported_with_the_package():
    """A new file is of no use before `constraints/__init__.py` imports its classes."""
    files()
    imported = {path(getattr(constraints, name)) for name in constraints.__all__}
    missing = REGISTERED - imported
    assert not missing, f"import these in constraints/__init__.py and list them there: {missing}"
    assert imported == REGISTERED


# ------------------------------------------------------------------------ what a new class takes


class Rotation(Constraint):
    """A matrix Lie group: the rotations of the plane.

    **Set**: SO(2) = {[[cos a, -sin a], [sin a, cos a]]}, of dimension 1, closed.
    **Map**: a -> exp(a K) with K = [[0, -1], [1, 0]], onto.
    **Right inverse**: the angle.
    **Reference**: none needed.
    """

    event_dim = 2
    examples = (({}, (2, 2)),)

    def forward(self, angle):
        c, s = angle.cos(), angle.sin()
        return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))

    def right_inverse(self, value):
        return self._angle(value)

    def violation(self, value):
        return (value - self.project(value)).abs().amax((-2, -1))

    def project(self, value):
        return self.forward(self._angle(value))

    def draw(self, shape, random):
        return self.forward(2 * torch.pi * random.uniform(shape[:-2]))

    def dimension(self, shape):
        return 1

    def shape_problem(self, event):
        return None if event == (2, 2) else "must be a matrix of two rows and columns"

    def _angle(self, W):
        return torch.atan2(W[..., 1, 0] - W[..., 0, 1], W[..., 0, 0] + W[..., 1, 1])


class Even(Constraint):
    """A linear space: vectors that read the same from both ends.

    **Set**: {x in R^n : x_i = x_(n + 1 - i)}, of dimension ceil(n / 2), closed.
    **Map**: x -> the mean of x and its reversal, onto.
    **Right inverse**: the identity.
    **Reference**: none needed.
    """

    event_dim = 1
    examples = (({}, (3,)), ({}, (4,)))

    def forward(self, x):
        return (x + x.flip(-1)) / 2

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return ((value - value.flip(-1)) / 2).abs().amax(-1)

    def project(self, value):
        return self.forward(value)

    def draw(self, shape, random):
        return self.forward(random.normal(shape))

    def dimension(self, shape):
        return (shape[-1] + 1) // 2

    def shape_problem(self, event):
        return None if event[0] > 0 else "must have at least one entry"


class Disc(Constraint):
    """A ball: vectors of a length up to a radius.

    **Set**: {x in R^n : |x| <= radius}, of dimension n, closed.
    **Map**: y -> y inside, radius y / |y| outside, onto.
    **Right inverse**: the identity, up to rounding.
    **Reference**: none needed.
    """

    event_dim = 1
    examples = (({}, (2,)), ({"radius": 2.0}, (3,)))
    expected_failures: ClassVar = {
        f"{order}_derivative:{point}": "a kink on the boundary"
        for order in ("first", "second")
        for point in ("ones", "boundary")
    }

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, y):
        most = self.radius * (1 - 4 * torch.finfo(y.dtype).eps)
        outside = _length(y.detach()) > most
        # Inside, a norm has no second derivative at zero.
        safe = torch.where(outside, y, 1)
        return torch.where(outside, safe * (most / _length(safe)), y)

    def right_inverse(self, value):
        return self.forward(value)

    def canonical(self, y):
        # A tenth of the way back to the boundary, for a parameter that is outside.
        return (0.9 * y + 0.1 * self.forward(y),)

    def violation(self, value):
        return (_length(value).squeeze(-1) - self.radius).clamp(min=0)

    def project(self, value):
        return self.forward(value)

    def draw(self, shape, random):
        return self.forward(self.radius * random.normal(shape))

    def shape_problem(self, event):
        return None if event[0] > 0 else "must have at least one entry"


def _length(y):
    unit = y.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    return unit * torch.linalg.vector_norm(y / unit, dim=-1, keepdim=True)


@pytest.mark.parametrize("cls", [Rotation, Even, Disc])
def test_a_new_constraint_takes_less_than_60_lines(cls):
    assert len(inspect.getsource(cls).splitlines()) < 60
    check(cls)
