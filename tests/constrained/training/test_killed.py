"""SIGKILL in the middle of a step or of a save: the last checkpoint is whole, and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from constrained import assert_feasible, constrain, load, save

SETS = {"0.weight": "orthogonal", "1.weight": "simplex", "2.weight": "nonnegative"}

#: A checkpoint is written after every second step; the process ends in step 7, or in the save
#: after step 6.
EVERY, LAST = 2, 10

POINTS = {"step": 6, "save": 4}


def make(mode):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))
    if mode:
        constrain(model, SETS, mode=mode)
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.03)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def checkpoint(folder, model, optimizer, step):
    """Write model and optimizer, and then, in one move, that they are complete."""
    save(model, folder / f"{step}.safetensors")
    torch.save(optimizer.state_dict(), folder / f"{step}.pt")
    (folder / "new").write_text(str(step))
    os.replace(folder / "new", folder / "last")
    # Overwritten each time, as most scripts do it.
    save(model, folder / "same.safetensors")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def victim(folder, mode, point):
    """Train and write checkpoints until this process is killed."""
    model = make(mode)
    optimizer = adam(model)
    for step in range(1, LAST + 1):
        if point == "step" and step == 7:
            # It comes between the step and the hooks that bring the tensors back.
            optimizer.register_step_post_hook(die)
        train(model, optimizer, [step])
        if step % EVERY:
            continue
        if point == "save" and step == 6:
            # All bytes are written, and the file is not in its place yet.
            os.fsync = die
        checkpoint(folder, model, optimizer, step)


def start(*arguments):
    module = "tests.constrained.training.test_killed"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("mode", ["parametrize", "project"])
@pytest.mark.parametrize("point", POINTS)
def test_training_goes_on_from_the_last_checkpoint(point, mode, tmp_path):
    assert start(tmp_path, mode, point).wait(timeout=100) == -signal.SIGKILL
    step = int((tmp_path / "last").read_text())
    assert step == POINTS[point]
    model = load(tmp_path / f"{step}.safetensors", make(None))
    optimizer = adam(model)
    optimizer.load_state_dict(torch.load(tmp_path / f"{step}.pt"))
    train(model, optimizer, range(step + 1, LAST + 1))
    assert_feasible(model)
    expected = make(mode)
    train(expected, adam(expected), range(1, LAST + 1))
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    # The file that was being replaced is the one of before.
    again = load(tmp_path / "same.safetensors", make(None))
    before = load(tmp_path / f"{step}.safetensors", make(None)).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def writer(folder, mode):
    """Overwrite one file for ever."""
    model = make(mode)
    save(model, folder / "same.safetensors")
    while True:
        train(model, adam(model), [1])
        save(model, folder / "same.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("mode", ["parametrize", "project"])
def test_a_file_is_whole_whenever_its_writer_is_killed(mode, tmp_path):
    for pause in (0.0, 0.013, 0.037):
        process = start(tmp_path, mode)
        place = tmp_path / "same.safetensors"
        place.unlink(missing_ok=True)
        until = time.monotonic() + 60
        while not place.exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.wait()
        model = load(place, make(None))
        assert_feasible(model)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        victim(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    else:
        writer(Path(sys.argv[1]), sys.argv[2])
