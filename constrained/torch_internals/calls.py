"""How ``torch.func.functional_call`` replaces the tensors of a module for one call.

Torch swaps a tensor that is not a parameter by `setattr`, which on a constrained tensor is an
assignment. So the private functions that swap are wrapped: they hand constrained tensors to the
`Answers` of the engine, and every other tensor to torch. Where they are missing, or work in another
way, the public `functional_call` is wrapped instead, which costs a walk through the module.
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


class Answers(NamedTuple):
    """What the engine does with the tensors of modules that are constrained ("ours").

    Attributes:
        is_ours: whether a tensor of a module is one that is computed.
        swap: replaces one of ours for the time being, or ends that if the tensor is None. Returns
            what had replaced it before; None if nothing had.
        untie: completes tensors, by their paths, by those of ours that are tied to given ones.
    """

    is_ours: Callable[[nn.Module, str], bool]
    swap: Callable[[nn.Module, str, Tensor | None], Tensor | None]
    untie: Callable[[nn.Module, Mapping[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


def ask(answers: Answers) -> None:
    """Let torch ask ``answers`` from now on, whenever it swaps tensors of a module for a call."""
    swap = find("torch.nn.utils._named_member_accessor.swap_tensor", _swaps)
    nothing = find("torch.nn.utils._named_member_accessor._MISSING", lambda _: True)
    untie = find("torch.nn.utils.stateless._untie_named_tensors_map", _unties)
    swap_all = find(
        "torch.nn.utils._named_member_accessor.NamedMemberAccessor.swap_tensors_dict", _swaps_all
    )
    if swap and nothing and untie and swap_all:
        _ask_where_tensors_are_swapped(answers, swap, nothing, untie)
        _swap_once(swap_all)
    else:
        places: Any = (torch.func, stateless)
        for place in places:
            place.functional_call = _asking(place.functional_call, answers)


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


def _ask_where_tensors_are_swapped(
    answers: Answers, torch_swap: Any, nothing: Any, torch_untie: Any
) -> None:
    from torch.nn.utils import _named_member_accessor as accessor

    def swap_tensor(
        module: nn.Module, name: str, tensor: Any, allow_missing: bool = False
    ) -> Tensor | Any:
        # Torch's own types say less than what callers pass.
        given: Any = module
        ours = allow_missing and isinstance(given, nn.Module) and answers.is_ours(given, name)
        if not ours:
            return torch_swap(module, name, tensor, allow_missing)
        if tensor is None:
            raise _refuse_none(name)
        before = answers.swap(module, name, None if tensor is nothing else tensor)
        return nothing if before is None else before

    def untie(module: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return answers.untie(module, given, torch_untie(module, given))

    accessor.swap_tensor = swap_tensor
    stateless._untie_named_tensors_map = untie


def _swap_once(torch_swap_all: Any) -> None:
    """Let each free parameter be swapped once: behind tied tensors it is found at several paths.

    Torch swaps it at each path, and back in the same order. The last one to be put back is then the
    replacement for the first path, which would stay.
    """
    from torch.nn.utils._named_member_accessor import NamedMemberAccessor

    def swap_tensors_dict(
        self: Any, named_tensors: dict[str, Tensor], allow_missing: bool = False
    ) -> Any:
        return torch_swap_all(self, _once(self.get_submodule, named_tensors), allow_missing)

    NamedMemberAccessor.swap_tensors_dict = swap_tensors_dict  # type: ignore[method-assign]


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
                # There is no such module, as torch will say.
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


def _asking(functional_call: Callable[..., Any], answers: Answers) -> Callable[..., Any]:
    """The public function for the tensors that are not ours, around which ours are swapped."""

    @functools.wraps(functional_call)
    def asking(module: nn.Module, tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("strict"):
            # Torch raises: to it, all of ours are unexpected keys.
            return functional_call(module, tensors, *args, **kwargs)
        given: dict[str, Any] = {}
        several: Any = (tensors,) if isinstance(tensors, Mapping) else tensors
        for some in several:
            given.update(some)
        if kwargs.get("tie_weights", True):
            given = answers.untie(module, given, dict(given))
        with ExitStack() as stack:
            rest: dict[str, Any] = {}
            for path, tensor in given.items():
                owner, _, name = path.rpartition(".")
                here = module.get_submodule(owner)
                if not answers.is_ours(here, name):
                    rest[path] = tensor
                    continue
                if tensor is None:
                    raise _refuse_none(name)
                before = answers.swap(here, name, tensor)
                stack.callback(answers.swap, here, name, before)
            for path, held in submodules(module):
                if "parametrizations" in path.split("."):
                    # Of tied tensors, at several paths, torch puts back the wrong one.
                    stack.callback(held._parameters.update, dict(held._parameters))
                    stack.callback(held._buffers.update, dict(held._buffers))
            return functional_call(module, rest, *args, **kwargs)

    return asking


def _refuse_none(name: str) -> TypeError:
    return TypeError(f"'{name}' is parametrized and cannot be overridden by None.")
