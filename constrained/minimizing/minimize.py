"""`minimize`: a loss of a model is minimized by a method of SciPy, and constraints hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from constrained.atomic.contents import own
from constrained.constraint.plain_data import short
from constrained.minimizing.methods import Method, find, scipy_optimize
from constrained.minimizing.objective import Objective
from constrained.minimizing.packing import Vector
from constrained.minimizing.variables import Variable, read_by_the_model, variables
from constrained.parametrized.tensor_locations import check_model


def minimize(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    method: str = "L-BFGS-B",
    bounds: Literal["auto"] | None = "auto",
    tol: float | None = None,
    callback: Callable[[Any], object] | None = None,
    progress: bool = True,
    *,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Minimize a loss over the parameters of a model, by a method of `scipy.optimize.minimize`.

    All parameters that require a gradient move, tied ones as one, and constraints hold. The loss is
    computed on all data at once, and must give the same at the same parameters: without dropout or
    random batches. The vector of the method is in double precision and the tensors keep their
    dtypes; for more than about four digits the model should be in double precision too.

    A tensor with ``mode="project"`` is constrained as one with ``mode="parametrize"``. With
    ``mode="penalize"`` it moves freely, as under any optimizer, and nothing is added to the loss:
    the loss itself adds `constrained.penalty`.

    At the end the model has the best parameters that were tried. The same holds after an error in
    the loss and after Ctrl-C, which are raised again. Buffers and the ``grad`` of parameters are as
    they were.

    Args:
        model: the model.
        loss: a function of the model that returns a real scalar tensor.
        method: ``"L-BFGS-B"``, ``"trust-constr"``, ``"trust-ncg"``, ``"Newton-CG"``,
            ``"SLSQP"``, ``"BFGS"``, ``"CG"``, ``"TNC"``, ``"Nelder-Mead"``
            or ``"COBYLA"``. Products of the Hessian with vectors, where a method takes
            them, are exact.
        bounds: with ``"auto"`` a method that takes bounds moves tensors in boxes and half-lines
            themselves, up to the bounds, and ordered vectors by their increments; one that takes
            linear constraints does so with tensors on the simplex, in an l1 ball, or in a linear or
            affine space, up to 1024 entries in an element. All others move free parameters from
            which the constraint computes its value; with None it is all tensors. A method without
            bounds may stop early where such a map has a kink, as at the bound of a half-line.
        tol: the tolerance of the method.
        callback: is called after each iteration with an `OptimizeResult` with ``x``, ``fun``,
            ``nit`` and ``nfev``; the model is at ``x``. If it returns True the minimization ends.
        progress: whether to show a line with the loss, on a terminal.
        options: of the method, such as ``{"maxiter": 1000}``.

    Returns:
        A `scipy.optimize.OptimizeResult`: ``x`` is what the parameters are packed into, ``fun`` the
        loss there, ``jac`` its gradient; ``nit``, ``nfev``, ``njev``, ``nhev``, ``success``,
        ``status`` and ``message`` as SciPy has them.

    Raises:
        ImportError: if SciPy is not installed.
        TypeError: if the loss is not a function of the model, or is not a real scalar tensor.
        ValueError: for an unknown method; if there is nothing to minimize over; if the loss is NaN
            or infinite, has no graph, or differs between two evaluations at one point.

    Reference:
        Nocedal and Wright, Numerical Optimization (2nd edition, 2006); Byrd, Lu, Nocedal and Zhu, A
        limited memory algorithm for bound constrained optimization (SIAM Journal on Scientific
        Computing 16, 1995), for L-BFGS-B.

    Example:
        >>> import torch, constrained
        >>> layer = torch.nn.Linear(2, 1, bias=False).double()
        >>> layer = constrained.constrain(layer, "weight", "nonnegative")
        >>> wanted = torch.tensor([[2.0, -1.0]])
        >>> result = constrained.minimize(layer, lambda m: (m.weight - wanted).square().sum())
        >>> print(layer.weight.detach().round(decimals=6), round(result.fun, 6))
        tensor([[2., 0.]], dtype=torch.float64) 1.0
    """
    check_model(model)
    chosen = find(method)
    if not callable(loss):
        raise TypeError(f"The loss is a function of the model, got {short(loss)}.")
    if bounds not in ("auto", None):
        raise ValueError(
            f"The bounds are 'auto' or None, got {short(bounds)}. Bounds of a tensor are a "
            "constraint: constrain(model, path, 'box(low=0, high=1)')."
        )
    optimize = scipy_optimize()
    with torch.inference_mode(False), _buffers_kept(model):
        found = variables(model, chosen if bounds == "auto" else None)
        before = [own(variable.leaf) for variable in found]
        objective = Objective(model, loss, found, curvature=chosen.curvature)
        run = _Run(objective, chosen, callback, progress, optimize)
        with _best_kept(found, before, objective):
            result = run(tol, dict(options or {}))
        # In low precision, what the right inverse of a constraint gives may be another number.
        result.fun = float(loss(model).detach())
        return result


