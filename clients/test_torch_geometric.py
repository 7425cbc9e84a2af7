"""PyTorch Geometric: its own linear layer, message passing, heterogeneous and compiled models."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, Linear, RGCNConv, SAGEConv, to_hetero
from trained import same, trains

from constrained import assert_feasible, baked_state_dict, constrain

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


class Network(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.first, self.second = conv(), conv()

    def forward(self, x, edges):
        return self.second(self.first(x, edges).relu(), edges)


class RelationalNetwork(Network):
    def forward(self, x, edges, relations):
        return self.second(self.first(x, edges, relations).relu(), edges, relations)


def gcn():
    return constrain(Network(lambda: GCNConv(6, 6)), "*.lin.weight", "orthogonal")


def sage():
    return constrain(
        Network(lambda: SAGEConv(6, 6)),
        {"*.lin_l.weight": "spectral_norm", "*.lin_r.weight": "low_rank(rank=2)"},
    )


def gat():
    network = Network(lambda: GATConv(6, 3, heads=2))
    return constrain(network, {"*.lin.weight": "orthogonal", "*.att_src": "sphere"})


def rgcn():
    network = RelationalNetwork(lambda: RGCNConv(6, 6, num_relations=2))
    return constrain(network, "*.weight", "orthogonal")


MODELS = {"gcn": gcn, "sage": sage, "gat": gat, "rgcn": rgcn}


def inputs(model):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    relations = [torch.tensor([0, 1, 0, 1, 0, 1])] if isinstance(model, RelationalNetwork) else []
    return x, EDGES, *relations


def fit(model, steps=3):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(*inputs(model)) - 1).square().mean().backward()
        optimizer.step()


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_it_trains(model):
    with trains(model):
        fit(model)


def test_copies_and_checkpoints(model):
    fit(model)
    twin = copy.deepcopy(model)
    same(model, twin)
    fit(twin)
    twin.load_state_dict(model.state_dict())
    same(model, twin)
    fit(twin)
    twin.load_state_dict(baked_state_dict(model))
    same(model, twin, 1e-5)
    torch.testing.assert_close(twin(*inputs(twin)), model(*inputs(model)))


def test_reset_parameters(model):
    before = copy.deepcopy(model)
    for conv in (model.first, model.second):
        conv.reset_parameters()
    assert_feasible(model)
    assert not torch.equal(model(*inputs(model)), before(*inputs(model)))


def test_batches_of_graphs():
    model = gcn()
    graphs = [Data(x=torch.randn(5, 6), edge_index=EDGES) for _ in range(4)]
    with trains(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for batch in DataLoader(graphs, batch_size=2):
            optimizer.zero_grad()
            (model(batch.x, batch.edge_index) - 1).square().mean().backward()
            optimizer.step()


def test_a_linear_layer_that_learns_its_width():
    layer = Linear(-1, 4)
    # It is lazy in a way of its own, without the class by which torch's lazy layers are known.
    with pytest.raises(ValueError, match="materialize the tensor first"):
        constrain(layer, "weight", "orthogonal")
    layer(torch.ones(2, 6))
    constrain(layer, "weight", "orthogonal")
    with trains(layer):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        layer(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()


def test_heterogeneous_graphs():
    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(5, 6), torch.randn(5, 6)
    data["a", "to", "b"].edge_index = data["b", "from", "a"].edge_index = EDGES
    model = to_hetero(Network(lambda: SAGEConv(6, 6)), data.metadata())
    constrain(model, "**.lin_l.weight", "orthogonal")
    with trains(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        out = model(data.x_dict, data.edge_index_dict)
        sum((x - 1).square().mean() for x in out.values()).backward()
        optimizer.step()


def test_heterogeneous_models_of_constrained_ones():
    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(5, 6), torch.randn(5, 6)
    data["a", "to", "b"].edge_index = data["b", "from", "a"].edge_index = EDGES
    model = to_hetero(sage(), data.metadata())
    out = model(data.x_dict, data.edge_index_dict)
    assert out["a"].shape == (5, 6)
    assert_feasible(model)
