"""geotorch's own tests, on torch's engine and on this one: `make test-geotorch GEOTORCH=FOLDER`.

Its releases do not have them: FOLDER is a checkout of its repository. What passes on torch's engine
has to pass on this one. Beside that, this file is the plugin of pytest that puts one in the place
of the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

VARIABLE = "CONSTRAINED_ENGINE"

#: What passes on torch's engine for a reason that is a fault of it: inside of its `cached()` a
#: value stays as it was when a buffer that it depends on changes. So this test, which changes the
#: base of a matrix there, compares a tensor with itself; evaluated anew, it differs by rounding.
STALE = ("test_integration.TestIntegration::test_psd_and_glp",)


def pytest_configure() -> None:
    """Put this engine's functions in the place of torch's, where that is asked for."""
    if VARIABLE not in os.environ:
        return
    from torch.nn.utils import parametrize as theirs

    import constrained.parametrize as ours

    for name in ours.__all__:
        setattr(theirs, name, getattr(ours, name))


def outcomes(folder: Path, *, here: bool) -> dict[str, str]:
    """Run the tests: "passed", "failure", "error" or "skipped" by their names."""
    report = folder / "report.xml"
    places = [str(folder), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    if here:
        environment[VARIABLE] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "geotorch_suite"]
    command += ["--rootdir", str(folder), "-c", os.devnull, f"--junitxml={report}", "test"]
    subprocess.run(command, cwd=folder, env=environment, check=False)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = min(kinds, default="passed")
    report.unlink()
    return found


def main(folder: Path) -> int:
    """Compare the two."""
    torchs, ours = outcomes(folder, here=False), outcomes(folder, here=True)
    for engine, found in (("torch", torchs), ("constrained", ours)):
        print(f"{engine}: {sum(o == 'passed' for o in found.values())} of {len(found)} passed")
    worse = sorted(n for n, o in torchs.items() if o == "passed" and ours.get(n) != "passed")
    for name in worse:
        print(f"passed on torch's engine only{', stale' * name.endswith(STALE)}: {name}")
    if not any(o == "passed" for o in ours.values()):
        return 1
    return int(not all(name.endswith(STALE) for name in worse))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
