"""How a tensor becomes parametrized: ``torch.nn.utils.parametrize`` under the same names.

Semantics, ``state_dict`` keys, error types and messages are torch's; the docstrings here state
what is different. Modules of either engine work with the functions of the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.adopt import adopt, originals_of
from constrained.cache import cached
from constrained.constraint import Constraint
from constrained.originals import store
from constrained.parametrization_list import ParametrizationList, list_with_original
from constrained.parametrized_class import (
    Parametrizations,
    base_class,
    class_names,
    is_parametrized_class,
    parametrized_class,
    set_class,
)
from constrained.wrapped import check_not_wrapped
from constrained.write import settle

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "transfer_parametrizations_and_params",
    "type_before_parametrizations",
]

is_parametrized = torch_parametrize.is_parametrized


class Function(nn.Module):
    """A plain function as a parametrization. It has no right inverse.

    Args:
        function: maps a tensor to a tensor.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *originals: Tensor) -> Tensor:
        """Call the function."""
        return self.function(*originals)

    def extra_repr(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", repr(self.function))


def register_parametrization(
    module: nn.Module,
    tensor_name: str,
    parametrization: nn.Module | Callable[..., Tensor],
    *,
    unsafe: bool = False,
) -> nn.Module:
    """Parametrize a tensor of a module.

    Afterwards ``module.<tensor_name>`` is computed from originals, which live under
    ``module.parametrizations.<tensor_name>``; ``module.<tensor_name> = value`` stores the originals
    whose value that is. Registering again applies one parametrization after another.

    As in ``torch.nn.utils.parametrize``, but:

    * ``tensor_name`` may be a dotted path into ``module``, and every tensor of ``module`` that is
      tied to the one it names stays tied to it; tied tensors that are parametrized one after the
      other, in the same way, stay tied too;
    * a plain function is accepted as a parametrization;
    * after an error the module is as it was;
    * a tensor that a `Constraint` maps from one trained tensor and constants keeps its identity.

    Args:
        module: the module, or a model that has it.
        tensor_name: a parameter or buffer, or one that is parametrized already.
        parametrization: has ``forward``, from originals to the value, and mostly
            ``right_inverse``, back to the originals (one tensor, or several if it comes first).
        unsafe: leave out the checks, so that shape and dtype may change.

    Returns:
        ``module``.

    Raises:
        ValueError: if there is no such tensor, or the parametrization does not fit it.
        TypeError: if the parametrization is neither a module nor a function.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the module already.
    """
    if not isinstance(parametrization, nn.Module):
        if not callable(parametrization):
            raise TypeError(
                "A parametrization must be a torch.nn.Module or a function, got "
                f"{type(parametrization).__name__}."
            )
        parametrization = Function(parametrization)
    owner, name = resolve(module, tensor_name)
    with _training_flag_restored(parametrization):
        parametrization.train(owner.training)
        if is_parametrized(owner, name):
            _append(owner, name, parametrization, unsafe)
            return module
        if name not in owner._parameters and name not in owner._buffers:
            raise ValueError(
                f"Module '{module}' does not have a parameter, a buffer, or a "
                f"parametrized element with name '{tensor_name}'"
            )
        tensor = getattr(owner, name)
        if tensor is None:
            raise ValueError(
                f"'{tensor_name}' of {type(owner).__name__} is None: there is no tensor to "
                "parametrize."
            )
        places = tied_places(module, tensor) if tensor_name.count(".") else [(owner, name)]
        for place_owner, place_name in places:
            check_can_hold(place_owner, place_name)
        tied = list_with_original(tensor)
        if tied is not None and tied is not owner:
            _check_same(tensor_name, tied, parametrization)
            parametrizations = tied
        else:
            parametrizations = ParametrizationList([parametrization], tensor, unsafe=unsafe)
    for place_owner, place_name in places:
        install(place_owner, place_name, parametrizations)
    return module


def remove_parametrizations(
    module: nn.Module, tensor_name: str, leave_parametrized: bool = True
) -> nn.Module:
    """Make a parametrized tensor a plain parameter or buffer again.

    As in ``torch.nn.utils.parametrize``, but a tensor returns to its place in the order of
    parameters, a parameter stays a parameter (with its ``requires_grad``) and a buffer a buffer,
    dotted paths work, and tensors of ``module`` that are tied stay tied.

    Args:
        module: the module, or a model that has it.
        tensor_name: the parametrized tensor.
        leave_parametrized: leave the tensor at its value; else at its original, which is possible
            for a single one.

    Returns:
        ``module``.

    Raises:
        ValueError: if the tensor is not parametrized, or ``leave_parametrized=False`` is asked of
            a tensor with several originals.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the module.
    """
    owner, name = resolve(module, tensor_name)
    if not is_parametrized(owner, name):
        raise ValueError(f"Module {module} does not have a parametrization on {tensor_name}")
    check_not_wrapped(owner, name)
    check_can_change_class(owner)
    settle(owner, name)
    adopt(owner)
    parametrizations = list_of(owner, name)
    parametrizations.check_written(tensor_name)
    if not parametrizations.is_tensor and not leave_parametrized:
        raise ValueError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor "
            "that is parametrized in terms of a sequence of tensors."
        )
    places = places_of(module, parametrizations)
    elsewhere = set(parametrizations._owners) - {o.parametrizations for o, _ in places}
    for place_owner, place_name in places:
        check_not_wrapped(place_owner, place_name)
    tensor = _plain_tensor(parametrizations, leave_parametrized, shared=bool(elsewhere))
    for place_owner, place_name in places:
        uninstall(place_owner, place_name, tensor, parametrizations.persistent)
    return module


