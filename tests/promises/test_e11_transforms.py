"""E11: under transforms, fake tensors and tracing, values are neither stored nor reused.

Each transform is used before and after ordinary reads, since a stored value could leak either way.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import constrained.parametrize as ours
from tests.promises.counting import (
    Anchored,
    Foreign,
    Outer,
    Positive,
    Sphere,
    evaluations,
    layer,
    original,
    reset,
)

CONSTRAINTS = pytest.mark.parametrize("constraint", [Positive, Sphere, Outer, Anchored])
# Warnings of torch about its own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script",
    "ignore:Attempted to insert a get_attr Node:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


def read(m, mode):
    if mode == "train":
        m(torch.ones(1, 3)).sum().backward()
    elif mode == "no_grad":
        with torch.no_grad():
            _ = m.weight


BEFORE = pytest.mark.parametrize("before", ["nothing", "train", "no_grad"])


def check_trains(m):
    """An ordinary step gives ordinary gradients, with one evaluation."""
    m.zero_grad()
    originals = list(m.parametrizations.weight.parameters())
    expected = torch.autograd.grad(m.parametrizations.weight().sin().sum(), originals)
    reset(m)
    m.weight.sin().sum().backward()
    _ = m.weight
    assert evaluations(m) <= 1
    for p, g in zip(originals, expected, strict=True):
        assert_close(p.grad, g)
        assert type(p.grad) is torch.Tensor


def other_params(m, factor=1.3):
    return {k: (p.detach() * factor) for k, p in m.named_parameters()}


def with_params(m, params):
    twin = copy.deepcopy(m)
    twin.load_state_dict({**m.state_dict(), **params})
    return twin


# ------------------------------------------------------------------------- functional transforms


@BEFORE
@CONSTRAINTS
@pytest.mark.parametrize("inside_cached", [False, True])
def test_functional_call(before, constraint, inside_cached):
    m = layer(constraint())
    x = torch.randn(2, 3)
    params = {k: p.requires_grad_() for k, p in other_params(m).items()}
    expected = with_params(m, {k: p.detach() for k, p in params.items()})(x).detach()
    with ours.cached() if inside_cached else torch.enable_grad():
        read(m, before)
        own = m.weight.detach().clone()
        for _ in range(2):
            out = functional_call(m, params, (x,))
            assert_close(out.detach(), expected)
            gradients = torch.autograd.grad(out.sum(), list(params.values()))
            assert all(g is not None for g in gradients)
            derived = {k: 1 * p for k, p in params.items()}
            assert_close(functional_call(m, derived, (x,)).detach(), expected)
            assert_close(m.weight.detach(), own)
    check_trains(m)


@pytest.mark.torch_today
def test_functional_call_inside_cached_in_torch_today():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Foreign())
    x = torch.randn(2, 3)
    with torchs.cached():
        _ = m.weight
        found = functional_call(m, other_params(m), (x,))
    assert not torch.allclose(found, with_params(m, other_params(m))(x))


TRANSFORMS = {
    "grad": lambda f, p: grad(f)(p),
    "grad of grad": lambda f, p: grad(lambda q: sum(g.sum() for g in grad(f)(q).values()))(p),
    "vjp": lambda f, p: vjp(f, p)[1](torch.ones(())),
    "jvp": lambda f, p: jvp(f, (p,), (p,)),
    "jacrev": lambda f, p: jacrev(f)(p),
    "jacfwd": lambda f, p: jacfwd(f)(p),
    "hessian": lambda f, p: hessian(f)(p),
    "linearize": lambda f, p: linearize(f, p)[1](p),
    "functionalize": lambda f, p: functionalize(f)(p),
    "vmap": lambda f, p: vmap(f)({k: torch.stack([v, 2 * v]) for k, v in p.items()}),
    "vmap of grad": lambda f, p: vmap(grad(f))({k: torch.stack([v, v]) for k, v in p.items()}),
    "unused": lambda f, p: vmap(lambda s: s * f(p))(torch.ones(3)),
}


@BEFORE
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("make", [Sphere, Outer, Foreign])
def test_transforms(before, transform, make):
    m = layer(make())
    x = torch.randn(2, 3)
    params = other_params(m)

    def through_module(p):
        return functional_call(m, p, (x,)).tanh().sum()

    def by_hand(p):
        first = [v for k, v in p.items() if "original" in k]
        weight = m.parametrizations.weight[0](*first)
        return (x @ weight.mT + p["bias"]).tanh().sum()

    expected = TRANSFORMS[transform](by_hand, params)
    with ours.cached():
        read(m, before)
        for _ in range(2):
            assert_close(TRANSFORMS[transform](through_module, params), expected)
            read(m, before)
        weight = m.weight
        assert not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    check_trains(m) if make is not Foreign else None


@BEFORE
def test_transforms_of_inputs_with_the_modules_own_parameters(before):
    m = layer(Sphere())
    x = torch.randn(4, 3)
    w, b = m.parametrizations.weight().detach(), m.bias.detach()
    with ours.cached():
        read(m, before)
        assert_close(vmap(m)(x), x @ w.T + b)
        assert_close(vmap(grad(lambda row: m(row).sum()))(x), w.sum(0).expand(4, 3))
        assert_close(jacrev(m)(x[0]), w)
        assert_close(jacfwd(m)(x[0]), w)
        assert_close(jvp(m, (x,), (x,))[1], x @ w.T)
        read(m, before)
    check_trains(m)


def test_a_value_read_outside_is_a_constant_inside():
    m = layer(Sphere())
    w = m.weight
    found = vmap(lambda row: row @ w.T)(torch.eye(3))
    found.sum().backward()
    assert original(m).grad is not None


@BEFORE
def test_forward_mode(before):
    m = layer(Sphere())
    p = original(m)
    tangent = torch.randn(3, 3)
    _, expected = jvp(m.parametrizations.weight[0], (p.detach(),), (tangent,))
    read(m, before)
    with forward_ad.dual_level():
        inner = forward_ad.make_dual(p.detach(), tangent)
        out = functional_call(m, {"parametrizations.weight.original": inner}, (torch.eye(3),))
        assert_close(forward_ad.unpack_dual(out).tangent.mT, expected)
        x = forward_ad.make_dual(torch.ones(1, 3), torch.ones(1, 3))
        assert_close(
            forward_ad.unpack_dual(m(x)).tangent, m.weight.detach().sum(1)[None], check_stride=False
        )
    check_trains(m)


@BEFORE
def test_an_ensemble(before):
    models = [layer(Sphere()) for _ in range(4)]
    for m in models:
        read(m, before)
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])
    x = torch.randn(2, 3)
    for _ in range(2):
        found = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(params, buffers)
        assert_close(found, torch.stack([m(x) for m in models]))
    found.sum().backward()
    assert params["parametrizations.weight.original"].grad.shape == (4, 3, 3)
    check_trains(models[0])
    check_trains(skeleton)


# --------------------------------------------------------- checkpoints and saved-tensor hooks


@BEFORE
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside_cached", [True, False])
@pytest.mark.parametrize("make", [Sphere, Foreign])
def test_checkpoint(before, reentrant, inside_cached, make):
    m = layer(make())
    x = torch.randn(2, 3, requires_grad=True)

    def run(x):
        return m(torch.tanh(m(x)))

    expected = torch.autograd.grad(run(x).pow(2).sum(), [x, *m.parameters()])
    with ours.cached() if inside_cached else torch.enable_grad():
        read(m, before)
        for _ in range(2):
            m.zero_grad()
            x.grad = None
            out = checkpoint(run, x, use_reentrant=reentrant)
            out.pow(2).sum().backward()
            for p, g in zip([x, *m.parameters()], expected, strict=True):
                assert_close(p.grad, g)
            _ = m.weight
    m.zero_grad()
    if make is Sphere:
        check_trains(m)


@pytest.mark.torch_today
def test_checkpoint_inside_cached_in_torch_today():
    m = torchs.register_parametrization(nn.Linear(3, 3), "weight", Foreign())
    x = torch.randn(2, 3, requires_grad=True)
    with torchs.cached(), pytest.raises(torch.utils.checkpoint.CheckpointError):
        checkpoint(lambda x: m(m(x)), x, use_reentrant=False).sum().backward()


def test_checkpoint_after_a_step_between_forward_and_backward():
    """Torch would differentiate another weight than that of the forward pass."""
    m = layer(Sphere())
    x = torch.randn(2, 3, requires_grad=True)
    out = checkpoint(m, x, use_reentrant=False)
    with torch.no_grad():
        original(m).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpoint_of_a_sequence_of_layers():
    m = nn.Sequential(*[layer(Sphere()) for _ in range(4)])
    x = torch.randn(2, 3, requires_grad=True)
    expected = torch.autograd.grad(m(x).sum(), list(m.parameters()))
    checkpoint_sequential(m, 2, x, use_reentrant=False).sum().backward()
    for p, g in zip(m.parameters(), expected, strict=True):
        assert_close(p.grad, g)


@BEFORE
def test_save_on_cpu(before):
    m = layer(Sphere())
    x = torch.randn(2, 3)
    read(m, before)
    m.zero_grad()
    with save_on_cpu():
        out = m(m(x))
    out.sum().backward()
    found = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    m(m(x)).sum().backward()
    assert_close(found, [p.grad for p in m.parameters()])
    check_trains(m)


@BEFORE
def test_saved_tensor_hooks_see_nothing_of_the_evaluation(before):
    """A region that is recomputed must save the same tensors, whether it evaluates or not."""
    m = layer(Sphere())
    read(m, before)
    packed = []

    def pack(t):
        packed.append(t.shape)
        return t * 1

    with saved_tensors_hooks(pack, lambda t: t):
        out = m.weight.sin().sum()
    assert packed == [m.weight.shape]
    out.backward()
    check_trains(m)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", [Positive, Sphere, Outer])
def test_a_checkpoint_evaluates_once(make, reentrant):
    m = layer(make())
    x = torch.randn(2, 3, requires_grad=True)

    def run(x):
        return m(torch.tanh(m(torch.tanh(m(x)))))

    expected = torch.autograd.grad(run(x).sum(), [x, *m.parameters()])
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0)
    reset(m)
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    for p, g in zip([x, *m.parameters()], expected, strict=True):
        assert_close(p.grad, g)
    # Once for the value, and once more for its gradient if no graph may be stored. The
    # reentrant checkpoint first reads without gradients.
    assert evaluations(m) <= 2


def test_saved_tensor_hooks_that_forbid_saving():
    m = layer(Sphere())
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        m.weight.sum().backward()
        m.weight.sum().backward()


# ----------------------------------------------------------------------- compilers and tracers


@BEFORE
@pytest.mark.parametrize("make", [Sphere, Outer, Anchored, Foreign])
def test_compile(before, make):
    torch._dynamo.reset()
    m = layer(make())
    x = torch.randn(2, 3)
    read(m, before)
    compiled = torch.compile(lambda x: m(m(x)), backend="aot_eager", fullgraph=True)
    for _ in range(3):
        assert_close(compiled(x), m(m(x)))
        m.zero_grad()
        compiled(x).pow(2).sum().backward()
        found = [p.grad for p in m.parameters() if p.requires_grad]
        expected = torch.autograd.grad(
            m(m(x)).pow(2).sum(), [p for p in m.parameters() if p.requires_grad]
        )
        assert_close(found, list(expected))
        torch.optim.SGD(m.parameters(), lr=0.01).step()
        with torch.no_grad():
            assert_close(compiled(x), m(m(x)))


def test_a_compiled_graph_does_not_freeze_the_value():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    m = layer(Sphere())
    compiled = torch.compile(m, backend=counter, fullgraph=True)
    for _ in range(4):
        assert_close(compiled(torch.eye(3)), m(torch.eye(3)))
        _ = m.weight
        with torch.no_grad():
            original(m).add_(torch.rand(3, 3))
    assert counter.frame_count <= 2


def test_a_graph_break_between_reads():
    torch._dynamo.reset()
    m = layer(Sphere())

    def f(x):
        y = m(x)
        torch._dynamo.graph_break()
        return m(y)

    compiled = torch.compile(f, backend="eager")
    x = torch.randn(2, 3)
    for _ in range(2):
        assert_close(compiled(x), f(x))
        compiled(x).sum().backward()
        with torch.no_grad():
            original(m).add_(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@BEFORE
def test_jit_trace(before):
    m = layer(Sphere())
    read(m, before)
    traced = torch.jit.trace(m, (torch.randn(2, 3),))
    assert "vector_norm" in str(traced.inlined_graph)
    with torch.no_grad():
        original(m).add_(torch.rand(3, 3))
    x = torch.randn(4, 3)
    assert_close(traced(x), m(x))
    check_trains(m)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@BEFORE
def test_make_fx(before, mode):
    m = layer(Sphere())
    read(m, before)
    p = original(m).detach().clone()

    def f(p, x):
        return functional_call(m, {"parametrizations.weight.original": p}, (x,))

    x = torch.randn(2, 3)
    traced = make_fx(f, tracing_mode=mode, _allow_non_fake_inputs=True)(p, x)
    assert "vector_norm" in traced.code
    assert_close(traced(2 * p + 1, x), f(2 * p + 1, x))
    assert type(m.weight) is torch.Tensor
    check_trains(m)


@BEFORE
def test_fake_tensors(before):
    m = layer(Sphere())
    read(m, before)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert m.weight.shape == (3, 3) and type(m.weight) is not torch.Tensor
    assert type(m.weight) is torch.Tensor
    check_trains(m)


@pytest.mark.parametrize("make", [Sphere, Outer, Foreign])
def test_registration_and_assignment_of_fake_tensors(make):
    with FakeTensorMode():
        m = nn.Linear(3, 3)
        ours.register_parametrization(m, "weight", make())
        assert m(torch.ones(1, 3)).shape == (1, 3)
        m.weight = torch.ones(3, 3)
        ours.remove_parametrizations(m, "weight")
        assert m.weight.shape == (3, 3)


def test_meta_tensors():
    m = layer(Sphere()).to("meta")
    assert m.weight.is_meta and m(torch.ones(1, 3, device="meta")).shape == (1, 3)
    m = m.to_empty(device="cpu")
    with torch.no_grad():
        original(m).copy_(torch.eye(3))
        m.bias.zero_()
    assert_close(m(torch.eye(3)).detach(), torch.eye(3))
    check_trains(m)


def test_dispatch_modes():
    from torch.utils.flop_counter import FlopCounterMode

    m = layer(Foreign())
    with ours.cached():
        _ = m.weight
        with FlopCounterMode(display=False) as flops:
            m(torch.ones(2, 3))
        # The evaluation and the layer itself.
        assert flops.get_total_flops() == 2 * 3 * 3 * 3 + 2 * 2 * 3 * 3


def test_function_modes():
    class Count(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    m = layer(Sphere())
    with Count(), torch.device("cpu"):
        _ = m.weight
        check_trains(m)
    check_trains(m)
