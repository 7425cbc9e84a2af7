"""The same layers made by other libraries, as their users make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import geoopt
import geotorch
import torch
from deel import torchlip
from torch import Tensor, nn
from torch.distributions import transforms
from torch.nn.utils import parametrizations, parametrize

from constrained.constraint.spec import parse

#: As in `benchmarks.training`.
RATE = 0.1

Made = tuple[nn.Module, torch.optim.Optimizer | None]
Maker = Callable[[nn.Linear, str], Made]


class OnManifold(nn.Module):
    """A linear layer whose weight is a parameter of geoopt."""

    def __init__(self, weight: Tensor, manifold: geoopt.Manifold) -> None:
        super().__init__()
        self.weight = geoopt.ManifoldParameter(weight.contiguous(), manifold=manifold)

    def forward(self, x: Tensor) -> Tensor:
        """``x W'``."""
        return nn.functional.linear(x, self.weight)


class Transformed(nn.Module):
    """A parametrization by a differentiable function alone."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: Tensor) -> None:
        super().__init__()
        self.function, self.start = function, start

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(x)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The free parameters to start from."""
        return self.start


def _torch(function: Callable[..., nn.Module], **arguments: object) -> Maker:
    return lambda layer, spec: (function(layer, "weight", **arguments), None)


def _geotorch(name: str, **arguments: object) -> Maker:
    def make(layer: nn.Linear, spec: str) -> Made:
        given = parse(spec).constraint.arguments()
        given = {key: given[key] for key in given if key == "rank"}
        return getattr(geotorch, name)(layer, "weight", **given, **arguments), None

    return make


def _torchlip(eps_bjorck: float | None) -> Maker:
    def make(layer: nn.Linear, spec: str) -> Made:
        made = torchlip.SpectralLinear(
            layer.in_features, layer.out_features, bias=False, eps_bjorck=eps_bjorck
        )
        return made, None

    return make


def _geoopt(manifold: Callable[[], geoopt.Manifold]) -> Maker:
    def make(layer: nn.Linear, spec: str) -> Made:
        start = parse(spec).constraint.sample(
            layer.weight.shape, generator=torch.Generator().manual_seed(0)
        )
        module = OnManifold(start, manifold())
        return module, geoopt.optim.RiemannianSGD(module.parameters(), lr=RATE)

    return make


def _through(function: Callable[[Tensor], Tensor], shape: Callable[[Tensor], Tensor]) -> Maker:
    def make(layer: nn.Linear, spec: str) -> Made:
        start = shape(layer.weight.detach())
        parametrize.register_parametrization(
            layer, "weight", Transformed(function, start), unsafe=True
        )
        return layer, None

    return make


def log_sinkhorn(logits: Tensor, iterations: int = 20) -> Tensor:
    """Rows and columns normalized in turn, unrolled: what users write."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def _correlation(unconstrained: Tensor) -> Tensor:
    factor = transforms.CorrCholeskyTransform()(unconstrained)
    return factor @ factor.mT


def _below_the_diagonal(weight: Tensor) -> Tensor:
    n = weight.shape[-1]
    return weight.flatten()[: n * (n - 1) // 2].clone()


#: By the name of the constraint, then of the peer.
MAKERS: Mapping[str, Mapping[str, Maker]] = {
    "orthogonal": {
        "torch cayley": _torch(parametrizations.orthogonal, orthogonal_map="cayley"),
        "torch exp": _torch(parametrizations.orthogonal, orthogonal_map="matrix_exp"),
        "torch householder": _torch(parametrizations.orthogonal, orthogonal_map="householder"),
        "geotorch exp": _geotorch("orthogonal"),
        "geotorch cayley": _geotorch("orthogonal", triv="cayley"),
        "geoopt RSGD": _geoopt(geoopt.EuclideanStiefel),
        "torchlip Bjorck": _torchlip(1e-3),
    },
    "positive_definite": {
        "geotorch": _geotorch("positive_definite"),
        "geoopt": _geoopt(geoopt.SymmetricPositiveDefinite),
    },
    "low_rank": {"geotorch": _geotorch("low_rank")},
    "sphere": {"geotorch": _geotorch("sphere")},
    "spectral_norm": {
        "torch": _torch(parametrizations.spectral_norm),
        "torchlip": _torchlip(None),
    },
    "doubly_stochastic": {"20 log steps": _through(log_sinkhorn, lambda weight: weight.clone())},
    "correlation": {"torch": _through(_correlation, _below_the_diagonal)},
}
