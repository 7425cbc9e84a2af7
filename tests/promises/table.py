"""The promises in words, the index of their tests, and the table of the tests' outcomes."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

#: The tests of the promises.
FOLDER = Path(__file__).parent

#: Each promise by its id.
PROMISES = {
    "K1": "One original keeps its identity through register, assign and remove.",
    "K2": "The `state_dict` keys are torch's.",
    "K3": "Error types, messages and consistency checks are torch's.",
    "K4": "Chains, nested parametrizations and buffers work as in torch.",
    "K5": "After the last removal the module has its own class again.",
    "K6": "functional_call, transforms, compile, export, trace, DDP, FSDP and hooks work.",
    "K7": "A change of an original between forward and backward raises.",
    "K8": "`cached()` exists, and gives the same object inside.",
    "E01": "A constrained model pickles, saves, copies and crosses processes.",
    "E02": "Equal layers share one class, and compile once.",
    "E03": "Copies are independent.",
    "E04": "A user's `__getstate__` and `__setstate__` are used; a trained RNN can be copied.",
    "E05": "The order of parameters is kept, and with it an optimizer's saved state.",
    "E06": "Plain, torch's, geotorch's, other sets' checkpoints load; a plain one can be written.",
    "E07": "A non-persistent buffer stays one.",
    "E08": "One evaluation per step, however often a tensor is read.",
    "E09": "An evaluation forward costs what a plain one costs.",
    "E10": "Threads, tasks and replicas never see each other's values.",
    "E11": "A stored value is what an evaluation gives; docs/evaluation.md lists what is not seen.",
    "E12": "`optimizer=` hands parameters over; without it a warning tells of those that left.",
    "E13": "Weight decay, clipping and noise collapse no constraint.",
    "E14": "Tied tensors stay tied.",
    "E15": "Assignment copies, and checks shape, dtype and device.",
    "E16": "Writes into a read value take effect, or raise with the cure.",
    "E17": "Assigning a Parameter works; None, `del` and `get_parameter` are clear errors.",
    "E18": "`transfer_parametrizations_and_params` makes a real copy.",
    "E19": "An error inside a parametrization is shown as what it is.",
    "E20": "Only a deliberate lack of a right inverse is taken for one.",
    "E21": "After a failed registration or removal nothing has changed.",
    "E22": "Removal keeps a parameter a parameter, and its `requires_grad`.",
    "E23": "Chains of several tensors work, or are refused at registration.",
    "E24": "Dotted paths and functions work; a tensor that is None is a clear error.",
    "E25": "One element of a chain can be removed.",
    "E26": "Registration in inference mode leaves a module that trains.",
    "E27": "`functional_call` with the name of the value overrides the value.",
    "E28": "Derivatives of every order are right; reads are pure.",
    "E29": "One evaluation per compiled graph; compiling takes about as long as for plain ones.",
    "E30": "`jit.script` is refused at once, with the cure.",
    "E31": "Released copies go through both ONNX exporters; constrained modules through export.",
    "E32": "Low precision and autocast cost no accuracy beyond the rounding of the dtype.",
    "E33": "Orthogonality to 1e-5 at every scale of the coordinates.",
    "E34": "One calibrated tolerance, which does not grow with the size.",
    "E35": "Bounds of norms are exact, of convolutions too; state follows assignment.",
    "E36": "Nothing draws from the global random number generator.",
    "E37": "Memory is of the size of the weight.",
    "E38": "Meta device, lazy modules and conversions work.",
    "E39": "DDP and FSDP2 work; constraining after wrapping is refused with the cure.",
    "E40": "Fusion, quantization and pruning work on released copies, and else say so.",
}

#: The entry of the table for a promise without an outcome.
NOT_RUN = "no test ran"

_ID = re.compile(r"test_([ek]\d+)_")


def promise_of(test: str) -> str | None:
    """The id of the promise that a test, or else its file, is named after."""
    file, _, name = test.rpartition("::")
    found = _ID.search(name) or _ID.search(file)
    return found[1].upper() if found else None


def ids_in(path: Path) -> dict[str, list[ast.FunctionDef]]:
    """The tests of one file by the id of the promise that each belongs to."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            key = promise_of(f"{path.name}::{node.name}")
            assert key is not None, f"{path.name}: {node.name} belongs to no promise"
            found.setdefault(key, []).append(node)
    return found


def index() -> str:
    """The files of the promises' tests in Markdown, by subject."""
    files = sorted(FOLDER.glob("test_*.py"), key=_subject)
    lines = ["| subject | promises | file | what it tests |", "|---|---|---|---|"]
    for path in files:
        ids = sorted(ids_in(path), key=list(PROMISES).index)
        about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]
        # The ids are in the column beside it.
        about = re.sub(r"^[EK]\d+( (and|to) [EK]\d+)*: | \([EK]\d+( to [EK]\d+)?\)", "", about)
        about = about[0].upper() + about[1:]
        lines.append(f"| {_subject(path)} | {', '.join(ids)} | {_link(path.name)} | {about} |")
    return "\n".join(lines)


def _subject(path: Path) -> str:
    return re.sub(r"^test_[ek]\d*_", "", path.stem).replace("_", " ")


def _link(name: str) -> str:
    return f"[`{name}`]({name})"


@dataclass
class Seen:
    """The outcomes of one promise's tests on one engine."""

    passed: int = 0
    failed: int = 0
    measured: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        notes = "; ".join(dict.fromkeys(self.measured))
        count = f"{self.passed} of {self.passed + self.failed}" if self.failed else f"{self.passed}"
        return f"{notes} ({count})" if notes else f"({count})"


class Outcomes:
    """A pytest plugin that collects the outcomes of the promises' tests."""

    def __init__(self) -> None:
        self.here: dict[str, Seen] = defaultdict(Seen)
        self.torch: dict[str, Seen] = defaultdict(Seen)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test; with pytest-xdist, in the controlling process."""
        key = promise_of(report.nodeid)
        if key is None or (report.when != "call" and report.passed):
            return
        seen = (self.torch if "torch_today" in report.keywords else self.here)[key]
        if report.passed:
            seen.passed += 1
            seen.measured += [
                str(text) for name, text in report.user_properties if name == "measured"
            ]
        elif report.failed:
            seen.failed += 1

    def table(self) -> str:
        """The table in Markdown: promise, torch today, here."""
        lines = ["| | promise | torch today | here |", "|---|---|---|---|"]
        for key, promise in PROMISES.items():
            torch = (
                str(self.torch[key]) if key in self.torch else "as here" if key[0] == "K" else ""
            )
            here = str(self.here[key]) if key in self.here else NOT_RUN
            cells = [key, promise, torch, here]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        return "\n".join(lines)
