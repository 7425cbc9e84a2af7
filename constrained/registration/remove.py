"""Removing all parametrizations of a tensor, which makes it plain, or one of several."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained.atomic.contents import recording, store
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, around, tensors_of
from constrained.constraint.elements import unpack
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.precision import autocast_disabled
from constrained.parametrized.call_stack import user_stacklevel
from constrained.parametrized.consistency_checks import check_value, check_writable_now
from constrained.parametrized.originals import copy_like
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.right_inverse import new_originals
from constrained.parametrized.tensor_locations import (
    is_parametrized,
    list_of,
    locations_of,
    resolve,
)
from constrained.parametrized.writable_tensor import flush_writes
from constrained.registration.from_torch import convert_from_torch
from constrained.registration.install import check_can_change_class, uninstall
from constrained.registration.param_groups import ParameterHandover, check_holds, check_optimizer
from constrained.registration.wrappers import check_not_wrapped


def remove_parametrizations(
    module: nn.Module,
    tensor_name: str,
    leave_parametrized: bool = True,
    *,
    index: int | None = None,
    optimizer: Optimizer | None = None,
) -> nn.Module:
    """Make a parametrized tensor a plain parameter or buffer again.

    As in ``torch.nn.utils.parametrize``, but a tensor returns to its position in the order of
    parameters, a parameter stays a parameter (with its ``requires_grad``) and a buffer a buffer,
    dotted paths work, and tensors of ``module`` that are tied stay tied. If a tensor is tied to one
    outside of ``module``, the tie ends, with a warning.

    With an ``index`` only one of several parametrizations is removed. The others are renumbered, in
    state dicts too. By default the tensor keeps its value: the right inverses of the others give
    the originals for it, as in an assignment. With ``leave_parametrized=False`` the originals stay
    as they are, and the value changes.

    Args:
        module: the module, or a model that has it.
        tensor_name: the parametrized tensor.
        leave_parametrized: whether the plain tensor gets the value; else it gets the numbers of the
            original, which must be a single one.
        index: the position of the parametrization to remove, from the end if it is negative; all
            of them by default. Removing the only one removes all.
        optimizer: an optimizer that holds the originals: it is given their replacements.

    Returns:
        ``module``.

    Raises:
        ValueError: if the tensor is not parametrized, ``leave_parametrized=False`` is asked of
            a tensor with several originals, the present value is not one that the remaining
            parametrizations can take, or the optimizer holds nothing of a tensor that is trained.
        RuntimeError: if one of the remaining parametrizations has no right inverse to keep the
            value by, the model is offloaded, or DistributedDataParallel or FSDP has wrapped the
            module.
        IndexError: if there is no parametrization at ``index``. After any of these errors nothing
            has changed.
    """
    check_optimizer(optimizer)
    owner, name = resolve(module, tensor_name)
    if not is_parametrized(owner, name):
        raise ValueError(f"Module {module} does not have a parametrization on {tensor_name}")
    places = locations_of(module, list_of(owner, name))
    remove_at(
        *(module, tensor_name, [(owner, name), *places], leave_parametrized),
        index=index,
        optimizer=optimizer,
    )
    return module


def remove_at(
    module: nn.Module,
    tensor_name: str,
    places: Sequence[tuple[nn.Module, str]],
    leave_parametrized: bool = True,
    *,
    index: int | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """The same as `remove_parametrizations`, for a tensor that has been found already.

    A model need not be searched for every one of its tensors then.

    Args:
        module: the module, which messages name.
        tensor_name: the path of the tensor.
        places: the owner and the name of the tensor at every location in ``module``; that of the
            path first.
        leave_parametrized: as in `remove_parametrizations`.
        index: likewise.
        optimizer: likewise.
    """
    owner, name = places[0]
    check_holds(optimizer, [(owner, name, tensor_name)])
    check_not_wrapped(owner, name)
    check_can_change_class(owner)
    flush_writes(owner, name)
    changed = around(dict.fromkeys(at for at, _ in places))
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed), optimizer):
        convert_from_torch(owner)
        parametrizations = list_of(owner, name)
        parametrizations.check_written(tensor_name)
        handover = ParameterHandover(owner, name, tensor_name)
        if index is not None:
            index = _position(tensor_name, index, len(parametrizations.chain()))
        if index is None or len(parametrizations.chain()) == 1:
            # A list of torch has become one of ours, at the locations that were converted.
            here = [at for at in dict.fromkeys(places) if list_of(*at) is parametrizations]
            _remove_all(module, tensor_name, here, parametrizations, leave_parametrized)
        else:
            _remove_one(tensor_name, parametrizations, index, leave_parametrized)
        handover.apply(optimizer)


def _remove_all(
    module: nn.Module,
    tensor_name: str,
    places: Sequence[tuple[nn.Module, str]],
    parametrizations: ParametrizationList,
    leave_parametrized: bool,
) -> None:
    if not parametrizations.is_tensor and not leave_parametrized:
        raise ValueError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor "
            "that is parametrized in terms of a sequence of tensors."
        )
    elsewhere = set(parametrizations._owners) - {owner.parametrizations for owner, _ in places}
    for place in places:
        check_not_wrapped(*place)
    tensor = _plain_tensor(parametrizations, leave_parametrized, shared=bool(elsewhere))
    for place in places:
        uninstall(*place, tensor, parametrizations.persistent)
    if elsewhere:
        warnings.warn(
            f"'{tensor_name}' was tied to a tensor outside of this {type(module).__name__}, which "
            "stays parametrized: the two are tensors of their own from now on, and an optimizer "
            "that was made before, and is not given as optimizer=, trains only that one. To keep "
            "the tie, remove the parametrizations from a module that holds both.",
            stacklevel=user_stacklevel(),
        )


@contextmanager
def _plain_arithmetic(parametrizations: ParametrizationList) -> Generator[None]:
    """Inside, autocast is off and nothing is recorded, so that new tensors can be trained later."""
    original = parametrizations.originals()[0]
    check_writable_now(original)
    with recording(original), torch.no_grad(), autocast_disabled(original):
        yield


def _plain_tensor(
    parametrizations: ParametrizationList, leave_parametrized: bool, shared: bool
) -> Tensor:
    """The tensor that a module gets back: the original that an optimizer knows, or a new one."""
    originals = parametrizations.originals()
    with _plain_arithmetic(parametrizations):
        value = parametrizations() if leave_parametrized else originals[0]
        parametrizations.forget()
        known = None if shared else _known_to_optimizers(originals)
        if known is None or known.dtype != value.dtype:
            return copy_like(value, originals, parametrizations.is_parameter)
        store(known, value)
        return known


def _known_to_optimizers(originals: tuple[Tensor, ...]) -> Tensor | None:
    """The original that an optimizer knows the tensor by: the only one, or only trained one."""
    trained = [t for t in originals if isinstance(t, nn.Parameter)]
    candidates = trained if trained else originals
    return candidates[0] if len(candidates) == 1 else None


def _position(path: str, index: Any, count: int) -> int:
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(
            f"The index of a parametrization of '{path}' must be an integer, got "
            f"{type(index).__name__}."
        )
    if not -count <= index < count:
        raise IndexError(f"'{path}' has {count} parametrization(s), and none at index {index}.")
    return index % count


def _remove_one(
    path: str, parametrizations: ParametrizationList, index: int, leave_parametrized: bool
) -> None:
    chain = parametrizations.chain()
    rest = [module for i, module in enumerate(chain) if i != index]
    if index == 0 and not leave_parametrized and not parametrizations.is_tensor:
        raise ValueError(
            f"Cannot leave '{path}' at its originals (`leave_parametrized=False`): only "
            f"{type(chain[0]).__name__}, which is to be removed, makes one tensor of them."
        )
    if index == 0 and leave_parametrized and "parametrizations" in parametrizations._modules:
        raise ValueError(
            f"The first parametrization of '{path}' cannot be removed while an original of it is "
            "parametrized itself; remove that parametrization first."
        )
    with _plain_arithmetic(parametrizations):
        value = parametrizations().clone()
        _set_chain(parametrizations, rest)
        try:
            if not leave_parametrized:
                if not parametrizations.unsafe:
                    check_value(parametrizations(), value)
            elif index > 0:
                parametrizations.right_inverse(value)
            else:
                _replace_originals(parametrizations, value)
        except (ValueError, RuntimeError) as error:
            if not leave_parametrized:
                raise
            raise _kind(error)(
                f"'{path}' cannot keep its value without {type(chain[index]).__name__}: "
                f"{error} With leave_parametrized=False the value changes instead."
            ) from error
        parametrizations.forget()


def _set_chain(parametrizations: ParametrizationList, chain: Sequence[nn.Module]) -> None:
    modules = parametrizations._modules
    others = {key: module for key, module in modules.items() if not key.isdigit()}
    modules.clear()
    modules.update({str(i): module for i, module in enumerate(chain)})
    modules.update(others)


def _replace_originals(parametrizations: ParametrizationList, value: Tensor) -> None:
    """Give a list the originals for a value, after its first parametrization was removed."""
    new = new_originals(parametrizations, value)
    originals = parametrizations.originals()
    original = _known_to_optimizers(originals)
    if original is None or original.dtype != unpack(new)[0].dtype:
        original = copy_like(value, originals, parametrizations.is_parameter)
    parametrizations.forget()
    for name in parametrizations.names():
        delattr(parametrizations, name)
    parametrizations.replace_originals(original, new)
    if not parametrizations.persistent:
        parametrizations._non_persistent_buffers_set.update(parametrizations._buffers)


def _kind(error: ValueError | RuntimeError) -> type[ValueError] | type[RuntimeError]:
    """The class to raise: the error's own if its constructor is known, else a base class of it."""
    if isinstance(error, ValueError):
        return InfeasibleError if isinstance(error, InfeasibleError) else ValueError
    return RuntimeError