class _Stopped(Exception):
    """The callback has ended the minimization."""


class _Run:
    """One minimization.

    Args:
        objective: the loss.
        method: what minimizes it.
        callback: of the user.
        progress: whether to show a line.
        optimize: ``scipy.optimize``.
    """

    def __init__(
        self,
        objective: Objective,
        method: Method,
        callback: Callable[[Any], object] | None,
        progress: bool,
        optimize: Any,
    ) -> None:
        self._objective, self._method, self._callback = objective, method, callback
        self._optimize, self._iterations = optimize, 0
        self._line = _line() if progress else None

    def __call__(self, tol: float | None, options: dict[str, Any]) -> Any:
        """Minimize."""
        objective, method = self._objective, self._method
        start = objective.start()
        self._check_twice(start)
        more: dict[str, Any] = {}
        if method.gradient:
            more["jac"] = objective.gradient
        if method.curvature:
            more["hessp"] = objective.product
        if method.bounds and bool((np.isfinite(objective.low) | np.isfinite(objective.high)).any()):
            more["bounds"] = self._optimize.Bounds(objective.low, objective.high)
            if method.name == "trust-constr":
                start = _inside(start, objective.low, objective.high)
        if method.linear and (linear := objective.linear()):
            more["constraints"] = [self._optimize.LinearConstraint(*each) for each in linear]
        try:
            result = self._optimize.minimize(
                objective.value,
                start,
                method=method.name,
                tol=tol,
                callback=self._after_iteration,
                options=options,
                **more,
            )
        except _Stopped:
            result = self._optimize.OptimizeResult(
                nit=self._iterations, success=False, status=99, message="The callback has ended it."
            )
        finally:
            if self._line is not None:
                self._line("")
        return self._finished(result)

    def _finished(self, result: Any) -> Any:
        """The result at the best point, to which the model is brought."""
        objective = self._objective
        if "x" in result and objective.linear():
            # Linear constraints hold up to the tolerance of the method only.
            objective.value(objective.projected(result.x))
        best = objective.best
        if best is None:
            # No point that was tried is feasible, not even by rounding.
            best = objective.projected(result.x if "x" in result else objective.start())
            objective.best = best
        result.x, result.fun = best, objective.value(best)
        result.jac = objective.gradient(best)
        result.nfev, result.njev = objective.evaluations, objective.gradients
        result.nhev = objective.products
        result.nit = int(result.get("nit", self._iterations))
        return result

    def _check_twice(self, start: Vector) -> None:
        """Raise if the loss has another value at the same point."""
        objective = self._objective
        first = objective.value(start)
        objective.forget()
        second = objective.value(start)
        if abs(first - second) > 1e-3 * max(abs(first), abs(second)):
            raise ValueError(
                f"The loss was {first:.6g} and then {second:.6g} at the same parameters: it must "
                "not be random. Call model.eval() to switch dropout off, and fix batches and noise."
            )

    def _after_iteration(self, x: Any, *state: Any) -> None:
        del state
        self._iterations += 1
        objective = self._objective
        if self._line is not None:
            self._line(
                f"{self._method.name}  iteration {self._iterations}  evaluations "
                f"{objective.evaluations}  least loss {objective.least:.6g}"
            )
        if self._callback is None:
            return
        now = self._optimize.OptimizeResult(
            x=np.array(x), fun=objective.value(x), nit=self._iterations, nfev=objective.evaluations
        )
        if self._callback(now) is True:
            raise _Stopped


def _inside(start: Vector, low: Vector, high: Vector) -> Vector:
    """A start strictly inside of bounds, where a barrier is finite."""
    room = np.where(np.isfinite(high - low), high - low, np.maximum(1.0, np.abs(start)))
    margin = 1e-3 * room
    return np.clip(start, np.minimum(low + margin, high), np.maximum(high - margin, low))


@contextmanager
def _buffers_kept(model: nn.Module) -> Generator[None]:
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, content in before:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


@contextmanager
def _best_kept(
    found: list[Variable], before: list[Tensor], objective: Objective
) -> Generator[None]:
    """At the end the model has its best parameters, or those from before if there are none."""
    try:
        with read_by_the_model(found):
            yield
    finally:
        objective.forget()
        if objective.best is not None:
            objective.write(objective.best)
        with torch.no_grad():
            for variable, value in zip(found, before, strict=True):
                if objective.best is None:
                    variable.leaf.copy_(value)
                elif variable.places and not torch.equal(variable.leaf, value):
                    module, name = variable.places[0]
                    setattr(module, name, variable.leaf.detach())


def _line() -> Callable[[str], None] | None:
    """What writes a line over the last one, if there is a terminal."""
    if not sys.stderr.isatty():
        return None
    # Imported here, so that `import constrained` stays fast.
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def write(line: str) -> None:
        text = Text(line)
        text.truncate(console.width - 1, overflow="ellipsis", pad=True)
        console.print(text, soft_wrap=True, end="\r")

    return write
