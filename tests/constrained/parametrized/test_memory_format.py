"""``.to(memory_format=...)`` is about the tensor: originals with other axes do not make it fail."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from constrained import constrain

GATES = {"view": "(g o) i h w -> g h w o i", "g": 2}
SPECS = [
    {"name": "orthogonal_conv"},
    {"name": "spectral_norm_conv"},
    {"name": "orthogonal", "view": "o i h w -> o (i h w)"},
    *({"name": name, **GATES} for name in ("orthogonal", "spectral_norm", "simplex", "positive")),
    {"name": "low_rank", "rank": 2, **GATES},
    {"name": "orthogonal", "map": "cayley", **GATES},
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_channels_last(spec, swap):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer = constrain(nn.Conv2d(4, 8, 3), "weight", spec)
        x = torch.randn(2, 4, 6, 6)
        layer(x).sum().backward()
        value, y, before = layer.weight.detach().clone(), layer(x).detach(), [*layer.parameters()]
        assert layer.to(memory_format=torch.channels_last) is layer
        assert all(p is q for p, q in zip(layer.parameters(), before, strict=True))
        assert torch.equal(layer.weight, value)
        assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        optimizer.step()
        assert not torch.equal(layer.weight, value)
        layer.to(torch.float64, memory_format=torch.channels_last)
        assert {t.dtype for t in layer.state_dict().values()} == {torch.float64}
        # A tensor that stays where it is stays the same one.
        pointers = [p.data_ptr() for p in layer.parameters()]
        layer.to(torch.float64)
        assert [p.data_ptr() for p in layer.parameters()] == pointers
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_kernel_that_has_no_such_format_fails_as_in_torch():
    layer = constrain(nn.Conv3d(2, 2, 3), "weight", "positive")
    for module in (nn.Conv3d(2, 2, 3), layer):
        with pytest.raises(RuntimeError, match="rank 4"):
            module.to(memory_format=torch.channels_last)
    layer.to(memory_format=torch.channels_last_3d)


def test_memory_is_shared_where_it_lies():
    layer = constrain(nn.Conv2d(4, 8, 3), "weight", "orthogonal", **GATES)
    layer.share_memory()
    assert all(p.is_shared() for p in layer.parameters())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("grads", [True, False])
def test_a_conversion_of_the_value_alone_is_no_write(spec, grads):
    """``convert_conv2d_weight_memory_format`` sets the ``.data`` of what it reads."""
    layer = constrain(nn.Conv2d(4, 8, 3), "weight", spec)
    x = torch.randn(2, 4, 6, 6)
    with torch.set_grad_enabled(grads):
        y = layer(x).detach()
        nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
        assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
        layer.weight.data = layer.weight.data * 2
        with pytest.raises(RuntimeError, match="written in place"):
            layer(x)
