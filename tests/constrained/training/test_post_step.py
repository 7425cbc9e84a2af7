"""After an optimizer step the free parameters are canonical again, in batches where they can."""

import copy
import gc
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

from constrained import Constraint, constrain, get, names
from constrained.parametrized import originals_index
from constrained.parametrized.parametrization_list import ParametrizationList
from constrained.training import post_step
from constraints import Orthogonal


def trained(layer, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()


def defect(layer):
    X = layer.parametrizations.weight.original.detach()
    return float((X.mT @ X - torch.eye(4)).abs().max())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    ],
)
def test_the_parameter_is_canonical_after_each_step(make):
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    optimizer = make(layer.parameters())
    for _ in range(5):
        trained(layer, optimizer, 1)
        assert defect(layer) < 1e-5


def test_without_the_hook_the_value_is_the_same_up_to_rounding(monkeypatch):
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal").double()
    twin = copy.deepcopy(layer)
    # Plain descent by hand: no optimizer, so no hook.
    for _ in range(20):
        (gradient,) = torch.autograd.grad(
            twin(torch.ones(2, 4, dtype=torch.double)).square().sum(),
            [twin.parametrizations.weight.original],
        )
        with torch.no_grad():
            twin.parametrizations.weight.original -= 0.01 * gradient
        W = twin.weight
        torch.testing.assert_close(W @ W.T, torch.eye(4, dtype=torch.double))


def test_other_models_are_left_alone():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(1.5)
    other = nn.Linear(4, 4)
    trained(other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert defect(layer) > 1
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.0), 1)
    assert defect(layer) < 1e-5


def test_copies_are_restored_too():
    layer = copy.deepcopy(constrain(nn.Linear(4, 4), "weight", "orthogonal"))
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.3))
    assert defect(layer) < 1e-5


def test_a_view_and_a_frozen_base_are_restored():
    layer = nn.Linear(4, 4)
    constrain(layer, "weight", "orthogonal", view="(g a) b -> g a b", g=1)
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.3))
    assert defect(layer) < 1e-5


def test_the_hook_holds_on_to_nothing():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    watched = weakref.ref(layer.parametrizations.weight)
    original = layer.parametrizations.weight.original
    assert watched() in list(originals_index.lists_with_original(original))
    del original
    del layer
    gc.collect()
    assert watched() is None


def test_canonical_keeps_the_value():
    X = torch.randn(6, 3)
    (canonical,) = Orthogonal().canonical(X)
    torch.testing.assert_close(Orthogonal()(canonical), Orthogonal()(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.Adam(p, lr=0.05),
    ],
)
def test_nonnegative_settles_at_the_boundary(make):
    """Nonnegative least squares: momentum out of the set must not move entries off the boundary."""
    module = constrain(nn.ParameterDict({"w": torch.ones(4)}), "w", "nonnegative")
    optimizer = make(module.parameters())
    target = torch.tensor([-1.0, -0.1, 0.5, 2.0])
    for _ in range(400):
        optimizer.zero_grad()
        (module.w - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(module.w, target.clamp(min=0), atol=5e-3, rtol=0)


def several(k=3, shape=(4, 4)):
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(k))
    return constrain(model, "*.weight", "orthogonal")


def descend(model, optimizer, x):
    optimizer.zero_grad()
    sum(layer(x * (i + 1)).square()[:, 0].sum() for i, layer in enumerate(model)).backward()
    optimizer.step()


def test_equal_shapes_are_restored_in_one_batch(monkeypatch):
    seen = []
    canonical = Orthogonal.canonical
    monkeypatch.setattr(
        Orthogonal, "canonical", lambda self, X: seen.append(X.shape) or canonical(self, X)
    )
    model = several()
    alone = copy.deepcopy(model)
    descend(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, 4))
    assert seen == [(3, 4, 4)]
    monkeypatch.setattr(post_step, "batch_key", lambda tensor: None)
    descend(alone, torch.optim.SGD(alone.parameters(), lr=0.1), torch.ones(2, 4))
    assert seen[1:] == [(4, 4)] * 3
    for here, there in zip(model, alone, strict=True):
        torch.testing.assert_close(here.weight, there.weight)


def test_what_is_not_alike_is_not_restored_together(monkeypatch):
    shapes = []
    canonical = Orthogonal.canonical
    monkeypatch.setattr(
        Orthogonal, "canonical", lambda self, X: shapes.append(X.shape) or canonical(self, X)
    )
    model = several(2)
    model.append(constrain(nn.Linear(4, 3, bias=False), "weight", "orthogonal"))
    model.append(constrain(nn.Linear(4, 4, bias=False), "weight", "special_orthogonal"))
    descend(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, 4))
    assert sorted(shapes) == [(2, 4, 4), (3, 4)]
    for layer in model:
        W = layer.weight
        torch.testing.assert_close(W @ W.T, torch.eye(len(W)))


