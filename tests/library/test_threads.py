"""One thread changes models, or trains them, while others copy and read."""

import copy
import pickle
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from constrained import constrain, release, spec, violations
from constrained.registration import stale_parameters as departures
from tests.promises.threads import run_all


@pytest.fixture
def busy():
    """Make threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*doings, seconds=0.7):
    """Run all of these at the same time, repeatedly, each at least three times."""
    end = time.monotonic() + seconds

    def again(doing):
        def run():
            times = 0
            while times < 3 or time.monotonic() < end:
                doing()
                times += 1

        return run

    run_all(*map(again, doings))


NAMES = ("orthogonal", "sphere", "min_max_norm(low=1, high=2)", "low_rank(rank=2)", "l1_ball")


def model():
    return nn.Sequential(*(constrain(nn.Linear(4, 4), "weight", name) for name in NAMES))


def test_training_and_copying(busy):
    trained = model()

    def step():
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        trained(torch.ones(1, 4)).sum().backward()
        optimizer.step()

    together(step, lambda: copy.deepcopy(trained), lambda: pickle.dumps(trained))


def test_training_and_building(busy):
    trained, kept = model(), []
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)

    def build():
        layer = nn.Linear(4, 4)
        kept.append(layer.weight)
        constrain(layer, "weight", "low_rank(rank=1)")
        release(layer)

    def step():
        trained(torch.ones(1, 4)).sum().backward()
        optimizer.step()

    together(build, build, step)


def test_loading_and_copying(busy):
    loaded = model()
    state = {k: v.clone() for k, v in loaded.state_dict().items()}
    together(
        lambda: loaded.load_state_dict(state),
        lambda: copy.deepcopy(loaded),
        lambda: (spec(loaded), violations(loaded)),
    )


def test_setting_an_argument_and_copying(busy):
    layer = constrain(nn.Linear(4, 4), "weight", "ball(radius=2)")
    constraint = layer.parametrizations.weight[0]

    def change():
        constraint.p = 1.0
        constraint.p = 3.0

    together(change, lambda: copy.deepcopy(layer), lambda: layer.weight)


def test_loading_registers_nothing_that_a_copy_would_meet():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    state, seen = layer.state_dict(), []
    layer.register_load_state_dict_pre_hook(
        lambda module, *_: seen.append(len(module._load_state_dict_pre_hooks))
    )
    layer.load_state_dict(state)
    assert seen == [1]


def test_a_step_while_a_parameter_leaves_elsewhere(monkeypatch):
    class Interleaved(WeakTensorKeyDictionary):
        def items(self):
            for item in super().items():
                yield item
                thread = threading.Thread(target=depart)
                thread.start()
                # The other thread waits for this one; without a lock it would not.
                thread.join(0.05)

    kept = []

    def depart():
        layer = nn.Linear(2, 2)
        kept.append((layer, layer.weight))
        departures.mark_stale(layer.weight, layer, "weight", "weight")

    monkeypatch.setattr(departures, "_stale_parameters", Interleaved())
    depart()
    depart()
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert len(kept) > 2
