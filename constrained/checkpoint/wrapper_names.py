"""Names of a model's tensors, without what wrappers of the model have put into them.

``DistributedDataParallel``, ``DataParallel`` and DeepSpeed have the model as their child
``module``, ``torch.compile`` as ``_orig_mod``, Lightning Fabric as ``_forward_module``. FSDP and
checkpointed activations have a part of it under a name of their own.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Names of children that nobody gives but a wrapper.
_WRAPPERS = frozenset(
    {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)

#: The child of wrappers that somebody else may have too: it counts if it has everything.
_MODULE = "module."


class Unwrapped:
    """How the tensors of a model, or of a checkpoint, are called without its wrappers.

    Args:
        keys: of the whole state dict.

    Attributes:
        prefix: what all keys begin with, besides the names that only wrappers give.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        inner = [_inside(key) for key in keys]
        self.prefix = ""
        while inner and all(name.startswith(self.prefix + _MODULE) for name in inner):
            self.prefix += _MODULE

    def name(self, path: str) -> str:
        """A key or the path of a tensor or of a module, without the names of wrappers."""
        return f"{_inside(path)}.".removeprefix(self.prefix)[:-1]


def _inside(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)
