"""E06: checkpoints on disk: torch.save, safetensors, torch.distributed.checkpoint."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from constrained import baked_state_dict, constrain, release
from tests.promises.checkpoints import SPECS, Network, same


def pair():
    """A constrained model, and another in another state."""
    torch.manual_seed(1)
    return constrain(Network(), SPECS).eval(), constrain(Network(), SPECS).eval()


def check_same(a, b):
    x = torch.rand(5, 4)
    assert same(a.state_dict(), b.state_dict()) and torch.equal(a(x), b(x))


def without_extra_state(state):
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def untied():
    """No ties and no extra state, neither of which safetensors files hold."""
    torch.manual_seed(1)
    layers = [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)]
    return constrain(
        nn.Sequential(*layers), {"0.weight": "orthogonal", "2.weight": "sphere"}
    ).eval()


@pytest.mark.parametrize("mmap", [False, True])
def test_e06_torch_load_of_weights_only(tmp_path, mmap, measured):
    a, b = pair()
    plain = release(copy.deepcopy(a))
    saved = {"own": a.state_dict(), "baked": baked_state_dict(a), "plain": plain.state_dict()}
    for name, state in saved.items():
        torch.save(state, tmp_path / name)
        read = torch.load(tmp_path / name, weights_only=True, mmap=mmap)
        assert read._metadata == state._metadata
        twin = copy.deepcopy(b)
        twin.load_state_dict(read)
        if name == "own":
            check_same(a, twin)
        else:
            assert_close(a(torch.ones(2, 4)), twin(torch.ones(2, 4)), atol=1e-5, rtol=1e-5)
            Network().load_state_dict(read)
    measured("torch.load(weights_only=True): own and plain")


def test_e06_safetensors_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    a, b = untied(), untied()
    with torch.no_grad():
        b[0].weight, b[2].weight = -b[0].weight, -b[2].weight
    for name, state in {"own": a.state_dict(), "baked": baked_state_dict(a)}.items():
        safetensors.save_file(state, tmp_path / name)
        twin = copy.deepcopy(b)
        twin.load_state_dict(safetensors.load_file(tmp_path / name))
        assert_close(dict(twin.state_dict()), dict(a.state_dict()))
    # Baked state dicts share no memory, so tied tensors need no special treatment.
    tied, _ = pair()
    safetensors.save_file(without_extra_state(baked_state_dict(tied)), tmp_path / "tied")
    other, _ = pair()
    other.load_state_dict(safetensors.load_file(tmp_path / "tied"), strict=False)
    assert_close(other.gain, tied.gain, atol=1e-5, rtol=1e-5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_e06_safetensors_models(tmp_path, measured):
    safetensors = pytest.importorskip("safetensors.torch")
    for make, target in ((untied, None), (Tied, {"embed.weight": "sphere"})):
        torch.manual_seed(2)
        a, b = make(), make()
        if target is not None:
            constrain(a, target), constrain(b, target)
        safetensors.save_model(a, tmp_path / "own")
        with torch.no_grad():
            for p in b.parameters():
                p.add_(1)
        assert safetensors.load_model(b, tmp_path / "own") == (set(), [])
        assert same(a.state_dict(), b.state_dict())
        # A plain model's file, with one of two tied tensors in it.
        safetensors.save_model(release(copy.deepcopy(a)), tmp_path / "plain")
        with torch.no_grad():
            for p in b.parameters():
                p.add_(1)
        assert safetensors.load_model(b, tmp_path / "plain") == (set(), [])
        for key, value in baked_state_dict(a).items():
            assert_close(baked_state_dict(b)[key], value, atol=1e-5, rtol=1e-5)
    measured("safetensors: files and models, tied ones too")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch tells that there is no process group
def test_e06_distributed_checkpoint_in_one_process(tmp_path, measured):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_state_dict,
        set_model_state_dict,
        set_state_dict,
    )

    a, b = pair()
    dcp.save(a.state_dict(), checkpoint_id=tmp_path / "own")
    state = b.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "own")
    b.load_state_dict(state)
    check_same(a, b)

    # A plain model's checkpoint: the plain state dict says what to read.
    plain = release(copy.deepcopy(a))
    dcp.save(plain.state_dict(), checkpoint_id=tmp_path / "plain")
    _, b = pair()
    state = baked_state_dict(b)
    dcp.load(state, checkpoint_id=tmp_path / "plain")
    b.load_state_dict(state)
    assert_close(b(torch.ones(2, 4)), a(torch.ones(2, 4)), atol=1e-5, rtol=1e-5)
    # Full state dicts are completed with entries of the model, which are not the checkpoint's.
    for full, strict in ((False, True), (True, True), (True, False)):
        _, b = pair()
        options = StateDictOptions(full_state_dict=full, strict=strict)
        set_model_state_dict(b, copy.deepcopy(plain.state_dict()), options=options)
        assert_close(b(torch.ones(2, 4)), a(torch.ones(2, 4)), atol=1e-5, rtol=1e-5)

    a, b = untied(), untied()
    optimizers = [torch.optim.Adam(m.parameters()) for m in (a, b)]
    a(torch.rand(3, 4)).sum().backward()
    optimizers[0].step()
    model, optimizer = get_state_dict(a, optimizers[0])
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path / "all")
    model, optimizer = get_state_dict(b, optimizers[1])
    read = {"model": model, "optimizer": optimizer}
    dcp.load(read, checkpoint_id=tmp_path / "all")
    set_state_dict(b, optimizers[1], model_state_dict=model, optim_state_dict=optimizer)
    assert same(a.state_dict(), b.state_dict())
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(optimizers[0].state[p]["exp_avg"], optimizers[1].state[q]["exp_avg"])
    set_model_state_dict(a, get_model_state_dict(b))
    assert same(a.state_dict(), b.state_dict())
    measured("torch.distributed.checkpoint: own and plain, optimizer too")