def type_before_parametrizations(module: nn.Module) -> type:
    """The class of a module before its first parametrization, or its class if it has none."""
    return base_class(module)


def transfer_parametrizations_and_params(
    from_module: nn.Module, to_module: nn.Module, tensor_name: str | None = None
) -> nn.Module:
    """Give ``to_module`` the parametrizations of ``from_module``, and copies of its originals.

    Unlike in ``torch.nn.utils.parametrize`` the two modules share nothing afterwards: not the
    parametrizations, whose state a change of one value would move, nor the originals.

    Args:
        from_module: nothing happens if it has no parametrized tensor.
        to_module: gets the tensors that it does not have.
        tensor_name: transfer this tensor only.

    Returns:
        ``to_module``.
    """
    if not is_parametrized(from_module):
        return to_module
    names = [tensor_name] if tensor_name is not None else list(from_module.parametrizations)  # type: ignore[arg-type]
    for name in names:
        check_not_wrapped(to_module, name)
    for name in names:
        source: Any = list_of(from_module, name)
        if not hasattr(to_module, name):
            value = getattr(from_module, name).detach().clone()
            setattr(to_module, name, nn.Parameter(value))
        for parametrization in source.children():
            register_parametrization(to_module, name, copy.deepcopy(parametrization))
        target: Any = list_of(to_module, name)
        # The originals, as they are: a right inverse may choose others with the same value.
        with torch.no_grad():
            for old, new in zip(target.originals(), originals_of(source), strict=True):
                store(old, new)
    return to_module


# ------------------------------------------------------------------- places: (module, name) pairs


