"""`constrain`, `release` and `rebase` on whole models, and the errors of each."""

import copy
import itertools
import json
import pickle
import subprocess
import sys
import warnings
from contextlib import suppress
from typing import TypeVar, get_args, get_type_hints

import pytest
import torch
from torch import nn

from constrained import (
    Constraint,
    InfeasibleError,
    baked_state_dict,
    constrain,
    get,
    load_state_dict,
    names,
    rebase,
    release,
    spec,
    violations,
)
from constrained.model import changes
from constrained.parametrize import is_parametrized
from constrained.registration import remove
from constrained.registration.add import register_parametrization
from constraints import Nonnegative, Orthogonal, Positive


def model():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 4, bias=False))


def snapshot(module):
    return (
        {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        [id(p) for p in module.parameters()],
        [type(m) for m in module.modules()],
        [m.training for m in module.modules()],
    )


def assert_unchanged(module, before):
    after = snapshot(module)
    assert after[1:] == before[1:]
    assert list(after[0]) == list(before[0])
    assert all(torch.equal(after[0][name], before[0][name]) for name in before[0])


# -------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    "constraint",
    [
        "orthogonal",
        "orthogonal(map='polar')",
        {"name": "orthogonal"},
        "constraints.matrices.orthogonal:Orthogonal",
        Orthogonal(),
        Orthogonal,
        "stiefel",
    ],
)
def test_one_line_whatever_the_spelling(constraint):
    layer = nn.Linear(5, 3)
    assert constrain(layer, "weight", constraint) is layer
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(3), atol=1e-6, rtol=0)
    assert spec(layer) == {"weight": {"name": "orthogonal"}}


def test_a_config_from_json():
    config = json.loads(
        '{"*.weight": "orthogonal", "2.weight": {"name": "low_rank", "rank": 2}, "0.bias": '
        '{"name": "interval", "low": -1, "high": 1}}'
    )
    module = constrain(model(), config)
    assert torch.linalg.matrix_rank(module[2].weight) == 2
    assert json.loads(json.dumps(spec(module))) == spec(module)
    assert [row["name"] for row in spec(module).values()] == [
        "orthogonal",
        "interval",
        "low_rank",
        "orthogonal",
    ]
    again = constrain(model(), spec(module))
    assert spec(again) == spec(module)
    again.load_state_dict(module.state_dict())
    x = torch.randn(3, 4)
    # A weight of low rank that somebody has read is multiplied out, any other one is not.
    torch.testing.assert_close(again(x), module(x))


def test_arguments_as_keywords():
    layer = constrain(nn.Linear(4, 4), "weight", "low_rank", rank=1)
    assert torch.linalg.matrix_rank(layer.weight) == 1


def test_a_constraint_is_copied_for_every_tensor():
    shared = Orthogonal()
    module = constrain(model(), "*.weight", shared)
    owned = [module[i].parametrizations.weight[0] for i in (0, 2, 3)]
    assert len({id(c) for c in [*owned, shared]}) == 4


def test_any_module_with_a_forward():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

        def right_inverse(self, x):
            return x / 2

    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    constrain(layer, "weight", Doubled())
    torch.testing.assert_close(layer.weight, before)
    assert violations(layer) == {}


def test_buffers_by_their_path():
    layer = nn.BatchNorm1d(3)
    constrain(layer, "running_var", "positive")
    assert "running_var" not in layer._buffers
    assert not list(layer.parametrizations.running_var.parameters())
    release(layer)
    assert "running_var" in layer._buffers


# ------------------------------------------------------------------------------------- init


def test_keep_leaves_a_member_bit_for_bit():
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(4, 4)).Q)
    before = layer.weight.detach().clone()
    constrain(layer, "weight", "orthogonal")
    assert torch.equal(layer.weight, before)
    assert layer.parametrizations.weight.moved == 0


def test_keep_projects_an_outsider_and_reports_how_far():
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    constrain(layer, "weight", "orthogonal")
    U, _, Vh = torch.linalg.svd(before)
    torch.testing.assert_close(layer.weight, U @ Vh, atol=1e-5, rtol=0)
    expected = (U @ Vh - before).norm() / before.norm()
    assert layer.parametrizations.weight.moved == pytest.approx(float(expected), rel=1e-4)


