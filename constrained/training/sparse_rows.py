"""Sparse gradients of projected tensors: those of the rows of an embedding that were looked up.

The gradient of ``nn.Embedding`` is dense unless it is made with ``sparse=True``, although most of
its rows are zero. If plain SGD is given such a gradient in sparse form, it moves the same rows to
the same bits, and only these have to be brought back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.atomic.contents import is_finite
from constrained.attached.attached_constraint import AttachedConstraint

#: Tensors of fewer rows are treated as a whole.
_LEAST = 4096

#: A gradient is sparse if at most one of this many rows is not zero.
_SPARSE = 8

#: After gradients that are not sparse, at most this many steps pass until it is tried again.
_PATIENCE = 64


def prepare_rows(tensor: AttachedConstraint, parameter: Tensor, sign: int) -> Tensor:
    """Make a sparse gradient admissible.

    Args:
        tensor: what is known of the parameter.
        parameter: of shape ``(rows, *)``, with a sparse gradient.
        sign: 1 if the optimizer goes down the gradient, and -1 if up.

    Returns:
        Tensor of integers, of shape ``(moved rows,)``: the rows that the step moves.

    Raises:
        TypeError: if the constraint is not on rows, or the gradient not sparse in rows alone.
    """
    constraint, gradient = tensor.constraint(), parameter.grad
    assert gradient is not None
    is_of_rows = constraint.event_dim is not None and constraint.event_dim < parameter.ndim
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1 or not is_of_rows:
        raise TypeError(
            f"'{tensor.path}': {constraint!r} is on the whole tensor, and its gradient is "
            "sparse; make the layer with sparse=False."
        )
    gradient = gradient.coalesce()
    rows: Any = gradient.indices()[0]
    found = sign * constraint.admissible(parameter[rows], sign * gradient.values())
    parameter.grad = torch.sparse_coo_tensor(
        gradient.indices(), found, gradient.shape, is_coalesced=True, check_invariants=False
    )
    return rows


class ZeroRows:
    """Makes dense gradients sparse for the time of a step, if most of their rows are zero.

    Args:
        tensor: what is known of the parameter.
        parameter: of shape ``(rows, *)``.
    """

    def __init__(self, tensor: AttachedConstraint, parameter: Tensor) -> None:
        event_dim = tensor.constraint().event_dim
        self._is_of_rows = event_dim is not None and event_dim < parameter.ndim
        self._wait = self._failures = 0
        self._dense: Tensor | None = None

    def make_sparse(self, parameter: Tensor) -> bool:
        """Replace a dense gradient, for an optimizer that treats a sparse one alike.

        Returns:
            Whether it did so. If the gradient is not finite, it does not.
        """
        gradient: Any = parameter.grad
        if not self._is_of_rows or len(parameter) < _LEAST or type(gradient) is not Tensor:
            return False
        if not gradient.numel() or not gradient.is_contiguous():
            return False
        if self._wait:
            self._wait -= 1
            return False
        # The bytes of a number are zero if it is, and have neither NaN nor underflow.
        rows = gradient.flatten(1).view(torch.uint8).amax(1).nonzero().squeeze(-1)
        values = gradient[rows]
        if len(rows) * _SPARSE > len(parameter) or not is_finite(values):
            self._wait = min(2**self._failures, _PATIENCE)
            self._failures += 1
            return False
        self._failures, self._dense = 0, gradient
        parameter.grad = torch.sparse_coo_tensor(
            rows[None], values, gradient.shape, is_coalesced=True, check_invariants=False
        )
        return True

    def put_back(self, parameter: Tensor) -> None:
        """Give the parameter its dense gradient again, with the values of the sparse one."""
        dense, self._dense = self._dense, None
        if dense is not None and parameter.grad is not None and parameter.grad.is_sparse:
            found = parameter.grad.coalesce()
            dense[found.indices()[0]] = found.values()
            parameter.grad = dense
