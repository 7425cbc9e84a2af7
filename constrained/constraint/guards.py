"""Wrappers around the methods that a constraint defines: precision, autocast, checks, NaN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrained.constraint.arguments import as_tuple
from constrained.constraint.elements import Params, beside
from constrained.constraint.errors import OutOfRangeError
from constrained.constraint.precision import autocast_disabled, raise_precision
from constrained.torch_internals.linalg import LinAlgError
from constrained.torch_internals.tensors import has_values

if TYPE_CHECKING:
    from constrained.constraint.base import Constraint


def _any_not_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether an entry of the tensors is NaN or infinite."""
    return any(has_values(t) and not bool(torch.isfinite(t).all()) for t in tensors)


def _without_broken(
    constraint: Constraint, params: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor] | None]:
    """Which elements have parameters that are not finite, and finite parameters for all elements.

    Returns:
        Boolean tensor of shape ``batch``, and the parameters, where a finite element replaces each
        broken one. None if no element is finite, or if the batch shape is not that of the value.
    """
    whole = constraint.forward(*(p.detach().to("meta") for p in params)).shape
    batch = whole[: len(whole) - (len(whole) if (e := constraint.event_dim) is None else e)]
    if any(p.shape[: len(batch)] != batch for p in params):
        return torch.ones(batch, dtype=torch.bool, device=params[0].device), None
    finite = [torch.isfinite(p).reshape(*batch, -1).all(-1) for p in params]
    broken = ~torch.stack(finite).all(0)
    if bool(broken.all()):
        return broken, None
    sound = torch.unravel_index((~broken).int().argmax(), batch)
    return broken, [torch.where(beside(broken, p), p[sound], p) for p in params]


def _out_of_range(
    constraint: Constraint, method: str, tensors: Sequence[Tensor]
) -> OutOfRangeError:
    """The error for finite numbers with which a method cannot compute."""
    largest = max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)
    return OutOfRangeError(
        f"{constraint!r}: `{method}` cannot compute with these finite numbers of up to "
        f"{largest:.3g} in {tensors[0].dtype}; scale the tensor towards 1, or use torch.float64."
    )


def _nan_where_broken(
    constraint: Constraint, method: Callable[..., Tensor], params: Sequence[Tensor]
) -> Tensor:
    """The value of a map: NaN for each element with parameters that are not finite."""
    broken, sound = _without_broken(constraint, params)
    if sound is None:
        # A sum over the parameters, so that the gradients are NaN as well.
        shape = method(constraint, *(p.detach().to("meta") for p in params)).shape
        return torch.nan * sum(p.sum() for p in params) + params[0].new_zeros(shape)
    value = method(constraint, *sound)
    return torch.where(beside(broken, value), torch.nan, value)


def _contiguous_as(value: Tensor, parameter: Tensor) -> Tensor:
    """The value, contiguous unless its strides are those of the parameter.

    A map may transpose its result in memory, where a plain parameter would be contiguous. A
    parameter that is laid out in another way, such as channels last, has a value of that layout.
    """
    if value.is_contiguous() or value.stride() == parameter.stride():
        return value
    return value.contiguous()


