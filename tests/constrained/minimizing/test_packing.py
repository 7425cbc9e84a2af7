"""Tensors packed into a vector of doubles keep their bits."""

import pytest
import torch

from constrained.minimizing.packing import pack, unpack

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _bits(tensor):
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("dtype", [*_DTYPES, torch.complex64, torch.complex128])
def test_a_round_trip_keeps_every_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((), (3,), (4, 5), (0, 2), (2, 3, 4))
    ]
    tensors[1] = torch.tensor([-0.0, 0.0, 1.0]).to(dtype)
    back = unpack(pack(tensors), tensors)
    for one, other in zip(tensors, back, strict=True):
        assert other.dtype == dtype and other.shape == one.shape
        assert torch.equal(_bits(one), _bits(other))


def test_every_finite_number_in_half_precision_is_kept():
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        numbers = numbers[torch.isfinite(numbers)]
        (back,) = unpack(pack([numbers]), [numbers])
        assert torch.equal(numbers.view(torch.int16), back.view(torch.int16))


def test_the_extremes_of_single_precision_are_kept():
    info = torch.finfo(torch.float32)
    numbers = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 8, info.eps])
    (back,) = unpack(pack([numbers]), [numbers])
    assert torch.equal(numbers, back)


def test_mixed_dtypes_and_layouts_are_packed_in_row_major_order():
    matrix = torch.arange(6.0).reshape(2, 3).mT
    tensors = [matrix, torch.tensor([1 + 2j]), torch.tensor(0.5, dtype=torch.bfloat16)]
    vector = pack(tensors)
    assert vector.tolist() == [0, 3, 1, 4, 2, 5, 1, 2, 0.5]
    back = unpack(vector, tensors)
    assert all(torch.equal(one, other) for one, other in zip(tensors, back, strict=True))


def test_the_vector_is_a_copy():
    tensor = torch.ones(3, dtype=torch.float64)
    pack([tensor])[0] = 5
    assert tensor.tolist() == [1, 1, 1]
