"""Parameters that FSDP has left in a form in which no constraint can be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from constrained.atomic.sharded import is_shard
from constrained.attached.attached_constraint import AttachedConstraint
from constrained.torch_internals.shards import is_flat


def check_wrapped(parameters: Sequence[Tensor], tensors: Mapping[int, AttachedConstraint]) -> None:
    """Raise, before a step, if an optimizer has parameters in such a form.

    Args:
        parameters: those of the optimizer.
        tensors: the constraints with ``mode="project"`` by the ids of their parameters.

    Raises:
        RuntimeError: names the tensor, and says what to do.
    """
    for parameter in parameters:
        tensor = tensors.get(id(parameter))
        if tensor is None or not is_flat(parameter):
            continue
        if tensor.constraint().event_dim != 0 or tensor.batch_key() is None:
            raise RuntimeError(
                f"'{tensor.path}': FullyShardedDataParallel has left this process a flat piece of "
                f"it, and {tensor.described()} needs its rows and columns; wrap the model by "
                "fully_shard, or constrain it with mode='parametrize'."
            )
    shapes = {p.shape for p in parameters if is_shard(p) and id(p) not in tensors}
    for tensor in tensors.values() if shapes else ():
        # A pass forwards has gathered it, and no pass backwards has cut it into shards again.
        if tensor.is_gathered() and tensor.shape in shapes:
            raise RuntimeError(
                f"'{tensor.path}': FSDP has gathered it for a forward pass, and the next one would "
                "use it as it is now, without the step; call reshard() of the wrapped model "
                "before the optimizer's step."
            )
