"""Sparse gradients of projected tensors: those of the rows of an embedding that were looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.attached.attached_constraint import AttachedConstraint


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
