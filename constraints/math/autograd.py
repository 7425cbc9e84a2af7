"""What an autograd Function needs in order to be differentiated in every mode, at any order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from constrained.torch_internals.functions import direct, outside
from constrained.torch_internals.moments import in_forward_mode, in_transform, is_traced
from constrained.torch_internals.moments import untraced as untraced
from constrained.torch_internals.tensors import is_transformed


class DirectFunction(Function):
    """A `Function` of positional arguments, applied without delay.

    For the sake of torch.func, `Function.apply` first matches its arguments to the signature of
    `forward`: it takes longer than a small matrix. Outside of torch.func there is no need to.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """The outputs of `forward`."""
        return super().apply(*args) if in_transform() else direct(cls)(*args)


def goes_by_operator() -> bool:
    """Whether a tracer watches, which takes an operator and no Python that branches on numbers."""
    return torch.compiler.is_compiling() or is_traced()


def has_numbers(X: Tensor) -> bool:
    """Whether Python may branch on the numbers of X: not on meta, nor when traced or batched."""
    return type(X) in (Tensor, Parameter) and not X.is_meta and not is_transformed(X)


def needs_derivative(X: Tensor) -> bool:
    """Whether what is computed from X may be differentiated, by what is seen here, or traced.

    If not, its numbers are at hand, on the CPU: elsewhere to branch on them means to wait.
    """
    return (
        goes_by_operator()
        or not (X.is_cpu and has_numbers(X))
        or (torch.is_grad_enabled() and X.requires_grad)
        or in_forward_mode()
    )


def nestable(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `jvp` of a `Function` that nests, from ``rule(ctx, saved_tensors, *tangents)``.

    See `constrained.torch_internals.functions.outside`.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return outside(functools.partial(rule, ctx), ctx.saved_tensors, tangents)

    return jvp


def in_front(
    info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]
) -> Iterator[Tensor]:
    """The inputs of a `vmap` rule with the new dimension in front, as one more batch dimension."""
    for x, dim in zip(inputs, in_dims, strict=True):
        yield x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
