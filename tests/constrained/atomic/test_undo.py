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
