"""What a constraint is: a set, a map onto it, a right inverse, a violation, a projection."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from constrained.constraint.deprecated import Renamed, rename_added_members, rename_members
from constrained.constraint.elements import Params, beside
from constrained.constraint.geometry import Geometry
from constrained.constraint.guards import GUARDS, OF_THE_MAP
from constrained.constraint.optional_methods import OptionalMethods
from constrained.constraint.precision import autocast_disabled, raise_precision
from constrained.constraint.sampling import RandomNumbers
from constrained.constraint.tolerance import working_dtype
from constrained.torch_internals.tensors import has_values

#: Where an outsider starts, the derivative of the map is at least this share of its typical size.
START = 0.02


#: A derivative below this share of its typical size counts as zero: an optimizer hardly moves.
FLAT = 1e-6


class Constraint(Geometry):
    """A set of tensors, with a differentiable map from free parameters onto it.

    One *element* of the set is made of the last `event_dim` dimensions of a tensor; all dimensions
    before them are batch dimensions, and each element of the batch is constrained on its own.

    A class of constraints is abstract or final. An abstract one holds what several sets share; it
    is not registered, and has no `examples`. A final one implements `forward`, `right_inverse`,
    `violation`, `project` and `draw`, and `dimension` if the set has no interior. It has
    `examples`, stores every constructor argument under its own name, and is usually registered. Its
    docstring states **Set**, **Map**, **Right inverse** and **Reference**.

    In the catalogue no class derives from a final one; a class of another package may. If that
    class defines another `forward`, it does not inherit `canonical`, `pullback`, `thin_pullback`,
    `step_gradient` and `factors`, which belong to the map of its base: it has the defaults, or
    defines its own.

    The base class wraps the methods that a subclass defines. A subclass may rely on this:

    * `forward`, `pullback`, `canonical`, `right_inverse`, `violation`, `project`, `steepest`,
      `inwards`, `admit` and `draw` compute in at least single precision, with autocast off,
      whatever the tensor's dtype; results are converted to that dtype (`violation` stays in the
      working precision), those of `forward` and `draw` by `rounded`;
    * where linear algebra raises because the parameters of an element hold NaN or infinity,
      `forward` gives NaN for the element, and `canonical` gives its parameters back;
    * the value is contiguous, unless a parameter has the same layout;
    * `right_inverse` receives a finite member of the set (up to `tolerance`), `project` a finite
      tensor of an admissible shape, `draw` an admissible shape, and `violation` a finite tensor:
      an element that holds NaN or infinity has the violation ``inf``.

    An argument may be set later, as in ``constraint.radius = 2.0``. Then the constructor checks it
    and computes again what it derives from the arguments. Parameters, hooks and the training flag
    stay.

    A tensor among the constructor arguments stays a plain attribute. It is not part of the state:
    ``to_empty`` and ``load_state_dict`` leave it alone. Use it as ``self.mask.to(value.device)``.
    `spec` writes it as a list, which the constructor must accept too.

    Class attributes:
        event_dim: number of trailing dimensions that make one element; None where the whole tensor
            is one, whatever its dimensions. An instance may have its own.
        examples: pairs ``(constructor kwargs, event shape)`` on which laws and docs run.
        closed: whether the set contains its boundary. For an open set, `project` ends in the
            interior, and leaves every interior element bit for bit as it is.
        complex: whether complex tensors are accepted.
        deterministic: whether `forward` depends on its arguments, the constructor arguments and
            the module's buffers alone. Only then may the engine reuse its value.
        frozen: which of the free parameters are constants, such as a base point. The engine keeps
            these as buffers, not as parameters.
        value_index: the index of a free parameter that, once canonical, equals the element bit for
            bit, ``forward(*canonical(*p)) == canonical(*p)[value_index]``, while the other trained
            ones are zero; None if there is no such parameter. Then nothing is evaluated after an
            optimizer step.
        remembers: whether `canonical` starts from its last result. Then it is called for each
            tensor by itself; otherwise it is called for small tensors of a kind as one batch.
        recompute_in_backward: whether each backward pass evaluates `forward` once more. This is
            for maps whose graph would take several times the memory of the weight.
        expected_failures: law name -> reason, for each law of `constrained.testing` that cannot
            hold. An instance may declare its own.
        preserves: names of the constraints whose sets `forward` maps into themselves, for a map
            from a tensor to one of the same shape: it can follow these in a `chain`. An instance
            may have its own.
        name, aliases: set by `constrained.register`.
    """

    examples: ClassVar[Sequence[tuple[Mapping[str, Any], tuple[int, ...]]]] = ()
    closed: ClassVar[bool] = True
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
        rename_added_members(type(self))
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
            if _belongs_to_another_map(cls, method):
                setattr(cls, method, getattr(OptionalMethods, method))
        # ABC is not used: Pyro, higher and others derive a class from the class of each module in a
        # model, with a metaclass of their own, which would conflict with that of ABC.
        undefined = {n for n in dir(cls) if _is_abstract(inspect.getattr_static(cls, n, None))}
        if cls.sample is not Constraint.sample:
            # The class makes members without `draw`.
            undefined.discard("draw")
        cls._undefined = sorted("draw (or sample)" if n == "draw" else n for n in undefined)
        cls._argument_names = tuple(inspect.signature(cls.__init__).parameters)[1:]
        taken = inspect.signature(cls.forward).parameters.values()
        cls._named_params = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in taken) - 1

    # ------------------------------------------------------------------ what a subclass defines

    @abstractmethod
    def forward(self, *params: Any, **none: Any) -> Tensor:
        """Map free parameters to an element of the set, of shape ``(*batch, *event)``.

        A subclass takes as many tensors as its map has parameters, by position. (This signature is
        so wide that type checkers accept it.)
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
    def project(self, value: Tensor) -> Tensor:
        """A nearest point of the set, or the documented retraction if there is no formula."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A random element of the full ``shape``, batch dimensions first: what `sample` returns.

        A subclass says here how its elements are distributed. `sample` has checked the shape, and
        converts the result to the dtype that was asked for.

        Args:
            shape: of the result.
            random: the source of all random numbers: ``random.normal(shape)``, for one. They come
                in the precision in which the class computes.
        """

    def dimension(self, shape: Sequence[int]) -> int:
        """The dimension of the set as a manifold, for one element of the given event shape.

        The laws and the documentation use it. By default it is the number of entries, which is the
        dimension of a set with interior points.
        """
        return torch.Size(shape).numel()

    def inwards(self, value: Tensor, share: float) -> Tensor:
        """Members near given ones, away from where the derivative of `forward` vanishes.

        A class defines it if its map gets flat somewhere, as softplus does next to zero: an
        optimizer that starts there hardly moves.

        Args:
            value: members, of shape ``(*batch, *event)``.
            share: how large the derivative must be at the result, as a share of its typical size,
                below 1/2.

        Returns:
            Tensor of the shape of ``value``. An element at which the derivative is that large
            already is returned bit for bit. By default all are.
        """
        del share
        return value

    def admit(self, value: Tensor, share: float) -> Tensor:
        """Members from which training starts, in the place of tensors outside of the set.

        By default these are the projections, moved `inwards`. A class defines it if the projection
        of an ordinary tensor is a bad start. For one, the matrices with a positive determinant: the
        projection of any other matrix is singular, up to rounding.

        Args:
            value: of shape ``(*batch, *event)``. Results for elements that are members already are
                not used.
            share: as for `inwards`.
        """
        return self.inwards(self.project(value), share)

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A member that was computed in single precision, in a half-precision dtype.

        A class defines it if rounding may lead out of an open set: a small positive number may be
        rounded to zero.
        """
        return value.to(dtype)

    def fitted(self, module: nn.Module, name: str, *, viewed: bool = False) -> Constraint:
        """This constraint, with its missing arguments taken from the module that has the tensor.

        `constrained.constrain` calls it for each module that has the tensor. A class defines it if
        its set depends on what the module does with the tensor. For example, the norm of a
        convolution depends on its stride.

        Args:
            module: a module that has the tensor. In a lazy one the tensor may have no shape yet.
            name: the tensor's name there.
            viewed: whether the constraint is on a rearrangement of the tensor.

        Returns:
            The constraint itself, unchanged, or a copy with other arguments.

        Raises:
            ValueError: if the constraint does not suit the module, or its arguments contradict it.
        """
        del module, name, viewed
        return self

    # --------------------------------------------------- what the base class makes of these

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A random element of the set, distributed as the class says under `draw`.

        Args:
            shape: the full shape, batch dimensions first.
            generator: torch's default one if left out, as for `torch.randn`.
            dtype: torch's default one if left out.
            device: as `torch.randn` takes it.

        Raises:
            ValueError: if the constraint does not admit the shape.

        Example:
            >>> from constrained import get
            >>> get("sphere")().sample((3, 4)).shape
            torch.Size([3, 4])
        """
        self.check_shape(shape)
        dtype = dtype or torch.get_default_dtype()
        with autocast_disabled(torch.empty(0, device=device)):
            value = self.draw(tuple(shape), RandomNumbers(generator, working_dtype(dtype), device))
            return value if value.dtype == dtype else self.rounded(value, dtype)

    def param_count(self) -> int:
        """How many free parameters `forward` takes, constant ones included."""
        named = self._named_params
        return max(named, *(i + 1 for i in self.frozen)) if self.frozen else named

    def start(self, value: Tensor) -> Tensor:
        """Where training starts: each member stays bit for bit, all else goes to a member nearby.

        There it can be trained: the derivative of `forward` is at least a fiftieth of its typical
        size, up to rounding of the dtype.

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
        # The projection of an open set leaves its interior alone and moves what is on the boundary.
        outside = ~self.contains(value) if self.closed else self._differ(self.project(value), value)
        if not bool(outside.any()):
            return value
        found = torch.where(beside(outside, value), self.admit(value, START), value)
        share = 2 * START
        # Rounding to the dtype of storage may undo a small step from the boundary: take larger
        # ones.
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
        # In half precision, rounding might undo a short step.
        safe = raise_precision(safe)
        return self._differ(self.inwards(safe, share), safe) & finite

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        """Which elements of two batches are different."""
        differ = one != other
        event_dim = one.ndim if self.event_dim is None else self.event_dim
        return differ.flatten(one.ndim - event_dim).any(-1) if event_dim else differ


def unguarded(constraint: Constraint, method: str) -> Callable[..., Any]:
    """A method without its guard, for a part of another constraint, whose own guard has run.

    The guard of the part would be too strict: it sees a value in working precision, and does not
    know that the value was stored in a lower one.
    """
    function = getattr(type(constraint), method)
    return functools.partial(getattr(function, "__wrapped__", function), constraint)


def _belongs_to_another_map(cls: type[Constraint], method: str) -> bool:
    """Whether a class inherits a method that was written for another `forward` than its own."""
    owner = next(kind for kind in cls.__mro__ if method in vars(kind))
    if not issubclass(owner, Constraint):
        return False
    # The method belongs to the first `forward` that its class, or a class derived from it, has.
    maps = (kind._map_as_defined for kind in cls.__mro__ if issubclass(kind, owner))
    return any(not _is_abstract(each) and each is not cls.forward for each in maps)


def _is_abstract(member: Any) -> bool:
    return getattr(member, "__isabstractmethod__", False) is True
