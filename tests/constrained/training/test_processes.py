"""Several processes that hold tensors together: the work is divided, and decisions are shared."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from constrained import constrain, share_projections
from constrained.attached.attached_constraint import attached_constraints
from constrained.training.processes import Share, owners
from tests.constrained.training import several_processes

EACH = [
    (check.__name__, wrapper, world)
    for world in (2, 4)
    for wrapper in several_processes.WRAPPERS
    for check in several_processes.checks(wrapper, world)
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A function that starts the processes for a wrapper, once."""
    known = {}

    def of(world, wrapper):
        if (world, wrapper) not in known:
            folder = tmp_path_factory.mktemp("gloo")
            known[world, wrapper] = several_processes.start(folder, world, wrapper)
        return known[world, wrapper]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("check", "wrapper", "world"), EACH)
def test_several_processes(check, wrapper, world, outcomes):
    for rank, found in enumerate(outcomes(world, wrapper)):
        assert check in found, f"process {rank} stopped before, at {list(found)[-1]}"
        assert found[check]["error"] is None, found[check]["error"]


# ------------------------------------------------------------------------------- without processes


@pytest.fixture
def group():
    """A group of this process alone, so that none is started."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_work_is_dealt_out_evenly(world):
    costs = [5.0, 1.0, 3.0, 3.0, 2.0, 7.0, 1.0, 4.0]
    loads = [0.0] * world
    for cost, rank in zip(costs, owners(costs, world), strict=True):
        loads[rank] += cost
    assert sum(loads) == sum(costs)
    # Graham's bound on the longest of all.
    assert max(loads) <= 4 / 3 * max(sum(costs) / world, max(costs))
    assert owners([3.0], world, first=world - 1) == [world - 1]
    equal = owners([1.0] * 8, world)
    assert max(equal.count(rank) for rank in range(world)) == -(-8 // world)


def test_no_process_is_needed_for_no_work():
    assert owners([], 3) == []


@pytest.mark.parametrize("length", [1, 4, 5, 9])
def test_pieces_are_those_of_chunk(length, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda _: 4)
    whole, share = torch.arange(2.0 * length).reshape(2, length), Share(None, 1)
    expected = whole.chunk(4, 1)
    for rank in range(4):
        piece = share.piece(whole, rank)
        assert list(piece.shape) == share.shape(whole.shape, rank)
        assert torch.equal(piece, expected[rank] if rank < len(expected) else whole[:, :0])
    assert Share(None, None).piece(whole, 2) is whole


def test_share_projections_needs_a_group_and_tensors(group):
    model = constrain(nn.Linear(3, 3), "weight", "orthogonal")
    with pytest.raises(ValueError, match=r"mode='project', and the model has none"):
        share_projections(model)
    with pytest.raises(TypeError, match="model"):
        share_projections("model")


def test_share_projections_without_a_group():
    model = constrain(nn.Linear(3, 3), "weight", "orthogonal", mode="project")
    with pytest.raises(RuntimeError, match="init_process_group"):
        share_projections(model)


def test_a_group_of_one_process_changes_nothing(group):
    found = []
    for shares in (False, True):
        torch.manual_seed(0)
        model = constrain(nn.Linear(3, 3), "weight", "orthogonal", mode="project")
        if shares:
            share_projections(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        found.append(model.weight.detach())
    assert torch.equal(*found)


def test_a_copy_and_a_pickle_have_no_group(group):
    model = constrain(nn.Linear(3, 3), "weight", "orthogonal", mode="project")
    share_projections(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ((_, tensor),) = attached_constraints(other)
        assert tensor.group is None
