"""How far to go along a curve: a step length that satisfies the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The share of the decrease that the first derivative promises, which a step has to reach.
_DECREASE = 1e-4

#: A new length keeps this share of the bracket away from both of its ends.
_MARGIN = 0.1

#: By how much the length grows while the function still falls.
_GROWTH = 2.0, 10.0


#: A search is over after so many trials, in any case.
_MOST = 20


@dataclass
class Trial:
    """A point on the curve.

    Attributes:
        length: how far along the curve it is.
        loss: the function there.
        slope: the derivative along the curve.
        point: what the caller knows of it.
    """

    length: float
    loss: float
    slope: float
    point: Any = None

    def is_finite(self) -> bool:
        """Whether both the function and its derivative are."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)


def line_search(
    evaluate: Callable[[float], Trial],
    start: Trial,
    length: float,
    *,
    curvature: float,
    rounding: float,
    max_evaluations: int,
) -> Trial | None:
    r"""Find a point on a curve where a function has fallen enough, and its derivative is small.

    With the function $\varphi$ along the curve these are the strong Wolfe conditions

    $$\varphi(t) \le \varphi(0) + 10^{-4} t \varphi'(0), \qquad
    \lvert \varphi'(t) \rvert \le c \lvert \varphi'(0) \rvert.$$

    Where the function changes by no more than its rounding errors, the first one is replaced by one
    of the derivative. A point where the function is not finite counts as too far.

    Args:
        evaluate: gives the trial of a length.
        start: the trial of the length 0, whose slope is negative.
        length: the first one that is tried.
        curvature: c.
        rounding: an error that the values of the function may have.
        max_evaluations: how many trials to make at most; there are never more than 20.

    Returns:
        The trial; the lowest one so far that satisfies the first condition, if none satisfies both;
        None if there was none.

    Reference:
        Nocedal and Wright, Numerical optimization (2006), section 3.5; Hager and Zhang, A new
        conjugate gradient method with guaranteed descent and an efficient line search (SIAM Journal
        on Optimization 16, 2005), equation 4.1, for rounding.
    """
    low, high, best = start, None, None
    for _ in range(min(max_evaluations, _MOST)):
        trial = evaluate(length)
        if _has_fallen(trial, start, rounding):
            if best is None or trial.loss <= best.loss:
                best = trial
            if abs(trial.slope) <= -curvature * start.slope:
                return trial
            if trial.slope < 0:
                if high is None:
                    length = _farther(low, trial)
                low = trial
            else:
                high = trial
        else:
            high = trial
        if high is not None:
            length = _between(low, high, rounding)
            if not low.length < length < high.length:
                break
    return best


def _has_fallen(trial: Trial, start: Trial, rounding: float) -> bool:
    if not trial.is_finite():
        return False
    if trial.loss <= start.loss + _DECREASE * trial.length * start.slope:
        return True
    slope_is_less = trial.slope <= (2 * _DECREASE - 1) * start.slope
    return trial.loss <= start.loss + rounding and slope_is_less


def _farther(low: Trial, trial: Trial) -> float:
    """Where the derivative vanishes if it is linear beyond both points."""
    least, most = (factor * trial.length for factor in _GROWTH)
    bend = trial.slope - low.slope
    if bend <= 0:
        return most
    end = trial.length - trial.slope * (trial.length - low.length) / bend
    return min(max(end, least), most)


def _between(low: Trial, high: Trial, rounding: float) -> float:
    """Where the parabola is lowest that has the slope of one end, and the slope or loss of both."""
    gap = high.length - low.length
    rise = high.loss - low.loss
    if not high.is_finite():
        # Nothing is known of it, other than that it is too far.
        share = _MARGIN
    elif rise <= rounding and high.slope > 0:
        share = low.slope / (low.slope - high.slope)
    else:
        bend = rise - low.slope * gap
        share = -low.slope * gap / (2 * bend) if bend > 0 else 0.5
    return low.length + min(max(share, _MARGIN), 1 - _MARGIN) * gap
