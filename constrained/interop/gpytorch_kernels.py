"""Kernels of GPyTorch that make new kernels of themselves: by indexing, expanding, copying.

GPyTorch indexes a kernel with a batch of parameters, or expands it to a larger batch, by a copy
whose parameters get other data, of another shape. That does not work with constrained tensors. So
the methods are called on a kernel with the same submodules that has the values as plain parameters.

An indexed kernel stays plain, since a constraint may hold across the batch. It is what ``k(x)[i]``
evaluates. No gradient flows from it to the parameters of ``k``, constrained or not. An expanded or
copied kernel is constrained as the kernel is.

GPyTorch is not imported here.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn

from constrained.parametrized.module_class import contribute
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.registration.from_torch import converted_list
from constrained.registration.install import install, sort

_MODULE, _CLASS = "gpytorch.kernels", "Kernel"


@contribute
def kernel_methods(base: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The methods of a class derived from ``base`` by which a kernel makes new kernels."""
    kernel = getattr(sys.modules.get(_MODULE), _CLASS, None)
    if not names or kernel is None or not issubclass(base, kernel):
        return {}
    methods = {"__getitem__": _getitem, "expand_batch": _expand_batch}
    # Some kernels copy themselves by their constructor.
    return {**methods, "__deepcopy__": _deepcopy} if hasattr(base, "__deepcopy__") else methods


def _getitem(self: Any, index: Any) -> Any:
    plain = _plain(self)
    found = plain[index]
    return self if found is plain else found


def _expand_batch(self: Any, *sizes: Any) -> Any:
    plain = _plain(self)
    found = plain.expand_batch(*sizes)
    if found is plain:
        return self
    for name, parametrizations in _lists(self):
        tensor = getattr(found, name)
        # An expanded tensor has the same memory for all of its entries.
        tensor.data = tensor.data.clone()
        try:
            new = _for_tensor(parametrizations, tensor)
        except ValueError as error:
            raise ValueError(
                f"'{name}' of {self._base_class.__name__} cannot have the shape "
                f"{tuple(tensor.shape)} under its constraint: {error} Call expand_batch on "
                "constrained.release(copy.deepcopy(kernel))."
            ) from error
        install(found, name, new)
    return found


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    found = _plain(self).__deepcopy__(memo)
    for name, parametrizations in _lists(self):
        install(found, name, copy.deepcopy(parametrizations, memo))
    return found


def _plain(kernel: Any) -> Any:
    """A kernel with the same submodules, and with plain tensors that hold the values."""
    base = kernel._base_class
    plain = base.__new__(base)
    plain.__dict__.update({k: v for k, v in kernel.__dict__.items() if k != "_overrides"})
    for kind in ("_parameters", "_buffers", "_modules"):
        plain.__dict__[kind] = dict(kernel.__dict__[kind])
    del plain._modules["parametrizations"]
    for name, parametrizations in _lists(kernel):
        value = getattr(kernel, name).detach().clone()
        if parametrizations.is_parameter:
            is_trained = any(p.requires_grad for p in parametrizations.originals())
            plain._parameters[name] = nn.Parameter(value, is_trained)
        else:
            plain._buffers[name] = value
    for tensors in (plain._parameters, plain._buffers):
        sort(tensors, kernel.parametrizations.tensor_order())
    return plain


def _lists(kernel: Any) -> list[tuple[str, ParametrizationList]]:
    """The tensors of a kernel by their names, with their lists, converted if they are torch's."""
    return [(name, converted_list(found)) for name, found in kernel.parametrizations.items()]


def _for_tensor(parametrizations: ParametrizationList, tensor: Any) -> ParametrizationList:
    """A list with copies of the parametrizations, for a tensor of another shape."""
    chain = [copy.deepcopy(module) for module in parametrizations.chain()]
    with torch.no_grad():
        found = ParametrizationList(chain, tensor, parametrizations.unsafe)
    found.moved = parametrizations.moved
    return found