class Ray(Constraint):
    """Numbers up to a bound, which is a buffer, a parameter, a tensor or a module of its own."""

    event_dim = 0
    value_index = 0

    def __init__(self):
        super().__init__()

    def bound(self):
        own = [*self.parameters(), *self.buffers(), getattr(self, "_end", None)]
        return next(t for t in own if t is not None)

    def forward(self, y):
        return torch.minimum(y, self.bound().to(y.dtype))

    def canonical(self, y):
        return (self.forward(y),)

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return (value - self.bound()).clamp(min=0)

    def project(self, value):
        return self.forward(value)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.bound() - torch.rand(shape, generator=generator, dtype=dtype, device=device)

    def dimension(self, shape):
        return 1


def set_bound(ray, how, number):
    bound = torch.tensor(number)
    if how == "buffer":
        ray.register_buffer("end", bound)
    elif how == "parameter":
        ray.end = nn.Parameter(bound)
    elif how == "submodule":
        ray.inner = nn.Module()
        ray.inner.register_buffer("end", bound)
    else:
        ray._end = bound


@pytest.mark.parametrize("how", ["buffer", "parameter", "submodule", "attribute"])
def test_what_has_tensors_of_its_own_is_restored_alone(how):
    model = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(2))
    for i, layer in enumerate(model):
        ray = Ray()
        set_bound(ray, how, float(i + 1))
        nn.init.zeros_(layer.weight)
        constrain(layer, "weight", ray)
        with torch.no_grad():
            layer.parametrizations.weight.original.fill_(9.0)
    originals = [layer.parametrizations.weight.original for layer in model]
    optimizer = torch.optim.SGD(originals, lr=0.0)
    sum(layer.weight.sum() for layer in model).backward()
    optimizer.step()
    for i, layer in enumerate(model):
        expected = torch.full((3, 3), float(i + 1))
        assert torch.equal(layer.parametrizations.weight.original, expected)
        assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("name", names())
def test_what_is_frozen_keeps_every_bit(name):
    torch.manual_seed(0)
    cls = get(name)
    arguments, shape = cls.examples[-1]
    model = nn.ModuleList(nn.ParameterDict({"x": torch.randn(shape)}) for _ in range(3))
    for each in model:
        constrain(each, "x", cls(**arguments), init="inside")
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for each in model[:2]:
        each.requires_grad_(False)
    frozen = [t for each in model[:2] for t in each.parametrizations.x.originals()]
    before = [(t.clone(), t._version) for t in frozen]
    for _ in range(3):
        optimizer.zero_grad()
        sum(each.x.square().sum() for each in model).backward()
        optimizer.step()
    for tensor, (contents, version) in zip(frozen, before, strict=True):
        assert torch.equal(tensor, contents)
        assert tensor._version == version


def tensor_of_several(name, arguments, shape, view):
    torch.manual_seed(0)
    module = nn.ParameterDict({"x": torch.randn(shape)})
    axes = {"n": 4} if view and "(n m)" in view else {}
    given = {"view": view, **axes} if view else {}
    return constrain(module, "x", get(name)(**arguments), init="inside", **given)


EVERY = [
    *((name, *example, None) for name in names() for example in get(name).examples),
    ("product", {"parts": ["psd_low_rank(rank=2)", "sphere"], "dim": -1}, (4, 8), None),
    ("product", {"parts": ["spectral_norm(map='scale')", "orthogonal"], "dim": -2}, (8, 4), None),
    ("psd_low_rank", {"rank": 2}, (2, 16), "b (n m) -> b n m"),
    ("min_max_norm", {"low": 0.5, "high": 2.0}, (3, 4), "a b -> b a"),
]
SEVERAL = [entry for entry in EVERY if len([*tensor_of_several(*entry).parameters()]) > 1]


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (torch.optim.SGD, "frozen"),
        (torch.optim.SGD, "in no optimizer"),
        (torch.optim.SGD, "frozen but in the optimizer"),
        (torch.optim.LBFGS, "frozen"),
    ],
)
@pytest.mark.parametrize(("name", "arguments", "shape", "view"), SEVERAL)
def test_an_original_that_is_not_trained_keeps_every_bit(name, arguments, shape, view, make, how):
    count = len([*tensor_of_several(name, arguments, shape, view).parameters()])
    for i in range(count):
        module = tensor_of_several(name, arguments, shape, view)
        parameters = [*module.parameters()]
        with torch.no_grad():
            for p in parameters:
                p.add_(0.1 * torch.randn_like(p))
        still = parameters[i]
        still.requires_grad_(how == "in no optimizer")
        chosen = parameters if "but" in how else [p for p in parameters if p is not still]
        optimizer = make(chosen, lr=0.01)

        def closure(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (module.x - 1).square().sum()
            loss.backward()
            return loss

        before, version = still.detach().clone(), still._version
        for _ in range(5):
            optimizer.step(closure)
        assert torch.equal(still, before)
        assert still._version == version
        constraint = module.parametrizations.x[0]
        assert bool(constraint.contains(module.x.detach()).all())


def test_restored_values_are_their_own():
    model = several()
    descend(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, 4))
    first, second = model[0].weight, model[1].weight
    assert first.untyped_storage().nbytes() == 4 * 16
    assert first.data_ptr() != model[0].parametrizations.weight.original.data_ptr()
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def evaluations(monkeypatch):
    count = []
    forward = Orthogonal.forward

    def counted(self, X):
        count.append(1)
        return forward(self, X)

    monkeypatch.setattr(Orthogonal, "forward", counted)
    # It is the same map still.
    monkeypatch.setattr(Orthogonal, "_map_as_defined", counted)
    return count


