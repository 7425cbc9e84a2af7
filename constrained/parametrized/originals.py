"""How the tensors that a parametrized tensor is computed from are made and registered."""

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
    """Register the originals ``new``; ``original`` turns into one of them where it can.

    An optimizer knows the tensor by ``original``. So this keeps its identity if there is one
    original, or only one that is trained: it is then written in place.

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
            mine = copy_like(tensor, [original], parametrizations.is_parameter)
            register_tensor(parametrizations, name, mine)


def copy_like(value: Tensor, originals: Sequence[Tensor], is_parameter: bool) -> Tensor:
    """A copy of a value that takes over what is known of other tensors.

    Args:
        value: the numbers, shape and dtype of the copy.
        originals: the copy requires a gradient if one of them does, and has the attributes that
            users have set on them.
        is_parameter: make an ``nn.Parameter``, not a plain tensor.
    """
    requires_grad = any(t.requires_grad for t in originals)
    copied = own(value)
    if is_parameter:
        copied = nn.Parameter(copied, requires_grad)
    # A compiler cannot trace the dictionary of a tensor.
    if not torch.compiler.is_compiling():
        vars(copied).update(attributes(originals))
    return copied.requires_grad_(requires_grad)
