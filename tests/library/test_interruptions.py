"""Ctrl-C at any moment leaves a model in the old state or in the new one, never between."""

import copy
import functools
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, rebase, release, writable
from constrained.atomic import interrupts as undisturbed
from constrained.parametrize import remove_parametrizations
from constrained.parametrized import originals_index
from constrained.registration.add import register_parametrization


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """Let Ctrl-C interrupt, as in a terminal: in the background a process ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ENGINE = str(Path(constrained.__file__).parent)
CONFIG = {
    "0.weight": "min_max_norm(low=0.5, high=2)",
    "1.weight": {"name": "low_rank", "rank": 2, "view": "a b -> b a"},
    "*.bias": "box(low=-1, high=1)",
}


def plain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 4)).sum().backward()
    model.optimizer.step()
    return model


def changed():
    model = constrain(plain(), CONFIG)
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model


CHECKPOINT = {k: 0.5 * v.flip(0) + 0.1 for k, v in plain().state_dict().items()}
for _key in ("0.weight", "1.weight"):
    CHECKPOINT[_key] = constrain(plain(), CONFIG)[int(_key[0])].weight.detach().flip(0)


def assign(model):
    model[0].weight = CHECKPOINT["0.weight"]


def write(model):
    with writable(model):
        for layer in model:
            # (In torch's own `nn.init`, Ctrl-C may leave gradients off, as in any torch.no_grad().)
            layer.weight.data.fill_(0.25)
            layer.bias.data.fill_(0.5)


def reset(model):
    def halve(module):
        if isinstance(module, nn.Linear):
            module.weight.data.fill_(0.5)
            module.bias.data.fill_(0.5)

    model[0].apply(halve)


def set_argument(model):
    model[0].parametrizations.weight[0].low = 1.5


@functools.cache
def file():
    """Of a model like `changed`, in another state."""
    model = changed()
    constrained.load_state_dict(model, CHECKPOINT)
    folder = tempfile.TemporaryDirectory()
    constrained.save(model, folder.name)
    return folder


DOINGS = {
    "constrain": (plain, lambda m: constrain(m, CONFIG, optimizer=m.optimizer)),
    "release": (changed, lambda m: release(m, optimizer=m.optimizer)),
    "load": (changed, lambda m: constrained.load_state_dict(m, CHECKPOINT)),
    "torch's load": (changed, lambda m: m.load_state_dict(CHECKPOINT)),
    "file": (plain, lambda m: constrained.load(file().name, m)),
    "assignment": (changed, assign),
    "writable": (changed, write),
    "apply": (changed, reset),
    "rebase": (changed, rebase),
    "register": (
        changed,
        lambda m: register_parametrization(m, "0.bias", constrained.get("ball")()),
    ),
    "remove": (changed, lambda m: remove_parametrizations(m, "0.weight", optimizer=m.optimizer)),
    "argument": (changed, set_argument),
}
#: Actions that work tensor by tensor, as in torch: each tensor is in its old or its new state.
EACH = ("torch's load",)


def state(model):
    """The whole observable state of a model, except for the identity of tensors."""
    found = {}
    for path, module in model.named_modules():
        own = vars(module)
        found[path] = (
            type(module),
            repr(module),
            {k for k in own if k not in ("_settled", "_prepared", "optimizer")},
            module.training,
            [len(v) for k, v in own.items() if k.endswith("_hooks")],
            list(module._modules),
        )
    tensors = {k: (v.detach().clone(), v.requires_grad) for k, v in model.named_parameters()}
    held = [p for group in model.optimizer.param_groups for p in group["params"]]
    trained = {id(p) for p in model.parameters()}
    return found, tensors, {id(p) for p in held} == trained


def same(one, other):
    return (
        one[0] == other[0]
        and one[2] == other[2]
        and one[1].keys() == other[1].keys()
        and all(
            torch.equal(a, b) and x == y
            for (a, x), (b, y) in zip(one[1].values(), other[1].values(), strict=True)
        )
    )


def value_of(model, name):
    layer, tensor = name.split(".")
    return getattr(model[int(layer)], tensor).detach().clone()


class Doing:
    """An action on a model, with the states of the model before and after it."""

    def __init__(self, name):
        self.name = name
        self.make, self.do = DOINGS[name]
        model = self.make()
        self.before = state(model)
        self.values_before = {k: value_of(model, k) for k in CHECKPOINT}
        self.do(model)
        self.after = state(model)
        self.values_after = {k: value_of(model, k) for k in CHECKPOINT}
        self.handler = signal.getsignal(signal.SIGINT)

    def check(self, model, is_done):
        """Check that the model is in its old or new state, and return whether it is the old one."""
        assert torch.is_grad_enabled()
        assert signal.getsignal(signal.SIGINT) == self.handler
        assert not any("_overrides" in vars(module) for module in model.modules())
        now = state(model)
        if self.name in EACH and not is_done:
            assert now[0] == self.before[0]
            for key, before in self.values_before.items():
                value = value_of(model, key)
                assert torch.equal(value, before) or torch.equal(value, self.values_after[key])
            return True
        assert same(now, self.after) or (not is_done and same(now, self.before))
        return same(now, self.before)


#: Another process, which needs no lock of this interpreter: it reads delays, and sends Ctrl-C
#: after each.
SENDER = """
import os, signal, struct, time
while delay := os.read(0, 8):
    time.sleep(struct.unpack("d", delay)[0])
    os.kill(os.getppid(), signal.SIGINT)
    os.write(1, b".")
