"""The functions of `torch.linalg` that are used here, with types, which torch does not declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Cholesky(NamedTuple):
    L: Tensor
    info: Tensor


class _Inverse(NamedTuple):
    inverse: Tensor
    info: Tensor


class _SVD(NamedTuple):
    U: Tensor
    S: Tensor
    Vh: Tensor


class _QR(NamedTuple):
    Q: Tensor
    R: Tensor


class _Determinant(NamedTuple):
    sign: Tensor
    logabsdet: Tensor


_torch: Any = torch.linalg
LinAlgError: type[RuntimeError] = _torch.LinAlgError
cholesky_ex: Callable[..., _Cholesky] = _torch.cholesky_ex
eig: Callable[[Tensor], tuple[Tensor, Tensor]] = _torch.eig
eigh: Callable[[Tensor], tuple[Tensor, Tensor]] = _torch.eigh
eigvals: Callable[[Tensor], Tensor] = _torch.eigvals
eigvalsh: Callable[[Tensor], Tensor] = _torch.eigvalsh
householder_product: Callable[[Tensor, Tensor], Tensor] = _torch.householder_product
inv_ex: Callable[[Tensor], _Inverse] = _torch.inv_ex
matrix_exp: Callable[[Tensor], Tensor] = _torch.matrix_exp
matrix_norm: Callable[..., Tensor] = _torch.matrix_norm
qr: Callable[..., _QR] = _torch.qr
slogdet: Callable[[Tensor], _Determinant] = _torch.slogdet
solve: Callable[[Tensor, Tensor], Tensor] = _torch.solve
solve_triangular: Callable[..., Tensor] = _torch.solve_triangular
svd: Callable[..., _SVD] = _torch.svd
svdvals: Callable[[Tensor], Tensor] = _torch.svdvals
vecdot: Callable[[Tensor, Tensor], Tensor] = _torch.vecdot
vector_norm: Callable[..., Tensor] = _torch.vector_norm
