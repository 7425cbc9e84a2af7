"""Only `torch_internals` uses private parts of torch, and the library works without each of them.

`without.py` hides one part after another and checks values and gradients in every mode.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.constrained.torch_internals import without

ROOT = Path(__file__).parents[3]

#: What is torch's, and yet no part that could be anywhere else or go without notice.
ALLOWED = {
    # Where a module keeps its tensors and submodules: the state that every module is made of.
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    # The ends of keys that others have written into checkpoints.
    *("_orig", "_u", "_v", "_g", "_extra_state"),
    # The names that wrappers put into keys of checkpoints.
    *("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
}

#: What the engine itself writes into the modules and classes of others.
OURS = {"_overrides", "_waiting", "_attached_constraints", "_members_of_old_names"}

#: Of transformers, accelerate and Pyro, none of torch's.
OTHERS = {"_finalize_model_loading", "_hf_hook", "_pyro_params", "_unconstrained"}

#: Python's own.
PYTHON = {"_getframe", "_slotnames", "_replace"}


def files() -> list[Path]:
    found = [p for folder in ("constrained", "constraints") for p in (ROOT / folder).rglob("*.py")]
    return [p for p in found if not p.is_relative_to(without.ROOM)]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Private names that are made in a file."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
            # Entries of a module's dictionary, and members of a class that is made by hand.
            case ast.Subscript(slice=ast.Constant(value=str(name)), ctx=ast.Store()):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=names)):
                found.update(n.value for n in names if isinstance(n, ast.Constant))
            case ast.Dict(keys=keys):
                found.update(
                    k.value
                    for k in keys
                    if isinstance(k, ast.Constant) and isinstance(k.value, str)
                )
    return found


def private_names(tree: ast.Module) -> set[str]:
    """Private names that a file asks something for, or imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.Constant(value=str(name)) if name.isidentifier():
                found.add(name)
            case ast.Import(names=names) if any("torch" in n.name for n in names):
                found.update(part for n in names for part in n.name.split("."))
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("torch"):
                found.update(module.split("."), (n.name for n in names))
            case (
                ast.Call(func=ast.Name(id="super"), args=[ast.Attribute(attr="Function"), *_])
                | ast.Call(func=ast.Name(id="super"), args=[ast.Name(id="Function"), *_])
            ):
                found.add("_a base class of Function")
    return {name for name in found if is_private(name)}


@functools.cache
def names_in(text: str) -> tuple[set[str], set[str]]:
    """The private names that a file makes, and those that it asks for."""
    tree = ast.parse(text)
    return own_names(tree), private_names(tree)


def strangers(sources: dict[str, str]) -> dict[str, set[str]]:
    names = {path: names_in(text) for path, text in sources.items()}
    known = ALLOWED | OURS | OTHERS | PYTHON
    known = known.union(*(own for own, _ in names.values()))
    found = {path: asked - known for path, (_, asked) in names.items()}
    return {path: names for path, names in found.items() if names}


def sources() -> dict[str, str]:
    return {str(p.relative_to(ROOT)): p.read_text("utf-8") for p in files()}


def test_private_parts_of_torch_stand_in_one_package():
    assert strangers(sources()) == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import torch\ntorch._C._functorch.peek_interpreter_stack()",
        "from torch._dynamo import comptime",
        "from torch.nn.modules.conv import _ConvNd",
        "import torch._dynamo",
        "def f(t):\n    return t._base",
        "def f(m):\n    return '_is_replica' in vars(m)",
        "def f(o):\n    return getattr(o, '_numel_cache')",
        "from torch.autograd import Function\ndef f(c):\n    return super(Function, c).apply",
    ],
)
def test_a_private_part_elsewhere_is_found(planted):
    assert strangers({**sources(), "planted.py": planted}).keys() == {"planted.py"}


def test_the_package_imports_torch_alone():
    for path in without.ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("constrained"):
                assert (node.module or "").startswith("constrained.torch_internals"), path


def test_nothing_is_loaded_that_torch_does_not_load():
    code = "import sys, {}; print([m for m in sys.modules if m.startswith('torch._dynamo')])"
    ours, plain = (
        subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True
        ).stdout
        for name in ("constrained", "torch")
    )
    assert ours == plain


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, "-W", "ignore", without.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("part", [without.NOTHING, *without.parts(), without.ALL])
def test_nothing_goes_wrong_without(part, results):
    assert not results[part], "\n".join(results[part])
