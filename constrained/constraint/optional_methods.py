"""The optional methods of a constraint: faster gradients and better parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class OptionalMethods(nn.Module):
    """Defaults of the methods that make training faster, or lead it to a better optimum.

    The signatures are so wide, as that of `Constraint.forward`, that type checkers let a class name
    its parameters.

    Class attributes:
        frozen, value_index, remembers, recompute_in_backward: see `Constraint`.
    """

    frozen: tuple[int, ...] = ()
    value_index: int | None = None
    remembers: bool = False
    recompute_in_backward: bool = False
    #: The map that the methods here were written for.
    _map_as_defined: ClassVar[Callable[..., Tensor]]

    def canonical(self, *params: Any, **_none: Any) -> tuple[Tensor, ...]:
        """Better conditioned parameters of the same element.

        The engine stores them after each optimizer step, so that an evaluation finds the
        parameters where it is cheapest. ``forward(*canonical(*p)) == forward(*p)`` must hold.
        """
        return params

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Which parameters `canonical` changes together.

        If an optimizer trains only a part of a group, the group stays as it is. A class defines it
        if some parameters have a canonical form that does not depend on the others.

        Args:
            count: how many parameters there are, constant ones included.

        Returns:
            The indices of each group. Replacing one group alone by its canonical parameters must
            not change the element. By default all parameters are one group.
        """
        return [range(count)]

    def pullback(
        self, value: Tensor, gradient: Tensor, *params: Any, **_none: Any
    ) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the parameters, from that with respect to the value.

        A class defines it if the gradient can be computed from the value, in less time or memory
        than by the graph of an evaluation. The engine then records no graph, and calls this in each
        backward pass. Derivatives of higher order, `torch.func` and tracing differentiate `forward`
        as they would without it.

        Args:
            value: what `forward` gave, of shape ``(*batch, *event)``.
            gradient: of the shape of the value.
            params: what `forward` was given.

        Returns:
            One tensor for each of ``params``, of its shape; None for a constant. By default, the
            gradient of one more evaluation: see `recompute_in_backward`.
        """
        del value
        return recomputed(self, gradient, params)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, *params: Any, **_none: Any
    ) -> tuple[Tensor | None, ...] | None:
        """`pullback` from a gradient of small rank, ``left' right``, without forming it.

        The gradient of a linear layer has this form: ``right`` are its inputs, and ``left`` is the
        gradient with respect to its outputs. A class that defines this defines `pullback` too.

        Args:
            value: what `forward` gave, of shape ``(n, p)``.
            left: shape ``(b, n)``.
            right: shape ``(b, p)``.
            params: what `forward` was given; the same object as ``value`` for a parameter that
                the value is a copy of.

        Returns:
            The result of `pullback`, or None if `pullback` itself is cheaper.
        """
        del value, left, right, params
        return None

    def step_gradient(self, gradient: Tensor, *params: Any, **_none: Any) -> Tensor:
        """The gradient from which an optimizer makes its step, given the gradient of the loss.

        On the boundary of a closed set a step against the gradient may lead outside, and
        `canonical` then leads back. With an optimizer whose steps have another metric than that
        projection, training comes to rest beside the optimum. A class may return a gradient that
        vanishes at an optimum, and only there. It need not be linear in the gradient of the loss:
        the engine calls this when a step begins, after the gradients of all batches and processes
        are added up, and writes the result into ``grad``, where it stays until ``zero_grad``.

        Args:
            gradient: with respect to the first parameter. It may be changed in place.
            params: as `forward` takes them.

        Returns:
            Tensor of the shape of the first parameter. By default the gradient itself.
        """
        del params
        return gradient

    def factors(self, *params: Any, **_none: Any) -> tuple[Tensor, Tensor] | None:
        """Two matrices whose product is ``forward(*params)``, if the map has this form.

        A linear layer multiplies by the two, without forming the product, if that is less work.
        Both are differentiable functions of the parameters, which are given in their stored dtype.

        Returns:
            Tensors of shapes ``(m, r)`` and ``(r, n)``, or None.
        """
        del params
        return None

    def has_own_map(self) -> bool:
        """Whether the map is still the one that the class was defined with.

        Setting `forward` on an object, or on a class after its definition, gives another map, to
        which `pullback` and `canonical` do not belong.
        """
        cls = type(self)
        return (
            cls.forward is cls._map_as_defined
            and "forward" not in vars(self)
            and all(
                m.has_own_map() for m in self._modules.values() if isinstance(m, OptionalMethods)
            )
        )

    def has_canonical(self) -> bool:
        """Whether some parameters are better than others of the same element."""
        return type(self).canonical is not OptionalMethods.canonical

    def has_step_gradient(self) -> bool:
        """Whether an optimizer's step is made from another gradient than that of the loss."""
        return type(self).step_gradient is not OptionalMethods.step_gradient

    def has_pullback(self) -> bool:
        """Whether the gradient can be computed without the graph of an evaluation."""
        return self.recompute_in_backward or type(self).pullback is not OptionalMethods.pullback


def recomputed(
    constraint: OptionalMethods, gradient: Tensor, params: Sequence[Tensor]
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
    by_index = dict(zip(trained, found, strict=True))
    return tuple(by_index.get(i) for i in range(len(params)))
