"""Which operations of torch run inside a block.

The class for that, a mode that sees each operation, is documented and stands in a private module.
Without it nothing can be said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from constrained.torch_internals.look_up import find

_Mode: Any = find(
    "torch.utils._python_dispatch.TorchDispatchMode", lambda cls: callable(cls.__enter__)
)


def watched(note: Callable[[str, Sequence[Any]], None]) -> AbstractContextManager[Any] | None:
    """A block inside of which each operation of torch is noted; None if that is impossible.

    Args:
        note: called with the name of an operation, as ``"mm"``, and its arguments. An operator that
            a library has registered is made of others, which are noted instead of it.
    """
    if _Mode is None:
        return None

    class Watch(_Mode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "aten":
                note(func.overloadpacket.__name__, args)
                return func(*args, **(kwargs or {}))
            with self:
                return func(*args, **(kwargs or {}))

    return Watch()
