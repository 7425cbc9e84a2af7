"""Train a constrained model on two processes, and the same model on one: a script of a test.

``python -m constrained.testing.promises.distributed ddp|fsdp1|fsdp2 FOLDER`` writes the originals
after some steps.
"""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import constrained.parametrize as parametrize
from constrained.testing.promises.counting import Sphere

STEPS = 4


def model() -> nn.Module:
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        m[0].weight.copy_(nn.functional.normalize(m[0].weight, dim=1))
    parametrize.register_parametrization(m, "0.weight", Sphere())
    parametrize.register_parametrization(m, "2.weight", nn.Tanh())
    return m


def train(m: nn.Module, rank: int, world: int) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 4, generator=generator).chunk(world)[rank]
        optimizer.zero_grad()
        (m(x) + m(-2 * x).tanh()).pow(2).mean().backward()
        optimizer.step()


def run(rank: int, wrapper: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    m = model()
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(m)
    elif wrapper == "fsdp1":
        wrapped = FullyShardedDataParallel(m, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        wrapped = fully_shard(m, mesh=mesh)
    train(wrapped, rank, 2)
    if wrapper == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(wrapped):
            state = {k: v.clone() for k, v in m.state_dict().items()}
            state = {k.replace("_fsdp_wrapped_module.", ""): v for k, v in state.items()}
    else:
        state = {
            k: (v.full_tensor() if hasattr(v, "full_tensor") else v).detach().clone()
            for k, v in m.state_dict().items()
        }
    if rank == 0:
        torch.save(state, f"{folder}/many.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    alone = model()
    train(alone, 0, 1)
    torch.save({k: v.clone() for k, v in alone.state_dict().items()}, f"{sys.argv[2]}/one.pt")
    mp.spawn(run, (sys.argv[1], sys.argv[2]), nprocs=2)
