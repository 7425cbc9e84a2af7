"""Linear layers that are applied without forming their weight, or the gradient of it.

A weight that is a product of thin matrices is applied factor by factor: the product costs more than
the layer itself. And the gradient of a linear layer with respect to its weight is a product too, of
a rank that is at most the number of rows of input. If there are few rows, some constraints compute
the gradient of their parameters from the two factors, for a fraction of the time.

Neither way reads the weight. So neither is taken if somebody has read it since the last step, or
has registered hooks on it: a hook, ``retain_grad`` or a write must take effect in the layer too. If
a hook is registered after the layer was applied, the backward pass calls it with the whole
gradient, but not if the layer was applied by factors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.constraint.precision import autocast_disabled, is_autocast
from constrained.evaluation.backward import gradients_of, written_since
from constrained.evaluation.events import Events, expect_writes
from constrained.evaluation.fingerprint import Fingerprint
from constrained.evaluation.value_store import ValueStore
from constrained.parametrized.module_class import contribute
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.torch_internals.functions import direct
from constrained.torch_internals.modes import has_saving_hooks, is_transformed
from constrained.torch_internals.modules import is_replica
from constrained.torch_internals.tensors import is_batch, version

_is_compiling, _is_tracing = torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling

_read_attribute = nn.Module.__getattr__

_HALF = (torch.float16, torch.bfloat16)

#: A gradient is thin if its rank, times this, is at most the smaller dimension of the weight.
_THIN = 4

#: The saved multiplications that make up for the overhead of a second matrix product.
_SAVED = 2**19

#: Torch's method as it was imported. A program may replace it later.
_of_torch = nn.Linear.forward


@contribute
def linear_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """``forward`` of a class derived from ``base``, where that is the one of ``nn.Linear``."""
    if getattr(base, "forward", None) is not nn.Linear.forward or "weight" not in names:
        return {}
    return {"forward": _forward}


def _defines(constraint: object, method: str) -> TypeGuard[Constraint]:
    """Whether a constraint defines an optional method, for the map that it has now."""
    return (
        isinstance(constraint, Constraint)
        and getattr(type(constraint), method) is not getattr(Constraint, method)
        and constraint.has_own_map()
    )


class Unread:
    """A value that a layer is applied with, and that nobody else has read.

    Args:
        constraint: the constraint of the value.
        value: the value, without a graph.
        originals: the parameters that it was computed from.
        copied: the index of the original that the value is a copy of, if any. The value is used in
            its place.
        fingerprint: what the value was computed from.
        store: the store of the value, which has the hooks on it.
    """

    def __init__(
        self,
        constraint: Constraint,
        value: Tensor,
        originals: tuple[Tensor, ...],
        copied: int | None,
        fingerprint: Fingerprint,
        store: ValueStore,
    ) -> None:
        self.constraint, self.value, self.originals = constraint, value, originals
        self._copied, self._fingerprint = copied, fingerprint
        self._version = version(value)
        # Weak: a node of autograd must not keep the module alive.
        self._store = weakref.ref(store)

    def gradients(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the originals, given the gradient ``left' right`` of the value.

        Raises:
            RuntimeError: if the value or an original was written in the meantime.
        """
        self.check()
        params = [t.detach() for t in self.originals]
        if self._copied is not None:
            params[self._copied] = self.value
        hooks = self.hooks()
        if hooks is None:
            thin = self.constraint.thin_pullback(self.value, left, right, *params)
            if thin is not None:
                return thin
        gradient = left.mT @ right
        if hooks is not None:
            gradient = hooks(gradient)
        return self.constraint.pullback(self.value, gradient, *params)

    def hooks(self) -> Callable[[Tensor], Tensor] | None:
        """The hooks on the value as one function of its gradient; None if there are none by now."""
        store = self._store()
        return store.hooks.call if store is not None and store.hooks.has_lasting() else None

    def check(self) -> None:
        """Raise a RuntimeError if the value or an original was written since the forward pass."""
        if self._version != version(self.value) or not self._fingerprint.can_be_differentiated():
            raise written_since()


def _forward(self: Any, input: Tensor) -> Tensor:
    """``x W' + b``, in the way that is cheapest."""
    # `_list` comes first, since it is cheap: in most calls the weight has been read already.
    tensor = None if _is_tracing() else _list(self)
    if tensor is not None and not _is_compiling() and _is_plain(self):
        factors = _factors(tensor, _rows(input))
        if factors is not None:
            left, right = factors
            return F.linear(F.linear(input, right), left, self.bias)
        unread = _unread(tensor, input)
        if unread is not None:
            return direct(_Linear)(unread, input, self.bias, *unread.originals)
    return super(self._parametrized, self).forward(input)  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only


def _is_plain(layer: Any) -> bool:
    """Whether a layer reads its tensors and is applied by torch's own methods."""
    above = super(layer._parametrized, layer).forward  # pyright: ignore[reportUnknownVariableType] - the class is known at run time only
    return (
        type(layer).__getattr__ is _read_attribute and getattr(above, "__func__", None) is _of_torch  # pyright: ignore[reportUnknownArgumentType] - the class is known at run time only
    )


def _rows(input: Any) -> int:
    # If the input is no tensor, the layer itself raises.
    return input.shape[:-1].numel() if isinstance(input, Tensor) else 1


