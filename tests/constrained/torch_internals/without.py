"""The engine without some private part of torch: run as a script, this file tries each of them.

Not a test by itself: the package looks for each part when it is imported, so each part is
tried in a process of its own, forked from one that has imported torch and nothing of this project.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).parents[3]
ROOM = ROOT / "constrained" / "torch_internals"
LOOK_UP = "constrained.torch_internals.look_up"
ALL, NOTHING = "all of them", "nothing"

KNOWN = {"torch._functorch.eager_transforms": True}


def parts() -> list[str]:
    """The names of the parts that are looked for."""
    calls = [
        node
        for path in sorted(ROOM.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("find", "is_defined")
    ]
    return [call.args[0].value for call in calls]  # type: ignore[attr-defined]


def hide(part: str) -> None:
    """Let the package find that torch lacks a part, once it is imported."""
    spec = importlib.util.spec_from_file_location(LOOK_UP, ROOM / "look_up.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[LOOK_UP] = module
    spec.loader.exec_module(module)
    look, defines = module._find, module._is_defined
    module._find = lambda name: None if part in (name, ALL) else look(name)
    module._is_defined = lambda name: part not in (name, ALL) and defines(name)


def layer(spec: Any = "orthogonal", **more: Any) -> nn.Linear:
    from constrained import constrain

    torch.manual_seed(0)
    return constrain(nn.Linear(4, 4, bias=False).double(), "weight", spec, **more)


def polar(x: torch.Tensor) -> torch.Tensor:
    """The map of ``orthogonal``, by what torch differentiates in every mode."""
    return x @ torch.linalg.inv(sqrt(x.mT @ x))


def sqrt(x: torch.Tensor) -> torch.Tensor:
    y, z = x, torch.eye(len(x), dtype=x.dtype)
    for _ in range(12):
        y, z = (y + torch.linalg.inv(z)) / 2, (z + torch.linalg.inv(y)) / 2
    return y


def original(module: nn.Module) -> torch.Tensor:
    return module.parametrizations.weight.original  # type: ignore[union-attr]


def reads_what_was_stored() -> None:
    m = layer()
    with torch.no_grad():
        for write in (lambda x: x.mul_(1.5).add_(0.1), lambda x: x[0].neg_(), lambda x: None):
            write(original(m))
            torch.testing.assert_close(m.weight, polar(original(m)))
            torch.testing.assert_close(m.weight, m.weight)


def trains() -> None:
    m, x = layer(), torch.randn(3, 4).double()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (m(x).square().sum() + (m.weight - x[0]).pow(3).sum() + m(x).exp().sum()).backward()
        free = original(m).detach().clone().requires_grad_()
        w = polar(free)
        loss = (x @ w.mT).square().sum() + (w - x[0]).pow(3).sum() + (x @ w.mT).exp().sum()
        (wanted,) = torch.autograd.grad(loss, free)
        torch.testing.assert_close(original(m).grad, wanted)
        optimizer.step()
        torch.testing.assert_close(m.weight, polar(original(m)))


def recomputes_checkpoints() -> None:
    m, x = layer(), torch.randn(3, 4).double()
    loss = m.weight.sum() + checkpoint(lambda: m(x).exp().sum(), use_reentrant=False)
    loss.backward()
    free = original(m).detach().clone().requires_grad_()
    w = polar(free)
    (wanted,) = torch.autograd.grad(w.sum() + (x @ w.mT).exp().sum(), free)
    torch.testing.assert_close(original(m).grad, wanted)


def transforms() -> None:
    m, x = layer(), torch.randn(4).double()
    # Stored: it must not be served where the original is another one.
    assert m.weight.requires_grad
    name, here = "parametrizations.weight.original", original(m).detach()

    def loss(free: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(m, {name: free}, (x,)).exp().sum()

    def same(free: torch.Tensor) -> torch.Tensor:
        return (polar(free) @ x).exp().sum()

    v = torch.randn(4, 4).double()
    many = torch.stack([here, here + v / 10])
    close = torch.testing.assert_close
    close(torch.func.grad(loss)(here), torch.func.grad(same)(here))
    close(torch.func.vmap(loss)(many), torch.func.vmap(same)(many))
    close(torch.func.hessian(same)(here), torch.func.jacrev(torch.func.jacrev(loss))(here))

    def once(f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.func.jvp(f, (here,), (v,))[1]

    def dual(f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(here, v))).tangent

    def twice(f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.func.jvp(lambda y: torch.func.jvp(f, (y,), (v,))[1], (here,), (v,))[1]

    for derivative in (once, dual, twice):
        try:
            found = derivative(loss)
        except RuntimeError as error:
            # Refused where nobody can tell whether one is inside another, never silently wrong.
            assert "forward-mode derivatives of a forward-mode derivative" in str(error), error
            assert derivative is twice or not KNOWN["torch._functorch.eager_transforms"]
        else:
            close(found, derivative(same))


def overrides() -> None:
    m, other = layer(), torch.randn(4, 4).double().requires_grad_()
    x, before = torch.randn(4).double(), m.weight.detach().clone()
    found = torch.func.functional_call(m, {"weight": other}, (x,))
    torch.testing.assert_close(found, other @ x)
    assert torch.autograd.grad(found.sum(), other)[0].equal(x.expand(4, 4))
    torch.testing.assert_close(m.weight.detach(), before)


def traces() -> None:
    m, x = layer(), torch.randn(3, 4).double()
    traced = torch.jit.trace(m, (x,))
    torch.testing.assert_close(traced(x), m(x))


def compiles() -> None:
    m, x = layer(), torch.randn(3, 4).double()
    f = torch.compile(lambda x: m(x) + x @ m.weight, backend="eager")
    torch.testing.assert_close(f(x), m(x) + x @ m.weight)


def looks_no_stand_in_in_the_eye() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from constrained.torch_internals.tensors import has_values

    assert has_values(torch.zeros(3))
    with FakeTensorMode():
        assert not has_values(torch.zeros(3))
    seen = []
    torch.func.vmap(lambda t: seen.append(has_values(t)) or t)(torch.zeros(2, 3))
    assert seen == [False]


def lists_in_order() -> None:
    m = nn.Linear(4, 4)
    names = [name for name, _ in m.named_parameters()]
    from constrained import constrain

    found = [
        name.split(".")[-2:] for name, _ in constrain(m, "weight", "sphere").named_parameters()
    ]
    assert [names[0] in name or "weight" in name for name in found] == [True, False]


def knows_contexts() -> None:
    from constrained.registration.add import register_parametrization

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    m = nn.Linear(2, 2)
    register_parametrization(m, "weight", Double())
    with nn.utils.parametrize.cached():
        torch.testing.assert_close(m.weight, m.weight)
        with torch.no_grad():
            original(m).add_(1)
        torch.testing.assert_close(m.weight, 2 * original(m))


def knows_replicas() -> None:
    from constrained.torch_internals.modules import is_replica

    m = layer()
    replica = m.parametrizations.weight._replicate_for_data_parallel()  # type: ignore[union-attr]
    replica.original = original(m).detach() * 2
    assert is_replica(replica)
    assert not is_replica(m.parametrizations.weight)


def applies_few_rows() -> None:
    m = layer("low_rank(rank=1)")
    x = torch.randn(1, 4).double()
    with torch.no_grad():
        torch.testing.assert_close(m(x), x @ m.weight.mT)


def leaves_siblings_alone() -> None:
    torchs = nn.utils.parametrize
    one, other, third = (layer() for _ in range(3))
    one.register_parameter("more", nn.Parameter(torch.ones(2)))
    other.register_parameter("more", nn.Parameter(torch.ones(2)))
    torchs.register_parametrization(one, "more", nn.Tanh())
    torch.testing.assert_close(one.more, torch.ones(2).tanh())  # type: ignore[arg-type]
    assert isinstance(other.more, nn.Parameter)
    torchs.remove_parametrizations(one, "weight")
    torchs.remove_parametrizations(third, "weight")
    assert isinstance(one.weight, nn.Parameter) and type(third) is nn.Linear
    torch.testing.assert_close(other.weight, polar(original(other)))
    torchs.remove_parametrizations(one, "more")
    assert type(one) is nn.Linear


CHECKS = (
    reads_what_was_stored,
    trains,
    recomputes_checkpoints,
    transforms,
    overrides,
    traces,
    compiles,
    looks_no_stand_in_in_the_eye,
    lists_in_order,
    knows_contexts,
    knows_replicas,
    applies_few_rows,
    leaves_siblings_alone,
)


def try_without(part: str) -> list[str]:
    """What goes wrong without a part."""
    hide(part)
    KNOWN.update({name: part not in (name, ALL) for name in KNOWN})
    from constrained.torch_internals import missing

    found = []
    for check in CHECKS:
        try:
            check()
        except Exception:
            found.append(f"{check.__name__}: {traceback.format_exc(limit=-3)}")
    is_asked = "cuda" not in part or torch.backends.cuda.is_built()
    if part not in (ALL, NOTHING) and is_asked and part not in missing():
        found.append(f"{part} was not looked for")
    return found


def main() -> None:
    """Print what goes wrong without each part, as JSON."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    results: dict[str, list[str]] = {}
    chosen = sys.argv[1:] or [NOTHING, *parts(), ALL]
    for part in chosen:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            with os.fdopen(writer, "w") as out:
                out.write(json.dumps(try_without(part)))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            text = answer.read()
        results[part] = json.loads(text) if text else ["the process ended early"]
        os.wait()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
