"""Linear layers that are applied without the gradient, or the value, of their weight being formed.

A weight that is a product of thin matrices is applied factor by factor: the product costs more than
the layer itself. And the gradient of a linear layer with respect to its weight is a product, of as
small a rank as there are rows of input; where these are few, some constraints have the gradient of
their parameters from the factors, for a fraction of the time.

Both leave the weight unread. So they step aside where somebody has read it since the last step, or
hooks on it last: what was asked of that tensor (a hook, ``retain_grad``, a write) holds for the
layer as well. A hook that comes after the layer was applied is called by its backward pass, with
the whole gradient; a layer that was applied by factors knows nothing of it.
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
from constrained.evaluation.backward import written_since
from constrained.evaluation.events import expect_writes, happened
from constrained.evaluation.fingerprint import Fingerprint
from constrained.evaluation.value_store import ValueStore
from constrained.parametrized.module_class import contribute
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.torch_internals.functions import direct
from constrained.torch_internals.modes import has_saving_hooks, is_transformed
from constrained.torch_internals.modules import is_replica
from constrained.torch_internals.tensors import is_batch, version

_is_compiling, _is_watched = torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling

_read_attribute = nn.Module.__getattr__

_HALF = (torch.float16, torch.bfloat16)

#: A gradient is thin if a layer of this many times as many rows would have it.
_THIN = 4

#: Multiplications that are worth a second product, and what it takes to call it.
_SAVED = 2**19

#: Somebody may give all layers, or those of one class, another one.
_of_torch = nn.Linear.forward


@contribute
def linear_methods(base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """``forward`` of a class derived from ``base``, where that is the one of ``nn.Linear``."""
    if getattr(base, "forward", None) is not nn.Linear.forward or "weight" not in names:
        return {}
    return {"forward": _forward}


def has_factors(constraint: object) -> TypeGuard[Constraint]:
    """Whether a layer may be applied by the factors of what satisfies the constraint."""
    return (
        isinstance(constraint, Constraint)
        and type(constraint).factors is not Constraint.factors
        and constraint.has_own_map()
    )


def has_thin_pullback(constraint: object) -> TypeGuard[Constraint]:
    """Whether a constraint has the gradient of its parameters from thin factors of its value's."""
    return (
        isinstance(constraint, Constraint)
        and type(constraint).thin_pullback is not Constraint.thin_pullback
        and constraint.has_own_map()
    )


class Unread:
    """A value that is applied to some input, while nobody else reads it.

    Args:
        constraint: what the value satisfies.
        value: without a graph.
        originals: the parameters that it was computed from.
        copied: which of them the value is a copy of; it stands for this one.
        fingerprint: what else it was computed from.
        store: where the hooks on the value are.
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
        """Those of the originals from that of the value, ``left' right``.

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
        """What the hooks on the value make of its gradient, if there are any by now."""
        store = self._store()
        return store.hooks.call if store is not None and store.hooks.wait() else None

    def check(self) -> None:
        """Raise a RuntimeError if a gradient would be one of another value."""
        if self._version != version(self.value) or not self._fingerprint.can_be_differentiated():
            raise written_since()


def _forward(self: Any, input: Tensor) -> Tensor:
    """``x W' + b``, in the way that is cheapest."""
    # A layer that is called often in a step comes here each time, mostly to find that its weight
    # has been read.
    tensor = None if _is_watched() else _list(self)
    if tensor is not None and not _is_compiling() and _is_plain(self):
        factors = _factors(tensor, _rows(input))
        if factors is not None:
            left, right = factors
            return F.linear(F.linear(input, right), left, self.bias)
        unread = _unread(tensor, input)
        if unread is not None:
            return direct(_Linear)(unread, input, self.bias, *unread.originals)
    return super(self._parametrized, self).forward(input)


def _is_plain(layer: Any) -> bool:
    """Whether a layer reads its tensors, and is applied, as those of torch."""
    above = super(layer._parametrized, layer).forward
    return (
        type(layer).__getattr__ is _read_attribute and getattr(above, "__func__", None) is _of_torch
    )


