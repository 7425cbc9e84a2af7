"""E01 and E04: a model can be pickled and copied in every way, and between processes."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain
from tests.promises.copies import COPIES, cloudpickled, pickled, saved
from tests.promises.counting import (
    Positive,
    original,
)
from tests.promises.foreign import Scaled, squashed

torch_today = pytest.mark.torch_today


class Net(nn.Module):
    """A model as people write them, with constrained and other layers."""

    def __init__(self, P=ours):
        super().__init__()
        self.rnn = nn.LSTM(3, 3)
        self.head = nn.Linear(3, 3)
        self.plain = nn.Linear(3, 3)
        if P is ours:
            constrain(self, "head.weight", Positive(), init="keep")
        else:
            P.register_parametrization(self.head, "weight", Scaled())
        P.register_parametrization(self.rnn, "weight_hh_l0", nn.Tanh())
        P.register_parametrization(self.rnn, "bias_hh_l0", nn.Tanh())

    def forward(self, x):
        return self.plain(self.head(self.rnn(x)[0]))


def check_loaded(model, loaded):
    x = torch.randn(4, 2, 3)
    assert_close(loaded(x), model(x))
    assert ours.is_parametrized(loaded.head, "weight")
    assert ours.is_parametrized(loaded.rnn, "weight_hh_l0")
    assert type(loaded.head) is type(model.head)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    loaded(x).sum().backward()
    with torch.no_grad():
        for p in loaded.parameters():
            p.zero_()
    assert not torch.equal(loaded.head.weight, model.head.weight)
    ours.remove_parametrizations(loaded.head, "weight")
    assert type(loaded.head) is nn.Linear and ours.is_parametrized(model.head)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("after", ["nothing", "reads", "training"])
def test_e01_a_model_can_be_saved(how, after):
    model = Net()
    if after == "reads":
        _ = model.head.weight, model.rnn.weight_hh_l0
    if after == "training":
        model(torch.randn(4, 2, 3)).sum().backward()
    check_loaded(model, how(model))


@torch_today
@pytest.mark.parametrize("how", [pickled, saved, cloudpickled, copy.copy])
def test_e01_in_torch_today(how):
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        how(squashed(torchs))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_e01_every_protocol_of_pickle(protocol):
    model = Net()
    check_loaded(model, pickle.loads(pickle.dumps(model, protocol)))


def test_e01_copy_copy_shares_as_for_a_plain_module():
    m = squashed()
    twin = copy.copy(m)
    assert twin is not m and type(twin) is type(m)
    assert original(twin) is original(m)
    assert_close(twin.weight, m.weight)
    twin.note = 1
    assert not hasattr(m, "note")


def test_e01_a_whole_optimizer_or_list_of_models_can_be_saved():
    models = [squashed() for _ in range(2)]
    loaded = pickled({"models": nn.ModuleList(models), "same": models[0]})
    assert loaded["models"][0] is loaded["same"]
    assert_close(loaded["same"].weight, models[0].weight)


LOAD = """
import pickle, sys, torch
from torch.testing import assert_close
folder = sys.argv[1]
x, expected = torch.load(f"{folder}/data.pt")
names = ["torch.pt", "pickle.pkl", "cloud.pkl"]
for name in names:
    with open(f"{folder}/{name}", "rb") as file:
        model = torch.load(file, weights_only=False) if name == "torch.pt" else pickle.load(file)
    assert_close(model(x), expected)
    model(x).sum().backward()
    assert model.head.parametrizations.weight.original.grad is not None
    assert "original" in str(list(model.state_dict()))
    pickle.dumps(model)
assert "constraints" not in sys.modules
"""


def test_e01_loading_in_a_new_process(tmp_path):
    import cloudpickle

    model, x = Net(), torch.randn(4, 2, 3)
    torch.save((x, model(x).detach()), tmp_path / "data.pt")
    torch.save(model, tmp_path / "torch.pt")
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps(model))
    (tmp_path / "cloud.pkl").write_bytes(cloudpickle.dumps(model))
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def _train_elsewhere(model, x, queue):
    model(x).sum().backward()
    queue.put((model(x).detach().numpy(), original(model.head).grad.numpy()))


def test_e01_multiprocessing_by_spawn():
    model, x = Net(), torch.randn(4, 2, 3)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_train_elsewhere, args=(model, x, queue))
    process.start()
    out, gradient = queue.get(timeout=60)
    process.join()
    assert process.exitcode == 0
    expected = model(x)
    expected.sum().backward()
    assert_close(torch.from_numpy(out), expected.detach())
    assert_close(torch.from_numpy(gradient), original(model.head).grad)