def resolve(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The submodule that owns the tensor at a dotted path, and the tensor's name in it.

    Raises:
        ValueError: if there is no such submodule.
    """
    prefix, _, name = path.rpartition(".")
    owner = module
    for part in prefix.split(".") if prefix else ():
        child = owner._modules.get(part)
        if child is None:
            raise ValueError(
                f"{type(module).__name__} has no tensor '{path}': its part '{part}' does not exist."
            )
        owner = child
    return owner, name


def tied_places(root: nn.Module, tensor: Tensor) -> list[tuple[nn.Module, str]]:
    """Every place under ``root`` where this very tensor is registered."""
    return [
        (module, name)
        for module in root.modules()
        for tensors in (module._parameters, module._buffers)
        for name, other in tensors.items()
        if other is tensor
    ]


def places_of(root: nn.Module, parametrizations: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every place under ``root`` that is parametrized by this very list."""
    return [
        (module, name)
        for module in root.modules()
        if is_parametrized(module)
        for name, other in module.parametrizations.items()  # type: ignore[operator]
        if other is parametrizations
    ]


# ---------------------------------------------------------------------------------------- parts


def list_of(module: nn.Module, name: str) -> Any:
    """The list that parametrizes a tensor: a `ParametrizationList`, or torch's."""
    parametrizations: Any = module.parametrizations
    return parametrizations[name]


def check_can_change_class(module: nn.Module) -> None:
    """Raise if a wrapper such as FSDP has put a class of its own over the module."""
    if hasattr(type(module), "_base_class") and not is_parametrized_class(type(module)):
        raise RuntimeError(
            f"{type(module).__name__} was wrapped after it was parametrized; register and remove "
            "parametrizations before wrapping."
        )


def check_can_hold(module: nn.Module, name: str) -> None:
    """Raise, before anything has changed, if a tensor of this name cannot be parametrized."""
    check_not_wrapped(module, name)
    check_can_change_class(module)
    existing = getattr(module, "parametrizations", None)
    if existing is not None and not isinstance(existing, nn.ModuleDict):
        raise ValueError(
            f"{type(module).__name__} has an attribute 'parametrizations' of its own, which is "
            "where parametrizations live."
        )
    container = Parametrizations(module) if existing is None else existing
    if hasattr(container, name) and name not in container:
        raise KeyError(f"attribute '{name}' already exists")
    # Some base classes cannot be subclassed just so.
    parametrized_class(base_class(module), class_names(module, name))


def install(module: nn.Module, name: str, parametrizations: ParametrizationList) -> None:
    """Put a list in the place of the parameter or buffer of that name."""
    adopt(module)
    base = base_class(module)
    if "parametrizations" not in module._modules:
        module.parametrizations = Parametrizations(module)
    parametrizations.persistent = name not in module._non_persistent_buffers_set
    if not parametrizations.persistent:
        parametrizations._non_persistent_buffers_set.update(parametrizations._buffers)
    delattr(module, name)
    module.parametrizations[name] = parametrizations  # type: ignore[operator]
    set_class(module, base)


def uninstall(module: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    """Put a plain tensor in the place of a list."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, Parametrizations)
    places = parametrizations.places()
    base = base_class(module)
    parametrizations[name]._owners.discard(parametrizations)  # type: ignore[union-attr]
    del parametrizations[name]
    if len(parametrizations) == 0:
        del module._modules["parametrizations"]
    set_class(module, base)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
        _sort(module._parameters, places)
    else:
        module.register_buffer(name, tensor, persistent=persistent)
        _sort(module._buffers, places)


def _sort(tensors: dict[str, Any], places: tuple[str, ...]) -> None:
    order = {name: i for i, name in enumerate(places)}
    for name in sorted(tensors, key=lambda n: order.get(n, len(order))):
        tensors[name] = tensors.pop(name)


def _plain_tensor(
    parametrizations: ParametrizationList, leave_parametrized: bool, shared: bool
) -> Tensor:
    """The tensor that a module gets back: an original in its last shape, or a new one."""
    trained = [t for t in parametrizations.originals() if isinstance(t, nn.Parameter)]
    originals = parametrizations.originals()
    reusable = trained if trained else list(originals)
    requires_grad = any(t.requires_grad for t in originals)
    with torch.no_grad():
        value = parametrizations() if leave_parametrized else originals[0]
        parametrizations.forget()
        if len(reusable) == 1 and not shared and reusable[0].dtype == value.dtype:
            store(reusable[0], value)
            return reusable[0]
        value = value.detach().clone(memory_format=torch.contiguous_format)
    if parametrizations.is_parameter:
        return nn.Parameter(value, requires_grad)
    return value.requires_grad_(requires_grad)


def _append(module: nn.Module, name: str, parametrization: nn.Module, unsafe: bool) -> None:
    check_not_wrapped(module, name)
    settle(module, name)
    adopt(module)
    parametrizations = list_of(module, name)
    if not unsafe:
        _check_appended(name, getattr(module, name), parametrization)
    parametrizations.append(parametrization)
    parametrizations.unsafe |= unsafe


def _check_same(name: str, tied: ParametrizationList, parametrization: nn.Module) -> None:
    """Raise unless a tied tensor, parametrized already, is to be parametrized in the same way."""
    (first, *more) = tied.children()
    if isinstance(first, Constraint) and isinstance(parametrization, Constraint):
        same = first.spec() == parametrization.spec()
    else:
        same = type(first) is type(parametrization)
    if more or not same:
        raise ValueError(
            f"'{name}' is tied to a tensor that is parametrized by "
            f"{', '.join(type(p).__name__ for p in tied.children())}; tied tensors have one "
            f"parametrization, and {type(parametrization).__name__} is another one."
        )


def _check_appended(name: str, value: Tensor, parametrization: nn.Module) -> None:
    # With A the tensors of the shape and dtype of the value, forward and right_inverse must both
    # map A to A.
    result = parametrization(value)
    if not isinstance(result, Tensor):
        raise ValueError(f"A parametrization must return a tensor. Got {type(result).__name__}.")
    if result.dtype != value.dtype:
        raise ValueError(
            "Registering a parametrization may not change the dtype of the tensor, unless the "
            "`unsafe` flag is enabled.\n"
            f"module.{name}.dtype: {value.dtype}\n"
            f"parametrization(module.{name}).dtype: {result.dtype}"
        )
    if result.shape != value.shape:
        raise ValueError(
            "Registering a parametrization may not change the shape of the tensor, unless the "
            "`unsafe` flag is enabled.\n"
            f"module.{name}.shape: {value.shape}\n"
            f"parametrization(module.{name}).shape: {result.shape}"
        )
    if not hasattr(parametrization, "right_inverse"):
        return
    try:
        inverse: Any = parametrization.right_inverse(result)  # type: ignore[operator]
    except NotImplementedError:
        return
    if not isinstance(inverse, Tensor):
        raise ValueError(
            f"parametrization.right_inverse must return a tensor. Got: {type(inverse).__name__}"
        )
    for what, got, expected in (
        ("dtype", inverse.dtype, value.dtype),
        ("shape", inverse.shape, value.shape),
    ):
        if got != expected:
            raise ValueError(
                f"The tensor returned by parametrization.right_inverse must have the same {what} "
                f"as module.{name}, unless the `unsafe` flag is enabled.\n"
                f"module.{name}.{what}: {expected}\n"
                f"returned {what}: {got}"
            )


@contextmanager
def _training_flag_restored(module: nn.Module) -> Iterator[None]:
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    except BaseException:
        for m, training in flags:
            m.training = training
        raise