def test_after_a_step_nothing_is_left_to_evaluate(monkeypatch):
    count = evaluations(monkeypatch)
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 1)
    count.clear()
    W = layer.weight
    assert not count and torch.equal(W, layer.parametrizations.weight.original)
    W.square()[0].sum().backward()


@pytest.mark.parametrize("how", ["in place", "data", "one entry", "eval", "load", "to"])
def test_what_was_restored_is_evaluated_once_it_has_changed(monkeypatch, how):
    count = evaluations(monkeypatch)
    layer = constrain(nn.Linear(64, 64), "weight", "orthogonal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 64)).square().sum().backward()
    optimizer.step()
    count.clear()
    original = layer.parametrizations.weight.original
    if how == "in place":
        with torch.no_grad():
            original[3, 5] += 0.5
    elif how == "data":
        original.data = original.data.clone() + 0.01
    elif how == "one entry":
        # Of a large tensor 32 entries are looked at, the first one among them.
        original.data[0, 0] += 0.5
    elif how == "eval":
        layer.eval()
    elif how == "load":
        layer.load_state_dict({k: v.clone() + 0.01 for k, v in layer.state_dict().items()})
    else:
        layer.double()
    W = layer.weight
    assert count
    torch.testing.assert_close(W @ W.T, torch.eye(64, dtype=W.dtype))


def test_a_gradient_after_a_write_is_an_error():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    loss = layer.weight[0].square().sum() + layer.weight.sum()
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ----------------------------------------------------------------------- whose step it is


class Calls(torch.optim.Optimizer):
    """An optimizer that lets another one step, as ZeRO, SAM and Lookahead do."""

    def __init__(self, inner, fails=()):
        self.inner, self.fails = inner, list(fails)
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})

    def step(self, closure=None):
        if self.fails and self.fails.pop(0):
            raise RuntimeError("out of memory")
        self.inner.step(closure)


def after(make, name, steps=10, start=None):
    torch.manual_seed(0)
    layer = constrain(nn.Linear(4, 4, bias=False), "weight", name)
    optimizer = make(torch.optim.SGD(layer.parameters(), lr=0.3))
    for _ in range(steps):
        optimizer.zero_grad()
        (layer.weight - 3).square().sum().backward()
        optimizer.step()
    return layer.parametrizations.weight.original.detach().clone()


@pytest.mark.parametrize("name", ["l1_ball", "max_norm(bound=1)", "spectral_norm", "nonnegative"])
def test_an_optimizer_inside_another_restores_once(name):
    plain = after(lambda inner: inner, name)
    torch.testing.assert_close(after(Calls, name), plain, rtol=0, atol=0)
    torch.testing.assert_close(after(lambda i: Calls(Calls(i)), name), plain, rtol=0, atol=0)


def restorations(monkeypatch):
    seen = []
    restored = post_step.canonicalize
    monkeypatch.setattr(
        post_step, "canonicalize", lambda tensor, *a: seen.append(tensor) or restored(tensor, *a)
    )
    return seen


def test_a_subclass_that_calls_its_parents_step_restores_once(monkeypatch):
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # torch hooks a class when it is used
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    seen = restorations(monkeypatch)
    trained(layer, Mine(layer.parameters(), lr=0.1), 1)
    assert len(seen) == 1


