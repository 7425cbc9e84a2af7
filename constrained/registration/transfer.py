"""Copying the parametrizations of one module to another."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from constrained.atomic.contents import store
from constrained.atomic.interrupts import defer_interrupts
from constrained.atomic.undo import all_or_nothing, around, tensors_of
from constrained.parametrized.module_class import base_class, is_parametrized_class, set_class
from constrained.parametrized.originals import register_tensor
from constrained.parametrized.override import override
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.parametrized.parametrizations import lists_of
from constrained.parametrized.tensor_locations import is_parametrized, list_of
from constrained.registration.from_torch import converted_list
from constrained.registration.install import check_can_hold, install
from constrained.registration.param_groups import ParameterHandover
from constrained.registration.wrappers import check_not_wrapped
from constrained.torch_internals.rewriters import Convert, wrap_synchronization


def transfer_parametrizations_and_params(
    from_module: nn.Module, to_module: nn.Module, tensor_name: str | None = None
) -> nn.Module:
    """Give ``to_module`` the parametrizations of ``from_module``, and copies of its originals.

    Unlike in ``torch.nn.utils.parametrize`` the two modules share nothing afterwards: neither the
    originals, nor the parametrizations with their state. Tensors of ``from_module`` that are tied
    to each other are tied in ``to_module`` as well. A parameter of ``to_module`` that becomes the
    only original, or the only trained one, keeps its identity.

    Args:
        from_module: nothing happens if it has no parametrized tensor.
        to_module: the module to change. It need not have the tensors, but those that it has must
            not be parametrized.
        tensor_name: transfer this tensor only.

    Returns:
        ``to_module``.

    Raises:
        RuntimeError: if DistributedDataParallel or FSDP has wrapped ``to_module``.
        ValueError: if ``from_module`` has no parametrized tensor of that name, or the tensor of
            ``to_module`` is parametrized or of another shape. Nothing has changed then.
    """
    if not is_parametrized(from_module):
        return to_module
    names = [tensor_name] if tensor_name is not None else list(lists_of(from_module))
    for name in names:
        check_not_wrapped(to_module, name)
    copies: dict[int, Any] = {}
    changed = around([to_module])
    with defer_interrupts(), all_or_nothing(changed, tensors_of(changed)):
        changes = [(name, _copied(from_module, to_module, name, copies)) for name in names]
        for name, parametrizations in changes:
            handover = ParameterHandover(to_module, name, name)
            _install(to_module, name, parametrizations)
            handover.apply(None)
    return to_module


def _copied(
    from_module: nn.Module, to_module: nn.Module, name: str, copies: dict[int, Any]
) -> ParametrizationList:
    if not is_parametrized(from_module, name):
        raise ValueError(f"{base_class(from_module).__name__} has no parametrized tensor '{name}'.")
    if is_parametrized(to_module, name):
        raise ValueError(
            f"'{name}' of {base_class(to_module).__name__} is parametrized already; call "
            f"remove_parametrizations(module, '{name}') first."
        )
    source = list_of(from_module, name)
    if id(source) not in copies:
        copies[id(source)] = converted_list(copy.deepcopy(source))
    copied = copies[id(source)]
    tensor = getattr(to_module, name, None)
    if tensor is not None:
        check_can_hold(to_module, name)
        if not copied.unsafe and tensor.shape != copied.shape:
            source_class, target_class = base_class(from_module), base_class(to_module)
            raise ValueError(
                f"'{name}' has the shape {tuple(copied.shape)} in {source_class.__name__} and "
                f"{tuple(tensor.shape)} in {target_class.__name__}."
            )
    return copied


def _install(module: nn.Module, name: str, parametrizations: ParametrizationList) -> None:
    parametrizations.train(module.training)
    tensor = getattr(module, name, None)
    if tensor is None:
        # A tensor of the right kind, which the list replaces.
        empty = torch.empty(0)
        register_tensor(
            module, name, nn.Parameter(empty) if parametrizations.is_parameter else empty
        )
    else:
        parametrizations.to(tensor.device)
        _keep_identity(parametrizations, tensor)
    install(module, name, parametrizations)


def _keep_identity(parametrizations: ParametrizationList, tensor: Tensor) -> None:
    """Make a parameter the trained original, if there is just one, of the same dtype."""
    trained = list(parametrizations._parameters.items())
    if not isinstance(tensor, nn.Parameter) or len(trained) != 1:
        return
    ((name, original),) = trained
    if original is None or original.dtype != tensor.dtype or original is tensor:
        return
    with torch.no_grad():
        store(tensor, original)
    parametrizations.forget()
    tensor.requires_grad_(original.requires_grad)
    parametrizations.register_parameter(name, tensor)


def _synchronized(convert: Convert, module: nn.Module) -> nn.Module:
    """Convert a batch normalization to ``nn.SyncBatchNorm``, with its parametrizations."""
    if not is_parametrized_class(type(module)):
        return convert(module)
    parametrized = lists_of(module)
    before: dict[str, Any] = {}
    try:
        for name, parametrizations in parametrized.items():
            # Torch registers the tensors that it reads in the new module.
            value = getattr(module, name).detach()
            is_parameter = getattr(parametrizations, "is_parameter", True)
            before[name] = override(module, name, nn.Parameter(value) if is_parameter else value)
        converted = convert(module)
    finally:
        for name, instead in before.items():
            override(module, name, instead)
    if converted is not module:
        # Torch has moved the submodules to the new module, `parametrizations` among them.
        for name in parametrized:
            converted._parameters.pop(name, None)
            converted._buffers.pop(name, None)
        set_class(converted, type(converted))
    return converted


wrap_synchronization(_synchronized)