def test_keep_moves_a_point_on_the_boundary_of_an_open_set_inside():
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.bias)
    constrain(layer, "bias", "positive")
    assert bool((layer.bias > 0).all())


def test_sample():
    torch.manual_seed(3)
    first = constrain(nn.Linear(4, 4), "weight", "orthogonal", init="sample").weight
    torch.manual_seed(3)
    nn.Linear(4, 4)
    torch.testing.assert_close(first, Orthogonal().sample((4, 4)))


def test_strict():
    layer = nn.Linear(4, 4)
    before = snapshot(layer)
    with pytest.raises(
        InfeasibleError, match=r"^'weight': orthogonal\(\).*violates the constraint by 0\.\d"
    ):
        constrain(layer, "weight", "orthogonal", init="strict")
    assert_unchanged(layer, before)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    constrain(layer, "weight", "orthogonal", init="strict")
    assert torch.equal(layer.weight, torch.eye(4))


def test_init_for_one_target():
    layer = nn.Linear(4, 4)
    with pytest.raises(InfeasibleError, match="'weight'"):
        constrain(layer, {"weight": {"name": "orthogonal", "init": "strict"}})


def test_registration_draws_no_random_numbers():
    models = [model() for _ in range(3)]
    before = torch.get_rng_state()
    for module, map in zip(models, ("polar", "cayley", "exp"), strict=True):
        constrain(module, "*.weight", "orthogonal", map=map)
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------- all or nothing


def with_nan(module):
    with torch.no_grad():
        module[3].weight[1, 2] = float("nan")
    return module


def test_a_model_is_not_searched_for_each_tensor_that_is_released(monkeypatch):
    module = constrain(model(), "*.weight", "sphere")
    monkeypatch.setattr(remove, "locations_of", None)
    assert spec(release(module)) == {}


def sparse(module):
    module[0].weight = nn.Parameter(module[0].weight.detach().to_sparse())
    return module


def in_eight_bits(module):
    value = module[0].weight.detach().to(torch.float8_e4m3fn)
    module[0].weight = nn.Parameter(value, requires_grad=False)
    return module


def called(name):
    def change(module):
        module[0].register_parameter(name, nn.Parameter(torch.ones(3)))
        return module

    return change


@pytest.mark.parametrize(
    ("change", "target", "constraint", "message"),
    [
        (
            None,
            "0.weight",
            "orthogonl",
            "Unknown constraint 'orthogonl'. Did you mean 'orthogonal'?",
        ),
        (None, "0.weight", "low_rank(rnk=2)", "no argument 'rnk'. Did you mean 'rank'?"),
        (None, "0.weight", "low_rank(rank='two')", "'rank' must be a whole number"),
        (None, "0.weight", "low_rank", "needs the argument 'rank'"),
        (None, "0.weight", "orthogonal(map='carley')", "'carley'"),
        (None, "1.weight", "orthogonal", "No tensor of Sequential matches '1.weight'"),
        (None, "encoder.*", "orthogonal", "matches 'encoder.*'"),
        (None, {"*.weight": "orthogonal", "0.bias": "orthogonal"}, None, "'0.bias'"),
        (None, {"0.weight": "symmetric"}, None, "'0.weight': symmetric(): each element must"),
        (None, {"0.weight": "low_rank(rank=9)"}, None, "'0.weight'"),
        (with_nan, "*.weight", "orthogonal", "'3.weight': orthogonal() needs finite values"),
        (None, "0.weight", "sphere(radius=-1)", "'0.weight': sphere: radius"),
        (None, "0.weight", "low_rank(rank=1, rank=2)", "each given once"),
        (None, {1.5: "orthogonal"}, None, "a string, got 1.5"),
        (None, {"0.weight": {"name": "sphere", "init": "kep"}}, None, "'0.weight': init must be"),
        (sparse, "0.weight", "sphere", "'0.weight': sphere() needs a dense tensor"),
        (in_eight_bits, "0.weight", "sphere", "'0.weight': sphere() needs a floating-point tensor"),
        (torch.jit.script, "0.weight", "sphere", "'0.weight': its module is compiled by torch.jit"),
        (called("keys"), "0.keys", "sphere", "'0.keys': a tensor called 'keys' cannot be"),
        (None, "0.weight", None, "No constraint was given"),
        (None, 3, "orthogonal", "must be a path, a pattern, or a mapping"),
        (None, {"0.weight": "orthogonal"}, "orthogonal", "none may be given beside it"),
    ],
)
def test_an_error_is_one_clear_sentence_and_changes_nothing(change, target, constraint, message):
    module = (change or (lambda m: m))(model()).eval()
    before = snapshot(module)
    with pytest.raises((ValueError, TypeError)) as caught:
        constrain(module, target, constraint)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    if change is None:
        assert_unchanged(module, before)
    assert not any(is_parametrized(m) for m in module.modules())


