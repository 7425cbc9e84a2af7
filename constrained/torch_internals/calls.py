"""How ``torch.func.functional_call`` replaces the tensors of a module for one call.

Torch swaps a tensor that is not a parameter by `setattr`, which on a parametrized tensor is an
assignment. So the private functions that swap are wrapped: they pass parametrized tensors to the
`Overrides` of this package, and every other tensor to torch. Where they are missing, or work in
another way, the public `functional_call` is wrapped instead, which costs a walk through the module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import stateless

from constrained.torch_internals.look_up import find
from constrained.torch_internals.modules import submodules


class Overrides(NamedTuple):
    """How parametrized tensors are replaced for the time of a call.

    `constrained.parametrized.override` passes this to `let_torch_use`, since nothing is imported
    from there.

    Attributes:
        is_parametrized: whether a tensor of a module is parametrized by this package.
        swap: replaces a parametrized tensor, or ends that if the tensor is None. Returns what had
            replaced it before; None if nothing had.
        untie: completes the given tensors, by their paths, for parametrized ones that are tied to
            them. The last argument is what torch has completed for plain ones; it is returned.
    """

    is_parametrized: Callable[[nn.Module, str], bool]
    swap: Callable[[nn.Module, str, Tensor | None], Tensor | None]
    untie: Callable[[nn.Module, Mapping[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


def let_torch_use(overrides: Overrides) -> None:
    """Let torch use ``overrides`` whenever it swaps parametrized tensors for a call."""
    swap = find("torch.nn.utils._named_member_accessor.swap_tensor", _swaps)
    nothing = find("torch.nn.utils._named_member_accessor._MISSING", lambda _: True)
    untie = find("torch.nn.utils.stateless._untie_named_tensors_map", _unties)
    swap_all = find(
        "torch.nn.utils._named_member_accessor.NamedMemberAccessor.swap_tensors_dict", _swaps_all
    )
    if swap and nothing and untie and swap_all:
        _replace_swaps(overrides, swap, nothing, untie)
        _swap_once(swap_all)
    else:
        places: Any = (torch.func, stateless)
        for place in places:
            place.functional_call = _wrapped(place.functional_call, overrides)


def _swaps(swap: Any) -> bool:
    module, first, second = nn.Module(), torch.empty(0), torch.empty(0)
    module.register_buffer("x", first)
    return swap(module, "x", second, True) is first and module.x is second


def _unties(untie: Any) -> bool:
    module, first, second = nn.Module(), torch.empty(0), torch.empty(0)
    module.register_buffer("x", first)
    module.register_buffer("y", first)
    found = untie(module, {"x": second})
    return found["x"] is second and found["y"] is second


def _swaps_all(swap_all: Any) -> bool:
    from torch.nn.utils._named_member_accessor import NamedMemberAccessor

    module, first, second = nn.Module(), torch.empty(0), torch.empty(0)
    module.register_buffer("x", first)
    before, missing = swap_all(NamedMemberAccessor(module), {"x": second}, True)
    return before["x"] is first and module.x is second and not missing


def _replace_swaps(overrides: Overrides, torch_swap: Any, nothing: Any, torch_untie: Any) -> None:
    from torch.nn.utils import _named_member_accessor as accessor

    def swap_tensor(
        module: nn.Module, name: str, tensor: Any, allow_missing: bool = False
    ) -> Tensor | Any:
        # Callers pass more than torch's types say.
        given: Any = module
        is_module = allow_missing and isinstance(given, nn.Module)
        if not is_module or not overrides.is_parametrized(given, name):
            return torch_swap(module, name, tensor, allow_missing)
        if tensor is None:
            raise _refuse_none(name)
        before = overrides.swap(module, name, None if tensor is nothing else tensor)
        return nothing if before is None else before

    def untie(module: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return overrides.untie(module, given, torch_untie(module, given))

    accessor.swap_tensor = swap_tensor
    stateless._untie_named_tensors_map = untie


def _swap_once(torch_swap_all: Any) -> None:
    """Let torch swap each free parameter once: with tied tensors it has several paths.

    Torch would swap it at each path, and back in the same order. At the later paths it finds the
    replacement, and would put that back last.
    """
    from torch.nn.utils._named_member_accessor import NamedMemberAccessor

    def swap_tensors_dict(
        self: Any, named_tensors: dict[str, Tensor], allow_missing: bool = False
    ) -> Any:
        return torch_swap_all(self, _once(self.get_submodule, named_tensors), allow_missing)

    NamedMemberAccessor.swap_tensors_dict = swap_tensors_dict


def _once(
    get_submodule: Callable[[str], nn.Module], named_tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The given tensors, each free parameter at its first path only."""
    found: dict[str, Tensor] = {}
    paths: dict[tuple[int, str], str] = {}
    for path, tensor in named_tensors.items():
        prefix, _, name = path.rpartition(".")
        if "parametrizations" in prefix.split("."):
            try:
                first = paths.setdefault((id(get_submodule(prefix)), name), path)
            except (AttributeError, TypeError):
                # There is no such module. Torch will raise an error.
                first = path
            if first != path:
                if tensor is not named_tensors[first]:
                    raise ValueError(
                        f"functional_call got multiple values for '{first}' and '{path}', "
                        "which are one tensor, whatever tie_weights says."
                    )
                continue
        found[path] = tensor
    return found


def _wrapped(functional_call: Callable[..., Any], overrides: Overrides) -> Callable[..., Any]:
    """`functional_call`, which swaps parametrized tensors and leaves all others to torch."""

    @functools.wraps(functional_call)
    def call(module: nn.Module, tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("strict"):
            # Torch raises an error: to it, parametrized tensors are unexpected keys.
            return functional_call(module, tensors, *args, **kwargs)
        given: dict[str, Any] = {}
        several: Any = (tensors,) if isinstance(tensors, Mapping) else tensors
        for some in several:
            given.update(some)
        if kwargs.get("tie_weights", True):
            given = overrides.untie(module, given, dict(given))
        with ExitStack() as stack:
            rest: dict[str, Any] = {}
            for path, tensor in given.items():
                owner, _, name = path.rpartition(".")
                here = module.get_submodule(owner)
                if not overrides.is_parametrized(here, name):
                    rest[path] = tensor
                    continue
                if tensor is None:
                    raise _refuse_none(name)
                before = overrides.swap(here, name, tensor)
                stack.callback(overrides.swap, here, name, before)
            for path, held in submodules(module):
                if "parametrizations" in path.split("."):
                    # Of tied tensors, at several paths, torch puts back the wrong one.
                    stack.callback(held._parameters.update, dict(held._parameters))
                    stack.callback(held._buffers.update, dict(held._buffers))
            return functional_call(module, rest, *args, **kwargs)

    return call


def _refuse_none(name: str) -> TypeError:
    return TypeError(f"'{name}' is parametrized and cannot be overridden by None.")
