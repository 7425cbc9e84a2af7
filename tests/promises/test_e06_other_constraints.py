"""E06: a checkpoint says what it was written for; another constraint's is converted or refused."""

import io

import pytest
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.testing import assert_close

import constrained
import constrained.parametrize as ours
from constrained import baked_state_dict, constrain, get, names
from tests.promises.checkpoints import Held, bits, same

SHAPE = (4, 4)


class Softplus(nn.Module):
    def forward(self, x):
        return nn.functional.softplus(x)

    def right_inverse(self, value):
        return value.expm1().log()


def members(seed):
    """A member of each constraint of the catalogue that allows this shape."""
    generator = torch.Generator().manual_seed(seed)
    for name in names():
        for arguments, _ in get(name).examples:
            constraint = get(name)(**arguments)
            try:
                constraint.check_shape(SHAPE)
                value = constraint.project(constraint.sample(SHAPE, generator=generator))
            except ValueError:
                continue
            if not value.is_complex():
                yield constraint, value
                break


def held(spec, value=None, **more):
    start = torch.eye(4) if value is None else value
    return constrain(Held(start), "weight", spec, **more)


def test_e06_each_constraint_meets_checkpoints_of_others(measured):
    """The value is the same, or it is infeasible and the model stays unchanged."""
    sources = list(members(0))
    assert len(sources) > 50
    targets = [(c, held(c, value)) for c, value in members(1)]
    converted = refused = 0
    for i, (constraint, value) in enumerate(sources):
        source = held(constraint, value)
        state, wanted = source.state_dict(), source.weight.detach()
        for step in (1, 5, 19, 31):
            there, target = targets[(i + step) % len(targets)]
            before = bits(target)
            try:
                constrained.load_state_dict(target, state)
            except RuntimeError as error:
                assert not bool(there.contains(wanted).all()), (constraint, there)
                assert f"'weight': the checkpoint was written for {constraint!r}" in str(error)
                assert bits(target)[0] == before[0] and same(bits(target)[1], before[1])
                refused += 1
            else:
                assert_close(target.weight.detach(), wanted, atol=1e-4, rtol=1e-4)
                converted += 1
    assert converted > 20 and refused > 50
    measured(f"another constraint's checkpoint: {converted} converted, {refused} refused")


@pytest.mark.parametrize(
    ("written", "here"),
    [
        ("interval(low=-1.0, high=1.0)", "interval(low=-2.0, high=2.0)"),
        ("orthogonal", "orthogonal(map='cayley')"),
        ("orthogonal(map='cayley')", "orthogonal"),
        ("symmetric | spectral_norm", "spectral_norm(bound=2.0)"),
        ("low_rank(rank=2)", "low_rank(rank=3)"),
        ({"name": "sphere", "view": "a b -> (a b)"}, "ball"),
        ({"name": "simplex", "view": "a b -> b a"}, "column_stochastic"),
        ("simplex", {"name": "product", "parts": ["simplex", "nonnegative"], "dim": 0}),
        ("masked(mask=[[1, 0, 0, 0]] * 4)", "banded(width=3)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("assign", [False, True])
def test_e06_other_arguments_views_and_chains_count_as_others(written, here, assign):
    if "masked" in str(written):
        written = {"name": "masked", "mask": [[1, 0, 0, 0]] * 4}
    source, target = held(written, init="sample"), held(here, init="sample")
    nest = nn.ModuleDict({"a": nn.Sequential(target)})
    state = nn.ModuleDict({"a": nn.Sequential(source)}).state_dict()
    before = [id(p) for p in target.parameters()]
    nest.load_state_dict(state, strict=not assign, assign=assign)
    assert_close(target.weight, source.weight, atol=1e-4, rtol=1e-4)
    assert assign or [id(p) for p in target.parameters()] == before
    # A state dict written now names the new constraint.
    again = held(here, init="sample")
    again.load_state_dict(target.state_dict())
    assert torch.equal(again.weight, target.weight)


def test_e06_a_value_outside_of_the_other_set_is_refused_or_projected():
    source = held("interval(low=-1.0, high=1.0)", torch.full(SHAPE, 0.5))
    target = held("interval(low=0.0, high=0.25)", torch.full(SHAPE, 0.1))
    _, before = bits(target)
    for strict in (True, False):
        with pytest.raises(RuntimeError) as caught:
            constrained.load_state_dict(target, source.state_dict(), strict=strict)
        assert (
            "'weight': the checkpoint was written for interval(low=-1.0, high=1.0): "
            "interval(low=0.0, high=0.25): the value violates the constraint by 0.25"
        ) in str(caught.value)
        assert same(target.state_dict(), before)
    constrained.load_state_dict(target, source.state_dict(), on_infeasible="project")
    assert_close(target.weight.detach(), torch.full(SHAPE, 0.25), atol=1e-3, rtol=0)


def test_e06_what_the_metadata_survives():
    """It survives files and the prefix of a wrapper; a plain model's state dict has none."""
    source = held("positive", torch.full(SHAPE, 0.5))
    wrapped = nn.ModuleDict({"module": source})
    buffer = io.BytesIO()
    torch.save(wrapped.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    consume_prefix_in_state_dict_if_present(state, "module.")
    target = held("interval(low=0.0, high=1.0)")
    target.load_state_dict(state)
    assert_close(target.weight, source.weight)
    assert baked_state_dict(source)._metadata == Held(torch.eye(4)).state_dict()._metadata
    # Keys are torch's. torch's engine writes no such metadata and ignores it.
    assert list(state) == ["bias", "parametrizations.weight.original"]
    torch_model = Held(torch.eye(4))
    torch.nn.utils.parametrize.register_parametrization(torch_model, "weight", Softplus())
    torch_model.load_state_dict(state)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "masked", "mask": [[1, 0], [1, 1]]},
        {"name": "affine", "A": [[1.0, 1.0]], "b": [0.0]},
        {"name": "product", "parts": ["sphere", {"name": "ball", "radius": 2.0}], "dim": 0},
        {"name": "spectral_norm", "view": "(g a) b -> g a b", "g": 2},
    ],
    ids=lambda spec: spec["name"],
)
def test_e06_arguments_of_any_kind_are_known_again_from_a_file(spec):
    def model(value):
        return constrain(nn.ParameterDict({"w": torch.full((2, 2), value)}), "w", spec)

    source, target, buffer = model(0.1), model(0.2), io.BytesIO()
    torch.save(source.state_dict(), buffer)
    for where in ("cpu", "meta"):
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True, map_location=where)
        originals = dict(target.named_parameters())
        target.load_state_dict(state, assign=where == "meta")
        if where == "cpu":
            assert torch.equal(target.w, source.w)
            # Taken as the model's own, they are copied without the right inverse.
            for name, parameter in source.named_parameters():
                assert torch.equal(originals[name], parameter)
        else:
            assert target.w.is_meta