def test_an_optimizer_that_is_none():
    module = model()
    before = snapshot(module)
    with pytest.raises(TypeError, match="optimizer must be"):
        constrain(module, "0.weight", "orthogonal", optimizer="adam")
    assert_unchanged(module, before)


def test_empty_matrices():
    for name in ("orthogonal", "spectral_norm", "positive_definite", "low_rank(rank=1)"):
        with pytest.raises(ValueError, match=r"^'w'"):
            constrain(nn.ParameterDict({"w": torch.zeros(4, 0)}), "w", name)


def test_a_foreign_error_shows_no_whole_tensor():
    class Refusing(nn.Module):
        def forward(self, x):
            return x

        def right_inverse(self, x):
            raise ValueError(f"not accepted: {torch.zeros(1000).tolist()}")

    with pytest.raises(ValueError) as caught:
        constrain(nn.Linear(2, 2), "weight", Refusing())
    assert len(str(caught.value)) < 600


def test_infinite_values():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    for init in ("keep", "strict", "sample"):
        with pytest.raises(ValueError, match="1 of 4 are NaN or infinite"):
            constrain(layer, "weight", "symmetric", init=init)


def test_a_failure_while_the_model_is_written_is_undone(monkeypatch):
    module = model()
    before = snapshot(module)
    install, calls = changes.install, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        install(*args)

    monkeypatch.setattr(changes, "install", failing)
    with pytest.raises(MemoryError):
        constrain(module, "*.weight", "orthogonal(map='cayley')")
    assert_unchanged(module, before)


def test_a_constrained_tensor_is_not_constrained_twice():
    module = constrain(model(), "0.weight", "orthogonal")
    with pytest.raises(ValueError, match=r"'0.weight' is constrained already, by orthogonal\(\)"):
        constrain(module, "**.weight", "low_rank(rank=2)")
    assert not is_parametrized(module[2])


# ------------------------------------------------------------------------------------------ ties


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 5)
        self.head = nn.Linear(5, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, i):
        return self.head(self.embed(i))


def test_tied_tensors_stay_tied():
    module = constrain(Tied(), "head.weight", "orthogonal")
    assert module.head.weight is module.embed.weight
    assert len(list(module.parameters())) == 1
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.head.weight is twin.embed.weight
        assert twin.head.weight is not module.head.weight
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.arange(5)).square().sum().backward()
    optimizer.step()
    assert module.head.weight is module.embed.weight
    assert set(violations(module)) == {"embed.weight"}
    assert set(baked_state_dict(module)) == {"embed.weight", "head.weight"}
    release(module, "head.weight")
    assert module.head.weight is module.embed.weight
    assert not is_parametrized(module.embed)


def test_tied_tensors_registered_one_after_the_other_stay_tied():
    module = Tied()
    nn.init.orthogonal_(module.embed.weight)
    register_parametrization(module.embed, "weight", Orthogonal())
    with pytest.raises(ValueError, match="tied to a tensor that is parametrized by Orthogonal"):
        register_parametrization(module.head, "weight", Positive())
    assert type(module.head) is nn.Linear


