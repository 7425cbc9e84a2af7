"""Fixtures of the promise tests: the number of threads, and the same random numbers."""

import gc
import os
import sys

import pytest
import torch

MARKERS = (
    "slow: takes more than a few seconds",
    "torch_today: pins a behaviour of today's torch that the engine relies on or lifts",
)


def pytest_configure(config: pytest.Config) -> None:
    # One, since the tests run side by side, unless the environment says otherwise.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # An installed package is tested without the project's own configuration.
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.fixture(autouse=True)
def _seeded():
    # `torch.manual_seed` records the whole stack for each kind of accelerator that has not started,
    # and keeps it. That takes half the time of a test that does nothing.
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(0)


@pytest.fixture(params=[False, True], ids=["set", "swap"])
def swap_mode(request):
    """Both ways in which ``nn.Module`` can replace the contents of a parameter."""
    if request.param:
        # A tensor can only be swapped if there is no other reference to it.
        gc.collect()
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.fixture
def fast_switching():
    """Make threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def measured(record_property):
    """Record what a test measured, for the table in the docs: ``measured("1 evaluation")``."""

    def note(text: str) -> None:
        record_property("measured", text)

    return note
