"""How an ``autograd.Function`` is applied faster, and differentiated twice in forward mode.

`Function.apply` takes longer to inspect the signature of `forward` than the value of a small matrix
takes to compute. And torch runs a `jvp` in a way that loses a second forward-mode derivative. If
the private parts are missing, `direct` is the public `apply`, and `outside` raises an error for a
second derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from constrained.torch_internals.look_up import find, takes
from constrained.torch_internals.modes import in_transform, knows_transforms


def _goes_directly(_: Any) -> bool:
    class Twice(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

    with torch.inference_mode(False), torch.enable_grad():
        base: Any = super(Function, Twice)
        y: Tensor = base.apply(torch.ones((), requires_grad=True))
    # No backward pass is tried: after one, a forked process may fail in its own.
    return y.grad_fn is not None and bool(y == 2)


if find("torch.autograd.Function.__base__", _goes_directly) is not None:

    def direct(function: type[Function]) -> Callable[..., Any]:
        """``function.apply`` without its slow search for transforms of torch.func."""
        return super(Function, function).apply  # type: ignore[attr-defined]

else:

    def direct(function: type[Function]) -> Callable[..., Any]:
        """``Function.apply`` itself: the ``apply`` of a derived class may call this."""
        return functools.partial(Function.apply.__func__, function)


# The transform that is running, the tensors that it computes with, and how to leave it for a while.
_interpreter: Any = find(
    "torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter", callable
)
_unwrap: Any = find("torch._C._functorch._unwrap_for_grad", takes(torch.empty(0), 1))
_wrap: Any = find("torch._C._functorch._wrap_for_grad", callable)
_forward_mode: Any = find("torch.autograd.forward_ad._set_fwd_grad_enabled", takes(True))
# How many torch.func.jvp are running, one inside another.
_transforms: Any = find("torch._functorch.eager_transforms", lambda m: m.JVP_NESTING == 0)


def outside(
    rule: Callable[..., Tensor], saved: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
) -> Tensor:
    """The result of ``rule(saved, *tangents)``, a `jvp`, with a derivative of its own.

    Torch runs a `jvp` with forward-mode differentiation off, so that the outer one of two nested
    `torch.func.jvp` silently gets zero (pytorch#197867). Here the rule runs outside of the
    transform that has called it.

    Raises:
        RuntimeError: if the inner one of two has called it, and this torch cannot leave that.
    """
    if not (knows_transforms and _interpreter and _unwrap and _wrap and _forward_mode):
        if _transforms is None or _transforms.JVP_NESTING > 1:
            raise RuntimeError(
                "forward-mode derivatives of a forward-mode derivative are not to be had with "
                f"torch {torch.__version__}; use reverse mode for one of them."
            )
        return rule(saved, *tangents)
    if not in_transform():
        return rule(saved, *tangents)
    transform = _interpreter()
    level = transform.level()

    def unwrap(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_unwrap(t, level) if isinstance(t, Tensor) else t for t in tensors)

    with _forward_mode(True), transform.lower():
        result = rule(unwrap(saved), *unwrap(tangents))
    return _wrap(result, level)