def test_the_same_registration_on_both_owners_is_one():
    module = Tied()
    before = module.head.weight.detach().clone()
    for owner in (module.embed, module.head):
        register_parametrization(owner, "weight", Shifted())
    assert module.head.parametrizations.weight is module.embed.parametrizations.weight
    torch.testing.assert_close(module.head.weight, before)


def test_two_paths_of_one_tied_tensor_may_ask_for_the_same():
    module = constrain(Tied(), {"embed.weight": "orthogonal", "head.weight": "orthogonal()"})
    assert module.head.weight is module.embed.weight
    with pytest.raises(ValueError, match="they name one tied tensor"):
        constrain(Tied(), {"embed.weight": "orthogonal", "head.weight": "symmetric"})


class Shifted(nn.Module):
    def forward(self, x):
        return x + 1

    def right_inverse(self, x):
        return x - 1


# --------------------------------------------------------------------------- release and friends


def test_release_bakes():
    module = model()
    identities = [id(p) for p in module.parameters()]
    constrain(module, {"*.weight": "orthogonal", "0.bias": "positive"})
    x = torch.randn(3, 4)
    before = module(x)
    assert release(module) is module
    assert torch.equal(module(x), before)
    assert [id(p) for p in module.parameters()] == identities
    assert type(module[0]) is nn.Linear


def test_release_some():
    module = constrain(model(), "*.weight", "orthogonal")
    release(module, "0.*")
    assert set(spec(module)) == {"2.weight", "3.weight"}
    with pytest.raises(ValueError, match="means no constrained tensor"):
        release(module, "0.weight")
    with pytest.raises(ValueError, match="Did you mean '2.weight'"):
        release(module, "2.wieght")
    release(release(module))


def test_release_unbaked():
    module = constrain(nn.Linear(3, 3), "bias", "positive")
    raw = module.parametrizations.bias.original.detach().clone()
    release(module, bake=False)
    assert torch.equal(module.bias, raw)
    constrain(module, "weight", "low_rank(rank=1)")
    with pytest.raises(ValueError, match="several free parameters"):
        release(module, bake=False)
    assert is_parametrized(module, "weight")


def test_baked_state_dict_loads_into_a_plain_model():
    module = constrain(
        nn.Sequential(nn.LSTM(3, 4), nn.BatchNorm1d(4)),
        {
            "0.weight_hh_l0": {"name": "orthogonal", "view": "(g h) k -> g h k", "g": 4},
            "1.weight": "positive",
        },
    )
    baked = baked_state_dict(module)
    plain = nn.Sequential(nn.LSTM(3, 4), nn.BatchNorm1d(4))
    assert set(baked) == set(plain.state_dict())
    plain.load_state_dict(baked)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(plain[0](x)[0], module[0](x)[0])
    assert is_parametrized(module[0])
    assert not baked["1.weight"].requires_grad


def test_a_buffer_outside_of_state_dicts_stays_outside():
    module = nn.Module()
    module.register_buffer("b", torch.ones(3), persistent=False)
    constrain(module, "b", "positive")
    assert not module.state_dict()
    assert not baked_state_dict(module)
    release(module)
    assert not module.state_dict()


def test_deleting_a_constrained_tensor():
    layer = constrain(nn.Linear(2, 2), "weight", "symmetric")
    with pytest.raises(RuntimeError, match="constrained.release"):
        del layer.weight
    assert is_parametrized(layer, "weight")


def test_a_chain_that_cannot_find_a_value_is_named():
    """The value of a chain need not be a member of the set of its first element."""
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal")
    register_parametrization(layer, "weight", get("ball")(radius=0.5))
    before = layer.weight.detach().clone()
    match = (
        r"^'weight': orthogonal\(\): .* element of the chain orthogonal\(\) then ball\(radius=0.5\)"
    )
    with pytest.raises(InfeasibleError, match=match):
        rebase(layer)
    with pytest.raises(InfeasibleError, match=match):
        layer.weight = before
    with pytest.raises(InfeasibleError) as caught:
        layer.weight = torch.ones(4, 4)
    assert "chain" not in str(caught.value)
    assert torch.equal(layer.weight, before)


