"""Functions whose code branches on numbers, made differentiable and visible to tracers.

The cheapest way to compute a polar factor, say, depends on the numbers in the matrix. Autograd
cannot differentiate such a function by recording it, and a tracer (torch.compile, torch.export,
torch.jit.trace) or the meta device has no numbers to branch on. `differentiable` wraps the function
for both: as a `Function` with a derivative of its own, and as an opaque operator of
``torch.library`` that a tracer records and that sees the numbers when the traced graph runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from constrained.constraint.precision import autocast_disabled
from constrained.torch_internals.functions import direct, outside
from constrained.torch_internals.modes import in_forward_mode, in_transform, is_traced, untraced
from constrained.torch_internals.tensors import is_transformed


class DirectFunction(Function):
    """A `Function` of positional arguments with less overhead per call.

    `Function.apply` first binds its arguments to the signature of `forward`, for torch.func. That
    takes longer than the arithmetic of a small matrix, so it is skipped where torch.func is not
    active.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """The outputs of `forward`."""
        return cast("Any", super()).apply(*args) if in_transform() else direct(cls)(*args)


def goes_by_operator() -> bool:
    """Whether a tracer is active, so that code that branches must be called as an operator."""
    return torch.compiler.is_compiling() or is_traced()


def has_numbers(X: Tensor) -> bool:
    """Whether X holds numbers that Python can read: not on meta, not traced, not transformed."""
    return type(X) in (Tensor, Parameter) and not X.is_meta and not is_transformed(X)


def may_branch(X: Tensor) -> bool:
    """Whether Python may branch on the numbers of X, with no tracer that would miss the branch."""
    return not goes_by_operator() and has_numbers(X)


def needs_derivative(X: Tensor) -> bool:
    """Whether a computation with X must consist of operations that autograd or a tracer records.

    If not, X is on the CPU and its numbers may be read. On other devices the answer is always yes,
    because reading a number there means waiting for the device.
    """
    return (
        not (X.is_cpu and may_branch(X))
        or (torch.is_grad_enabled() and X.requires_grad)
        or in_forward_mode()
    )


def nestable(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `jvp` of a `Function` that can be nested, from ``rule(ctx, saved_tensors, *tangents)``.

    See `constrained.torch_internals.functions.outside`.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return outside(functools.partial(rule, ctx), ctx.saved_tensors, tangents)

    return jvp


def in_front(info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Iterator[Any]:
    """The inputs of a `vmap` rule, with the new dimension in front as one more batch dimension.

    Arguments that are not tensors are passed on as they are.
    """
    for x, dim in zip(inputs, in_dims, strict=True):
        if not isinstance(x, Tensor):
            yield x
        else:
            yield x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def _like_first(X: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(X, memory_format=torch.contiguous_format)


def operator(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any] = _like_first,
    schema: str | None = None,
) -> Any:
    """A function as an operator of ``torch.library``: opaque to tracers, without a derivative.

    Args:
        name: the operator's name, ``"constraints::..."``. Exported programs refer to it.
        function: its first argument is a tensor. Leading dimensions of all tensors, results
            included, are batch dimensions. Results are contiguous and share no memory with the
            arguments. Parameter names and annotations are the schema of the operator, to which
            exported programs refer as well.
        fake: from the same arguments, empty tensors of the results' shapes; by default one like the
            first argument.
        schema: the schema, where older versions of torch cannot derive it from the annotations.
    """

    @functools.wraps(function)
    def without_autocast(*args: Any) -> Any:
        # A backward graph runs in the caller's autocast state.
        with autocast_disabled(args[0]):
            return function(*args)

    made: Any = torch.library.custom_op(
        name, untraced(without_autocast), mutates_args=(), schema=schema
    )
    made.register_fake(fake)

    @made.register_vmap
    def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        outputs = made(*in_front(info, in_dims, inputs))
        return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)

    return made


def without_derivative(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any] = _like_first,
    schema: str | None = None,
) -> Callable[..., Any]:
    """A function that branches on numbers, called as itself or, in traced code, as an operator.

    The arguments are those of `operator`. The first argument must not require a gradient.
    """
    made = operator(name, function, fake, schema)

    def apply(X: Tensor, *args: Any) -> Any:
        return (function if may_branch(X) else made)(X, *args)

    return apply


def differentiable(
    name: str,
    function: Callable[..., Tensor],
    gradient_name: str,
    gradient: Callable[..., Tensor],
    derivative: Callable[..., Tensor],
    *,
    saves_input: bool = True,
) -> Callable[..., Tensor]:
    """A function of one tensor that branches on numbers, differentiable in every mode and order.

    The derivative must be a self-adjoint linear map, so that one rule serves forward and reverse
    mode. It is given twice. `derivative` consists of differentiable operations. `gradient` need
    not, may branch on numbers, and is used for first-order gradients because it is cheaper.

    Args:
        name: the name of the operator for ``function``.
        function: ``function(X, *numbers)``, as for `operator`.
        gradient_name: the name of the operator for ``gradient``.
        gradient: ``gradient(X, W, V, *numbers)``, the derivative at X, where the value is W, in
            direction V; as for `operator`.
        derivative: the same, differentiable.
        saves_input: whether the two rules take X. If not, they are called without it, and X is not
            saved for the backward pass.

    Returns:
        ``apply(X, *numbers)``.
    """
    value_operator = operator(name, function)
    gradient_operator = operator(gradient_name, gradient)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        saved = (inputs[0], output) if saves_input else (output,)
        ctx.save_for_backward(*saved)
        ctx.numbers = inputs[1:]
        return saved

    def operator_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, inputs, output)

    class Differentiable(DirectFunction):
        @staticmethod
        def forward(X: Tensor, *numbers: float) -> Tensor:
            return function(X, *numbers) if has_numbers(X) else value_operator(X, *numbers)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_forward(*save(ctx, inputs, output))

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            (G,), saved = gradients, ctx.saved_tensors
            once = not torch.is_grad_enabled() and has_numbers(saved[0]) and has_numbers(G)
            with autocast_disabled(G):
                result = (gradient if once else derivative)(*saved, G, *ctx.numbers)
            return result, *(None,) * len(ctx.numbers)

        @staticmethod
        @nestable
        def jvp(ctx: Any, saved: tuple[Tensor, ...], dX: Tensor, *_: None) -> Tensor:
            return derivative(*saved, dX, *ctx.numbers)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
            return Differentiable.apply(*in_front(info, in_dims, inputs)), 0

    def operator_backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        result = gradient_operator(*ctx.saved_tensors, G, *ctx.numbers)
        return result, *(None,) * len(ctx.numbers)

    # The operator has a backward of its own: torch.compile takes no Function that defines `jvp`.
    value_operator.register_autograd(operator_backward, setup_context=operator_save)

    def apply(X: Tensor, *numbers: float) -> Tensor:
        if goes_by_operator():
            return value_operator(X, *numbers)
        return Differentiable.apply(X, *numbers)

    return apply