def _list(layer: Any) -> ParametrizationList | None:
    """The weight's parametrizations, if a fast way exists and nobody has read the weight."""
    if layer._overrides is not None:
        return None
    parametrizations = layer._modules.get("parametrizations")
    found = None if parametrizations is None else parametrizations._modules.get("weight")
    # A list of a derived class may evaluate in another way, and has to be called.
    if type(found) is not ParametrizationList or not found._store.is_unread():
        return None
    is_applicable = found._notes.get("linear")
    if is_applicable is None:
        first = found.chain()[0]
        is_applicable = _defines(first, "factors") or _defines(first, "thin_pullback")
        found._notes["linear"] = is_applicable
    return found if is_applicable else None


def _factors(tensor: ParametrizationList, rows: int) -> tuple[Tensor, Tensor] | None:
    """Thin factors of the value, if a layer may be applied by them and it saves time.

    Args:
        tensor: the list of the weight.
        rows: the number of rows of the input.
    """
    first, *rest = tensor.chain()
    if rest or not _defines(first, "factors") or not _may_be_applied_unread(tensor):
        return None
    originals = tensor.originals()
    # In half precision two products are rounded more than one.
    if originals[0].dtype in _HALF or is_autocast(originals[0]):
        return None
    found = first.factors(*originals)
    if found is None:
        return None
    (m, r), n = found[0].shape, found[1].shape[-1]
    # The rows of this call count, not those of all calls: equal calls must give equal bits.
    return found if rows * (m * n - r * (m + n)) > _SAVED else None


def _unread(tensor: ParametrizationList, input: Tensor) -> Unread | None:
    """The value, if the layer may be applied without a reader, and with a thin gradient."""
    first, *rest = tensor.chain()
    if rest or not torch.is_grad_enabled() or not _defines(first, "thin_pullback"):
        return None
    if not _may_be_applied_unread(tensor) or not tensor.is_pure():
        return None
    originals = tensor.originals()
    original, kind = originals[0], type(input)
    if (
        kind not in (Tensor, nn.Parameter)
        or (input.dtype, input.device) != (original.dtype, original.device)
        or original.dtype in _HALF
        or input.layout is not torch.strided
        or len(tensor.shape) != 2
        or input.ndim < 1
        or input.shape[-1] != tensor.shape[1]
        or not any(t.requires_grad for t in originals)
        or is_autocast(original)
    ):
        return None
    rows = input.shape[:-1].numel()
    total = _count_rows(tensor, rows)
    # Several thin gradients may cost more than the gradient of one value that all calls share.
    if total > rows and total > min(tensor.shape) // _THIN:
        return None
    found = tensor._store.precomputed(tensor)
    if found is None:
        with torch.no_grad():
            value = tensor.evaluator()(*originals)
        tensor._store.precompute(tensor, value, None)
        found = tensor._store.precomputed(tensor)
        if found is None:
            return None
    value, copied, fingerprint = found
    return Unread(first, value, originals, copied, fingerprint, tensor._store)


def _may_be_applied_unread(tensor: ParametrizationList) -> bool:
    """Whether no saved-tensor hook, transform or replica is active, and the value has a recipe."""
    # Checkpointing runs a layer again and expects the same saved tensors, so it is not done there.
    return (
        not has_saving_hooks()
        and not is_transformed()
        and not is_replica(tensor)
        and tensor._store.recipe(tensor) is not None
    )


def _count_rows(tensor: ParametrizationList, rows: int) -> int:
    """How many rows the layer was applied to since the last step or backward pass."""
    since, before = tensor._notes.get("rows", (None, 0))
    now = Events.count
    total = rows + (before if since == now else 0)
    tensor._notes["rows"] = now, total
    return total


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unread: Unread, x: Tensor, bias: Tensor | None, *originals: Tensor
    ) -> Tensor:
        ctx.unread = unread
        ctx.save_for_backward(x, bias)
        return F.linear(x, unread.value, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        unread: Unread = ctx.unread
        expect_writes()
        x, bias = ctx.saved_tensors
        of_x, of_bias, *of_originals = ctx.needs_input_grad[1:]
        with autocast_disabled(unread.value):
            # Under vmap there is a batch of gradients, for which only autograd has a rule.
            if torch.is_grad_enabled() or is_batch(gradient):
                return None, *_differentiable(unread, x, bias, gradient, ctx.needs_input_grad[1:])
            left = gradient.reshape(-1, gradient.shape[-1])
            params: tuple[Tensor | None, ...] = (None,) * len(of_originals)
            if any(of_originals):
                params = unread.gradients(left, x.reshape(-1, x.shape[-1]))
            return (
                None,
                gradient @ unread.value if of_x else None,
                left.sum(0) if of_bias else None,
                *params,
            )


def _differentiable(
    unread: Unread, x: Tensor, bias: Tensor | None, gradient: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs by autograd, which can be differentiated again."""
    unread.check()
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the input may itself be computed from the bias or the originals, as in a
        # recurrent network, and autograd would go on from there.
        inputs = [t if t is None else t.view_as(t) for t in (x, bias, *unread.originals)]
        weight, hooks = unread.constraint(*inputs[2:]), unread.hooks()
        if hooks is not None and weight.requires_grad:
            weight.register_hook(hooks)
        output = F.linear(inputs[0], weight, inputs[1])  # type: ignore[arg-type]
    return gradients_of(output, inputs, needed, gradient, is_recorded)