def _rows(input: Any) -> int:
    # What is no input is for the layer itself to refuse.
    return input.shape[:-1].numel() if isinstance(input, Tensor) else 1


def _list(layer: Any) -> ParametrizationList | None:
    """The weight's parametrizations, if there is a way to apply them and nobody has read it."""
    if layer._overrides is not None:
        return None
    parametrizations = layer._modules.get("parametrizations")
    found = None if parametrizations is None else parametrizations._modules.get("weight")
    # A list of a class that somebody has derived is to be called.
    if type(found) is not ParametrizationList or not found._store.is_unread():
        return None
    is_applicable = found._notes.get("linear")
    if is_applicable is None:
        first = found.chain()[0]
        is_applicable = has_factors(first) or has_thin_pullback(first)
        found._notes["linear"] = is_applicable
    return found if is_applicable else None


def _factors(tensor: ParametrizationList, rows: int) -> tuple[Tensor, Tensor] | None:
    """Thin factors of the value, where a product by them says all that the value would say.

    Args:
        rows: of what is multiplied.
    """
    first, *rest = tensor.chain()
    if rest or not has_factors(first) or not _may_be_applied_unread(tensor):
        return None
    originals = tensor.originals()
    # In half precision a product of factors is rounded in between.
    if originals[0].dtype in _HALF or is_autocast(originals[0]):
        return None
    found = first.factors(*originals)
    if found is None:
        return None
    (m, r), n = found[0].shape, found[1].shape[-1]
    # However often it is called: what is computed twice must not differ by rounding.
    return found if rows * (m * n - r * (m + n)) > _SAVED else None


def _unread(tensor: ParametrizationList, input: Tensor) -> Unread | None:
    """The value, where a linear layer may have its gradient without anybody reading it."""
    first, *rest = tensor.chain()
    if rest or not torch.is_grad_enabled() or not has_thin_pullback(first):
        return None
    if not _may_be_applied_unread(tensor) or not tensor.is_pure():
        return None
    originals = tensor.originals()
    ours, kind = originals[0], type(input)
    if (
        kind not in (Tensor, nn.Parameter)
        or (input.dtype, input.device) != (ours.dtype, ours.device)
        or ours.dtype in _HALF
        or input.layout is not torch.strided
        or len(tensor.shape) != 2
        or input.ndim < 1
        or input.shape[-1] != tensor.shape[1]
        or not any(t.requires_grad for t in originals)
        or is_autocast(ours)
    ):
        return None
    rows = input.shape[:-1].numel()
    total = _count_rows(tensor, rows)
    # Many thin gradients cost more than the one gradient of a value that all calls share.
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
    return Unread(first, value, originals, copied, fingerprint, tensor._store)  # type: ignore[arg-type]


def _may_be_applied_unread(tensor: ParametrizationList) -> bool:
    """Whether nobody listens, traces, or saves what autograd saves elsewhere."""
    # What is run once more, to save the same tensors, must not find another way then.
    return (
        not has_saving_hooks()
        and not is_transformed()
        and not is_replica(tensor)
        and tensor._store.recipe(tensor) is not None
    )


def _count_rows(tensor: ParametrizationList, rows: int) -> int:
    """How many rows the layer was applied to since a step, or a backward pass."""
    since, before = tensor._notes.get("rows", (None, 0))
    now = happened()
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
            # For many gradients at once, as of vmap, no constraint has a rule but that of autograd.
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
    """The same, with a graph of their own where one is recorded."""
    unread.check()
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the input may be computed from the bias or the originals itself, as in a
        # recurrent network, and autograd would go on from there.
        inputs = [t if t is None else t.view_as(t) for t in (x, bias, *unread.originals)]
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
        weight, hooks = unread.constraint(*inputs[2:]), unread.hooks()
        if hooks is not None and weight.requires_grad:
            weight.register_hook(hooks)
        output = F.linear(inputs[0], weight, inputs[1])  # type: ignore[arg-type]
    found = iter(
        torch.autograd.grad(output, wanted, gradient, create_graph=is_recorded, allow_unused=True)
    )
    return tuple(next(found) if need else None for need in needed)
