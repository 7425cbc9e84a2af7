"""Setup of every test: number of threads and random seed; and the options --share, --law-share."""

import gc
import os
import zlib

import pytest
import torch

# One, since the tests run side by side, unless the environment says otherwise.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("share", "a part of the tests, always the same one for a seed")
    group.addoption("--share", type=float, default=1.0, help="the share of the tests but the laws")
    group.addoption("--law-share", type=float, default=1.0, help="the share of the laws")
    group.addoption("--share-seed", type=int, default=0, help="another seed names other tests")


def is_chosen(name: str, share: float, seed: int) -> bool:
    """Whether a test belongs to a share: by its name, whatever else is collected."""
    return zlib.crc32(f"{seed} {name}".encode()) < share * 2**32


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--share-seed")
    shares = {law: config.getoption("--law-share" if law else "--share") for law in (False, True)}
    if min(shares.values()) >= 1:
        return
    kept, left_out = [], []
    for item in items:
        share = shares["::test_law[" in item.nodeid]
        (kept if is_chosen(item.nodeid, share, seed) else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    # Tens of thousands of tests are known from here on: a collection of garbage need not see them.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    # `torch.manual_seed` notes the whole stack for each kind of accelerator that has not started,
    # and keeps it: of a test that does nothing, half of the time.
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(0)
