"""Conversions of originals that have more axes than the memory format of their value."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def convert_original(fn: Callable[[Tensor], Tensor], rank: int, tensor: Tensor) -> Tensor:
    """Apply a conversion of a module to one of its originals.

    A memory format, such as ``torch.channels_last``, is for tensors of four or of five axes. Torch
    applies it to all that have either number, and fails where an original has one axis more than
    its value. Of such an original only the entries are converted, as a vector.

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
    # Nothing was converted if `fn` returns its argument, unless `reshape` had to copy.
    return tensor if new is flat and tensor.is_contiguous() else new.view(tensor.shape)
