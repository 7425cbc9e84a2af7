"""What a constraint is: a set, a map onto it, a right inverse, a violation, a projection."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from constrained.constraint.arguments import WithArguments
from constrained.constraint.deprecated import Renamed, rename_members
from constrained.constraint.elements import Params, beside
from constrained.constraint.errors import InfeasibleError
from constrained.constraint.fast_paths import FastPaths
from constrained.constraint.guards import GUARDS, OF_THE_MAP
from constrained.constraint.precision import raise_precision
from constrained.constraint.tolerance import tolerance
from constrained.torch_internals.tensors import has_values

#: The derivative of a map where an outsider starts, at least, as a share of its typical size.
START = 0.02


#: A derivative of no more than this share of its typical size is none: an optimizer hardly moves.
FLAT = 1e-6


class Constraint(FastPaths, WithArguments):
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
        value_index: which of the canonical parameters, if any, is the element itself, all others that
            are trained being zero: ``forward(*canonical(*p)) == canonical(*p)[value_index]``, bit for
            bit. Then there is nothing to evaluate after an optimizer step.
        remembers: whether `canonical` begins where it ended before: then it is called for each
            tensor on its own, where small ones of a kind are otherwise restored as one batch.
        recompute_in_backward: whether the gradient is had by evaluating once more in each backward pass, where
            the graph of an evaluation would hold several times the memory of the weight.
        expected_failures: law name -> reason, for each law of `constrained.testing` that cannot hold. An
            instance may declare its own.
        preserves: names of the constraints whose sets `forward` maps into themselves, for a map from
            a tensor to one of the same shape: it can follow these in a `chain`. An instance may
            have its own.
        name, aliases: set by `constrained.register`.
    """

    event_dim: int | None
    examples: ClassVar[Sequence[tuple[Mapping[str, Any], tuple[int, ...]]]] = ()
    closed: ClassVar[bool] = True
    complex: ClassVar[bool] = False
    deterministic: bool = True
    expected_failures: Mapping[str, str] = {}
    preserves: tuple[str, ...] = ()
    ambient, exempt, keeps, recomputes = Renamed(), Renamed(), Renamed(), Renamed()
    _undefined: ClassVar[Sequence[str]] = ("its methods",)
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
        rename_members(cls)
        for method, guard in GUARDS.items():
            if method in vars(cls):
                setattr(cls, method, guard(vars(cls)[method]))
        cls._map_as_defined = cls.forward
        for method in OF_THE_MAP:
            owner = next(kind for kind in cls.__mro__ if method in vars(kind))
            # Of another map it says something else.
            if (
                issubclass(owner, Constraint)
                and not _is_abstract(owner._map_as_defined)
                and owner._map_as_defined is not cls.forward
            ):
                setattr(cls, method, getattr(FastPaths, method))
        # Not left to ABC: its metaclass would keep others from deriving a class in the place of
        # this one, as Pyro and higher do with every module of a model.
        cls._undefined = [n for n in dir(cls) if _is_abstract(inspect.getattr_static(cls, n, None))]
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

    # ------------------------------------------------------------------------- what follows

    def param_count(self) -> int:
        """How many free parameters `forward` takes, constant ones included."""
        named = self._named_params
        return max(named, *(i + 1 for i in self.frozen)) if self.frozen else named

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
        found = torch.where(beside(outside, value), self.admit(value, START), value)
        share = 2 * START
        # Rounded for storage, a small step from the boundary may be none: then it is a larger one.
        while share < 1 / 2 and bool((flat := outside & self.flat(found, share / 4)).any()):
            found = torch.where(beside(flat, value), self.admit(value, share), found)
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
        safe = torch.where(beside(finite, value), value, torch.ones_like(value))
        # A short way is one before it is rounded for storage.
        safe = raise_precision(safe)
        return self._differ(self.inwards(safe, share), safe) & finite

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        """Which elements of two batches are different."""
        differ = one != other
        event_dim = one.ndim if self.event_dim is None else self.event_dim
        return differ.flatten(one.ndim - event_dim).any(-1) if event_dim else differ


def unguarded(constraint: Constraint, method: str) -> Callable[..., Any]:
    """A method as the class defines it: for a part of another constraint, whose guard has worked.

    The guard of a part would take a value in working precision for one that was stored in it.
    """
    function = getattr(type(constraint), method)
    return functools.partial(getattr(function, "__wrapped__", function), constraint)


def _is_abstract(member: Any) -> bool:
    return getattr(member, "__isabstractmethod__", False) is True
