"""E36: nothing draws from the global random number generator."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal

from constrained import constrain, get, rebase, release
from tests.promises.catalogue import every_constraint, plain


def draws(action):
    """Whether an action advances the global generator."""
    before = torch.get_rng_state()
    action()
    return not torch.equal(before, torch.get_rng_state())


def step(layer):
    layer(torch.ones(2, layer.in_features)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@every_constraint((4, 4), (5, 2), (2, 5))
def test_e36_the_life_of_a_constraint(name, arguments, shape):
    layer = plain(shape)
    x, generator = torch.ones(2, layer.in_features), torch.Generator().manual_seed(0)
    new = get(name)(**arguments).sample(shape, generator=generator)
    life = {
        "making": lambda: get(name)(**arguments),
        "registration": lambda: constrain(layer, "weight", name, **arguments),
        "reading": lambda: layer(x),
        "training": lambda: step(layer),
        "reading again": lambda: layer(x),
        "assignment": lambda: setattr(layer, "weight", new),
        "rebasing": lambda: rebase(layer),
        "sampling": lambda: get(name)(**arguments).sample(shape, generator=generator),
        "removal": lambda: release(layer),
        "registration of an outsider": lambda: constrain(
            nn.Module.train(layer), "weight", name, **arguments
        ),
    }
    assert [what for what, action in life.items() if draws(action)] == []


@pytest.mark.parametrize("map", ["polar", "cayley", "exp"])
def test_e36_two_ranks_make_the_same(map, measured):
    start, states = torch.randn(16, 4), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layer = nn.Linear(4, 16, bias=False)
        with torch.no_grad():
            layer.weight.copy_(start)
        states.append(constrain(layer, "weight", "orthogonal", map=map).state_dict())
    difference = max(float((a - b).abs().max()) for a, b in zip(*map_values(states), strict=True))
    assert difference == 0
    measured(f"two seeds, {map}: {difference:g} apart")


def map_values(states):
    return [list(state.values()) for state in states]


@pytest.mark.torch_today
def test_e36_in_torch_today(measured):
    start, bases = torch.randn(16, 4), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layer = nn.Linear(4, 16, bias=False)
        with torch.no_grad():
            layer.weight.copy_(start)
        assert draws(lambda: torch_orthogonal(layer, orthogonal_map="cayley"))  # noqa: B023
        bases.append(layer.parametrizations.weight[0].base.clone())
    difference = float((bases[0] - bases[1]).abs().max())
    assert difference > 0.1
    measured(f"two seeds, cayley: {difference:.1g} apart")
