"""Conversions of originals that have more axes than the memory format of their value."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def convert_original(fn: Callable[[Tensor], Tensor], rank: int, tensor: Tensor) -> Tensor:
    """Apply a conversion of a module to one of its originals.

    A memory format, such as ``torch.channels_last``, is for tensors of four or of five axes. Torch
    applies it to all tensors with four or five axes, and fails for an original that has one axis
    more than its value. Such an original is converted as a vector, without the memory format.

    Args:
        fn: the conversion, as ``nn.Module._apply`` is given it.
        rank: the number of axes of the parametrized tensor.
        tensor: the original.
    """
    has_format = tensor.ndim in (4, 5) and tensor.ndim != rank
    if not has_format or type(tensor) not in (Tensor, nn.Parameter):
        return fn(tensor)
    flat = tensor.detach().reshape(-1)
    new = fn(flat)
    # If `fn` returns its argument, nothing was converted (but `reshape` may have copied).
    return tensor if new is flat and tensor.is_contiguous() else new.view(tensor.shape)
