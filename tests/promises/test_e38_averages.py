"""E38: the average of a constrained model lies in the set."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import constrained
from constrained.constraint import registry

EXAMPLES = [
    pytest.param(cls, kwargs, event, id=f"{cls.name}-{i}")
    for cls in map(registry.get, registry.names())
    for i, (kwargs, event) in enumerate(cls.examples)
]


@pytest.mark.parametrize(("cls", "kwargs", "event"), EXAMPLES)
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_e38_the_average_is_in_the_set(cls, kwargs, event, kind):
    m = nn.Module()
    m.register_parameter("w", nn.Parameter(cls(**kwargs).sample((2, *event))))
    constrained.constrain(m, "w", cls(**kwargs))
    how = {"multi_avg_fn": get_ema_multi_avg_fn(0.8)} if kind == "ema" else {}
    average = AveragedModel(m, use_buffers=kind == "swa", **how)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        (m.w * torch.randn(m.w.shape) * (step + 1)).sum().backward()
        optimizer.step()
        average.update_parameters(m)
    constrained.assert_feasible(average)
    assert average.module.w is not m.w
    twin = copy.deepcopy(average)
    constrained.assert_feasible(twin)
    assert torch.equal(twin.module.w, average.module.w)


def test_e38_batch_normalization_of_an_average():
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    constrained.constrain(m, {"0.weight": "sphere", "1.weight": "positive"})
    average = AveragedModel(m)
    average.update_parameters(m)
    update_bn([torch.randn(8, 3) for _ in range(3)], average)
    constrained.assert_feasible(average)
    assert average.module[1].num_batches_tracked == 3
