"""What every test starts from: one thread, and the same random numbers."""

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["set", "swap"])
def swap_mode(request):
    """Both ways in which ``nn.Module`` can replace the contents of a parameter."""
    gc.collect()
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)
