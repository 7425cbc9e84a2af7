"""How originals, the tensors that a parametrized tensor is computed from, are registered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from constrained.atomic.contents import attributes, own, store
from constrained.constraint.base import Constraint
from constrained.evaluation.evaluated_tensor import EvaluatedTensor


def register_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a parameter as a parameter, and any other tensor as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def register_originals(
    parametrizations: EvaluatedTensor, original: Tensor, new: Tensor | Sequence[Tensor]
) -> None:
    """Register the originals ``new``. ``original`` becomes one of them if that is possible.

    An optimizer may hold ``original``. So it stays the same object if there is one original, or
    only one that is trained: its contents are replaced.

    Args:
        parametrizations: the list that is to hold the originals.
        original: the tensor that is parametrized.
        new: what the right inverse gave.
    """
    if isinstance(new, Tensor):
        store(original, new)
        register_tensor(parametrizations, "original", original)
        return
    first = parametrizations.chain()[0]
    frozen = first.frozen if isinstance(first, Constraint) else ()
    trained = [i for i in range(len(new)) if i not in frozen]
    for i, tensor in enumerate(new):
        name = f"original{i}"
        if i in frozen:
            parametrizations.register_buffer(name, own(tensor))
        elif trained == [i] and frozen and tensor.dtype == original.dtype:
            store(original, tensor)
            register_tensor(parametrizations, name, original)
        else:
            copied = copy_like(tensor, [original], parametrizations.is_parameter)
            register_tensor(parametrizations, name, copied)


def copy_like(value: Tensor, originals: Sequence[Tensor], is_parameter: bool) -> Tensor:
    """A copy of a value, with ``requires_grad`` and attributes of other tensors.

    Args:
        value: the numbers, shape and dtype of the copy.
        originals: the copy requires a gradient if one of these does, and has the attributes that
            users have set on them.
        is_parameter: whether to make an ``nn.Parameter``; else a plain tensor.
    """
    requires_grad = any(t.requires_grad for t in originals)
    copied = own(value)
    if is_parameter:
        copied = nn.Parameter(copied, requires_grad)
    # A compiler cannot trace the dictionary of a tensor.
    if not torch.compiler.is_compiling():
        vars(copied).update(attributes(originals))
    return copied.requires_grad_(requires_grad)
