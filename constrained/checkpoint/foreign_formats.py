"""Readers of state dicts that other parametrizations wrote: from their entries to the value.

The entries are the parameters of a foreign map, so the value of the tensor is computed from them by
the formula of the library that wrote them: ``weight_norm``, ``spectral_norm`` and ``orthogonal`` of
torch, with their present and their former keys, and geotorch's manifolds. The keys do not always
tell which formula it is: they are the same for ``matrix_exp`` and ``cayley``, for example. `read`
says what was assumed, and what else the keys may mean.

A new format is a function in `_READERS`, under the set of the keys that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained.torch_internals import linalg
from constrained.torch_internals.tensors import has_values

#: The entries of a tensor by their keys; or its possible values by what may have written the
#: entries, the likeliest first.
Values = dict[str, Tensor]


#: What is appended to a tensor's name in checkpoints that store its originals beside it, and the
#: keys under ``parametrizations`` that mean the same. These are the hooks ``weight_norm`` and
#: ``spectral_norm`` of ``torch.nn.utils``; the endings of another library go here as well.
OLD_ENDINGS: tuple[Mapping[str, str], ...] = (
    {"_g": "original0", "_v": "original1"},
    {"_orig": "original", "_u": "0._u", "_v": "0._v"},
)


def read(
    entries: Mapping[str, Any], shape: torch.Size, names: Collection[str]
) -> tuple[Tensor, str, tuple[str, ...]] | None:
    """The value that the entries of a parametrized tensor mean, or None if they are unknown.

    Args:
        entries: the entries of a state dict under ``parametrizations.<tensor>.``.
        shape: the shape of the tensor.
        names: the names of the constraint that the value is for. If several of geotorch's manifolds
            write the same keys, the one with such a name is assumed.

    Returns:
        The value; what is assumed to have written the entries; and what else may have written the
        same keys for another value.
    """
    reader = _READERS.get(frozenset(entries))
    if reader is None or not all(isinstance(t, Tensor) and has_values(t) for t in entries.values()):
        return None
    found = reader({key: _precise(t) for key, t in entries.items()}, shape, names)
    if not found:
        return None
    (origin, value), *rest = found.items()
    # The last original has the dtype and the device of the value.
    like = entries[max(key for key in entries if key.startswith("original"))]
    others = tuple(name for name, other in rest if not agree(value, other, like.dtype))
    return value.to(like), origin, others


def agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two values are the same up to rounding errors in ``dtype``."""
    if a.shape != b.shape:
        return False
    if not (has_values(a) and has_values(b)):
        return True
    a, b = _precise(a), _precise(b).to(a.device)
    bound = torch.finfo(dtype).eps ** 0.75
    return bool(linalg.vector_norm(a - b) <= bound * linalg.vector_norm(a))


