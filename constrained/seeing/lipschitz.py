"""An upper bound of a network's Lipschitz constant in the 2-norm: the product of its layers'."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from constrained.parametrized.module_class import base_class
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.tensor_locations import is_parametrized, list_of
from constrained.seeing.spectrum import LONGEST_SIDE, seen, singular_values
from constrained.torch_internals.modules import hooks_of
from constrained.torch_internals.tensors import has_values


class Lipschitz(NamedTuple):
    """How much a network stretches the distance of two inputs at most.

    Attributes:
        bound: the product of the layers' constants in the 2-norm; None if a layer has none.
        reason: why there is none.
    """

    bound: float | None
    reason: str = ""


#: That of a report without rows.
NOT_ASKED = Lipschitz(None)


class _NoBound(Exception):
    pass


#: Layers that stretch no distance, whatever their arguments.
_CONTRACTIONS = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softplus),
    *(nn.LogSigmoid, nn.Hardtanh, nn.Softsign, nn.Softshrink, nn.Tanhshrink, nn.CELU),
)

#: Layers whose constant follows from their arguments.
_CONSTANTS: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.Sigmoid: lambda _: 0.25,
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.PReLU: lambda layer: max(1.0, float(layer.weight.detach().abs().max())),
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    # In training mode what is not dropped is enlarged.
    nn.Dropout: lambda layer: 1 / (1 - layer.p) if layer.training and layer.p < 1 else 1.0,
}

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


@torch.no_grad()
def lipschitz(model: nn.Module) -> Lipschitz:
    r"""An upper bound of :math:`\lVert f(x) - f(y) \rVert_2 / \lVert x - y \rVert_2`.

    It is the product of the constants of the layers, as their weights are now: of a linear layer
    the largest singular value; of a convolution what its constraint certifies, as
    `spectral_norm_conv` and `orthogonal_conv` do, or else the norm of its kernel as a matrix times
    the root of how many patches share a point; and of an activation its steepest slope. All layers
    must be known, and stand in an ``nn.Sequential``, which may hold others.

    Args:
        model: the network, or a single layer.

    Example:
        >>> import constrained
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = constrained.constrain(net, "*.weight", "spectral_norm(bound=0.5)", init="sample")
        >>> lipschitz(net).bound <= 0.25
        True
        >>> lipschitz(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))).reason
        "'1' is a LayerNorm, for which no constant is known"
    """
    kind = base_class(model)
    product = 1.0
    if not is_layered(model):
        return Lipschitz(None, f"{kind.__name__} is neither nn.Sequential nor a known layer")
    try:
        if not _is_sequence(model):
            return Lipschitz(_constant(kind.__name__, model))
        for path, layer in _layers(model, ""):
            product *= _constant(path, layer)
    except _NoBound as error:
        return Lipschitz(None, str(error))
    return Lipschitz(product)


def is_layered(model: nn.Module) -> bool:
    """Whether a network is a known layer or an ``nn.Sequential``, so that there may be a bound."""
    kind = base_class(model)
    return kind is nn.Linear or kind in _CONVOLUTIONS or _is_sequence(model)


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module applies others one after another, and does nothing else."""
    kind: Any = base_class(module)
    return isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward


def _layers(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    _check_hooks(f"'{prefix}'" if prefix else "the network", model)
    for name, layer in model.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _is_sequence(layer):
            yield from _layers(layer, path)
        else:
            yield path, layer


def _check_hooks(name: str, module: nn.Module) -> None:
    if any(hooks_of(module)):
        raise _NoBound(f"{name} has hooks, which may change what it does")


def _constant(path: str, layer: nn.Module) -> float:
    kind = base_class(layer)
    _check_hooks(f"'{path}'", layer)
    if kind in _CONTRACTIONS:
        return 1.0
    if kind in _CONSTANTS:
        return _CONSTANTS[kind](layer)
    if kind is nn.Linear:
        return _norm_of_matrix(path, layer.weight)  # type: ignore[arg-type]
    if kind in _CONVOLUTIONS:
        return _norm_of_convolution(path, layer)
    raise _NoBound(f"'{path}' is a {kind.__name__}, for which no constant is known")


def _norm_of_matrix(path: str, weight: Tensor) -> float:
    if not has_values(weight):
        raise _NoBound(f"'{path}' has no numbers")
    if not bool(torch.isfinite(weight).all()):
        raise _NoBound(f"'{path}' has weights that are NaN or infinite")
    if min(weight.shape[-2:]) > LONGEST_SIDE:
        raise _NoBound(f"the singular values of '{path}' would take long")
    return float(singular_values(weight.double()).amax())


def _norm_of_convolution(path: str, layer: Any) -> float:
    weight: Tensor = layer.weight
    found = list_of(layer, "weight") if is_parametrized(layer, "weight") else None
    constraint: Any = found.constraint() if isinstance(found, ParametrizationList) else None
    if constraint is not None:
        constraint, elements = seen(constraint, weight)
        certified: Callable[[Tensor], Tensor] | None = getattr(constraint, "norm", None)
        if elements is weight and certified is not None and has_values(weight):
            return float(certified(weight).amax())
    kernel, stride, dilation = weight.shape[2:], layer.stride, layer.dilation
    axes = enumerate(zip(kernel, dilation, strict=True))
    growth = [_border(layer, axis) - d * (k - 1) for axis, (k, d) in axes]
    if layer.padding_mode != "zeros" and not (
        layer.padding_mode == "circular" and max(growth) <= 0
    ):
        raise _NoBound(
            f"'{path}' pads by {layer.padding_mode!r}, for which no constant is known unless its "
            "constraint is spectral_norm_conv"
        )
    # A point is in no more patches than there are taps that meet it as the kernel strides. Around
    # a circle whose length the stride does not divide, all of them may.
    strided = layer.padding_mode == "zeros"
    patches = math.prod(
        math.ceil(k / (s // math.gcd(s, d))) if strided else k
        for k, s, d in zip(kernel, stride, dilation, strict=True)
    )
    groups = weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    return _norm_of_matrix(path, groups) * patches**0.5


def _border(layer: Any, axis: int) -> int:
    """By how much padding makes an axis longer."""
    padding, dilation, kernel = layer.padding, layer.dilation[axis], layer.kernel_size[axis]
    if isinstance(padding, str):
        return dilation * (kernel - 1) if padding == "same" else 0
    return 2 * padding[axis]
