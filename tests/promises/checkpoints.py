"""Models and checkpoints for the tests of E06 and E07."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs

from constrained import constrain, get

#: Every constraint of the catalogue that the promises speak of, and the shape it is tried on.
CATALOGUE = {
    "interval(low=-1.0, high=2.0)": (4, 3),
    "low_rank(rank=2)": (5, 4),
    "nonnegative": (4, 3),
    "orthogonal": (5, 3),
    "orthogonal(map='cayley')": (4, 4),
    "positive": (4, 3),
    "positive_definite": (4, 4),
    "rank_one": (4, 3),
    "simplex": (4, 3),
    "skew": (4, 4),
    "spectral_norm(bound=0.5)": (4, 3),
    "sphere": (4, 3),
    "symmetric": (4, 4),
}


class Held(nn.Module):
    """A module with one parameter of any shape, called ``weight``, and a plain one."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(value.detach().clone())
        self.bias = nn.Parameter(torch.zeros(2))


def member(spec, shape, dtype=torch.float32):
    """A random member of the set that a spec string names."""
    name = spec.partition("(")[0]
    arguments = eval(f"dict{spec[len(name) :] or '()'}")
    constraint = get(name)(**arguments)
    sample = constraint.sample(shape, dtype=torch.float64)
    return constraint.project(sample.to(dtype))


def constrained_and_plain(spec, shape, dtype=torch.float32):
    """A constrained model, and a plain one that holds another member of the set."""
    model = constrain(Held(member(spec, shape, dtype)), "weight", spec, init="sample")
    return model, Held(member(spec, shape, dtype))


def network():
    """Layers, ties, buffers, a module with extra state."""
    return Network()


class Counter(nn.Module):
    """A module with extra state."""

    def __init__(self):
        super().__init__()
        self.count = 3
        self.scale = nn.Parameter(torch.ones(2))

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


class Network(nn.Module):
    """Tied weights, buffers of both kinds, extra state, children between parameters."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4, 4))
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.rand(3, 4))
        self.register_buffer("scratch", torch.rand(3, 3), persistent=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder[0].weight
        self.counter = Counter()

    def forward(self, x):
        return self.decoder(self.encoder(x @ self.gain)) + self.shift


SPECS = {
    "encoder.0.weight": "orthogonal",
    "gain": "low_rank(rank=2)",
    "table": "simplex",
    "scratch": "symmetric",
    "encoder.1.running_var": "positive",
}


def same(a, b):
    """Whether two state dicts have the same keys, in the same order, and equal values."""
    return list(a) == list(b) and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def bits(model):
    """All that a model holds, to compare before and after: identities, and copies of contents."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = {k: copy.deepcopy(v) for k, v in model.state_dict().items()}
    return [(name, id(t)) for name, t in tensors], state


def trained(model, steps=4, lr=0.05):
    """The same model, after some steps; in the end it is in evaluation mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    columns = model.weight.shape[1]
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.ones(2, columns)) - 1).pow(2).sum().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model(torch.ones(2, columns))  # The old hooks set the weight here.
    return model


def converged_spectral_norm(linear, old=False):
    """A layer under torch's ``spectral_norm``, whose estimate of the norm has settled."""
    function = torch.nn.utils.spectral_norm if old else torchs.spectral_norm
    with torch.no_grad():
        u, s, v = torch.linalg.svd(linear.weight, full_matrices=False)
        s[0] = 3 * s[0]
        linear.weight.copy_((u * s) @ v)
    model = function(linear, n_power_iterations=50)
    model.train()
    model(torch.ones(2, linear.in_features))
    return model.eval()