def _precise(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type == "mps":  # has no double precision
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


# ------------------------------------------------------------------------------------------ torch


def _weight_norm(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    del names
    g, v = entries["original0"], entries["original1"]
    # The norm is taken over all dimensions but one. A dimension of length 1 does not matter.
    over = [d for d in range(v.ndim) if g.ndim == 0 or (g.ndim == v.ndim and g.shape[d] == 1)]
    scale = [1 if d in over else v.shape[d] for d in range(v.ndim)]
    if v.shape != shape or list(g.shape) != (scale if g.ndim else []) or v.ndim - len(over) > 1:
        return {}
    norm = linalg.vector_norm(v, dim=over, keepdim=True) if over else v.abs()
    return {"torch's weight_norm": v * (g / norm)}


def _spectral_norm(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    del names
    weight, u, v = entries["original"], entries["0._u"], entries["0._v"]
    sizes = [u.numel(), v.numel()]
    rows = [d for d, n in enumerate(shape) if [n, shape.numel() // max(n, 1)] == sizes]
    if weight.shape != shape or not rows:
        return {}
    # The weight is taken as a matrix whose rows are one of its dimensions, and u and v are close to
    # the first singular vectors: of the dimensions that fit, take the one with the largest u' W v.
    norms = [torch.vdot(u, weight.movedim(d, 0).flatten(1) @ v) for d in rows]
    return {"torch's spectral_norm": weight / max(norms, key=lambda norm: float(norm.abs()))}


def _one_base(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    X, base = entries["original"], entries["0.base"]
    n = max(shape[-2:], default=0)
    if X.shape != shape:
        return {}
    sphere = {"geotorch.sphere": _sphere(X, base)} if base.shape == shape else {}
    if base.shape != (*shape[:-2], n, n) or len(shape) < 2:
        return sphere
    rows_are_units = torch.allclose(linalg.vector_norm(base, dim=-1), torch.ones(()).to(base))
    square = base.mH @ base
    if not torch.allclose(square, torch.eye(n).to(base), atol=0.1):
        return sphere if rows_are_units else {}
    orthogonal = _orthogonal(X, base)
    # An orthogonal matrix is hardly ever the base of a sphere, but its rows lie on one.
    return {**sphere, **orthogonal} if "sphere" in names else orthogonal


def _orthogonal(X: Tensor, base: Tensor) -> Values:
    wide = X.shape[-2] < X.shape[-1]
    X = X.mT if wide else X
    curves = {
        f"the orthogonal of torch or geotorch with {name}": _columns(X, base, curve)
        for name, curve in _CURVES.items()
    }
    # torch puts -1 on the diagonal and does not train it: these are the signs of its reflectors,
    # and its other maps do not use them. geotorch starts with 0.
    signs = X.diagonal(dim1=-2, dim2=-1)
    reflectors: Values = {}
    if not X.is_complex() and bool((signs.abs() == 1).all()):
        A = X.tril(-1)
        Q = linalg.householder_product(A, 2 / (1 + (A * A).sum(-2)))
        reflectors = {"the orthogonal of torch with householder": base @ (Q * signs.unsqueeze(-2))}
    # torch's default depends on the shape.
    square = X.shape[-2] == X.shape[-1]
    values = {**curves, **reflectors} if square else {**reflectors, **curves}
    return {origin: value.mT if wide else value for origin, value in values.items()}


def _cayley(A: Tensor) -> Tensor:
    eye = torch.eye(A.shape[-1]).to(A)
    return linalg.solve(eye - A / 2, eye + A / 2)


_CURVES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "the exponential": torch.matrix_exp,
    "the Cayley map": _cayley,
}


def _columns(X: Tensor, base: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
    """The first columns of ``base curve(A)``, with the skew A whose lower triangle X holds."""
    n, p = X.shape[-2:]
    lower = F.pad(X.tril(-1), (0, n - p))
    return (base @ curve(lower - lower.mH))[..., :p]


# --------------------------------------------------------------------------------------- geotorch


def _sphere(v: Tensor, base: Tensor) -> Tensor:
    v = v - (v * base).sum(-1, keepdim=True) * base
    norm = linalg.vector_norm(v, dim=-1, keepdim=True)
    return norm.cos() * base + torch.sinc(norm / torch.pi) * v


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x) + 1e-6


_EIGENVALUES = {"positive_definite": _softplus, "positive_semidefinite": torch.abs}

_SINGULAR_VALUES = {"low_rank": torch.Tensor.clone, "invertible": _softplus}


def _eigenvectors(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    X, base = entries["original"], entries["0.0.base"]
    if X.shape != shape or base.shape != shape or len(shape) < 2:
        return {}
    values: Values = {}
    for manifold in _named(_EIGENVALUES, names):
        L = _EIGENVALUES[manifold](X.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)
        for name, curve in _CURVES.items():
            Q = _columns(X, base, curve)
            values[f"geotorch.{manifold} with {name}"] = (Q * L) @ Q.mT
    return values


def _singular_vectors(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    X, left, right = entries["original"], entries["0.0.base"], entries["0.2.base"]
    if X.shape != shape or len(shape) < 2:
        return {}
    wide = shape[-2] < shape[-1]
    X = X.mT if wide else X
    n, p = X.shape[-2:]
    if (left.shape[-1], right.shape[-1]) != (n, p):
        return {}
    values: Values = {}
    for manifold in _named(_SINGULAR_VALUES, names):
        # The rank is not saved; beyond it the coordinates are zero.
        S = _SINGULAR_VALUES[manifold](X.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)
        for name, curve in _CURVES.items():
            U, V = _columns(X, left, curve), _columns(X[..., :p, :].mT, right, curve)
            value = (U * S) @ V.mT
            values[f"geotorch.{manifold} with {name}"] = value.mT if wide else value
    return values


def _triangle(entries: Values, shape: torch.Size, names: Collection[str]) -> Values:
    X = entries["original"]
    if X.shape != shape or not {"symmetric", "skew"}.intersection(names):
        return {}
    # The constraints here keep X symmetric or skew, up to noise. geotorch does not change the upper
    # triangle: it is arbitrary for its symmetric manifold, and zero for its skew one.
    asymmetry = linalg.matrix_norm(X - X.mT) / linalg.matrix_norm(X)
    if "symmetric" in names and bool((asymmetry > 0.1).any()):
        return {
            "geotorch.symmetric": X.tril() + X.tril(-1).mT,
            "a map that takes the upper triangle, as in torch's tutorial": (
                X.triu() + X.triu(1).mT
            ),
        }
    if "skew" in names and not bool(X.triu().any()):
        return {"geotorch.skew": X.tril(-1) - X.tril(-1).mT}
    return {}


def _named(manifolds: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """All the manifolds, first the one that has one of the names; none if none has."""
    ordered = sorted(manifolds, key=lambda manifold: manifold not in names)
    return ordered if ordered[0] in names else []


_READERS: Mapping[frozenset[str], Callable[[Values, torch.Size, Collection[str]], Values]] = {
    frozenset({"original0", "original1"}): _weight_norm,
    frozenset({"original"}): _triangle,
    frozenset({"original", "0._u", "0._v"}): _spectral_norm,
    frozenset({"original", "0.base"}): _one_base,
    frozenset({"original", "0.0.base"}): _eigenvectors,
    frozenset({"original", "0.0.base", "0.2.base"}): _singular_vectors,
}
