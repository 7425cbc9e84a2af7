"""What is changed in a block of `all_or_nothing` is put back if anything is raised in it."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from constrained import constrain, get
from constrained.atomic.undo import all_or_nothing, tensors_of


class Counting(nn.Module):
    """A module whose extra state is kept outside of its attributes."""

    counts: ClassVar[dict[int, int]] = {}

    def get_extra_state(self):
        return {"count": self.counts.get(id(self), 0)}

    def set_extra_state(self, state):
        self.counts[id(self)] = state["count"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_modules_tensors_and_optimizers(error):
    m = nn.Linear(3, 2)
    sgd = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    m(torch.ones(1, 3)).sum().backward()
    sgd.step()
    weight, names = m.weight, list(m._parameters)
    before, lr = weight.detach().clone(), sgd.param_groups[0]["lr"]
    with pytest.raises(error), all_or_nothing([m], tensors_of([m]), sgd):
        m.weight.data = torch.zeros(5)
        del m._parameters["bias"]
        m.extra = 3
        sgd.state.clear()
        sgd.param_groups[0]["lr"] = 7.0
        raise error
    assert m.weight is weight and list(m._parameters) == names and not hasattr(m, "extra")
    assert torch.equal(weight, before)
    assert weight in sgd.state and sgd.param_groups[0]["lr"] == lr


@pytest.mark.parametrize("extra_state", [False, True])
def test_extra_state_if_that_is_asked_for(extra_state):
    m = Counting()
    m.set_extra_state({"count": 1})
    with pytest.raises(ValueError), all_or_nothing([m], extra_state=extra_state):
        m.set_extra_state({"count": 2})
        raise ValueError
    assert m.get_extra_state() == {"count": 1 if extra_state else 2}


def test_a_refused_argument_or_element_leaves_all_as_it_was():
    m = constrain(nn.Linear(4, 4), "weight", "low_rank(rank=2)")
    found = m.parametrizations.weight
    constraint, value, state = found[0], m.weight.detach().clone(), dict(vars(found[0]))
    with pytest.raises(ValueError):
        constraint.rank = 3
    assert vars(constraint) == state and constraint.rank == 2
    with pytest.raises(ValueError):
        found[0] = get("positive")()
    assert found[0] is constraint
    assert torch.equal(m.weight, value)


class Unwritable(torch.Tensor):
    """A tensor that refuses to be written once it is told to."""

    refuses = False

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if cls.refuses and func == torch.Tensor.data.__set__:
            raise TypeError("this tensor cannot be written")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_part_that_cannot_be_put_back_does_not_keep_the_rest_from_it(monkeypatch):
    m = nn.Linear(3, 2)
    first = torch.ones(2).as_subclass(Unwritable)
    monkeypatch.setattr(Unwritable, "refuses", True)
    weight, before = m.weight, m.weight.detach().clone()
    sgd = torch.optim.SGD(m.parameters(), lr=0.1)
    with pytest.raises(ValueError) as found, all_or_nothing([m], [first, weight], sgd):
        weight.data = torch.zeros(5)
        del m._parameters["weight"]
        sgd.param_groups[0]["lr"] = 7.0
        raise ValueError
    assert m.weight is weight and torch.equal(weight, before)
    assert sgd.param_groups[0]["lr"] == 0.1
    [note] = found.value.__notes__
    assert "shape (2,) could not be put back" in note and "cannot be written" in note


def test_an_interruption_of_the_undo_comes_after_it(monkeypatch):
    m = nn.Linear(3, 2)
    bias = m.bias.detach().clone()
    failures, copy = iter([KeyboardInterrupt]), torch.Tensor.copy_

    def interrupted(*args):
        for failed in failures:
            raise failed
        return copy(*args)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt), all_or_nothing([m], [m.weight, m.bias]):
        m.weight.data.zero_()
        m.bias.data.zero_()
        raise ValueError
    assert torch.equal(m.bias, bias)
    assert m.weight.any()


def test_a_gradient_that_has_come_since_is_gone_again():
    m = nn.Linear(3, 2)
    m.bias.grad = kept = torch.ones(2)
    with pytest.raises(ValueError), all_or_nothing([m], tensors_of([m])):
        m(torch.ones(1, 3)).sum().backward()
        m.bias.grad = None
        m.weight.data, m.weight.grad = torch.zeros(5), torch.zeros(5)
        raise ValueError
    assert m.weight.grad is None and m.weight.shape == (2, 3)
    assert m.bias.grad is kept
