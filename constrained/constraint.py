"""What a constraint is: a set, a map onto it, a right inverse, a violation, a projection."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from constrained.holders import all_holders
from constrained.tolerance import tolerance, working_dtype
from constrained.torch_internals import tensors
from constrained.undisturbed import Undisturbed

Params = Tensor | tuple[Tensor, ...]


#: What `nn.Module` itself keeps of a module, its mode and hooks, but for tensors and submodules.
_LIFE = frozenset(vars(nn.Module())) - {
    *("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
}

#: The derivative of a map where an outsider starts, at least, as a share of its typical size.
START = 0.02

#: A derivative of no more than this share of its typical size is none: an optimizer hardly moves.
FLAT = 1e-6


_revisions = itertools.count()


class InfeasibleError(ValueError):
    """A value that does not lie in the set it was offered to."""


class OutOfRangeError(ValueError):
    """Finite numbers, at the ends of the range of their dtype, that no algorithm works on."""


class Constraint(nn.Module):
    """A set of tensors, with a differentiable map from free parameters onto it.

    One *element* of the set is made of the last `event_dim` dimensions of a tensor; all dimensions
    before them are batch dimensions, each element of the batch being constrained on its own.

    A subclass is final: it implements `forward`, `right_inverse`, `violation`, `project`, `sample`
    and `dimension`, stores every constructor argument under its own name, and is not subclassed
    further. (One that is, with another `forward`, has the default `canonical`, `pullback`,
    `thin_pullback`, `step_gradient` and `factors` unless it defines its own.) Its docstring states
    **Set**, **Map**, **Right inverse** and **Reference**.

    What a subclass may rely on. The base class wraps the methods that it defines, so that

    * `forward`, `pullback`, `canonical`, `right_inverse`, `violation`, `project`, `inwards` and
      `admit` receive at least single precision, with autocast off, whatever the tensor's dtype;
      results go back to that dtype (`violation` stays in the working precision), that of `forward`
      by `rounded`;
    * where linear algebra raises because the parameters of an element hold NaN or infinity,
      `forward` gives NaN for it, and `canonical` these parameters;
    * the value is contiguous, unless a parameter is laid out alike;
    * `right_inverse` receives a finite member of the set (up to `tolerance`), `project` a finite
      tensor of an admissible shape, and `violation` a finite tensor: an element that holds NaN or
      infinity has the violation ``inf``.

    An argument may be set later, as in ``constraint.radius = 2.0``: the constructor checks it, and
    what it makes of the arguments follows, while parameters, hooks and the training flag stay.

    A tensor among the constructor arguments stays a plain attribute: it is no state, and neither
    ``to_empty`` nor ``load_state_dict`` may touch it. Use it as ``self.mask.to(value.device)``.
    `spec` writes it as a list, which the constructor must accept too.

    Class attributes:
        event_dim: number of trailing dimensions that make one element; None where the whole tensor
            is one, whatever its dimensions. An instance may have its own.
        examples: pairs ``(constructor kwargs, event shape)`` on which laws and docs run.
        closed: whether the set contains its boundary. For an open set, `project` ends in the
            interior, and leaves every interior element bit for bit as it is.
        complex: whether complex tensors are accepted.
        deterministic: whether `forward` depends on its arguments, the constructor arguments and
            the module's buffers alone. Only then may the engine keep its value.
        frozen: which of the free parameters are constants (a base point, say): the engine keeps
            these as buffers, not as parameters.
        ambient: which of the canonical parameters, if any, is the element itself, all others that
            are trained being zero: ``forward(*canonical(*p)) == canonical(*p)[ambient]``, bit for
            bit. Then there is nothing to evaluate after an optimizer step.
        remembers: whether `canonical` begins where it ended before: then it is called for each
            tensor on its own, where small ones of a kind are otherwise restored as one batch.
        recomputes: whether the gradient is had by evaluating once more in each backward pass, where
            the graph of an evaluation would hold several times the memory of the weight.
        exempt: law name -> reason, for each law of `constrained.testing` that cannot hold. An
            instance may declare its own.
        keeps: names of the constraints whose sets `forward` maps into themselves, for a map from
            a tensor to one of the same shape: it can follow these in a `chain`. An instance may
            have its own.
        name, aliases: set by `constrained.register`.
    """

    event_dim: int | None
    examples: ClassVar[Sequence[tuple[Mapping[str, Any], tuple[int, ...]]]] = ()
    closed: ClassVar[bool] = True
    complex: ClassVar[bool] = False
    deterministic: bool = True
    frozen: tuple[int, ...] = ()
    ambient: int | None = None
    remembers: bool = False
    recomputes: bool = False
    exempt: Mapping[str, str] = {}
    keeps: tuple[str, ...] = ()
    name: ClassVar[str | None] = None
    aliases: ClassVar[tuple[str, ...]] = ()
    _undefined: ClassVar[Sequence[str]] = ("its methods",)
    _argument_names: ClassVar[tuple[str, ...]] = ()
    _named_params: ClassVar[int] = 0

    def __init__(self) -> None:
        if self._undefined:
            name, undefined = type(self).__name__, ", ".join(self._undefined)
            raise TypeError(f"{name} is abstract: it must define {undefined}.")
        super().__init__()
        if "_is_being_built" not in vars(self):
            self._check_event_dim()
        self._count_change()

    def _check_event_dim(self) -> None:
        cls = type(self)
        if not hasattr(cls, "event_dim") and "event_dim" not in vars(self):
            raise TypeError(
                f"{cls.__name__} must say how many trailing dimensions of a tensor make one "
                "element, and has no event_dim: write `event_dim = 1` into the class for vectors, "
                "2 for matrices, 0 for numbers, None for the whole tensor."
            )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for method, guard in _GUARDS.items():
            if method in vars(cls):
                setattr(cls, method, guard(vars(cls)[method]))
        cls._map_as_defined = cls.forward
        for method in _OF_THE_MAP:
            owner = next(kind for kind in cls.__mro__ if method in vars(kind))
            # Of another map it says something else.
            if (
                issubclass(owner, Constraint)
                and not _is_abstract(owner._map_as_defined)
                and owner._map_as_defined is not cls.forward
            ):
                setattr(cls, method, getattr(Constraint, method))
        # Not left to ABC: its metaclass would keep others from deriving a class in the place of
        # this one, as Pyro and higher do with every module of a model.
        cls._undefined = [name for name in dir(cls) if _is_abstract(getattr(cls, name, None))]
        cls._argument_names = tuple(inspect.signature(cls.__init__).parameters)[1:]
        taken = inspect.signature(cls.forward).parameters.values()
        cls._named_params = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in taken) - 1

    # ------------------------------------------------------------------ what a subclass defines

    @abstractmethod
    def forward(self, *params: Any, **none: Any) -> Tensor:
        """Map free parameters to an element of the set, of shape ``(*batch, *event)``.

        A subclass takes as many tensors as its map has parameters, by position. (So written, type
        checkers let it.)
        """

    #: The map that the other methods of a class were written for.
    _map_as_defined: ClassVar[Callable[..., Tensor]] = forward

    @abstractmethod
    def right_inverse(self, value: Tensor) -> Params:
        """Free parameters with ``forward(right_inverse(value)) == value``.

        Pure: writes neither to ``self`` nor to ``value``, and draws no random numbers.

        Raises:
            InfeasibleError: if ``value`` does not lie in the set (a `ValueError`).
        """

    @abstractmethod
    def violation(self, value: Tensor) -> Tensor:
        """How far ``value`` lies from the set: distance-like, shape ``batch``, 0 on its closure."""

    @abstractmethod
    def project(self, value: Tensor) -> Tensor:
        """A nearest point of the set, or the documented retraction where there is no formula."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A random element of the full ``shape``, batch dimensions first.

        Without a ``generator`` torch's default one is used, as by `torch.randn`.
        """

    @abstractmethod
    def dimension(self, shape: Sequence[int]) -> int:
        """The dimension of the set as a manifold, for one element of the given event shape."""

    def shape_problem(self, event: tuple[int, ...]) -> str | None:
        """What an event shape must be, if ``event`` is not: ``"must be square"``. Else None."""
        del event
        return None

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Members near given ones, away from where the derivative of `forward` vanishes.

        A class defines it where its map gets flat, as softplus does next to zero: an optimizer
        that starts there hardly moves.

        Args:
            value: members, of shape ``(*batch, *event)``.
            share: how large the derivative must be at the result, as a share of its typical size,
                below 1/2.

        Returns:
            Tensor of the shape of ``value``. An element at which the derivative is that large
            already comes back bit for bit. By default all do.
        """
        del share
        return value

    def admit(self, value: Tensor, share: float) -> Tensor:
        """The members that outsiders start from: by default their projections, moved `inwards`.

        A class defines it where the projection of a tensor as good as any is a bad start: that of
        a matrix with a determinant of the wrong sign is singular, up to rounding.

        Args:
            value: of shape ``(*batch, *event)``. What becomes of members among these is not used.
            share: as for `inwards`.
        """
        return self.inwards(self.project(value), share)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """What `forward` has computed in single precision, in the half precision of the tensor.

        A class defines it where rounding would leave an open set, as a small positive number does
        that becomes zero.
        """
        return value.to(dtype)

    def fitted(self, module: nn.Module, name: str, *, viewed: bool = False) -> Constraint:
        """The constraint for a tensor of a module, with the settings of that where it has none.

        `constrained.constrain` asks each owner of the tensor. A class defines it whose set depends
        on what the module does with the tensor, as the norm of a convolution does on its stride.

        Args:
            module: the owner of the tensor; of a lazy one, the tensor may have no shape yet.
            name: the tensor's name there.
            viewed: whether the constraint is on a rearrangement of it.

        Returns:
            The constraint itself, or a copy with other arguments. It is not changed.

        Raises:
            ValueError: if it does not go with the module, or its arguments contradict it.
        """
        del module, name, viewed
        return self

    def canonical(self, *params: Tensor) -> tuple[Tensor, ...]:
        """Better conditioned parameters of the same element.

        The engine stores them after each optimizer step, so that an evaluation finds the
        parameters where it is cheapest. ``forward(*canonical(*p)) == forward(*p)`` must hold.
        """
        return params

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Which parameters `canonical` changes together.

        A group of which an optimizer trains a part only is left as it is. A class defines it where
        some parameters have a canonical form whatever the others are.

        Args:
            count: how many parameters there are, constant ones included.

        Returns:
            The places of each group. If only one group is replaced by its canonical parameters,
            the element stays. By default all parameters are one group.
        """
        return [range(count)]

    def pullback(
        self, value: Tensor, gradient: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the parameters, from that with respect to the value.

        A class defines it where the value is worth more than the graph of its evaluation: where
        the gradient can be had from the value, for less time or memory. The engine then records no
        graph, and comes here in each backward pass; derivatives of higher order, `torch.func` and
        tracing differentiate `forward` as they would without it.

        Args:
            value: what `forward` gave, of shape ``(*batch, *event)``.
            gradient: of the shape of the value.
            params: what `forward` was given.

        Returns:
            One tensor for each of ``params``, of its shape; None for a constant. By default, the
            gradient of one more evaluation: see `recomputes`.
        """
        del value
        return recomputed(self, gradient, params)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...] | None:
        """`pullback` from a gradient of small rank, ``left' right``, without forming it.

        That is the gradient of a linear layer: ``right`` are its inputs, and ``left`` the gradient
        with respect to its outputs. A class that defines this defines `pullback` too.

        Args:
            value: what `forward` gave, of shape ``(n, p)``.
            left: shape ``(b, n)``.
            right: shape ``(b, p)``.
            params: what `forward` was given; the value itself for one that it is a copy of.

        Returns:
            What `pullback` would, or None where that is the cheaper way.
        """
        del value, left, right, params
        return None

    def step_gradient(self, gradient: Tensor, *params: Tensor) -> Tensor:
        """What a step of an optimizer is made of, from the gradient of the loss.

        On the boundary of a closed set a step against the gradient may lead outside, from where
        `canonical` leads it back; and an optimizer whose steps have another metric than that
        projection comes to rest beside the optimum. A class may give the gradient that vanishes at
        an optimum, and there only. This need not be linear: the engine asks for it when a step
        begins, once the gradients of all batches and processes are added up, and writes it into
        ``grad``, where it stays until ``zero_grad``.

        Args:
            gradient: with respect to the first parameter. It may be changed in place.
            params: as `forward` takes them.

        Returns:
            Tensor of the shape of the first parameter. By default the gradient itself.
        """
        del params
        return gradient

    def factors(self, *params: Tensor) -> tuple[Tensor, Tensor] | None:
        """Two matrices whose product is ``forward(*params)``, if they are at hand.

        A linear layer is applied by them, without forming the product, where that is less work.
        Both are differentiable functions of the parameters, which come as they are stored.

        Returns:
            Tensors of shapes ``(m, r)`` and ``(r, n)``, or None.
        """
        del params
        return None

    # ------------------------------------------------------------------------- what follows

    def param_count(self) -> int:
        """How many free parameters `forward` takes, constant ones included."""
        named = self._named_params
        return max(named, *(i + 1 for i in self.frozen)) if self.frozen else named

    def has_own_map(self) -> bool:
        """Whether the map is still the one that the class was defined with.

        Who sets `forward` on an object, or on a class that is there already, gives another one,
        of which the gradient and the canonical parameters say nothing.
        """
        cls = type(self)
        return (
            cls.forward is cls._map_as_defined
            and "forward" not in vars(self)
            and all(m.has_own_map() for m in self._modules.values() if isinstance(m, Constraint))
        )

    def has_canonical(self) -> bool:
        """Whether some parameters are better than others of the same element."""
        return type(self).canonical is not Constraint.canonical

    def has_step_gradient(self) -> bool:
        """Whether a step is made of something else than the gradient."""
        return type(self).step_gradient is not Constraint.step_gradient

    def has_pullback(self) -> bool:
        """Whether the gradient can be had without the graph of an evaluation."""
        return self.recomputes or type(self).pullback is not Constraint.pullback

    def contains(self, value: Tensor, tol: float | None = None) -> Tensor:
        """Whether each element of the batch lies in the set, up to ``tol``.

        Args:
            value: shape ``(*batch, *event)``.
            tol: the largest violation that is accepted; `constrained.tolerance` by default.

        Returns:
            Boolean tensor of shape ``batch``. False where an element is not finite.
        """
        violation, granted = self.measured(value)
        return (violation <= (granted if tol is None else tol)) & torch.isfinite(violation)

    def measured(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The violation of each element of the batch, and how much of that is rounding.

        Who asks whether a value is inside compares these two, and calls infinity outside.
        """
        return self.violation(value), tolerance(value, self.event_dim)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise a `ValueError` if a tensor of this shape cannot carry the constraint."""
        shape = tuple(shape)
        event = len(shape) if self.event_dim is None else self.event_dim
        if len(shape) < event:
            dims = "one dimension" if event == 1 else f"{event} dimensions"
            raise ValueError(
                f"{self!r} needs a tensor of at least {dims}, but the shape is {shape}."
            )
        problem = self.shape_problem(shape[len(shape) - event :])
        if problem:
            raise ValueError(f"{self!r}: each element {problem}, but the shape is {shape}.")

    def check_tensor(self, value: Tensor) -> None:
        """Raise if ``value`` is no floating tensor, of no admissible shape, or not finite."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{self!r} needs a tensor, got {type(value).__name__}.")
        if not (value.is_floating_point() or (self.complex and value.is_complex())):
            kind = "floating-point or complex" if self.complex else "real floating-point"
            raise TypeError(f"{self!r} needs a {kind} tensor, got {value.dtype}.")
        self.check_shape(value.shape)
        if has_values(value) and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{self!r} needs finite values, but {count} of {value.numel()} are NaN or infinite."
            )

    def check_member(self, value: Tensor) -> None:
        """Raise an `InfeasibleError` unless every element of ``value`` lies in the set."""
        self.check_tensor(value)
        if not has_values(value) or value.numel() == 0:
            return
        violations, granted = self.measured(value)
        inside = (violations <= granted) & torch.isfinite(violations)
        if bool(inside.all()):
            return
        # Of two numbers beyond the range the difference is none.
        excess = torch.where(torch.isfinite(violations), violations - granted, torch.inf)
        worst = int(excess.flatten().argmax())
        violation = float(violations.flatten()[worst])
        allowed = float(granted.flatten()[worst])
        name = type(self).name
        project = f"get({name!r})(...).project(value)" if name else "its project(value)"
        where = ""
        if excess.ndim:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape))
            where = f" at index {index}"
        raise InfeasibleError(
            f"{self!r}: the value violates the constraint by {violation:.3g}{where} "
            f"(at most {allowed:.3g} is rounding); {project} gives a nearby "
            "member, and a write inside of writable(module) goes to it."
        )

    def start(self, value: Tensor) -> Tensor:
        """Where training starts: each member stays bit for bit, an outsider goes to one nearby.

        From there it can be trained: the derivative of `forward` is no less than a fiftieth of its
        typical size, as far as the dtype can tell the element from one where it vanishes.

        Args:
            value: of shape ``(*batch, *event)``.

        Raises:
            ValueError: if ``value`` is not finite, or of no admissible shape.

        Example:
            >>> from constrained import get
            >>> get("positive")().start(torch.tensor([3.0, 0.5, -1.0]))
            tensor([3.0000, 0.5000, 0.0202])
        """
        self.check_tensor(value)
        if not has_values(value):
            return value
        # An open set's projection leaves its interior alone and moves what lies on the boundary.
        outside = ~self.contains(value) if self.closed else self._differ(self.project(value), value)
        if not bool(outside.any()):
            return value
        found = torch.where(_beside(outside, value), self.admit(value, START), value)
        share = 2 * START
        # Rounded for storage, a small step from the boundary may be none: then it is a larger one.
        while share < 1 / 2 and bool((flat := outside & self.flat(found, share / 4)).any()):
            found = torch.where(_beside(flat, value), self.admit(value, share), found)
            share *= 2
        return found

    def flat(self, value: Tensor, share: float = FLAT) -> Tensor:
        """Which members lie where the derivative of `forward` vanishes, next to the boundary.

        Args:
            value: of shape ``(*batch, *event)``.
            share: what counts as vanishing, as a share of the typical size of the derivative.

        Returns:
            Boolean tensor of shape ``batch``. False where an element is not finite.
        """
        event_dim = value.ndim if self.event_dim is None else self.event_dim
        if type(self).inwards is Constraint.inwards:
            return value.new_zeros(value.shape[: value.ndim - event_dim], dtype=torch.bool)
        finite = torch.isfinite(value)
        if event_dim:
            finite = finite.flatten(value.ndim - event_dim).all(-1)
        safe = torch.where(_beside(finite, value), value, torch.ones_like(value))
        # A short way is one before it is rounded for storage.
        safe = _raise_precision(safe)
        return self._differ(self.inwards(safe, share), safe) & finite

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        """Which elements of two batches are different."""
        differ = one != other
        event_dim = one.ndim if self.event_dim is None else self.event_dim
        return differ.flatten(one.ndim - event_dim).any(-1) if event_dim else differ

    # ------------------------------------------------------------------- identity and spelling

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as stored on the instance."""
        return {name: getattr(self, name) for name in self._made_as()._argument_names}

    def _made_as(self) -> type[Constraint]:
        """The class whose arguments the instance has: its own, unless they were never set.

        Others, higher for one, derive a class in its place that has a constructor of its own.
        """
        cls = type(self)
        kinds = (k for k in cls.__mro__ if issubclass(k, Constraint) and not k._undefined)
        held = {*vars(self), *self._parameters, *self._buffers, *self._modules}
        # Looked up on the class, since evaluating a property may take long.
        made = (k for k in kinds if all(n in held or hasattr(k, n) for n in k._argument_names))
        return next(made, cls)

    def spec(self) -> dict[str, Any]:
        """The constraint as plain data: its registered name and the arguments off their defaults.

        `constrained.constrain` accepts the result; JSON and YAML can hold it.
        """
        cls = type(self)
        name = cls.name or f"{cls.__module__}:{cls.__qualname__}"
        changed = self._changed_arguments()
        return {"name": name, **{key: _as_data(value) for key, value in changed.items()}}

    def _changed_arguments(self) -> dict[str, Any]:
        signature = inspect.signature(self._made_as().__init__).parameters
        return {
            name: value
            for name, value in self.arguments().items()
            if not _same(value, signature[name].default)
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={_short(v)}" for k, v in self._changed_arguments().items())
        return f"{type(self).name or type(self).__name__}({arguments})"

    # A changed argument, tensor or submodule changes the set, or the map onto it: the engine
    # compares a counter before it reuses a value.

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._argument_names and "_is_being_built" not in vars(self):
            self._set_argument(name, value)
        else:
            super().__setattr__(name, value)
        self._count_change(maps=name != "training")

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._count_change()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module, and the value is computed anew."""
        super().register_parameter(name, param)
        self._count_change()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As of any module, and the value is computed anew."""
        super().register_buffer(name, tensor, persistent)
        self._count_change()

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As of any module, and the value is computed anew."""
        super().add_module(name, module)
        self._count_change()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._count_change()

    def _count_change(self, *, maps: bool = True) -> None:
        # A number that none has, nor had: what stands here may be put back, or taken for another.
        state: dict[str, Any] = vars(self)
        state["_revision"] = next(_revisions)
        if maps:
            # `train` and `eval` come between a forward and a backward pass, too, of one map.
            state["_map_revision"] = state["_revision"]

    def _set_argument(self, name: str, value: Any) -> None:
        """Become what the constructor makes of the arguments with another one among them.

        Raises:
            ValueError: if a tensor is constrained by this, and its free parameters do not go with
                the new argument. This, and what the constructor raises, leaves all as it was.
        """
        cls, arguments = type(self), self.arguments()
        like, fresh = cls(**arguments), cls(**{**arguments, name: value})
        made = vars(like)
        _continue(fresh, self, like)
        state: dict[str, Any] = vars(self)
        before = dict(state)
        with Undisturbed():
            try:
                state.update(vars(fresh))
                # What follows from the old arguments only.
                for key in made.keys() - vars(fresh).keys():
                    state.pop(key, None)
                for holder in all_holders():
                    holder.check_argument(self)
            except BaseException:
                for key in state.keys() - before.keys():
                    del state[key]
                state.update(before)
                raise


def _continue(fresh: nn.Module, old: nn.Module, like: nn.Module | None) -> None:
    """Let a module that was built anew take up the life of another: mode, hooks, parameters.

    Args:
        fresh: with the new arguments.
        old: the one that has lived.
        like: built anew with the old arguments. What does not follow from them is kept.

    Raises:
        ValueError: if it has a parameter where the other has none of that shape.
    """
    state: dict[str, Any] = vars(fresh)
    state.update({key: value for key, value in vars(old).items() if key in _LIFE})
    for name, parameter in fresh._parameters.items():
        known = old._parameters.get(name)
        if parameter is None:
            continue
        if known is None or known.shape != parameter.shape:
            raise ValueError(
                f"{type(old).__name__} would need another parameter '{name}', which no optimizer "
                "knows; release() the tensor and constrain() it anew."
            )
        fresh._parameters[name] = known
    for name, buffer in fresh._buffers.items():
        known = old._buffers.get(name)
        if buffer is None or known is None:
            continue
        before = None if like is None else like._buffers.get(name)
        follows = before is None or before.is_meta or not torch.equal(before, buffer)
        fresh._buffers[name] = buffer.to(known.device, known.dtype) if follows else known
    for name, child in fresh._modules.items():
        known = old._modules.get(name)
        if child is None or known is None or child is known:
            continue
        if type(child) is type(known):
            _continue(child, known, None if like is None else like._modules.get(name))


def unguarded(constraint: Constraint, method: str) -> Callable[..., Any]:
    """A method as the class defines it: for a part of another constraint, whose guard has worked.

    The guard of a part would take a value in working precision for one that was stored in it.
    """
    function = getattr(type(constraint), method)
    return functools.partial(getattr(function, "__wrapped__", function), constraint)


def recomputed(
    constraint: Constraint, gradient: Tensor, params: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradient with respect to parameters, by an evaluation whose graph is not kept."""
    trained = [i for i in range(len(params)) if i not in constraint.frozen]
    return evaluated_again(constraint.forward, trained, gradient, params)


def evaluated_again(
    evaluate: Callable[..., Tensor],
    trained: Sequence[int],
    gradient: Tensor,
    params: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradient with respect to those of the arguments of a function that are trained."""
    leaves = [p.detach().requires_grad_(i in trained) for i, p in enumerate(params)]
    with torch.enable_grad():
        value = evaluate(*leaves)
    found = torch.autograd.grad(value, [leaves[i] for i in trained], gradient, allow_unused=True)
    by_place = dict(zip(trained, found, strict=True))
    return tuple(by_place.get(i) for i in range(len(params)))


def snake_case(name: str) -> str:
    """``PositiveDefinite`` -> ``positive_definite``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def is_transformed(value: Tensor) -> bool:
    """Whether ``value`` belongs to a `torch.func` transform: its numbers are not at hand."""
    return tensors.is_transformed(value)


def is_autocast(value: Tensor) -> bool:
    """Whether autocast is on for the device of ``value``; for the meta device there is none."""
    device = value.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_disabled(value: Tensor) -> AbstractContextManager[Any]:
    """Autocast off for the device of ``value``, at no cost where it is off already."""
    if is_autocast(value):
        return torch.autocast(value.device.type, enabled=False)
    return nullcontext()


def _is_abstract(member: Any) -> bool:
    return getattr(member, "__isabstractmethod__", False) is True


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return type(value) is type(default) and bool(value == default)


def _as_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [_as_data(item) for item in value] if type(value) is tuple else value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if type(value) is list else value


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{' x '.join(map(str, value.shape)) or 'scalar'}>"
    return repr(_as_data(value))


def has_values(value: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: it is no meta, fake or traced tensor."""
    if value.is_meta or torch.compiler.is_compiling() or is_transformed(value):
        return False
    return tensors.has_memory(value)


def _raise_precision(value: Tensor) -> Tensor:
    return value.to(working_dtype(value.dtype))


#: What linear algebra raises on NaN, and on numbers at the ends of the range.
_NO_CONVERGENCE: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def _hold_no_numbers(tensors: Sequence[Tensor]) -> bool:
    """Whether some of these hold NaN or infinity."""
    return any(has_values(t) and not bool(torch.isfinite(t).all()) for t in tensors)


def _apart(
    constraint: Constraint, params: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor] | None]:
    """Which elements have parameters that are not finite, and parameters without these.

    Returns:
        Boolean tensor of shape ``batch``, and parameters in which a finite element takes the place
        of those that are not; None in place of these if there is none.
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
    return broken, [torch.where(_beside(broken, p), p[sound], p) for p in params]


def _beside(mask: Tensor, value: Tensor) -> Tensor:
    """A tensor of shape ``batch`` with as many dimensions as ``value``."""
    return mask.reshape((*mask.shape, *[1] * (value.ndim - mask.ndim)))


def _refusal(constraint: Constraint, method: str, tensors: Sequence[Tensor]) -> OutOfRangeError:
    """What to say of finite numbers with which a method cannot compute."""
    largest = max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)
    return OutOfRangeError(
        f"{constraint!r}: `{method}` cannot compute with these finite numbers of up to "
        f"{largest:.3g} in {tensors[0].dtype}; scale the tensor towards 1, or use torch.float64."
    )


def _unknown(
    constraint: Constraint, method: Callable[..., Tensor], params: Sequence[Tensor]
) -> Tensor:
    """What a map gives where linear algebra raises on NaN: NaN for the elements that come of it."""
    broken, sound = _apart(constraint, params)
    if sound is None:
        # Their gradients are NaN as well.
        shape = method(constraint, *(p.detach().to("meta") for p in params)).shape
        return torch.nan * sum(p.sum() for p in params) + params[0].new_zeros(shape)
    value = method(constraint, *sound)
    return torch.where(_beside(broken, value), torch.nan, value)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in memory as a plain parameter would be, where a map has transposed it.

    A parameter that is laid out in another way, say with its channels last, has such a value.
    """
    if value.is_contiguous() or value.stride() == parameter.stride():
        return value
    return value.contiguous()


def _guard_forward(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def forward(self: Constraint, *params: Tensor) -> Tensor:
        first = params[0]
        with autocast_disabled(first):
            raised = [*map(_raise_precision, params)]
            try:
                value = method(self, *raised)
            except _NO_CONVERGENCE as error:
                if not has_values(first):
                    raise
                if not _hold_no_numbers(params):
                    raise _refusal(self, "forward", params) from error
                value = _unknown(self, method, raised)
            if value.dtype != first.dtype:
                value = self.rounded(value, first.dtype)
        return _laid_out(value, first)

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
            found = method(self, *map(_raise_precision, (value, gradient, *params)))
        return tuple(None if g is None else g.to(dtype) for g in found)

    return pullback


def _guard_canonical(
    method: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., tuple[Tensor, ...]]:
    @functools.wraps(method)
    def canonical(self: Constraint, *params: Tensor) -> tuple[Tensor, ...]:
        with autocast_disabled(params[0]):
            try:
                better = method(self, *map(_raise_precision, params))
            except (ValueError, _NO_CONVERGENCE) as error:
                if _hold_no_numbers(params):
                    # What is NaN has no better form. The other elements do not go without.
                    broken, sound = _apart(self, [*map(_raise_precision, params)])
                    if sound is None:
                        return params
                    better = tuple(
                        torch.where(_beside(broken, new), old, new)
                        for new, old in zip(method(self, *sound), params, strict=True)
                    )
                elif isinstance(error, _NO_CONVERGENCE):
                    # An evaluation will say so.
                    return params
                else:
                    raise
        return tuple(
            _laid_out(new.to(old.dtype), old) for new, old in zip(better, params, strict=True)
        )

    return canonical


def _guard_right_inverse(method: Callable[..., Params]) -> Callable[..., Params]:
    @functools.wraps(method)
    def right_inverse(self: Constraint, value: Tensor) -> Params:
        self.check_member(value)
        params = _in_words(self, method, "right_inverse", value)
        if isinstance(params, Tensor):
            return params.to(value.dtype)
        return tuple(param.to(value.dtype) for param in params)

    return right_inverse


def _in_words(constraint: Constraint, method: Callable[..., Any], name: str, *given: Any) -> Any:
    """What a method makes of a value in the working precision, with an error that says why not."""
    value, *others = given
    with autocast_disabled(value):
        try:
            found = method(constraint, _raise_precision(value), *others)
        except _NO_CONVERGENCE as error:
            if not has_values(value):
                raise
            raise _refusal(constraint, name, [value]) from error
    _check_returned(constraint, name, found)
    # A violation beyond the range is an answer; a member or a parameter is none.
    made = (found,) if isinstance(found, Tensor) else found
    if name != "violation" and has_values(value) and _hold_no_numbers(made):
        raise _refusal(constraint, name, [value])
    return found


def _check_returned(constraint: Constraint, name: str, found: Any) -> None:
    """Raise unless a method gave a tensor, or several where it may."""
    may_be_several = name == "right_inverse"
    parts = found if may_be_several and isinstance(found, (tuple, list)) else [found]
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
        value = _raise_precision(value)
        finite = torch.isfinite(value)
        batch = 0 if self.event_dim is None else value.ndim - self.event_dim
        event = tuple(range(batch, value.ndim))
        elements = finite.all(dim=event, keepdim=True) if event else finite
        # Linear algebra raises, or worse, on NaN: it sees zeros there, and the answer is inf.
        seen = torch.where(elements, value, torch.zeros_like(value))
        result = _in_words(self, method, "violation", seen)
        if result.shape != value.shape[:batch]:
            raise ValueError(
                f"{self!r}: `violation` must give one number for each element, a tensor of shape "
                f"{tuple(value.shape[:batch])} here, but its shape is {tuple(result.shape)}."
            )
        # As it is where what is measured overflows.
        return torch.where(elements.reshape(result.shape) & ~result.isnan(), result, torch.inf)

    return violation


def _guard_project(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def project(self: Constraint, value: Tensor) -> Tensor:
        self.check_tensor(value)
        return _in_words(self, method, "project", value).to(value.dtype)

    return project


def _guard_move(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def move(self: Constraint, value: Tensor, share: float) -> Tensor:
        return _in_words(self, method, method.__name__, value, share).to(value.dtype)

    return move


def _guard_step_gradient(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def step_gradient(self: Constraint, gradient: Tensor, *params: Tensor) -> Tensor:
        with autocast_disabled(gradient):
            try:
                found = method(self, _raise_precision(gradient), *map(_raise_precision, params))
            except _NO_CONVERGENCE:
                # The step will show what is wrong with the numbers.
                return gradient
        return found.to(gradient.dtype)

    return step_gradient


def _guard_init(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def __init__(self: Constraint, *args: Any, **kwargs: Any) -> None:
        state: dict[str, Any] = vars(self)
        if "_is_being_built" in state:
            # Called by the constructor of a subclass.
            return method(self, *args, **kwargs)
        state["_is_being_built"] = True
        try:
            method(self, *args, **kwargs)
            self._check_event_dim()
            # What follows from an argument would not follow a change in place.
            for name in self._argument_names:
                if type(state.get(name)) is list:
                    state[name] = _as_tuple(state[name])
        finally:
            del state["_is_being_built"]

    return __init__


#: What a class says of its `forward`, which is not so for a derived one with another `forward`.
_OF_THE_MAP = ("canonical", "pullback", "thin_pullback", "step_gradient", "factors")

_GUARDS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "__init__": _guard_init,
    "forward": _guard_forward,
    "canonical": _guard_canonical,
    "pullback": _guard_pullback,
    "step_gradient": _guard_step_gradient,
    "right_inverse": _guard_right_inverse,
    "violation": _guard_violation,
    "project": _guard_project,
    "inwards": _guard_move,
    "admit": _guard_move,
}