def test_rebase_keeps_the_values():
    layer = constrain(nn.Linear(4, 4), "weight", "orthogonal", map="cayley")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    value = layer.weight.detach().clone()
    assert layer.parametrizations.weight.original0.abs().max() > 0
    assert rebase(layer) is layer
    assert layer.parametrizations.weight.original0.abs().max() == 0
    torch.testing.assert_close(layer.weight, value)


# -------------------------------------------------------------------------------------- optimizer


def test_an_optimizer_made_before_goes_on():
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    constrain(layer, "weight", "orthogonal")
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_optimizer_is_handed_new_parameters_in_their_group():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = [{"params": module[0].parameters(), "lr": 0.5}, {"params": module[1].parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    constrain(module, "0.weight", "low_rank(rank=2)", optimizer=optimizer)
    factors = list(module[0].parametrizations.weight.parameters())
    assert [p.shape for p in factors] == [(4, 2), (4, 2)]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        *map(id, factors),
        id(module[0].bias),
    ]
    assert module[0].bias in optimizer.state
    before = module[0].weight.detach().clone()
    optimizer.zero_grad()
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight, before)
    release(module, optimizer=optimizer)
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [
        id(p) for p in module.parameters()
    ]
    optimizer.step()


def test_moments_go_along_where_shapes_agree():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    constrain(layer, "weight", "symmetric", optimizer=optimizer)
    original = layer.parametrizations.weight.original
    assert optimizer.state[original] is state


# ------------------------------------------------------------------------------------------ import


def takes_a_matrix(name):
    """Whether the constraint, without arguments, is one on square matrices."""
    try:
        get(name)().check_shape((4, 4))
    except (TypeError, ValueError):
        return False
    return True


WRITES = {
    "mul_": lambda W: W.mul_(2.0),
    "clamp_": lambda W: W.clamp_(-0.2, 0.2),
    "fill_diagonal_": lambda W: W.fill_diagonal_(0),
    "an entry": lambda W: W.__setitem__((0, 0), 3.0),
}


@pytest.mark.parametrize("name", [name for name in names() if takes_a_matrix(name)])
def test_the_gradient_through_a_write_that_autograd_records(name):
    """It is that of the map, whatever is in the memory of the value by then."""
    m = constrain(nn.Linear(8, 8, dtype=torch.float64), "weight", name, init="sample")
    parametrizations = m.parametrizations.weight
    parameters = list(parametrizations.parameters())
    weights, optimizer = torch.randn(8, 8).double(), torch.optim.SGD(m.parameters(), lr=1e-3)
    for write, before in itertools.product(WRITES.values(), (lambda: None, optimizer.step)):
        m.zero_grad()
        m(torch.randn(2, 8).double()).square().sum().backward()
        before()
        found = {}
        for kind, value in (("evaluated", parametrizations() * 1), ("read", m.weight)):
            try:
                write(value)
                loss = (value * weights).sum()
                found[kind] = torch.autograd.grad(loss, parameters, allow_unused=True)
            except RuntimeError as error:
                # Of a value that is the original itself, or of which the map needs the numbers.
                assert kind == "read" and "modified by an inplace" in str(error)
        with suppress(RuntimeError):
            _ = m.weight
        if "read" in found:
            torch.testing.assert_close(found["read"], found["evaluated"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in names() if takes_a_matrix(name)])
