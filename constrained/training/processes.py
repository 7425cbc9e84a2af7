"""Tasks divided among the processes that hold a tensor together, and decisions that they share.

A ``DTensor`` of FSDP2 or of tensor parallelism is cut along one dimension. Where the elements of
the set lie in one piece each, as the entries or the rows of a matrix do, each process treats its
own. Otherwise each tensor has one process that is sent the pieces of it, computes, and sends back
what each has to know. So every process computes a part of the tensors, and each result is computed
once: it is the same everywhere, bit for bit. For tensors of which each process has all, as under
DDP, `share_projections` asks for the same.

Whether to go on, too, the processes decide together. Otherwise one that has found NaN in its piece
would raise an error, and the others would wait for it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from constrained.atomic.contents import store
from constrained.atomic.sharded import is_shard
from constrained.attached.attached_constraint import attached_constraints, note_change
from constrained.parametrized.tensor_locations import check_model
from constrained.training.tasks import Task, batches, gathered, results


def share_projections(model: nn.Module, group: Any = None) -> None:
    """Divide the work that ``mode="project"`` does around each step among processes.

    Without it each process of ``DistributedDataParallel`` brings every tensor back. With it each
    brings back some of them and sends them to the others, so that the results are equal bit for bit
    even on unlike processors. Under ``fully_shard`` and tensor parallelism the work is always
    divided, and this changes nothing.

    From then on all processes of the group must make the same steps of optimizers with the same
    parameters. ``ZeroRedundancyOptimizer``, which gives each process other parameters, must not be
    used. A copy of the model does not have this setting.

    Args:
        model: the model, wrapped or not.
        group: the processes, each of which has the whole model; all of them by default.

    Raises:
        RuntimeError: if there is no process group.
        ValueError: if the model has no tensor with ``mode="project"``.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from constrained import constrain, share_projections
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = constrain(torch.nn.Linear(3, 3), "weight", "orthogonal", mode="project")
        >>> share_projections(model)
        >>> dist.destroy_process_group()
    """
    check_model(model)
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "share_projections divides work among processes, and there is no process group yet: "
            "call torch.distributed.init_process_group before it."
        )
    tensors = [t for _, t in attached_constraints(model) if t.mode == "project"]
    if not tensors:
        raise ValueError(
            "share_projections divides the work for tensors with mode='project', and the model "
            "has none: constrain it before, with mode='project'."
        )
    for tensor in tensors:
        tensor.group = dist.group.WORLD if group is None else group
    note_change()


@dataclass(frozen=True)
class Share:
    """How a task is divided.

    Attributes:
        group: the processes that hold the tensor together.
        dim: the dimension along which it is cut, or None if each process has all of it.
    """

    group: Any
    dim: int | None

    def piece(self, whole: Tensor, rank: int) -> Tensor:
        """What the process with this rank in the group has of a whole tensor."""
        if self.dim is None:
            return whole
        first, last = _bounds(whole.shape[self.dim], _world_size(self.group), rank)
        return whole.narrow(self.dim, first, last - first)

    def shape(self, whole: torch.Size, rank: int) -> list[int]:
        """The shape of `piece`."""
        shape = list(whole)
        if self.dim is not None:
            first, last = _bounds(shape[self.dim], _world_size(self.group), rank)
            shape[self.dim] = last - first
        return shape


def _world_size(group: Any) -> int:
    return dist.get_world_size(group)


def _bounds(length: int, world: int, rank: int) -> tuple[int, int]:
    """Where the piece of a process begins and ends, as `torch.chunk` cuts."""
    size = -(-length // world)
    return min(rank * size, length), min((rank + 1) * size, length)


class Processes:
    """The processes that hold the tensors of an optimizer together.

    Args:
        groups: their groups, each once, in the same order in every process.
        device: where they exchange flags.
    """

    def __init__(self, groups: Sequence[Any], device: torch.device) -> None:
        self._groups, self._device = groups, device

    @staticmethod
    def of(parameters: Sequence[Tensor], others: Iterable[Any] = ()) -> Processes | None:
        """Those that hold some tensors together.

        Args:
            parameters: whole tensors or shards.
            others: further groups, or None.

        Returns:
            None if there are no other processes.
        """
        groups: list[Any] = []
        for parameter in filter(is_shard, parameters):
            each: Any = parameter
            groups += each.device_mesh.get_all_groups()
        groups += [group for group in others if group is not None]
        groups = [g for g in dict.fromkeys(groups) if _world_size(g) > 1]
        return Processes(groups, _local(parameters[0]).device) if groups else None

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """The highest of each of these numbers, from 0 to 2**31, among all processes."""
        found: Any = torch.tensor(list(numbers), dtype=torch.int32, device=self._device)
        for group in self._groups:
            dist.all_reduce(found, dist.ReduceOp.MAX, group)
        return found.tolist()

    def carry_out(self, tasks: Sequence[Task]) -> None:
        """Do some tasks, which all processes have in the same order, each process a part of them.

        Raises:
            Exception: what a task has raised here; nothing is written then.
            RuntimeError: if one has raised something in another process.
        """
        shared: dict[Any, list[tuple[int, Task, Share]]] = {}
        alone: list[tuple[int, Task]] = []
        for i, task in enumerate(tasks):
            share = share_of(task)
            if share is None:
                alone.append((i, _of_piece(task) if _has_elements_here(task) else task))
            else:
                shared.setdefault(share.group, []).append((i, task, share))
        exchanges = [_Exchange(group, some) for group, some in shared.items()]
        whole = gathered([task for _, task in alone])
        own = whole + [task for exchange in exchanges for task in exchange.own]
        places = [i for i, _ in alone] + [i for exchange in exchanges for i in exchange.places]
        place = {id(task): i for task, i in zip(own, places, strict=True)}
        found: dict[int, Sequence[Tensor]] = {}
        error, failed = None, 0
        for batch in batches(own):
            try:
                found.update(zip(map(id, batch), results(batch), strict=True))
            except Exception as caught:
                error, failed = caught, 1 + place[id(batch[0])]
                break
        (first,) = self.highest([failed])
        if error is not None:
            raise error
        if first:
            raise RuntimeError(
                f"{tasks[first - 1].name}: another process has failed to bring it back, and its "
                "error says why; nothing has been written."
            )
        for task in whole:
            task.write(found[id(task)])
        for exchange in exchanges:
            exchange.write([found[id(task)] for task in exchange.own])


def carry_out(tasks: Sequence[Task], processes: Processes | None) -> None:
    """Do some tasks; in this process alone if there are no others, gathering what is a shard."""
    if processes is not None:
        processes.carry_out(tasks)
        return
    for batch in batches(gathered(tasks)):
        for task, found in zip(batch, results(batch), strict=True):
            task.write(found)


# -------------------------------------------------------------------------------- what lies where


def _local(tensor: Any) -> Tensor:
    return tensor.detach().to_local() if is_shard(tensor) else tensor.detach()


def _cuts(tensor: Any) -> list[tuple[int, int]] | None:
    """The dimensions of the mesh and of the tensor along which it is cut; None if otherwise."""
    from torch.distributed.tensor import Replicate, Shard

    if not all(type(p) in (Replicate, Shard) for p in tensor.placements):
        return None
    return [(i, p.dim % tensor.ndim) for i, p in enumerate(tensor.placements) if type(p) is Shard]


def _is_cut_alike(task: Task) -> bool:
    first: Any = task.given[0]
    others: list[Any] = [*task.given[1:], *task.written]
    return all(
        is_shard(t) and t.placements == first.placements and t.device_mesh == first.device_mesh
        for t in others
    )


def _has_elements_here(task: Task) -> bool:
    """Whether each element of the set lies in the piece of one process."""
    first: Any = task.given[0]
    event_dim = task.constraint.event_dim
    if not is_shard(first) or not _is_cut_alike(task):
        return False
    cuts = _cuts(first)
    # Without a key the constraint may have tensors of its own, of the shape of the whole.
    if cuts is None or task.key is None or event_dim is None:
        return not cuts and cuts is not None
    return all(dim < first.ndim - event_dim for _, dim in cuts)


def share_of(task: Task) -> Share | None:
    """How a task is divided; None if each process does it alone."""
    first: Any = task.given[0]
    if not is_shard(first):
        is_alone = task.group is None or _world_size(task.group) == 1
        return None if is_alone else Share(task.group, None)
    cuts = _cuts(first)
    if cuts is None or len(cuts) != 1 or not _is_cut_alike(task) or _has_elements_here(task):
        return None
    ((mesh_dim, dim),) = cuts
    return Share(first.device_mesh.get_group(mesh_dim), dim)


def _of_piece(task: Task) -> Task:
    return replace(task, given=[*map(_local, task.given)], written=[*map(_local, task.written)])


# ---------------------------------------------------------------------------------- the exchange


def owners(costs: Sequence[float], world: int, first: int = 0) -> list[int]:
    """Which process does which task: the longest first, each to the one with the least to do.

    Args:
        costs: of the tasks.
        world: the number of processes.
        first: the process that does the longest task.

    Reference:
        Graham, Bounds on multiprocessing timing anomalies (1969): at most 4/3 of the shortest time.
    """
    loads, found = [0.0] * world, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        found[i] = min(range(world), key=lambda rank: (loads[rank], (rank - first) % world))
        loads[found[i]] += costs[i]
    return found


def _cost(task: Task) -> float:
    """In proportion to the multiplications of a product of the matrix with itself."""
    shape = task.given[0].shape
    return float(shape.numel() * (min(shape[-2:]) if len(shape) > 1 else 1))


#: The shape and the dtype of a tensor.
_Kind = tuple[Sequence[int], torch.dtype]


class _Exchange:
    """Tasks of one group of processes. When it is made the pieces are sent to those who compute.

    Args:
        group: the processes.
        tasks: the tasks and how each is divided, in the same order in every process.

    Attributes:
        own: those of the tasks that this process does, with whole tensors given.
        places: their places in the list of which the tasks are a part.
    """

    def __init__(self, group: Any, tasks: Sequence[tuple[int, Task, Share]]) -> None:
        self._group, self._tasks = group, tasks
        self._rank, self._world = dist.get_rank(group), _world_size(group)
        self._device = _local(tasks[0][1].given[0]).device
        # An optimizer of one tensor has one task, which is not to be the first process's each time.
        first = zlib.crc32(tasks[0][1].name.encode()) % self._world
        self._owners = owners([_cost(task) for _, task, _ in tasks], self._world, first)
        mine = [each for each, own in zip(tasks, self._owners, strict=True) if own == self._rank]
        self.places = [i for i, _, _ in mine]
        self._shares = [share for _, _, share in mine]
        self.own = self._collected([task for _, task, _ in mine])

    def _collected(self, mine: Sequence[Task]) -> list[Task]:
        """The own tasks, for which the others have sent their pieces."""
        if all(share.dim is None for _, _, share in self._tasks):
            return list(mine)
        sent: list[list[Tensor]] = [[] for _ in range(self._world)]
        expected: list[list[_Kind]] = [[] for _ in range(self._world)]
        for (_, task, share), owner in zip(self._tasks, self._owners, strict=True):
            if share.dim is not None:
                sent[owner] += map(_local, task.given)
        for task, share in zip(mine, self._shares, strict=True):
            for rank in range(self._world) if share.dim is not None else ():
                expected[rank] += [(share.shape(t.shape, rank), t.dtype) for t in task.given]
        received = [iter(pieces) for pieces in self._all_to_all(sent, expected)]
        found: list[Task] = []
        for task, share in zip(mine, self._shares, strict=True):
            if share.dim is not None:
                given = [torch.cat([*map(next, received)], share.dim) for _ in task.given]
                task = replace(task, given=given)
            found.append(task)
        return found

    def write(self, found: Sequence[Sequence[Tensor]]) -> None:
        """Send each process the pieces of the results that it has to know, and write the own ones.

        Args:
            found: the results of the own tasks.
        """
        sent: list[list[Tensor]] = [[] for _ in range(self._world)]
        expected: list[list[_Kind]] = [[] for _ in range(self._world)]
        for task, share, new in zip(self.own, self._shares, found, strict=True):
            for old, each in zip(task.written, new, strict=True):
                for rank in range(self._world):
                    sent[rank].append(share.piece(each, rank).to(old.dtype))
        for (_, task, _), owner in zip(self._tasks, self._owners, strict=True):
            expected[owner] += [(_local(t).shape, t.dtype) for t in task.written]
        received = [iter(pieces) for pieces in self._all_to_all(sent, expected)]
        for (_, task, _), owner in zip(self._tasks, self._owners, strict=True):
            for old in task.written:
                store(_local(old), next(received[owner]))

    def _all_to_all(
        self, sent: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[_Kind]]
    ) -> list[list[Tensor]]:
        """Send tensors to each process, and receive those of each, in one message per pair.

        Args:
            sent: the tensors for each process.
            expected: the shapes and dtypes of those that each process sends here.
        """
        bytes_in = [[math.prod(s) * d.itemsize for s, d in each] for each in expected]
        bytes_out = [sum(t.numel() * t.element_size() for t in each) for each in sent]
        message = _packed([t for each in sent for t in each], self._device)
        total = torch.empty(sum(map(sum, bytes_in)), dtype=torch.uint8, device=self._device)
        sizes = [sum(each) for each in bytes_in]
        dist.all_to_all_single(total, message, sizes, bytes_out, self._group)
        every: Any = total
        flat = iter(every.split([n for each in bytes_in for n in each]))
        # A copy of each begins at an address that its dtype allows.
        return [[next(flat).clone().view(d).view(s) for s, d in each] for each in expected]


def _packed(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The bytes of some tensors, one after the other."""
    if not tensors:
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.cat([t.detach().contiguous().flatten().view(torch.uint8) for t in tensors])
