"""What surrounds a computation, so that tensors may not be what they seem.

Each read of a stored value asks all of this: what is called here is torch's own where it can be.
Where nobody can tell, the answer is the one at which a value is evaluated anew.
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

from constrained.torch_internals.look_up import answers, find


def _unknown() -> bool:
    return True


# Of torch.func: the transform that is running. Nothing in public tells.
_transform: Callable[[], Any] = (
    find("torch._C._functorch.peek_interpreter_stack", answers()) or _unknown
)
knows_transforms = _transform is not _unknown

# Of __torch_dispatch__: how many modes are on. Nothing in public tells.
_modes: Callable[[], int] = (
    find("torch._C._len_torch_dispatch_stack", lambda f: f() >= 0) or _unknown
)
# Of torch.jit.trace: what records, of which only whether it does is public.
_trace: Callable[[], Any] = find("torch._C._get_tracing_state", answers()) or (
    lambda: torch.jit.is_tracing() or None  # type: ignore[attr-defined]
)
_set_trace: Any = find("torch._C._set_tracing_state", callable)


def _counted_hooks() -> Callable[[bool], object | None]:
    """Whether saved-tensor hooks are on, known from who has entered and left them."""
    # Torch has no public word for it, and to save a tensor and see would call the hooks.
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


# Of activation checkpointing, for one: the hooks that see what autograd saves. True asks for those
# that are on while a graph is traced, too.
_hooks: Callable[[bool], object | None] = (
    find("torch._C._autograd._top_saved_tensors_default_hooks", answers(True)) or _counted_hooks()
)


def in_transform() -> bool:
    """Whether a transform of torch.func is running."""
    return _transform() is not None


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return _trace() is not None


if find("torch.autograd.forward_ad._current_level", lambda level: level >= -1) is not None:

    def in_forward_mode() -> bool:
        """Whether forward-mode derivatives are being computed."""
        return forward_ad._current_level >= 0

    def is_transformed() -> bool:
        """Whether this is a moment at which tensors need not be what they seem."""
        # Each read of a value comes here: what else there are functions for is spelled out.
        return (
            _transform() is not None
            or forward_ad._current_level >= 0
            or _trace() is not None
            or _modes() > 0
        )

else:

    def in_forward_mode() -> bool:
        """Whether forward-mode derivatives are being computed."""
        try:
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
        except RuntimeError:
            # Torch makes dual tensors while they are, and at no other time.
            return False
        return True

    def is_transformed() -> bool:
        """Whether this is a moment at which tensors need not be what they seem."""
        return in_transform() or is_traced() or _modes() > 0 or in_forward_mode()


def has_saving_hooks() -> bool:
    """Whether somebody is called with each tensor that autograd saves."""
    return _hooks(True) is not None


def unseen(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns where no mode, transform or tracer of this thread takes part."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(function, *args).result()


def untraced(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of an operator, run unseen by ``torch.jit.trace``, which records the operator."""
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
    # A tracer records one thread.
    @functools.wraps(body)
    def run(*args: Any) -> Any:
        if not is_traced():
            return body(*args)
        found: list[Any] = []

        def elsewhere() -> None:
            with torch.no_grad():
                try:
                    found.append(body(*args))
                except BaseException as error:
                    found.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return _signed_like(body, run)


def _signed_like(body: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    # An operator has its schema from the signature, and looks for its names in this file.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    return run


# The same number as the public one, without an object that is made for it at each read.
_stream: Any = torch.backends.cuda.is_built() and find(
    "torch._C._cuda_getCurrentRawStream", callable
)


def stream_of(device: torch.device) -> int:
    """The stream of a CUDA device that kernels are launched on."""
    return _stream(device.index) if _stream else torch.cuda.current_stream(device).cuda_stream