"""
#: How many interruptions a test makes; it has been tried with 1,000.
SIGNALS = 100


class Interruption:
    """Ctrl-C at a given line of the engine."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        # The callback of a weak reference cannot raise: Python prints the error and goes on.
        around = frame
        while around is not None and around.f_code is not originals_index._forget.__code__:
            around = around.f_back
        return self.trace if around is None else None

    def trace(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
        return self.trace


def interrupted(doing, at):
    """Whether the interruption came, and the number of lines."""
    model, interruption = doing.make(), Interruption(at)
    is_done = False
    before = sys.gettrace()
    try:
        sys.settrace(interruption)
        doing.do(model)
        is_done = True
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    if doing.check(model, is_done):
        doing.do(model)
        doing.check(model, is_done=True)
    return not is_done, interruption.count


def lines(doing):
    return interrupted(doing, 0)[1]


@pytest.mark.parametrize("name", DOINGS)
def test_it_is_as_it_was_or_as_it_was_to_become(name):
    doing = Doing(name)
    # The first run does more, since its results are cached for the others.
    total = min(lines(doing) for _ in range(3))
    chosen = random.Random(0).sample(range(1, total + 1), 40 if total < 500 else 8)
    for at in [1, *chosen, total - 1, total]:
        is_interrupted, reached = interrupted(doing, at)
        # Some lines run once only, when their result is not yet cached.
        assert is_interrupted or reached < at


@pytest.mark.slow
@pytest.mark.parametrize("name", DOINGS)
def test_at_lines_all_over(name):
    doing = Doing(name)
    # The first run does more, since its results are cached for the others.
    total = min(lines(doing) for _ in range(3))
    for at in range(1, total + 1, max(1, total // 150)):
        is_interrupted, reached = interrupted(doing, at)
        # Some lines run once only, when their result is not yet cached.
        assert is_interrupted or reached < at


# Errors in a weak reference's callback are only printed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", DOINGS)
def test_signals_at_any_time(name):
    doing, came = Doing(name), 0
    template, times = doing.make(), []
    for _ in range(9):
        model = copy.deepcopy(template)
        start = time.perf_counter()
        doing.do(model)
        times.append(time.perf_counter() - start)
    takes = 1.3 * sorted(times)[4]
    chance = random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as sender:
        for _ in range(SIGNALS):
            model, is_done = copy.deepcopy(template), False
            try:
                sender.stdin.write(struct.pack("d", chance.random() * takes))
                doing.do(model)
                is_done = True
                for _ in range(1000):
                    time.sleep(0.001)
            except KeyboardInterrupt:
                came += not is_done
            sender.stdout.read(1)
            doing.check(model, is_done)
        sender.stdin.close()
    assert came


def test_a_block_that_is_open_is_interrupted_at_once():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    before, reached = layer.weight.detach().clone(), False
    with pytest.raises(KeyboardInterrupt), writable(layer):
        nn.init.zeros_(layer.weight)
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached
    assert torch.equal(layer.weight, before)


def test_a_long_doing_is_interrupted_between_tensors(monkeypatch):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    seen = []
    cls = constrained.get("sphere")
    project = cls.project

    def pressed(self, value):
        seen.append(1)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return project(self, value)

    monkeypatch.setattr(cls, "project", pressed)
    with pytest.raises(KeyboardInterrupt):
        constrain(model, "*.weight", "sphere")
    assert len(seen) < 8
    assert all(type(layer) is nn.Linear for layer in model)


def test_blocks_pass_on_to_what_was_there():
    calls = []

    def mine(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGINT, mine)
    try:
        with undisturbed.defer_interrupts():
            with undisturbed.defer_interrupts():
                signal.raise_signal(signal.SIGINT)
            assert not calls
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
        with undisturbed.defer_interrupts():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with undisturbed.defer_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    found = []

    def run():
        with undisturbed.defer_interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_blocks_that_are_left_in_another_order():
    one, other = (writable(constrain(nn.Linear(2, 2), "weight", "positive")) for _ in range(2))
    before = signal.getsignal(signal.SIGINT)
    one.__enter__()
    mine = signal.getsignal(signal.SIGINT)
    other.__enter__()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    for handler in (signal.getsignal(signal.SIGINT), mine):
        signal.signal(signal.SIGINT, handler)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