def _guard_forward(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def forward(self: Constraint, *params: Tensor) -> Tensor:
        first = params[0]
        with autocast_disabled(first):
            raised = [*map(raise_precision, params)]
            try:
                value = method(self, *raised)
            except LinAlgError as error:
                if not has_values(first):
                    raise
                if not _any_not_finite(params):
                    raise _out_of_range(self, "forward", params) from error
                value = _nan_where_broken(self, method, raised)
            if value.dtype != first.dtype:
                value = self.rounded(value, first.dtype)
        return _contiguous_as(value, first)

    return forward


def _guard_pullback(
    method: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    @functools.wraps(method)
    def pullback(
        self: Constraint, value: Tensor, gradient: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...]:
        dtype = value.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            with autocast_disabled(value):
                return method(self, value, gradient, *params)
        with autocast_disabled(value):
            found = method(self, *map(raise_precision, (value, gradient, *params)))
        return tuple(None if g is None else g.to(dtype) for g in found)

    return pullback


def _guard_canonical(
    method: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., tuple[Tensor, ...]]:
    @functools.wraps(method)
    def canonical(self: Constraint, *params: Tensor) -> tuple[Tensor, ...]:
        with autocast_disabled(params[0]):
            try:
                better = method(self, *map(raise_precision, params))
            except (ValueError, LinAlgError) as error:
                if _any_not_finite(params):
                    # Parameters that are NaN stay; those of the other elements are improved.
                    broken, sound = _without_broken(self, [*map(raise_precision, params)])
                    if sound is None:
                        return params
                    better = tuple(
                        torch.where(beside(broken, new), old, new)
                        for new, old in zip(method(self, *sound), params, strict=True)
                    )
                elif isinstance(error, LinAlgError):
                    # The next evaluation raises the error.
                    return params
                else:
                    raise
        return tuple(
            _contiguous_as(new.to(old.dtype), old) for new, old in zip(better, params, strict=True)
        )

    return canonical


def _guard_right_inverse(method: Callable[..., Params]) -> Callable[..., Params]:
    @functools.wraps(method)
    def right_inverse(self: Constraint, value: Tensor) -> Params:
        self.check_member(value)
        params = _in_working_precision(self, method, "right_inverse", value)
        if isinstance(params, Tensor):
            return params.to(value.dtype)
        return tuple(param.to(value.dtype) for param in params)

    return right_inverse


def _in_working_precision(
    constraint: Constraint, method: Callable[..., Any], name: str, *given: Any
) -> Any:
    """Call a method with the value in working precision, and explain errors of linear algebra."""
    value, *others = given
    with autocast_disabled(value):
        try:
            found = method(constraint, raise_precision(value), *others)
        except LinAlgError as error:
            if not has_values(value):
                raise
            raise _out_of_range(constraint, name, [value]) from error
    _check_returned(constraint, name, found)
    # A violation may be infinite; members and parameters must be finite.
    made = (found,) if isinstance(found, Tensor) else found
    if name != "violation" and has_values(value) and _any_not_finite(made):
        raise _out_of_range(constraint, name, [value])
    return found


def _check_returned(constraint: Constraint, name: str, found: Any) -> None:
    """Raise unless a method gave a tensor, or several where it may."""
    may_be_several = name == "right_inverse"
    parts: Any = found if may_be_several and isinstance(found, (tuple, list)) else [found]  # pyright: ignore[reportUnknownVariableType] - the next line checks the elements
    wrong = [type(part).__name__ for part in parts if not isinstance(part, Tensor)]
    if wrong:
        wanted = (
            "one tensor, or a tuple of as many as `forward` takes" if may_be_several else "a tensor"
        )
        what = "nothing: its `return` is missing" if found is None else wrong[0]
        raise TypeError(f"{constraint!r}: `{name}` must return {wanted}, and returned {what}.")


def _guard_violation(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def violation(self: Constraint, value: Tensor) -> Tensor:
        self.check_shape(value.shape)
        value = raise_precision(value)
        finite = torch.isfinite(value)
        batch = 0 if self.event_dim is None else value.ndim - self.event_dim
        event = tuple(range(batch, value.ndim))
        elements = finite.all(dim=event, keepdim=True) if event else finite
        # For NaN linear algebra raises, or does not return. It gets zeros, and the result is inf.
        safe = torch.where(elements, value, torch.zeros_like(value))
        result = _in_working_precision(self, method, "violation", safe)
        if result.shape != value.shape[:batch]:
            raise ValueError(
                f"{self!r}: `violation` must give one number for each element, a tensor of shape "
                f"{tuple(value.shape[:batch])} here, but its shape is {tuple(result.shape)}."
            )
        # The result is inf also where the method's own arithmetic overflows to NaN.
        return torch.where(elements.reshape(result.shape) & ~result.isnan(), result, torch.inf)

    return violation


def _guard_slack(
    method: Callable[..., Tensor | None],
) -> Callable[..., Tensor | None]:
    @functools.wraps(method)
    def slack(self: Constraint, value: Tensor) -> Tensor | None:
        self.check_shape(value.shape)
        value = raise_precision(value)
        finite = torch.isfinite(value)
        batch = 0 if self.event_dim is None else value.ndim - self.event_dim
        if batch < value.ndim:
            finite = finite.flatten(batch).all(-1)
        safe = torch.where(beside(finite, value), value, torch.zeros_like(value))
        with autocast_disabled(value):
            try:
                result = method(self, safe)
            except LinAlgError as error:
                if not has_values(value):
                    raise
                raise _out_of_range(self, "slack", [value]) from error
        if result is None:
            return None
        if result.shape != finite.shape:
            raise ValueError(
                f"{self!r}: `slack` must give one number for each element, a tensor of shape "
                f"{tuple(finite.shape)} here, but its shape is {tuple(result.shape)}."
            )
        return torch.where(finite, result, torch.nan)

    return slack


def _guard_project(method: Callable[..., Tensor], name: str = "project") -> Callable[..., Tensor]:
    @functools.wraps(method)
    def project(self: Constraint, value: Tensor) -> Tensor:
        self.check_tensor(value)
        return _in_working_precision(self, method, name, value).to(value.dtype)

    return project


def _guard_move(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def move(self: Constraint, value: Tensor, share: float) -> Tensor:
        return _in_working_precision(self, method, method.__name__, value, share).to(value.dtype)

    return move


def _guard_step_gradient(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def step_gradient(self: Constraint, gradient: Tensor, *params: Tensor) -> Tensor:
        with autocast_disabled(gradient):
            try:
                found = method(self, raise_precision(gradient), *map(raise_precision, params))
            except LinAlgError:
                # The optimizer's step will show that the numbers are not finite.
                return gradient
        return found.to(gradient.dtype)

    return step_gradient


def _guard_geometry(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Constraint, value: Tensor, *others: Tensor) -> Any:
        dtype = others[-1].dtype if others else value.dtype
        with autocast_disabled(value):
            found = method(self, *map(raise_precision, (value, *others)))
        return None if found is None else found.to(dtype)

    return guarded


def _guard_init(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def __init__(self: Constraint, *args: Any, **kwargs: Any) -> None:
        state: dict[str, Any] = vars(self)
        if "_is_being_built" in state:
            # `super().__init__(...)` in the constructor of a subclass.
            return method(self, *args, **kwargs)
        state["_is_being_built"] = True
        try:
            method(self, *args, **kwargs)
            self._check_event_dim()
            # A list could be changed in place, and nothing would notice it.
            for name in self._argument_names:
                if type(state.get(name)) is list:
                    state[name] = as_tuple(state[name])
        finally:
            del state["_is_being_built"]

    return __init__


#: The methods that belong to one `forward`. A class with another `forward` does not inherit them.
OF_THE_MAP = ("canonical", "pullback", "thin_pullback", "step_gradient", "factors")


GUARDS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "__init__": _guard_init,
    "forward": _guard_forward,
    "canonical": _guard_canonical,
    "pullback": _guard_pullback,
    "step_gradient": _guard_step_gradient,
    "steepest": _guard_geometry,
    "right_inverse": _guard_right_inverse,
    "violation": _guard_violation,
    "slack": _guard_slack,
    "project": _guard_project,
    "retract": functools.partial(_guard_project, name="retract"),
    "tangent": _guard_geometry,
    "admissible": _guard_geometry,
    "riemannian_gradient": _guard_geometry,
    "move": _guard_geometry,
    "transport": _guard_geometry,
    "project_scaled": _guard_geometry,
    "inwards": _guard_move,
    "admit": _guard_move,
}