def test_a_step_that_raised_is_over(monkeypatch):
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    inner = torch.optim.SGD(layer.parameters(), lr=0.1)
    outer = Calls(inner, fails=[True, False])
    with pytest.raises(RuntimeError, match="out of memory"):
        outer.step()
    seen = restorations(monkeypatch)
    # The inner one is nobody's now, also while the error is being handled.
    try:
        outer.fails = [True]
        outer.step()
    except RuntimeError:
        trained(layer, inner, 1)
    assert len(seen) == 1
    trained(layer, outer, 1)
    assert len(seen) == 2 and defect(layer) < 1e-5
    assert not post_step._running.steps


@pytest.mark.parametrize("name", ["orthogonal", "sphere", "l1_ball"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.LBFGS(p, lr=0.1),
        lambda p: Calls(torch.optim.SGD(p, lr=0.1)),
        lambda p: Calls(torch.optim.LBFGS(p, lr=0.1)),
    ],
    ids=["SGD", "L-BFGS", "one around SGD", "one around L-BFGS"],
)
def test_a_step_that_raised_holds_on_to_nothing(make, name):
    def fail():
        layer = constrain(nn.Linear(4, 4), "weight", name)
        optimizer = make(list(layer.parameters()))

        def closure(fails=False):
            optimizer.zero_grad()
            loss = layer(torch.ones(2, 4)).square().sum()
            loss.backward()
            if fails:
                raise ZeroDivisionError
            return loss

        optimizer.step(closure)
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: closure(fails=True))
        return [weakref.ref(t) for t in (optimizer, *layer.parameters())]

    watched = fail()
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_a_step_within_a_closure_of_others_is_its_own(monkeypatch):
    """A closure may train another model, which becomes canonical after each of its own steps."""
    layer, other = (constrain(nn.Linear(4, 4), "weight", "orthogonal") for _ in range(2))
    inside = torch.optim.SGD(other.parameters(), lr=0.1)
    outside = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen = restorations(monkeypatch)

    def closure():
        trained(other, inside, 3)
        loss = layer(torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    outside.step(closure)
    assert seen == [other.parametrizations.weight] * 3 + [layer.parametrizations.weight]


def test_a_step_looks_at_its_own_parameters_only(monkeypatch):
    others = [constrain(nn.Linear(4, 4), "weight", "orthogonal") for _ in range(5)]
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    trained(layer, optimizer, 1)
    looked = []
    monkeypatch.setattr(
        originals_index,
        "_originals",
        lambda holder: looked.append(holder) or [*holder._parameters.values()],
    )
    trained(layer, optimizer, 3)
    assert set(map(id, looked)) == {id(layer.parametrizations.weight)}
    del others


@pytest.mark.parametrize("how", ["constrained later", "another parameter", "behind torch's back"])
def test_whatever_an_optimizer_steps_is_found(how):
    layer = nn.Linear(4, 4)
    if how != "constrained later":
        constrain(layer, "weight", "orthogonal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    trained(layer, optimizer, 1)
    if how == "constrained later":
        constrain(layer, "weight", "orthogonal", optimizer=optimizer)
    else:
        weight = layer.parametrizations.weight
        new = nn.Parameter(weight.original.detach().clone())
        if how == "another parameter":
            weight.original = new
        else:
            weight._parameters["original"] = new
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    trained(layer, optimizer, 2)
    assert defect(layer) < 1e-5


def test_two_tensors_of_one_parameter_are_both_found():
    first = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    original = first.parametrizations.weight.original
    other = ParametrizationList([get("orthogonal")()], original.detach().clone())
    other.original = original
    found = list(originals_index.lists_with_original(original))
    assert found == [first.parametrizations.weight, other]
    del other, found
    gc.collect()
    assert list(originals_index.lists_with_original(original)) == [first.parametrizations.weight]


def test_notes_of_what_is_gone_are_dropped():
    gc.collect()
    before = len(originals_index._entries), len(originals_index._by_parameter)
    layer = constrain(nn.Linear(4, 4), "weight", "low_rank(rank=2)")
    for _ in range(3):
        layer.double().float()
        layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
    del layer
    gc.collect()
    assert (len(originals_index._entries), len(originals_index._by_parameter)) == before


def test_steps_and_copies_in_several_threads():
    """While one thread trains, others copy, build and drop models."""
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    errors, stop = [], threading.Event()

    def build():
        try:
            while not stop.is_set():
                models = [copy.deepcopy(layer) for _ in range(20)]
                models[0].double()
                del models
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=build) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        mine = constrain(nn.Linear(4, 4), "weight", "orthogonal")
        for _ in range(100):
            trained(mine, torch.optim.SGD(mine.parameters(), lr=0.1), 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors and defect(mine) < 1e-5
