"""``torch.fx``: a leaf under torch's engine is one here, and a traced model follows its weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close

import constrained.parametrize as ours
from constrained import constrain, report, violations
from constrained import spec as spec_of
from tests.promises.foreign import Squash

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(observer|quantize):UserWarning"),
]

SPECS = ("orthogonal", "low_rank(rank=2)", "spectral_norm", "positive")


class Own(nn.Module):
    """A class of a user with a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4) / 4)

    def forward(self, x):
        return x @ self.weight


class Tied(nn.Module):
    """Reads the weight of a layer that it calls too."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T)


BASES = {
    "linear": lambda: nn.Linear(4, 4),
    "convolution": lambda: nn.Conv1d(4, 4, 1),
    "embedding": lambda: nn.Embedding(4, 4),
    "norm": lambda: nn.LayerNorm((4, 4)),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "own": Own,
}

MODELS = {
    "a layer": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "0.weight"),
    "a tensor of the root": (Own, "weight"),
    "a tensor of a user's class": (lambda: nn.Sequential(nn.Linear(4, 4), Own()), "1.weight"),
    "a tensor that another module reads": (Tied, "encoder.weight"),
}


def calls(m):
    return [(n.op, n.target) for n in fx.symbolic_trace(m).graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("kind", BASES)
def test_a_module_is_a_leaf_where_it_is_one_under_torchs_engine(kind):
    tracer, found = fx.Tracer(), []
    for P in (torchs, ours):
        m = BASES[kind]()
        with torch.no_grad():
            m.weight.clamp_(-0.5, 0.5)
        P.register_parametrization(m, "weight", Squash())
        found.append([tracer.is_leaf_module(m, "m"), calls(nn.Sequential(m))])
        assert tracer.is_leaf_module(m.parametrizations.weight, "m.parametrizations.weight")
    assert found[0] == found[1]


def rows_of(model):
    """What a report says of the tensors; the tracer gives the root of a model another class."""
    rows = report(model).to_dict().values()
    return [{key: value for key, value in row.items() if key != "module"} for row in rows]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_traced_model_runs_trains_and_follows_the_weight(kind, spec):
    torch.manual_seed(0)
    make, path = MODELS[kind]
    m = constrain(make(), path, spec)
    x = torch.randn(3, 4)
    traced = fx.symbolic_trace(m)
    assert [n for n, _ in traced.named_parameters()] == [n for n, _ in m.named_parameters()]
    optimizer, twin = torch.optim.SGD(traced.parameters(), lr=0.1), copy.deepcopy(m)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        for model, o in ((traced, optimizer), (twin, plain)):
            o.zero_grad()
            model(x).square().sum().backward()
            o.step()
        assert_close(traced(x), twin(x))
    with torch.no_grad():
        assert_close(traced(x), m(x))
        assert_close(copy.deepcopy(traced)(x), m(x))
        assert_close(pickle.loads(pickle.dumps(traced))(x), m(x))
    for look in (spec_of, violations, rows_of):
        assert look(traced) == look(m)
    assert list(violations(m)) == [path]
    assert max(violations(m).values()) < 1e-5
    # Nothing is left of the tracer.
    m(x).sum().backward()


def test_one_evaluation_after_tracing_as_before():
    m = constrain(nn.Linear(4, 4), "weight", "sphere")
    fx.symbolic_trace(nn.Sequential(m))
    assert m.weight is m.weight


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_quantization_by_graphs_takes_a_constrained_model():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    constrain(m, "0.weight", "orthogonal")
    x = torch.randn(8, 4)
    prepared = quantize_fx.prepare_fx(m, get_default_qconfig_mapping("fbgemm"), (x,))
    assert_close(prepared(x), m(x))
    converted = quantize_fx.convert_fx(prepared)
    assert "quantized" in type(converted.get_submodule("2")).__module__
    assert float((converted(x) - m(x)).detach().abs().max()) < 0.1
