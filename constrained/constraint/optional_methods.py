"""The optional methods of a constraint: for faster training, or for a better result of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class OptionalMethods(nn.Module):
    """Defaults of the methods that a constraint may define.

    `step_gradient` leads training to a better result. The others make it faster and do not change
    the result. As with `Constraint.forward`, a class may name the parameters that its methods take;
    the signatures here are wide enough that type checkers accept it.

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
        """Those parameters of the same element at which `forward` is cheapest.

        After each optimizer step the engine replaces the parameters by these.
        ``forward(*canonical(*p)) == forward(*p)`` must hold. By default the parameters themselves.
        """
        return params

    def restored_together(self, count: int) -> Sequence[Sequence[int]]:
        """Which parameters `canonical` may change only together.

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
        """The gradient with respect to the parameters, from the gradient with respect to the value.

        A class defines it if it can compute the one from the other in less time or memory than the
        graph of an evaluation takes. The engine then records no graph, and calls this in each
        backward pass. Derivatives of higher order, `torch.func` and tracing differentiate `forward`
        in any case.

        Args:
            value: what `forward` gave, of shape ``(*batch, *event)``.
            gradient: of the shape of the value.
            params: what `forward` was given.

        Returns:
            One tensor for each of ``params``, of its shape; None for a constant. By default
            `forward` is evaluated once more, and differentiated: see `recompute_in_backward`.
        """
        del value
        return recomputed(self, gradient, params)

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, *params: Any, **_none: Any
    ) -> tuple[Tensor | None, ...] | None:
        """`pullback` for a gradient of small rank, ``left' right``, which is not formed.

        The gradient of a linear layer has this form: ``right`` are its inputs, and ``left`` is the
        gradient with respect to its outputs. A class that defines this defines `pullback` too.

        Args:
            value: what `forward` gave, of shape ``(n, p)``.
            left: shape ``(b, n)``.
            right: shape ``(b, p)``.
            params: what `forward` was given. If the value is a copy of a parameter, ``value``
                itself is given for that parameter.

        Returns:
            The result of `pullback`, or None if `pullback` itself is cheaper.
        """
        del value, left, right, params
        return None

    def step_gradient(self, gradient: Tensor, *params: Any, **_none: Any) -> Tensor:
        """What an optimizer is given for its step, in the place of the gradient of the loss.

        On the boundary of a closed set a step against the gradient may lead outside, and
        `canonical` then projects back. With an optimizer such as Adam, whose steps have another
        metric than that projection, training comes to rest beside the optimum. A class may return a
        gradient that vanishes at an optimum, and only there. It need not be linear in the gradient
        of the loss: the engine calls this when a step begins, after the gradients of all batches
        and processes are added up, and writes the result into ``grad``, where it stays until
        ``zero_grad``.

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

        A linear layer multiplies by one after the other if that is less work than forming the
        product. Both are differentiable functions of the parameters, which are given in the dtype
        that they are stored in.

        Returns:
            Tensors of shapes ``(m, r)`` and ``(r, n)``, or None.
        """
        del params
        return None

    def steepest(self, value: Tensor, gradient: Tensor) -> Tensor | None:
        r"""The tangent direction of a given length along which a function decreases fastest.

        It minimizes $\langle g, a \rangle$ over the tangent vectors a at a member whose norm is at
        most that of the member: a linear minimization oracle in the tangent space. The norm is the
        one that a class finds natural: the spectral norm for orthogonal matrices, the Euclidean one
        for spheres. So the length of a step, such as ``lr`` of `constrained.optim.ManifoldMuon`, is
        relative to the size of the members, and depends neither on the scale of the gradient nor on
        the part of it that is normal to the set.

        Args:
            value: members, of shape ``(*batch, *event)``.
            gradient: finite, of the shape of ``value``.

        Returns:
            Tensor of the shape of ``value``, zero for an element where the tangent part of the
            gradient vanishes up to rounding. None if the class has no such method, the default.
        """
        del value, gradient
        return None

    def has_own_map(self) -> bool:
        """Whether `forward` is still the method that the class was defined with.

        If somebody has set `forward` on the object, or later on the class, then `pullback` and
        `canonical` do not belong to the map any more, and are not used.
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
        """Whether the class defines `canonical`."""
        return type(self).canonical is not OptionalMethods.canonical

    def has_step_gradient(self) -> bool:
        """Whether the class defines `step_gradient`."""
        return type(self).step_gradient is not OptionalMethods.step_gradient

    def has_steepest(self) -> bool:
        """Whether the class defines `steepest`."""
        return type(self).steepest is not OptionalMethods.steepest

    def has_pullback(self) -> bool:
        """Whether the gradient can be computed without the graph of an evaluation."""
        return self.recompute_in_backward or type(self).pullback is not OptionalMethods.pullback


def recomputed(
    constraint: OptionalMethods, gradient: Tensor, params: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the parameters: `forward` is evaluated and differentiated."""
    trained = [i for i in range(len(params)) if i not in constraint.frozen]
    return evaluated_again(constraint.forward, trained, gradient, params)


def evaluated_again(
    evaluate: Callable[..., Tensor],
    trained: Sequence[int],
    gradient: Tensor,
    params: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradient of a function with respect to its arguments; None for one that is not trained.

    Args:
        evaluate: the function. It is evaluated once, and its graph is dropped.
        trained: the indices of the arguments to differentiate by.
        gradient: the gradient with respect to its value.
        params: its arguments.
    """
    leaves = [p.detach().requires_grad_(i in trained) for i, p in enumerate(params)]
    with torch.enable_grad():
        value = evaluate(*leaves)
    found = torch.autograd.grad(value, [leaves[i] for i in trained], gradient, allow_unused=True)
    by_index = dict(zip(trained, found, strict=True))
    return tuple(by_index.get(i) for i in range(len(params)))
