"""Stored values: every change that makes one stale, followed by every way of storing one."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from constrained import Constraint, constrain, get, names, spec, violations
from constrained.evaluation import tensor_state
from constrained.evaluation.events import expect_writes
from constrained.evaluation.tensor_state import TensorState


class Bent(Constraint):
    """The reals, as ``x + act(x) * gain + bias * offsets[0] * weights[0]``.

    It owns what a constraint may own: a buffer, a submodule, a list, a tensor.
    """

    event_dim = 2
    value_index = None

    def __init__(self, offset: float = 0.5) -> None:
        super().__init__()
        self.offset = offset
        self.offsets = [offset]
        self.weights = torch.tensor([0.5])
        self.act = nn.Softplus()
        self.register_buffer("gain", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["evaluations"] = self.__dict__.get("evaluations", 0) + 1
        more = sum(t.sum() for t in self._buffers.values())
        return x + self.act(x) * more + self.offsets[0] * self.weights[0]

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.clone()

    def violation(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[:-2])

    def project(self, value: Tensor) -> Tensor:
        return value.clone()

    def sample(self, shape, *, generator=None, dtype=None, device=None) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def dimension(self, shape) -> int:
        return shape[0] * shape[1]


class Kept(Bent):
    """The same, with a gradient that is computed from the arguments."""

    recompute_in_backward = True


def constraint(m):
    return m.parametrizations.weight[0]


def original(m):
    return m.parametrizations.weight.original


def set_argument(m):
    constraint(m).offset = 2.0
    constraint(m).offsets = [2.0]


def change_a_list(m):
    constraint(m).offsets[0] = 3.0


def change_a_tensor(m):
    constraint(m).weights.mul_(3)


def change_a_tensor_of_numpy(m):
    constraint(m).weights.numpy()[0] = 4.0


def change_a_submodule(m):
    constraint(m).act.beta = 5


def change_a_submodule_for_another(m):
    constraint(m)._modules["act"] = nn.Tanh()


def change_a_buffer(m):
    constraint(m).gain.add_(1)


def change_a_buffer_in_secret(m):
    constraint(m).gain.data.add_(1)


def change_a_buffer_for_another(m):
    constraint(m)._buffers["gain"] = torch.tensor(0.7)


def register_a_buffer(m):
    constraint(m).register_buffer("late", torch.tensor(0.3))


def change_the_constraint(m):
    new = type(constraint(m))(offset=1.5)
    m.parametrizations.weight[0] = new


def hook_on_the_constraint(m):
    constraint(m).register_forward_hook(lambda module, inputs, output: output * 2)


def pre_hook_on_the_constraint(m):
    constraint(m).register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def hook_on_the_list(m):
    m.parametrizations.weight.register_forward_hook(lambda module, inputs, output: output * 2)


def forward_of_the_list(m):
    listed = m.parametrizations.weight
    listed.forward = lambda: 3 * type(listed).forward(listed)


def forward_of_the_constraint(m):
    here = constraint(m)
    here.forward = lambda x: 3 * type(here).forward(here, x)


def write_the_original(m):
    with torch.no_grad():
        original(m).mul_(2)


def write_one_entry_in_secret(m):
    original(m).data.view(-1)[5] += 1


def write_by_numpy(m):
    original(m).detach().numpy().flat[3] = 9.0


def replace_the_original(m):
    m.parametrizations.weight._parameters["original"] = nn.Parameter(original(m).detach() * 2)


def replace_the_memory(m):
    original(m).data = original(m).detach() * 2


def transpose_the_memory(m):
    original(m).data, original(m).grad = original(m).data.T, None


WAYS = [
    *(set_argument, change_a_list, change_a_tensor, change_a_tensor_of_numpy),
    *(change_a_submodule, change_a_submodule_for_another),
    *(change_a_buffer, change_a_buffer_in_secret, change_a_buffer_for_another, register_a_buffer),
    *(change_the_constraint, hook_on_the_constraint, pre_hook_on_the_constraint),
    *(hook_on_the_list, forward_of_the_list, forward_of_the_constraint),
    *(write_the_original, write_one_entry_in_secret, write_by_numpy),
    *(replace_the_original, replace_the_memory, transpose_the_memory),
]


def read(m):
    return m.weight


def read_without_gradients(m):
    with torch.no_grad():
        return m.weight


def train(m):
    m(torch.ones(2, 6)).sum().backward()


def step(m):
    train(m)
    torch.optim.SGD(m.parameters(), lr=0.01).step()
    m.zero_grad()


BEFORE = [read, read_without_gradients, train, step]


@pytest.mark.parametrize("kind", [Bent, Kept])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_is_what_an_evaluation_gives(way, before, kind):
    m = constrain(nn.Linear(6, 6), "weight", kind())
    for with_gradients in (False, True):
        before(m)
        way(m) if not with_gradients else write_the_original(m)
        with torch.set_grad_enabled(with_gradients):
            fresh = m.parametrizations.weight()
            torch.testing.assert_close(m.weight, fresh, rtol=0, atol=0)
            torch.testing.assert_close(m(torch.eye(6)) - m.bias, fresh.T)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_changes_the_value(way, before):
    """Otherwise the test above would compare a value with itself."""
    m = constrain(nn.Linear(6, 6), "weight", Bent())
    before(m)
    old = m.weight.detach().clone()
    way(m)
    assert not torch.equal(m.weight, old)


def test_what_has_not_changed_is_evaluated_once():
    m = constrain(nn.Linear(6, 6), "weight", Bent())
    _ = m.weight
    before = constraint(m).evaluations
    for _ in range(3):
        assert m.weight is m.weight
        m(torch.ones(2, 6))
        train(m)
    assert constraint(m).evaluations == before


@pytest.mark.parametrize("name", ["orthogonal", "positive_definite", "sphere", "positive"])
@pytest.mark.parametrize("before", [step, train])
def test_a_constraint_that_takes_the_place_of_another(name, before):
    m = constrain(nn.Linear(6, 6), "weight", name)
    before(m)
    # It has come as far as the other one: what it is, not how often it was changed, is asked.
    m.parametrizations.weight[0] = get("at_least")(bound=7.0)
    with torch.no_grad():
        assert bool((m.weight >= 7).all())
    assert bool((m.weight >= 7).all()) and bool((m(torch.eye(6)) - m.bias > 6.99).all())
    assert violations(m) == {"weight": 0} and spec(m)["weight"]["bound"] == 7


def test_a_list_of_two_constraints_in_another_order():
    m = constrain(nn.Linear(3, 3), "weight", "positive")
    m.parametrizations.weight.append(get("at_most")(bound=0.5))
    _ = m.weight
    chain = m.parametrizations.weight
    chain._modules["0"], chain._modules["1"] = chain._modules["1"], chain._modules["0"]
    with torch.no_grad():
        torch.testing.assert_close(m.weight, chain(), rtol=0, atol=0)


def test_what_holds_something_unknown_is_evaluated_at_each_read():
    class Odd(Bent):
        def __init__(self) -> None:
            super().__init__()
            self.table = np.array([0.5])

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(self.table[0])

    m = constrain(nn.Linear(6, 6), "weight", Odd())
    for factor in (2.0, 3.0):
        constraint(m).table[0] = factor
        with torch.no_grad():
            torch.testing.assert_close(m.weight, m.parametrizations.weight(), rtol=0, atol=0)


def test_hooks_of_all_modules_run_at_each_read():
    m = constrain(nn.Linear(6, 6), "weight", "orthogonal")
    step(m)
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(type(module).__name__)
    )
    try:
        _ = m.weight, m(torch.ones(1, 6))
    finally:
        handle.remove()
    assert seen.count("Orthogonal") == seen.count("ParametrizationList") == 2
    assert m.weight is m.weight


# --------------------------------------- writes that no version counter sees, in large tensors


def large(spec="sphere", dtype=torch.float32, n=128):
    return constrain(nn.Linear(n, n, dtype=dtype), "weight", spec)


def check(m):
    # The read before recorded gradients.
    for grads in (False, True):
        with torch.set_grad_enabled(grads):
            torch.testing.assert_close(m.weight, m.parametrizations.weight())


def backward(m):
    m(torch.ones(1, m.in_features, dtype=m.bias.dtype)).float().sum().backward()


def sgd(m):
    backward(m)
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def another_mode(m):
    """Nothing: the next read records no gradients, where the one before did."""


@pytest.mark.parametrize(
    "part",
    [
        lambda n: slice(n // 2),
        lambda n: slice(n // 2, None),
        lambda n: slice(1, None),
        lambda n: slice(0, None, 2),
        lambda n: slice(1, None, 2),
    ],
    ids=["left half", "right half", "all but one", "even", "odd"],
)
@pytest.mark.parametrize(
    "shape", [(1024, 1024), (1000, 1000), (512, 512), (768, 3072), (1024, 16), (65, 64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_columns_are_written_and_nothing_else_happens(dtype, shape, part):
    m = constrain(nn.Linear(*reversed(shape), dtype=dtype), "weight", "sphere")
    before = m.weight
    original(m).data[:, part(shape[1])] += 0.5
    assert m.weight is not before
    torch.testing.assert_close(m.weight, m.parametrizations.weight())


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_one_half_of_complex_numbers_is_written_and_nothing_else_happens(dtype, half):
    m = nn.Module()
    m.weight = nn.Parameter(torch.randn(100, 100, dtype=dtype))
    constrain(m, "weight", "unitary")
    before = m.weight
    torch.view_as_real(original(m).data)[..., half] += 0.5
    assert m.weight is not before
    torch.testing.assert_close(m.weight, m.parametrizations.weight())


def test_samples_are_spread_in_each_dimension():
    for shape in ((64, 65), (3, 5000), (50257, 768), (64, 3, 7, 7), (512, 512, 3, 3), (4097,)):
        periods = [math.prod(shape[i:]) for i in range(1, len(shape))]
        size = math.prod(shape)
        distance = tensor_state._distance(size, tuple(sorted(periods)), 16)
        assert size // 35 < distance <= size // 32
        for period in periods:
            places = {i % period for i in range(0, size, distance)}
            assert all(
                any((start + i) % period in places for i in range(max(period // 7, 1)))
                for start in range(period)
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("event", [backward, sgd, another_mode])
@pytest.mark.parametrize("spec", ["sphere", "positive", "orthogonal"])
def test_one_entry_of_many(spec, event, dtype):
    m = large(spec, dtype)
    for entry in (4, 777, -1):
        _ = m.weight
        event(m)
        original(m).data.view(-1)[entry] += 0.5
        check(m)


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.data.clamp_(-0.05, 0.05),
        lambda p: p.data[[3, 90]].copy_(p.data[[90, 3]].clone()),
        lambda p: p.data.__setitem__(slice(2, 4), p.data[2:4].flip(0).clone()),
        lambda p: p.data[7].neg_(),
        lambda p: p.data.mul_(torch.arange(p.numel()).view_as(p) != 1234),
        lambda p: p.data.add_(p.grad, alpha=-0.1),
    ],
    ids=["clamp", "copied rows", "swapped rows", "negated row", "mask", "hand-written step"],
)
@pytest.mark.parametrize("spec", ["sphere", "orthogonal", "positive"])
def test_writes_that_follow_a_backward_pass_or_a_step(spec, write):
    m = large(spec)
    for act in (backward, sgd, backward):
        act(m)
        write(original(m))
        check(m)


@pytest.mark.parametrize("n", [3, 128])
@pytest.mark.parametrize("event", [backward, sgd])
@pytest.mark.parametrize("spec", ["sphere", "positive", "orthogonal"])
def test_memory_that_cannot_be_looked_at_for_free(spec, event, n, monkeypatch):
    """As on a GPU: checksums are taken after an event and at the next read, not at every read."""
    monkeypatch.setattr(tensor_state, "_memory", lambda tensor: None)
    m = large(spec, n=n)
    for entry in (4, -1):
        event(m)
        original(m).data.view(-1)[entry] += 0.5
        check(m)


def test_memory_that_belongs_to_somebody_else(tmp_path):
    file = tmp_path / "weights"
    np.random.default_rng(0).normal(size=128 * 128).astype(np.float32).tofile(file)
    layer = nn.Linear(128, 128)
    mine = np.memmap(file, dtype=np.float32, mode="r+", shape=(128, 128))
    layer.weight = nn.Parameter(torch.from_numpy(np.asarray(mine)))
    m = constrain(layer, "weight", "sphere")
    theirs = np.memmap(file, dtype=np.float32, mode="r+", shape=(128, 128))
    for i in range(5):
        _ = m.weight
        theirs[i, 7] += 1
        check(m)


def share(p):
    """Shared memory; the writes of another process are imitated by writes that no counter sees."""
    p.share_memory_()
    return p.data


def part_of_a_larger_tensor(p):
    larger = torch.randn(p.shape[0], 2 * p.shape[1], dtype=p.dtype)
    p.data = larger[:, : p.shape[1]]
    return larger


def one_number_for_all(p):
    number = torch.ones((), dtype=p.dtype)
    p.data = number.expand(p.shape)
    return number


def one_number_for_each_row(p):
    memory = p.data.view(-1)
    p.data = memory.as_strided(p.shape, (1, 0))
    return memory


@pytest.mark.parametrize("n", [4, 128])
@pytest.mark.parametrize(
    "move", [share, part_of_a_larger_tensor, one_number_for_all, one_number_for_each_row]
)
@pytest.mark.parametrize("before", [read, read_without_gradients, sgd])
@pytest.mark.parametrize("spec", ["sphere", "positive", "spectral_norm"])
def test_memory_of_another_kind(spec, before, move, n):
    """An attribute that can be compared is replaced by one that cannot."""
    m = large(spec, n=n)
    before(m)
    theirs = move(original(m))
    for grads in (False, True):
        with torch.set_grad_enabled(grads):
            for _ in range(2):
                _ = m.weight
                # One entry, that no look at some of many would find.
                theirs.view(-1)[3 % theirs.numel()] += 0.5
                torch.testing.assert_close(m.weight, m.parametrizations.weight())


@pytest.mark.parametrize("n", [4, 128])
@pytest.mark.parametrize("before", [read, read_without_gradients, sgd])
@pytest.mark.parametrize("spec", ["sphere", "positive", "spectral_norm"])
def test_rows_that_are_cut_off(spec, before, n):
    """The remaining rows have the same address and strides as before."""
    m = large(spec, n=n)
    before(m)
    original(m).data = original(m).data[: n // 2]
    assert m.weight.shape == (n // 2, n)
    check(m)


@pytest.mark.parametrize("n", [4, 128])
def test_rows_that_are_cut_off_a_value(n):
    m = large("sphere", n=n)
    sgd(m)
    m.weight.data = m.weight.data[: n // 2]
    step = torch.optim.SGD(m.parameters(), lr=0.1)
    step.step()
    with pytest.raises(RuntimeError, match="written in place"):
        _ = m.weight


def test_memory_that_may_be_watched_again():
    m = large()
    share(original(m))
    _ = m.weight
    original(m).data = torch.randn(128, 128)
    assert m.weight is m.weight


def test_a_look_leaves_a_storage_as_it_was():
    m = large()
    _ = m.weight
    assert original(m).untyped_storage().resizable()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0),
        torch.tensor(3.0),
        torch.arange(5000.0),
        torch.arange(5001, dtype=torch.int8),
        torch.randn(70, 90).T,
        torch.randn(80, 80, dtype=torch.complex128),
        torch.randn(3, 40, 60).contiguous().permute(2, 0, 1),
    ],
    ids=["empty", "number", "vector", "bytes", "transposed", "complex", "permuted"],
)
def test_any_dense_tensor_is_watched(tensor):
    state = TensorState(tensor, summed=True)
    expect_writes()
    assert state.is_unchanged()
    if tensor.numel() == 0:
        return
    index = (tensor.numel() * 5 // 7) % tensor.numel()
    flat = tensor.detach().as_strided((tensor.numel(),), (1,)).data
    flat[index] += 1
    expect_writes()
    assert not state.is_unchanged()


# ------------------------------------------------------------------------------ who listens


def listen(m):
    """Hooks of each kind, on the list and on the constraint, and what they were called with."""
    heard = []
    for module in (m.parametrizations.weight, constraint(m)):
        kind = type(module).__name__
        module.register_forward_pre_hook(lambda *_, k=kind: heard.append((k, "before")))
        module.register_forward_hook(lambda *_, k=kind: heard.append((k, "after")))
        module.register_full_backward_hook(lambda *_, k=kind: heard.append((k, "backward")))
    return heard


# As torch says of a module without inputs.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", names())
def test_hooks_run_at_each_call_of_a_layer(name, training):
    cls = get(name)
    kwargs, event = max(cls.examples, key=lambda example: len(example[1]) * sum(example[1]))
    shape = event if len(event) == 2 else (4, 4)
    layer = nn.Linear(shape[1], shape[0], dtype=torch.float64)
    try:
        m = constrain(layer, "weight", cls(**kwargs), init="sample").train(training)
    except ValueError:
        pytest.skip("no constraint of a matrix")
    x = torch.ones(1, shape[1], dtype=torch.float64)
    m(x).sum().backward()
    torch.optim.SGD(m.parameters(), lr=1e-3).step()
    heard = listen(m)
    expected = m(x).detach()
    m(x).sum().backward()
    for kind in {type(m.parametrizations.weight).__name__, type(constraint(m)).__name__}:
        assert heard.count((kind, "before")) == heard.count((kind, "after")) == 2
        assert heard.count((kind, "backward")) >= 1
    m.parametrizations.weight.register_forward_hook(lambda module, inputs, output: 0 * output)
    torch.testing.assert_close(m(x), m.bias.expand(1, -1))
    assert not torch.equal(expected, m.bias.expand(1, -1))


@pytest.mark.parametrize("name", names())
def test_many_gradients_at_once(name):
    """As those of the rows of a Jacobian."""
    if name in ("doubly_stochastic", "soft_permutation"):
        pytest.skip("their maps ask for numbers, which torch refuses of a batch of gradients")
    cls = get(name)
    layer = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    try:
        m = constrain(layer, "weight", cls(**cls.examples[0][0]), init="sample")
    except (ValueError, TypeError):
        pytest.skip("no constraint of such a matrix")
    x, parameters = torch.randn(1, 4, dtype=torch.float64), list(m.parameters())
    units = torch.eye(4, dtype=torch.float64).unsqueeze(1)
    found = torch.autograd.grad(m(x), parameters, units, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(m(x)[0, i], parameters) for i in range(4)]
    for gradients, expected in zip(found, zip(*one_by_one, strict=True), strict=True):
        assert not gradients.requires_grad
        torch.testing.assert_close(gradients, torch.stack(expected))


@pytest.mark.parametrize("size", [4, 80])
@pytest.mark.parametrize("starts", ["conjugate", "plain"])
def test_a_conjugate_tensor_is_looked_at(size, starts):
    m = nn.Module()
    w = torch.randn(size, size, dtype=torch.cfloat)
    m.w = nn.Parameter(w.conj() if starts == "conjugate" else w)
    constrain(m, "w", "hermitian")
    p = m.parametrizations.w.original
    assert p.is_conj() is (starts == "conjugate")
    for change in (
        lambda: p.data.mul_(0.9),
        # The same memory, with the other sign of the imaginary parts.
        lambda: setattr(p, "data", p.data.conj()),
        lambda: p.data.mul_(0.9),
        lambda: setattr(p, "data", p.data.conj()),
        lambda: p.data.mul_(0.9),
    ):
        before = m.w.detach().clone()
        change()
        with torch.no_grad():
            assert not torch.equal(m.w, before)
            assert torch.equal(m.w, m.parametrizations.w())


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize(
    "what", ["attribute", "of a base", "helper", "forward", "map of the catalogue"]
)
def test_what_is_set_on_a_class_is_seen(monkeypatch, what, graph):
    """As a notebook does, whose cells give a class another method."""
    positive = get("positive")

    class Base(positive):
        scale = 1.0

        def helper(self):
            return self.scale

        def forward(self, x):
            return self.helper() * positive.forward(self, x)

    class Derived(Base):
        pass

    m = constrain(nn.Linear(3, 3), "weight", Derived(), init="sample")
    with torch.set_grad_enabled(graph):
        before = m.weight.detach().clone()
        assert m.weight is m.weight
        if what == "attribute":
            Derived.scale = 2.0
        elif what == "of a base":
            Base.scale = 2.0
        elif what == "helper":
            Base.helper = lambda self: 2.0
        elif what == "forward":
            Derived.forward = lambda self, x: 2 * Base.forward(self, x)
        else:
            forward = positive.forward
            monkeypatch.setattr(positive, "forward", lambda self, x: 2 * forward(self, x))
        assert torch.equal(m.weight, 2 * before)
        assert m.weight is m.weight


@pytest.mark.parametrize("has_forward", [True, False])
def test_a_map_that_is_set_between_the_passes_is_not_differentiated_for_the_old_one(has_forward):
    positive = get("positive")
    members = {"forward": lambda self, x: positive.forward(self, x)} if has_forward else {}
    cls = type("Derived", (positive,), members)
    m = constrain(nn.Linear(3, 3), "weight", cls(), init="sample")
    out = m.weight.sum()
    # The interpreter and tools set such names at any time.
    cls.__note__ = None
    torch.autograd.grad(out, m.parametrizations.weight.original, create_graph=True)
    cls.forward = lambda self, x: 3 * positive.forward(self, x)
    with pytest.raises(RuntimeError, match="between the"):
        torch.autograd.grad(out, m.parametrizations.weight.original, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_that_is_read_as_another_dtype(dtype):
    m = constrain(nn.Linear(3, 8), "bias", "box(low=-1, high=1)")
    assert m.bias is m.bias
    p = m.parametrizations.bias.original
    p.data = p.data.view(dtype)
    assert m.bias.dtype is dtype
    torch.testing.assert_close(m.bias, m.parametrizations.bias())
