"""What a constraint may know beside its map, and what is done with it: all of it is optional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class FastPaths(nn.Module):
    """Defaults of the methods by which a constraint is trained faster, or better.

    Class attributes:
        frozen, value_index, remembers, recompute_in_backward: see `Constraint`.
    """

    frozen: tuple[int, ...] = ()
    value_index: int | None = None
    remembers: bool = False
    recompute_in_backward: bool = False
    #: The map that the methods here were written for.
    _map_as_defined: ClassVar[Callable[..., Tensor]]

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
            gradient of one more evaluation: see `recompute_in_backward`.
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

    def has_own_map(self) -> bool:
        """Whether the map is still the one that the class was defined with.

        Who sets `forward` on an object, or on a class that is there already, gives another one,
        of which the gradient and the canonical parameters say nothing.
        """
        cls = type(self)
        return (
            cls.forward is cls._map_as_defined
            and "forward" not in vars(self)
            and all(m.has_own_map() for m in self._modules.values() if isinstance(m, FastPaths))
        )

    def has_canonical(self) -> bool:
        """Whether some parameters are better than others of the same element."""
        return type(self).canonical is not FastPaths.canonical

    def has_step_gradient(self) -> bool:
        """Whether a step is made of something else than the gradient."""
        return type(self).step_gradient is not FastPaths.step_gradient

    def has_pullback(self) -> bool:
        """Whether the gradient can be had without the graph of an evaluation."""
        return self.recompute_in_backward or type(self).pullback is not FastPaths.pullback


def recomputed(
    constraint: FastPaths, gradient: Tensor, params: Sequence[Tensor]
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
