"""Which transforms, tracers, modes and saved-tensor hooks are active.

Under a transform or tracer a tensor stands for something else: a batch, a dual number, a node of a
graph. Only private functions tell. Each read of a stored value calls them, so they are called
directly. Where one is missing, a slower way replaces it, or it is assumed that one is active: then
values are evaluated again.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from constrained.torch_internals.look_up import find, takes


def _unknown() -> bool:
    return True


# The transform of torch.func that is running. There is no public way to ask.
_transform: Callable[[], Any] = (
    find("torch._C._functorch.peek_interpreter_stack", takes()) or _unknown
)
knows_transforms = _transform is not _unknown

# How many modes of __torch_dispatch__ are on. There is no public way to ask.
_modes: Callable[[], int] = (
    find("torch._C._len_torch_dispatch_stack", lambda f: f() >= 0) or _unknown
)
# The state of torch.jit.trace. Only whether it is tracing is public.
_trace: Callable[[], Any] = find("torch._C._get_tracing_state", takes()) or (
    lambda: torch.jit.is_tracing() or None  # type: ignore[attr-defined]
)
_set_trace: Any = find("torch._C._set_tracing_state", callable)


def _counted_hooks() -> Callable[[bool], object | None]:
    """Whether saved-tensor hooks are on, counted as their blocks are entered and left."""
    # There is no public way to ask, and to save a tensor as a trial would call the hooks.
    here = threading.local()
    enter, leave = saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__

    @functools.wraps(enter)
    def entered(self: Any) -> Any:
        result = enter(self)
        here.depth = getattr(here, "depth", 0) + 1
        return result

    @functools.wraps(leave)
    def left(self: Any, *args: Any) -> Any:
        here.depth -= 1
        return leave(self, *args)

    saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__ = entered, left
    return lambda ignore_is_tracing: getattr(here, "depth", 0) or None


# The hooks that autograd calls with each tensor that it saves, such as those of activation
# checkpointing. True asks for those that are active while a graph is traced, too.
_hooks: Callable[[bool], object | None] = (
    find("torch._C._autograd._top_saved_tensors_default_hooks", takes(True)) or _counted_hooks()
)


def in_transform() -> bool:
    """Whether a transform of torch.func is running."""
    return _transform() is not None


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return _trace() is not None


_forward: Any = forward_ad

if find("torch.autograd.forward_ad._current_level", lambda level: level >= -1) is not None:

    def in_forward_mode() -> bool:
        """Whether forward-mode derivatives are being computed."""
        return _forward._current_level >= 0

    def is_transformed() -> bool:
        """Whether tensors may stand for something else here."""
        # Each read of a value calls this, so it is one function instead of four.
        return (
            _transform() is not None
            or _forward._current_level >= 0
            or _trace() is not None
            or _modes() > 0
        )

else:

    def in_forward_mode() -> bool:
        """Whether forward-mode derivatives are being computed."""
        try:
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
        except RuntimeError:
            # Torch makes dual tensors only in forward mode.
            return False
        return True

    def is_transformed() -> bool:
        """Whether tensors may stand for something else here."""
        return in_transform() or is_traced() or _modes() > 0 or in_forward_mode()


def has_saving_hooks() -> bool:
    """Whether hooks are called with each tensor that autograd saves."""
    return _hooks(True) is not None


def unseen(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function outside of all modes, transforms and tracers.

    They belong to one thread, so the function runs in another one. There is no public way to switch
    off all of them, and a dispatch mode that exports a graph would record the call.
    """
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(function, *args).result()


def untraced(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of an operator with ``torch.jit.trace`` off, which records the operator only."""
    if _set_trace is None:
        return _in_another_thread(body)

    @functools.wraps(body)
    def run(*args: Any) -> Any:
        state = _trace()
        if state is None:
            return body(*args)
        _set_trace(None)
        try:
            return body(*args)
        finally:
            _set_trace(state)

    return _signed_like(body, run)


def _in_another_thread(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any) -> Any:
        return unseen(torch.no_grad()(body), *args) if is_traced() else body(*args)

    return _signed_like(body, run)


def _signed_like(body: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    # Torch reads the schema of an operator from the signature, and would look for the names of
    # its types in this file.
    run.__signature__ = inspect.signature(body, eval_str=True)
    return run


# The public function gives the same number, but makes an object each time.
_stream: Any = torch.backends.cuda.is_built() and find(
    "torch._C._cuda_getCurrentRawStream", callable
)


def stream_of(device: torch.device) -> int:
    """The stream of a CUDA device that kernels are launched on."""
    return _stream(device.index) if _stream else torch.cuda.current_stream(device).cuda_stream
