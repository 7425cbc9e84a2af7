"""E34: there is one calibrated tolerance; a visible error is rejected at every size."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations

from constrained import InfeasibleError, constrain, get
from constrained.constraint.tolerance import tolerance
from tests.promises.catalogue import configurations

SHAPES = [(1024, 1024), (1024, 4), (4, 1024), (8192, 4), (4, 8192)]


def member(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return get("orthogonal")().sample(shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_e34_an_error_of_a_thousandth_is_rejected(shape, measured):
    orthogonal = get("orthogonal")()
    good = member(shape)
    assert bool(orthogonal.contains(good))
    bad = good * (1 + 5e-4)
    assert not bool(orthogonal.contains(bad))
    with pytest.raises(InfeasibleError, match="violates the constraint by 0.001"):
        orthogonal.right_inverse(bad)
    measured(f"{shape[0]} x {shape[1]}: {float(tolerance(good, 2)):.0e} is granted")


def test_e34_one_wrong_entry_among_many():
    bad = member((8192, 4))
    row = int(bad[:, 0].abs().argmax())
    bad[row, 0] += 1e-3 / (2 * bad[row, 0])
    assert not bool(get("orthogonal")().contains(bad))
    layer = nn.Linear(4, 8192, bias=False)
    with torch.no_grad():
        layer.weight.copy_(bad)
    with pytest.raises(InfeasibleError):
        constrain(layer, "weight", "orthogonal", init="strict")


def test_e34_the_tolerance_follows_the_norm_and_not_the_number_of_entries():
    for n in (16, 1024, 65536):
        unit = torch.full((n,), n**-0.5)
        assert float(tolerance(unit, 1)) <= 1.5e-6
    assert float(tolerance(torch.eye(4096), 2)) <= 1e-4


def test_e34_members_count_as_members_at_every_size():
    """Rounding errors are accepted: samples of the whole catalogue count as members."""
    for name, arguments, event in configurations():
        constraint = get(name)(**arguments)
        for shape in [(*([128] * (2 - len(event))), *event), (256, 256)]:
            try:
                constraint.check_shape(shape)
            except ValueError:
                continue
            sample = constraint.sample(shape, generator=torch.Generator().manual_seed(0))
            assert constraint.contains(sample).all(), (name, arguments, shape)


@pytest.mark.torch_today
def test_e34_in_torch_today(measured):
    """torch decides by another tolerance whether a base point is already orthogonal."""
    error = 9.7e-3
    bad = member((8192, 2)) * (1 + error) ** 0.5
    found = float((bad.T @ bad - torch.eye(2)).abs().max())
    assert found > 9e-3 and torch_parametrizations._is_orthogonal(bad)
    measured(f"8192 x 2: an error of {found:.1e} passes")