def test_jit_trace(name):
    layer = constrain(nn.Linear(4, 4), "weight", name)
    traced = torch.jit.trace(layer, torch.randn(2, 4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(3, 4)
    layer(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_warns_of_nothing_that_the_engine_asks():
    layer = constrain(nn.Linear(80, 80), "weight", "positive")
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(layer, torch.randn(2, 80))


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_the_engine_does_not_import_the_catalogue():
    python("import constrained, sys; assert 'constraints' not in sys.modules")
    python(
        "import constrained, sys; constrained.names(); assert 'constraints' in sys.modules;"
        "assert 'constrained.testing' not in sys.modules"
    )


def test_saved_whole_and_loaded_in_a_new_process(tmp_path):
    module = constrain(model(), {"*.weight": "orthogonal", "0.bias": "positive"})
    x = torch.ones(1, 4)
    path = tmp_path / "model.pt"
    torch.save((module, x, module(x)), path)
    python(
        "import torch\n"
        f"model, x, y = torch.load({str(path)!r}, weights_only=False)\n"
        "assert torch.equal(model(x), y)\n"
        "import constrained; constrained.assert_feasible(model)\n"
        "assert len(constrained.spec(model)) == 4\n"
        "opt = torch.optim.SGD(model.parameters(), lr=.1)\n"
        "model(x).sum().backward(); opt.step(); constrained.assert_feasible(model)\n"
        "assert not torch.equal(model(x), y)"
    )


def test_the_twelve_constraints_are_registered():
    assert set(names()) >= {
        "positive", "nonnegative", "interval", "simplex", "sphere", "symmetric", "skew",
        "orthogonal", "low_rank", "rank_one", "positive_definite", "spectral_norm",
    }  # fmt: skip
    assert get("stiefel") is Orthogonal
    assert issubclass(get("positive"), Constraint)
    assert get("positive") is Positive
    assert get("nonnegative") is Nonnegative


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_torch_writes_into_is_refused(layer):
    model = nn.Sequential(layer(6, 4, max_norm=1.0))
    with pytest.raises(ValueError) as caught:
        constrain(model, "0.weight", "sphere")
    assert str(caught.value) == (
        f"'0.weight': {layer.__name__} shortens the rows that it looks up, in place, to "
        "max_norm=1.0, and a value that is computed would lose that; set max_norm=None, and "
        "constrain it by 'max_norm(bound=1.0)' if that is what you want."
    )
    assert type(model[0]) is layer
    model[0].max_norm = None
    constrain(model, "0.weight", "max_norm(bound=1.0)")
    for _ in range(2):
        assert bool((model[0].weight.norm(dim=-1) <= 1 + 1e-6).all())
        model(torch.tensor([[1, 2]])).sum().backward()


class Failing(nn.Module):
    """Raises an error, in one of its methods."""

    def __init__(self, kind, arguments, method):
        super().__init__()
        self.kind, self.arguments, self.method = kind, arguments, method

    def fail(self, method, value):
        if method == self.method:
            raise self.kind(*self.arguments)
        return value

    def forward(self, value):
        return self.fail("forward", value)

    def right_inverse(self, value):
        return self.fail("right_inverse", value)


class KindOfItsOwn(Exception):
    def __init__(self, text, number):
        super().__init__(text)
        self.number = number


@pytest.mark.parametrize("method", ["forward", "right_inverse"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyError, IndexError, TypeError, ValueError])
def test_an_error_of_a_foreign_module_is_led_by_the_path(kind, method):
    layers, error = model(), kind("mine")
    before = snapshot(layers)
    with pytest.raises(kind) as caught:
        constrain(layers, "0.weight", Failing(kind, error.args, method))
    assert str(caught.value) == f"'0.weight': Failing raised {kind.__name__}: {error}"
    cause = caught.value.__cause__
    assert type(cause) is kind and cause.args == error.args
    assert cause.__traceback__.tb_next is not None
    assert_unchanged(layers, before)


def test_an_error_of_a_foreign_module_within_torch():
    match = "^'0.weight': Linear raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match=match):
        constrain(model(), "0.weight", nn.Linear(7, 5))


def test_an_error_of_a_kind_that_nobody_knows_has_a_note():
    with pytest.raises(KindOfItsOwn) as caught:
        constrain(model(), "0.weight", Failing(KindOfItsOwn, ("mine", 3), "forward"))
    assert caught.value.__notes__ == ["'0.weight': Failing raised this."]
    assert (str(caught.value), caught.value.number) == ("mine", 3)


def test_the_type_of_the_model_is_that_of_the_argument():
    for function in (constrain, release, rebase):
        types = get_type_hints(function)
        first = next(iter(types))
        assert isinstance(types[first], TypeVar) and types[first] is types["return"]
        assert types["return"].__bound__ is nn.Module


def test_the_choices_are_types():
    assert get_args(get_type_hints(constrain)["init"]) == ("keep", "inside", "sample", "strict")
    choices = get_args(get_type_hints(load_state_dict)["on_infeasible"])
    assert choices == ("error", "project")
