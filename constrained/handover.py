"""What an optimizer learns when the parameters of a model change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer


def hand_over(
    optimizer: Optimizer, replaced: Iterable[tuple[nn.Parameter, Sequence[nn.Parameter]]]
) -> None:
    """Put new parameters where their predecessors were, in the same group with its settings.

    The state of a predecessor (moments, step count) goes to a successor of the same shape; a
    successor of another shape starts afresh.

    Args:
        optimizer: any ``torch.optim`` optimizer. One that does not hold a predecessor is left
            as it is.
        replaced: each parameter that left the model, with those that came in its place.
    """
    for old, new in replaced:
        if len(new) == 1 and new[0] is old:
            continue
        for group in optimizer.param_groups:
            position = next((i for i, p in enumerate(group["params"]) if p is old), None)
            if position is not None:
                group["params"][position : position + 1] = new
                break
        else:
            continue
        state = optimizer.state.pop(old, None)
        if state:
            for parameter in new:
                if parameter.shape == old.shape:
                    optimizer.state[parameter] = {
                        key: value.clone() if isinstance(value, torch.Tensor) else value
                        for key, value in state.items()
                    }
