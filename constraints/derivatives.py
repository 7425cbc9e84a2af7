"""What an autograd Function needs in order to be differentiated in every mode, at any order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import _unwrap_for_grad, _wrap_for_grad, peek_interpreter_stack
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from constrained.constraint import is_transformed


class DirectFunction(Function):
    """A `Function` of positional arguments, applied without delay.

    For the sake of torch.func, `Function.apply` first matches its arguments to the signature of
    `forward`: it takes longer than a small matrix. Outside of torch.func there is no need to.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """The outputs of `forward`."""
        if peek_interpreter_stack() is None:
            return super(Function, cls).apply(*args)  # type: ignore[attr-defined]
        return super().apply(*args)


def goes_by_operator() -> bool:
    """Whether a tracer watches, which takes an operator and no Python that branches on numbers."""
    c: Any = torch._C
    return torch.compiler.is_compiling() or c._get_tracing_state() is not None


def untraced(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of an operator, run unseen by ``torch.jit.trace``, which records the operator."""

    @functools.wraps(body)
    def run(*args: Any) -> Any:
        c: Any = torch._C
        state = c._get_tracing_state()
        if state is None:
            return body(*args)
        c._set_tracing_state(None)
        try:
            return body(*args)
        finally:
            c._set_tracing_state(state)

    return run


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
        or forward_ad._current_level >= 0
    )


def nestable(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `jvp` of a `Function` that nests, from ``rule(ctx, saved_tensors, *tangents)``.

    Torch runs a `jvp` with forward-mode differentiation off, so that of one `torch.func.jvp` inside
    another nothing is left, without a word (pytorch#197867). Here the rule runs outside of the
    transform that it serves, where the others see it.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        if peek_interpreter_stack() is None:
            return rule(ctx, ctx.saved_tensors, *tangents)
        transform = retrieve_current_functorch_interpreter()
        level = transform.level()
        saved, tangents = tree_map_only(
            Tensor, lambda x: _unwrap_for_grad(x, level), (ctx.saved_tensors, tangents)
        )
        with forward_ad._set_fwd_grad_enabled(True), transform.lower():
            result = rule(ctx, saved, *tangents)
        return _wrap_for_grad(result, level)

    return jvp


def in_front(
    info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]
) -> Iterator[Tensor]:
    """The inputs of a `vmap` rule with the new dimension in front, as one more batch dimension."""
    for x, dim in zip(inputs, in_dims, strict=True):
        yield x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