def test_e06_a_checkpoint_that_does_not_say_loads_as_before():
    source = held("positive", torch.full(SHAPE, 0.5))
    target = held("positive", torch.ones(SHAPE))
    target.load_state_dict(dict(source.state_dict()))
    assert_close(target.weight, source.weight)
    other = held("interval(low=0.0, high=1.0)")
    other.load_state_dict(dict(source.state_dict()))
    original = source.parametrizations.weight.original
    assert torch.equal(other.parametrizations.weight.original, original)


def test_e06_other_modules_take_a_constraints_checkpoint_and_say_nothing_of_themselves():
    source = held("positive", torch.full(SHAPE, 0.5))
    foreign = ours.register_parametrization(Held(torch.ones(SHAPE)), "weight", Softplus())
    assert foreign.state_dict()._metadata[""] == {"version": 1}
    foreign.load_state_dict(source.state_dict())
    assert_close(foreign.weight, source.weight)
    # Parts that follow a constraint are named by class, and are not built from a checkpoint.
    ours.register_parametrization(source, "weight", Softplus(), unsafe=True)
    with pytest.raises(RuntimeError, match=r"for positive\(\) then Softplus, and here is ball\(\)"):
        held("ball").load_state_dict(source.state_dict())


def test_e06_a_lazy_tensor_takes_another_constraints_checkpoint():
    source = constrain(nn.Linear(4, 4), "weight", "positive", init="sample")
    lazy = constrain(nn.LazyLinear(4), "weight", "nonnegative")
    lazy.load_state_dict(source.state_dict())
    assert_close(lazy.weight, source.weight)


@pytest.mark.parametrize(
    "said",
    [
        [{"name": "nobody", "arguments": {}}],
        [{"name": "os:system", "arguments": {"command": "true"}}],
        [{"name": "constrained:Constraint", "arguments": {}}],
        [{"name": f"{__name__}:Evil", "arguments": {}}],
        [{"name": "product", "arguments": {"parts": [f"{__name__}:Evil"] * 2}}],
        [{"name": "sphere", "arguments": {"radius": 10**400}}],
        [{"name": "sphere", "arguments": {"cls": 1, "spec": 2}}],
        [{"name": "sphere", "arguments": [1]}],
        [{"name": "sphere", "arguments": {}, "view": "a b", "sizes": {}}],
        [{"name": "sphere", "arguments": {}, "view": 3, "sizes": 4}],
        [{"name": None}],
        [{}],
        [None],
        ["nobody"],
        [3, "nobody"],
    ],
    ids=str,
)
def test_e06_nothing_in_a_checkpoint_is_executed(said, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("code was executed"))
    target = held("sphere(radius=2.0)", init="sample")
    state = target.state_dict()
    state._metadata[""]["constraints"] = {"weight": said}
    _, before = bits(target)
    with pytest.raises(RuntimeError) as caught:
        constrained.load_state_dict(target, state)
    assert "the checkpoint was written for" in str(caught.value)
    assert len(str(caught.value)) < 800
    assert same(target.state_dict(), before)
    for nonsense in (None, 3, "x", [], {}, {"weight": None}, {"weight": {}}, {"weight": []}):
        state._metadata[""]["constraints"] = nonsense
        target.load_state_dict(state)


class Evil(constrained.Constraint):
    """A class that is not registered."""

    event_dim = 0
    forward = right_inverse = violation = project = sample = dimension = lambda *_: None

    def __init__(self):
        super().__init__()
        pytest.fail("code was executed")


def test_e06_corrupted_entries_of_another_constraint():
    source = held("low_rank(rank=2)", init="sample")
    target = held("spectral_norm(bound=100.0)")
    whole = source.state_dict()
    _, before = bits(target)
    first, second = (f"parametrizations.weight.original{i}" for i in range(2))
    for broken in (
        {first: whole[first][:3]},
        {first: whole[first].to(torch.int64)},
        {first: "text"},
        {second: whole[second] * torch.nan},
        {f"{second}9": whole[second]},
    ):
        state = source.state_dict()
        state.update(broken)
        with pytest.raises(RuntimeError, match=r"'weight': |Unexpected key"):
            constrained.load_state_dict(target, state)
        assert same(target.state_dict(), before)
    state = source.state_dict()
    del state[second]
    with pytest.raises(RuntimeError, match="'weight': the checkpoint was written for low_rank"):
        constrained.load_state_dict(target, state, strict=False)
