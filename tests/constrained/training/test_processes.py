"""Several processes that hold tensors together: the work is divided, and decisions are shared."""

import pytest

from tests.constrained.training import several_processes

EACH = [
    (check.__name__, wrapper, world)
    for world in (2, 4)
    for wrapper in several_processes.WRAPPERS
    for check in several_processes.checks(wrapper, world)
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A function that starts the processes for a wrapper, once."""
    known = {}

    def of(world, wrapper):
        if (world, wrapper) not in known:
            folder = tmp_path_factory.mktemp("gloo")
            known[world, wrapper] = several_processes.start(folder, world, wrapper)
        return known[world, wrapper]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("check", "wrapper", "world"), EACH)
def test_several_processes(check, wrapper, world, outcomes):
    for rank, found in enumerate(outcomes(world, wrapper)):
        assert check in found, f"process {rank} stopped before, at {list(found)[-1]}"
        assert found[check]["error"] is None, found[check]["error"]
