"""How the originals of a parametrized tensor, its free parameters, become its value."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from constrained.atomic import sharded
from constrained.constraint.base import Constraint
from constrained.evaluation.backward import Pullback, with_dense_gradient
from constrained.torch_internals.modes import is_transformed
from constrained.torch_internals.shards import is_managed


class EvaluatedTensor(torch_parametrize.ParametrizationList):
    """The parametrizations of one tensor, in the order of application, and their originals.

    Attributes:
        unsafe: whether the value may have another shape and dtype than the tensor had.
        shape: the shape of the parametrized tensor.
        is_tensor: whether there is one original, called ``original``.
        ntensors: how many originals there are.
        is_parameter: whether the tensor was a parameter; else a buffer.
        moved: how far the tensor moved when it was constrained, or None if nobody measured it.
    """

    unsafe: bool
    shape: torch.Size
    is_tensor: bool
    ntensors: int
    is_parameter: bool
    moved: float | None
    _owners: weakref.WeakSet[Any]
    _watched: tuple[nn.Module, ...]

    def forward(self) -> Tensor:
        """Evaluate the parametrizations, without looking at stored values."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            raise RuntimeError("Parametrization is not working with scripting.")
        if is_managed(self):
            others = (p for module in self.chain() for p in module.parameters())
            shape = None if self.unsafe else self.shape
            return sharded.evaluate(self.evaluator(), self.originals(), others, shape)
        value = self.evaluator()(*self.originals())
        # `replay` makes the gradient of a stored value dense.
        if not value.requires_grad or torch.compiler.is_compiling() or is_transformed():
            return value
        is_ours = any(isinstance(module, Constraint) for module in self.chain())
        return with_dense_gradient(value) if is_ours else value

    def originals(self) -> tuple[Tensor, ...]:
        """The tensors that the value is computed from, in the order of ``forward``'s arguments."""
        if self.is_tensor:
            return (self.original,)
        return tuple(getattr(self, name) for name in self.names())

    def names(self) -> tuple[str, ...]:
        """The names of the originals here."""
        if self.is_tensor:
            return ("original",)
        return tuple(f"original{i}" for i in range(self.ntensors))

    def constraint(self) -> Constraint | None:
        """The constraint that the value satisfies: the last parametrization, if it is one."""
        last = self.chain()[-1]
        return last if isinstance(last, Constraint) else None

    def is_constrained(self) -> bool:
        """Whether `constrain` put this list here; else a `register_parametrization` did."""
        return self.moved is not None

    def described(self) -> str:
        """The parametrizations in words, for messages."""
        return chain_repr(self)

    def chain(self) -> list[nn.Module]:
        """The parametrizations, in the order of application."""
        # Other keys are not numbers: ``parametrizations``, if an original is parametrized itself.
        return [module for key, module in self._modules.items() if key.isdigit() and module]

    def watched(self) -> tuple[nn.Module, ...]:
        """This list and the modules in it, as they were when `look` was called."""
        return (self, *self._watched)

    def look(self) -> None:
        """Find out which modules the value depends on now."""
        self.__dict__["_watched"] = tuple(self.modules())[1:]

    def is_managed(self) -> bool:
        """Whether FSDP swaps and writes the originals, which no counter shows."""
        return any(map(is_managed, self.watched()))

    def is_pure(self) -> bool:
        """Whether the value depends on tensors and arguments of the watched modules alone."""
        return not hasattr(self, "parametrizations") and all(
            isinstance(m, Constraint) and m.deterministic for m in self.chain()
        )

    def pullback(self) -> Pullback | None:
        """How the only constraint here computes its gradient without a graph, if it can."""
        first, *rest = self.chain()
        if rest or not isinstance(first, Constraint) or not first.has_pullback():
            return None
        if not first.has_own_map():
            return None
        return first.pullback

    def evaluator(self) -> Callable[..., Tensor]:
        """A function from originals to the value, which holds no reference to this list."""
        return functools.partial(_evaluate, self.chain())

    def warn_of_earlier_write(self) -> None:
        """Warn that an earlier value was written in place, which has no effect."""
        raise NotImplementedError

    def place(self) -> str:
        """The name of the tensor in a module that has it, for messages."""
        found = (k for owner in list(self._owners) for k, v in owner.items() if v is self)
        return next(found, "tensor")


def chain_repr(parametrizations: nn.Module) -> str:
    """The parametrizations of a list of either engine in words, for messages."""
    return " then ".join(
        repr(m) if isinstance(m, Constraint) else type(m).__name__
        for m in parametrizations.children()
    )


def _evaluate(chain: Sequence[nn.Module], *originals: Tensor) -> Tensor:
    first, *rest = chain
    value = first(*originals)
    for module in rest:
        value = module(value)
    return value
