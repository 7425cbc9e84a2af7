"""What a value is computed from: modules and their tensors, as they were when it was computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from constrained.seen import SeenTensor
from constrained.torch_internals.tensors import version


class Ground:
    """Modules, and all tensors that they own.

    Args:
        modules: the first of them holds on to the value, which must not hold on to it: its
            dictionary is given whenever it is looked at again.
        known: tensors that were looked at before.
    """

    __slots__ = ("_first", "_others", "_revisions")

    def __init__(self, modules: Sequence[nn.Module], known: Sequence[SeenTensor] = ()) -> None:
        by_tensor = {id(seen.tensor): seen for seen in known}
        self._first, *others = [SeenModule(module, by_tensor) for module in modules]
        here = [(m, n.__dict__) for m, n in zip(others, modules[1:], strict=True)]
        # Most constraints own no tensor: what they are is one number.
        self._others = [(m, now) for m, now in here if not m.is_number()]
        self._revisions = [(m.revision, now) for m, now in here if m.is_number()]

    def tensors(self) -> list[SeenTensor]:
        """All tensors."""
        return self._first.tensors() + [t for module, _ in self._others for t in module.tensors()]

    def again(self, first: Mapping[str, Any]) -> Ground | None:
        """The same as it is now; None if more than numbers have changed, or may have."""
        ground = Ground.__new__(Ground)
        here = self._first.again(first)
        if here is None:
            return None
        if any(now["_revision"] != revision for revision, now in self._revisions):
            return None
        ground._first, ground._others, ground._revisions = here, [], self._revisions
        for module, now in self._others:
            fresh = module.again(now)
            if fresh is None:
                return None
            ground._others.append((fresh, now))
        return ground

    def is_unchanged(self, first: Mapping[str, Any]) -> bool:
        """Whether all is as it was."""
        # Each read of a value comes here.
        for revision, now in self._revisions:
            if now["_revision"] != revision:
                return False
        if not self._first.is_unchanged(first):
            return False
        for module, now in self._others:
            if not module.is_unchanged(now):
                return False
        return True


class SeenModule:
    """What a watched module looked like: its tensors, submodules, training flag, arguments.

    Args:
        module: as it is now.
        known: tensors that were looked at before, by their ``id``.
    """

    __slots__ = ("_children", "_own", "_tensors", "revision")

    def __init__(self, module: nn.Module, known: Mapping[int, SeenTensor]) -> None:
        now = module.__dict__
        self.revision = now.get("_revision")
        self._children = dict(module._modules)
        # A list computes nothing by itself.
        self._own = None if isinstance(module, nn.ModuleList) else _what_it_is(now)
        self._tensors = [
            (container, name, known.get(id(tensor)) or SeenTensor(tensor))
            for container in ("_parameters", "_buffers", None)
            for name, tensor in (now[container] if container else now).items()
            if isinstance(tensor, Tensor)
        ]

    def is_number(self) -> bool:
        """Whether its revision tells all there is to know."""
        return self.revision is not None and not self._tensors

    def tensors(self) -> list[SeenTensor]:
        """Its tensors."""
        return [seen for _, _, seen in self._tensors]

    def again(self, now: Mapping[str, Any]) -> SeenModule | None:
        """The module as it is now; None if more than numbers have changed, or may have."""
        if not self._is_alike(now):
            return None
        tensors = []
        for container, name, seen in self._tensors:
            fresh = seen.again()
            found = (now if container is None else now[container]).get(name)
            if fresh is None or found is not seen.tensor:
                return None
            tensors.append((container, name, fresh))
        module = SeenModule.__new__(SeenModule)
        module.revision, module._children, module._own = self.revision, self._children, self._own
        module._tensors = tensors
        return module

    def is_unchanged(self, now: Mapping[str, Any]) -> bool:
        """Whether the module is as it was, if this is its dictionary."""
        # Each read of a value comes here: what else there are functions for is spelled out.
        is_list = self.revision is None and self._own is None
        if not (now["_modules"] == self._children if is_list else self._is_alike(now)):
            return False
        for container, name, seen in self._tensors:
            tensor: Any = (now if container is None else now[container]).get(name)
            if (
                tensor is not seen.tensor
                or seen.address != tensor.data_ptr()
                or seen.requires_grad is not tensor.requires_grad
                or (seen.version is not None and seen.version != version(tensor))
                or (seen.entries != seen.look() if seen.look else seen.is_marked_otherwise())
            ):
                return False
        return True

    def _is_alike(self, now: Mapping[str, Any]) -> bool:
        if self.revision is not None:
            # A Constraint counts every attribute that is set, `training` and modules among them.
            return now.get("_revision") == self.revision
        return now["_modules"] == self._children and (
            self._own is None or self._own == _what_it_is(now)
        )


def _what_it_is(now: Mapping[str, Any]) -> tuple[bool, int, int]:
    return now["training"], len(now["_parameters"]), len(now["_buffers"])
