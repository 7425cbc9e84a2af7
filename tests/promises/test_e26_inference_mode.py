"""E26: registration in inference mode leaves a module that trains, or is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import constrained
import constrained.parametrize as ours
from tests.promises.foreign import Scaled, Split, Squash

torch_today = pytest.mark.torch_today

SPECS = ["orthogonal", "orthogonal(map='cayley')", "low_rank(rank=2)", "positive", "spectral_norm"]
FOREIGN = [Squash, Split, Scaled]


def steps(module):
    """How many parameters a training step changes."""
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    (module(torch.ones(2, 4)) + module(-torch.ones(2, 4)).tanh()).pow(2).sum().backward()
    optimizer.step()
    after = list(module.parameters())
    return sum(not torch.equal(p, q) for p, q in zip(before, after, strict=True)), len(after)


@pytest.mark.parametrize("spec", SPECS)
def test_e26_constrained_inside(spec, measured):
    m = nn.Linear(4, 4)
    with torch.inference_mode():
        constrained.constrain(m, "weight", spec)
        inside = m(torch.ones(1, 4))
    moved, all_of_them = steps(m)
    assert moved == all_of_them
    measured(f"{spec}: {moved} of {all_of_them} parameters train")
    assert inside.is_inference()
    assert not any(t.is_inference() for t in (*m.parameters(), *m.buffers()))
    constrained.assert_feasible(m)


@pytest.mark.parametrize("make", FOREIGN)
def test_e26_registered_inside(make):
    m, parametrization = nn.Linear(4, 4), make()
    with torch.no_grad():
        m.weight.uniform_(0.1, 0.5)
    with torch.inference_mode():
        ours.register_parametrization(m, "weight", parametrization)
        m.weight = torch.full((4, 4), 0.25)
    assert torch.allclose(m.weight, torch.full((4, 4), 0.25))
    moved, all_of_them = steps(m)
    assert moved == all_of_them


@pytest.mark.parametrize("spec", SPECS)
def test_e26_released_inside(spec):
    m = constrained.constrain(nn.Linear(4, 4), "weight", spec)
    value = m.weight.detach().clone()
    with torch.inference_mode():
        constrained.release(m)
    assert type(m) is nn.Linear and torch.allclose(m.weight, value)
    assert isinstance(m.weight, nn.Parameter) and not m.weight.is_inference()
    assert steps(m) == (2, 2)


@pytest.mark.parametrize("spec", [*SPECS, "real"])
def test_e26_read_inside_then_trained_outside(spec):
    m = constrained.constrain(nn.Linear(4, 4), "weight", spec)
    with torch.inference_mode():
        assert m(torch.ones(1, 4)).isfinite().all()
    moved, all_of_them = steps(m)
    assert moved == all_of_them


@pytest.mark.parametrize("spec", SPECS)
def test_e26_a_module_that_was_built_inside(spec):
    with torch.inference_mode():
        m = constrained.constrain(nn.Linear(4, 4), "weight", spec)
        constrained.assert_feasible(m)
        assert m(torch.ones(1, 4)).isfinite().all()


@pytest.mark.parametrize("how", ["constrain", "register"])
def test_e26_a_module_that_was_built_inside_is_refused_outside(how):
    with torch.inference_mode():
        m = nn.Linear(4, 4)
        before = m.weight.clone()
    with pytest.raises(ValueError, match=r"made in inference mode.*build the module outside"):
        if how == "constrain":
            constrained.constrain(m, "weight", "orthogonal")
        else:
            ours.register_parametrization(m, "weight", Squash())
    assert type(m) is nn.Linear and torch.equal(m.weight, before)


@pytest.mark.parametrize("spec", SPECS)
def test_e26_a_module_that_was_built_inside_is_released_inside(spec):
    with torch.inference_mode():
        m = constrained.constrain(nn.Linear(4, 4), "weight", spec)
        value = m.weight.clone()
        constrained.release(m)
        assert type(m) is nn.Linear and torch.allclose(m.weight, value)


def test_e26_a_module_that_was_built_inside_is_not_released_outside():
    with torch.inference_mode():
        m = constrained.constrain(nn.Linear(4, 4), "weight", "orthogonal")
        value = m.weight.clone()
    with pytest.raises(ValueError, match=r"made in inference mode"):
        constrained.release(m)
    assert ours.is_parametrized(m, "weight")
    with torch.inference_mode():
        assert torch.equal(m.weight, value)


class Times(nn.Module):
    """Multiplication by a stored number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.full((), 2.0))

    def forward(self, x):
        return x * self.factor

    def right_inverse(self, x):
        return x / self.factor


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", ["register", "append"])
def test_e26_a_parametrization_that_was_built_inside_is_refused(how, inside):
    m = nn.Linear(4, 4)
    if how == "append":
        ours.register_parametrization(m, "weight", Squash())
    with torch.inference_mode():
        times = Times()
    before, kind = m.weight.detach().clone(), type(m)
    names = [n for n, _ in m.named_parameters()]
    with (
        torch.inference_mode(inside),
        pytest.raises(ValueError, match=r"'factor' of Times was made in inference mode.*outside"),
    ):
        ours.register_parametrization(m, "weight", times, unsafe=how == "append")
    assert type(m) is kind and torch.equal(m.weight, before)
    assert [n for n, _ in m.named_parameters()] == names
    assert steps(m) == (2, 2)


@pytest.mark.parametrize("inside", [False, True])
def test_e26_constrain_copies_a_parametrization_that_was_built_inside(inside):
    m = nn.Linear(4, 4)
    with torch.inference_mode():
        times = Times()
    with torch.inference_mode(inside):
        constrained.constrain(m, "weight", times)
    assert not any(t.is_inference() for t in (*m.parameters(), *m.buffers()))
    assert steps(m) == (2, 2)


@torch_today
@pytest.mark.parametrize("name", ["weight_norm", "orthogonal"])
def test_e26_in_torch_today(name, measured):
    m = nn.Linear(4, 4)
    with torch.inference_mode():
        getattr(parametrizations, name)(m)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward") as e:
        steps(m)
    measured(f"{name}: {str(e.value).partition('.')[0]}")
