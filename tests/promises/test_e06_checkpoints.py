"""E06: plain checkpoints load into constrained models, and constrained models write plain ones."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize as torch_parametrize
from torch.testing import assert_close

import constrained
import constrained.parametrize as ours
from constrained import baked_state_dict, constrain, release, report
from tests.promises.checkpoints import (
    CATALOGUE,
    SPECS,
    Held,
    Network,
    bits,
    constrained_and_plain,
    member,
    same,
)
from tests.promises.counting import Anchored, Outer
from tests.promises.foreign import Scaled, Split, Squash, ids

torch_today = pytest.mark.torch_today

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def hooks_of(model):
    return [h for m in model.modules() for h in m._load_state_dict_pre_hooks]


# ------------------------------------------------------------------------- plain -> constrained


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", CATALOGUE)
def test_e06_plain_to_constrained_to_plain(spec, dtype):
    model, plain = constrained_and_plain(spec, CATALOGUE[spec], dtype)
    before = ids(model)
    _ = model.weight
    assert model.load_state_dict(plain.state_dict()) == ([], [])
    assert ids(model) == before
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    assert_close(model.weight, plain.weight, **close)
    baked = baked_state_dict(model)
    assert list(baked) == list(plain.state_dict())
    plain.load_state_dict(baked)
    assert torch.equal(plain.weight, model.weight)


def test_e06_how_exact_a_plain_checkpoint_is_loaded(measured):
    worst = 0.0
    for spec, shape in CATALOGUE.items():
        model, plain = constrained_and_plain(spec, shape)
        model.load_state_dict(plain.state_dict())
        value = plain.weight.detach()
        error = (baked_state_dict(model)["weight"] - value).abs().max()
        worst = max(worst, float(error / value.abs().max()))
    assert worst < 1e-5
    measured(f"{len(CATALOGUE)} constraints load plain checkpoints, error {worst:.0e}")


@torch_today
def test_e06_plain_and_parametrized_in_torch_today(measured):
    parametrized = torchs.orthogonal(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match=r"Missing key.*parametrizations.weight.original"):
        parametrized.load_state_dict(nn.Linear(3, 3).state_dict())
    with pytest.raises(RuntimeError, match='Missing key.*"weight"'):
        nn.Linear(3, 3).load_state_dict(parametrized.state_dict())
    measured("plain checkpoints: refused both ways")


@pytest.mark.parametrize("strict", [True, False])
def test_e06_strict_and_not(strict):
    model, plain = constrain(Network(), SPECS), Network()
    release(constrain(plain, SPECS))
    state = plain.state_dict()
    del state["shift"]
    state["other"] = torch.ones(1)
    if strict:
        with pytest.raises(RuntimeError, match=r"(?s)Missing key.*shift.*Unexpected key.*other"):
            model.load_state_dict(state, strict=strict)
    else:
        missing, unexpected = model.load_state_dict(state, strict=strict)
        assert (missing, unexpected) == (["shift"], ["other"])
    assert_close(model.gain, plain.gain, atol=1e-5, rtol=1e-5)
    # A tensor that is missing in both spellings is reported under the model's own key.
    del state["gain"]
    missing, _ = model.load_state_dict(state, strict=False)
    own = [f"parametrizations.gain.original{i}" for i in range(2)]
    assert sorted(missing) == sorted([*own, "shift"])


def test_e06_a_whole_model_with_ties_buffers_and_extra_state():
    plain = release(constrain(Network(), SPECS))
    plain.counter.count = 7
    model = constrain(Network(), SPECS)
    before, scratch = ids(model), model.scratch.clone()
    model.load_state_dict(plain.state_dict())
    assert ids(model) == before and model.counter.count == 7
    assert model.decoder.weight is model.encoder[0].weight
    for name in ("gain", "table", "encoder.0.weight", "encoder.1.running_var"):
        owner, _, tensor = name.rpartition(".")
        loaded = getattr(model.get_submodule(owner), tensor)
        assert_close(loaded, plain.state_dict()[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(model.scratch, scratch)
    nn.Sequential(model).load_state_dict({f"0.{k}": v for k, v in plain.state_dict().items()})
    part = {k.removeprefix("encoder."): v for k, v in plain.state_dict().items() if "encoder" in k}
    model.encoder.load_state_dict(part)


def test_e06_part_constrained_and_both_spellings_in_one_checkpoint():
    model = constrain(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "*.weight", "sphere")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight = model[0].weight.flip(0)
        other[1].weight = model[1].weight.flip(0)
    own, plain = other.state_dict(), baked_state_dict(other)
    mixed = {
        k: v for k, v in {**own, **plain}.items() if k[0] == "0" or "parametrizations" not in k
    }
    del mixed["0.weight"]
    assert {k for k in mixed if "weight" in k} == {"0.parametrizations.weight.original", "1.weight"}
    model.load_state_dict(mixed)
    assert_close(model[1].weight, other[1].weight)
    # With both spellings of one tensor, they must agree; else the plain one is an unexpected key.
    model.load_state_dict({**own, **plain})
    assert_close(model[0].weight, other[0].weight)
    contradicts = {**own, **plain, "0.weight": plain["0.weight"].flip(0)}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0.weight"'):
        model.load_state_dict(contradicts)
    assert model.load_state_dict(contradicts, strict=False) == ([], ["0.weight"])
    assert_close(model[0].weight, other[0].weight)


def test_e06_views_several_originals_frozen_ones_chains_and_foreign_modules():
    conv = constrain(nn.Conv2d(2, 3, 2), "weight", "orthogonal", view="o i h w -> o (i h w)")
    plain = release(copy.deepcopy(conv))
    with torch.no_grad():
        plain.weight.copy_(plain.weight.flip(0))
    conv.load_state_dict(plain.state_dict())
    assert_close(conv.weight, plain.weight)

    for make in (Anchored, Split, Scaled):
        model = ours.register_parametrization(nn.Linear(3, 3), "weight", make())
        plain, buffers = nn.Linear(3, 3), [id(b) for b in model.buffers()]
        assert model.load_state_dict(plain.state_dict()) == ([], [])
        assert_close(model.weight, plain.weight)
        assert [id(b) for b in model.buffers()] == buffers
    rank_one = torch.outer(torch.rand(3), torch.rand(3))
    model = ours.register_parametrization(Held(rank_one), "weight", Outer())
    model.load_state_dict(Held(2 * rank_one).state_dict())
    assert_close(model.weight.detach(), 2 * rank_one)

    chain = nn.Linear(3, 3)
    ours.register_parametrization(chain, "weight", Squash())
    ours.register_parametrization(chain, "weight", Scaled())
    chain.load_state_dict(nn.Linear(3, 3).state_dict())
    nested = ours.register_parametrization(nn.Linear(3, 3), "weight", Squash())
    ours.register_parametrization(nested.parametrizations.weight, "original", Scaled())
    plain = nn.Linear(3, 3)
    nested.load_state_dict(plain.state_dict())
    assert_close(nested.weight, plain.weight)


def test_e06_a_foreign_right_inverse_that_writes_into_itself():
    """torch's orthogonal replaces its base in ``right_inverse``; it loads, or nothing changes."""
    source = torchs.orthogonal(nn.Linear(3, 3))
    module = copy.deepcopy(source.parametrizations.weight[0])
    model = ours.register_parametrization(nn.Linear(3, 3), "weight", module, unsafe=True)
    plain = Held(torch.linalg.qr(torch.rand(3, 3)).Q).state_dict()
    plain["bias"] = torch.zeros(3)
    model.load_state_dict(plain)
    assert_close(model.weight, plain["weight"])
    _, before = bits(model)
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        constrained.load_state_dict(
            model, {**plain, "weight": -plain["weight"], "bias": torch.ones(9)}
        )
    assert same(model.state_dict(), before)


def test_e06_a_foreign_right_inverse_that_fails_half_way():
    class Fails(Scaled):
        def right_inverse(self, value):
            self.gain.fill_(7)
            if self.__dict__.get("broken"):
                raise ValueError("it does not fit")
            return value / self.gain

    model = ours.register_parametrization(nn.Linear(3, 3), "weight", Fails())
    with torch.no_grad():
        model.parametrizations.weight[0].gain.fill_(2)
    model.parametrizations.weight[0].__dict__["broken"] = True
    _, before = bits(model)
    with pytest.raises(RuntimeError, match="'weight': it does not fit"):
        model.load_state_dict({**nn.Linear(3, 3).state_dict(), "bias": model.bias.detach()})
    assert same(model.state_dict(), before)


def test_e06_key_renaming_hooks_and_overrides_come_first():
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def hook(module, state_dict, prefix, *rest):
        state_dict[prefix + "bias"] = state_dict.pop(prefix + "offset")

    model = Renaming(3, 3)
    constrain(model, {"weight": "symmetric", "bias": "positive"})
    model.register_load_state_dict_pre_hook(hook)
    symmetric = torch.eye(3) + 1
    model.load_state_dict({"kernel": symmetric, "offset": torch.tensor([1.0, 2.0, 3.0])})
    assert_close(model.weight.detach(), symmetric)
    assert_close(model.bias.detach(), torch.tensor([1.0, 2.0, 3.0]))


def test_e06_loading_in_swap_mode(swap_mode):
    model, plain = constrained_and_plain("positive", (3, 3))
    before = ids(model)
    model.weight.sum().backward()
    model.load_state_dict(plain.state_dict())
    assert ids(model) == before
    assert_close(model.weight, plain.weight)
    held, state = bits(model)
    with pytest.raises(RuntimeError, match="violates"):
        constrained.load_state_dict(model, {**plain.state_dict(), "weight": -torch.ones(3, 3)})
    assert bits(model)[0] == held and same(model.state_dict(), state)


# ---------------------------------------------------------------------------------------- assign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_e06_assign(dtype):
    """As with plain tensors: the model takes the dtype of the checkpoint."""
    for spec, shape in CATALOGUE.items():
        model, _ = constrained_and_plain(spec, shape)
        plain = Held(member(spec, shape, dtype)).to(dtype)
        _ = model.weight
        model.load_state_dict(plain.state_dict(), assign=True)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())
        assert_close(model.weight, plain.weight, atol=1e-5, rtol=1e-5)
        model.weight.sum().backward()


def test_e06_assign_to_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    constrain(model, {"0.weight": "orthogonal", "1.weight": "low_rank(rank=2)"})
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    constrain(plain, {"0.weight": "orthogonal", "1.weight": "low_rank(rank=2)"})
    x = torch.rand(2, 4)
    for state in (baked_state_dict(plain), plain.state_dict()):
        target = copy.deepcopy(model)
        target.load_state_dict(state, assign=True)
        assert_close(target(x), plain(x))


def test_e06_tensors_tied_later_are_found_after_assign():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    ours.register_parametrization(first, "weight", Squash())
    first.load_state_dict(first.state_dict(), assign=True)
    second.weight = first.parametrizations.weight.original
    ours.register_parametrization(second, "weight", Squash())
    assert second.parametrizations.weight is first.parametrizations.weight


# ---------------------------------------------------------------------- infeasible and not finite


def test_e06_infeasible(measured):
    model, plain = constrained_and_plain("orthogonal", (3, 3))
    _, before = bits(model)
    far = {**plain.state_dict(), "weight": 2 * plain.weight.detach(), "bias": torch.ones(2)}
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(far)
    message = str(error.value)
    assert "'weight': orthogonal(): the value violates the constraint by 3" in message
    assert "on_infeasible='project'" in message and "Missing" not in message
    # As in torch, the rest is loaded; the offending tensor is unchanged.
    own = "parametrizations.weight.original"
    assert torch.equal(model.state_dict()[own], before[own])
    assert torch.equal(model.bias, torch.ones(2))
    with pytest.raises(RuntimeError, match="violates"):
        model.load_state_dict(far, strict=False)
    constrained.load_state_dict(model, far, on_infeasible="project")
    assert_close(model.weight, plain.weight)
    measured("an infeasible tensor is named, with its violation, or projected")


@pytest.mark.parametrize("on_infeasible", ["error", "project"])
def test_e06_not_finite(on_infeasible):
    model, plain = constrained_and_plain("orthogonal", (3, 3))
    broken = plain.weight.detach().clone()
    broken[0, 0] = torch.nan
    own = model.state_dict()
    own["parametrizations.weight.original"] = broken
    for state in ({**plain.state_dict(), "weight": broken}, own):
        held, before = bits(model)
        with pytest.raises(RuntimeError, match=r"'weight': orthogonal\(\).*(NaN|finite)"):
            constrained.load_state_dict(model, state, on_infeasible=on_infeasible)
        assert bits(model)[0] == held and same(model.state_dict(), before)


def test_e06_a_boundary_point_of_an_open_set():
    for choice in ("error", "project"):
        model, _ = constrained_and_plain("positive", (2, 2))
        zero = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
        constrained.load_state_dict(model, zero, on_infeasible=choice)
        assert bool((model.weight > 0).all()) and bool((model.weight < 1e-3).all())


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", CATALOGUE)
def test_e06_a_checkpoint_of_another_precision(spec, saved):
    """A value that is a member up to the rounding of its dtype loads as the nearest member."""
    model, plain = constrained_and_plain(spec, CATALOGUE[spec])
    model.load_state_dict(plain.to(saved).state_dict())
    assert model.weight.dtype == torch.float32
    assert_close(model.weight, plain.weight.float(), atol=2e-2, rtol=2e-2)
    constrained.assert_feasible(model)


def test_e06_wrong_shapes_and_kinds():
    model, plain = constrained_and_plain("orthogonal", (3, 3))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        model.load_state_dict({**plain.state_dict(), "weight": torch.eye(4)})
    with pytest.raises(RuntimeError, match="'weight': expected a tensor .*, got list"):
        model.load_state_dict({**plain.state_dict(), "weight": [1.0]})
    with pytest.raises(ValueError, match="must be 'error' or 'project'.*Did you mean"):
        constrained.load_state_dict(model, plain.state_dict(), on_infeasible="projekt")


@pytest.mark.parametrize("assign", [False, True])
def test_e06_all_or_nothing(assign):
    model = constrain(Network(), SPECS)
    plain = release(constrain(Network(), SPECS))
    plain.counter.count = 9
    state = plain.state_dict()
    state["counter.scale"] = torch.ones(5)
    x = torch.rand(5, 4)
    model.eval()
    y, held = model(x), bits(model)
    with pytest.raises(RuntimeError, match="size mismatch for counter.scale"):
        constrained.load_state_dict(model, state, assign=assign)
    after = bits(model)
    assert after[0] == held[0] and same(after[1], held[1])
    assert model.counter.count == 3 and torch.equal(model(x), y)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state, assign=assign)
    assert not same(model.state_dict(), held[1])


# ---------------------------------------------------------------------------- constrained -> plain


def test_e06_baked_state_dict_is_that_of_a_released_copy():
    model = constrain(Network(), SPECS)
    held, before = bits(model)
    baked = baked_state_dict(model)
    released = release(copy.deepcopy(model))
    assert same(baked, released.state_dict())
    assert baked._metadata == released.state_dict()._metadata
    assert bits(model)[0] == held and same(model.state_dict(), before)
    assert list(baked) == list(Network().state_dict())
    Network().load_state_dict(baked)
    pointers = [t.data_ptr() for t in baked.values() if isinstance(t, torch.Tensor)]
    assert len(set(pointers)) == len(pointers)


class Encoder(nn.Module):
    """A class that parametrizes some of its tensors itself, as torch's and HuBERT's do."""

    def __init__(self):
        super().__init__()
        self.conv = torchs.weight_norm(nn.Conv1d(4, 4, 3), dim=2)
        self.norm = torchs.spectral_norm(nn.Linear(4, 4))
        self.head = ours.register_parametrization(nn.Linear(4, 4), "weight", Squash())
        ours.register_parametrization(self.head, "bias", nn.Tanh())


@pytest.mark.parametrize("target", ["conv.bias", "norm.bias", "**.bias"])
def test_e06_what_a_class_parametrizes_itself_stays(target):
    """Also beside a constrained tensor of the same module, whose class adopts torch's lists."""
    model, plain = Encoder(), Encoder()
    if target == "**.bias":
        ours.remove_parametrizations(model, "head.bias")
        ours.remove_parametrizations(plain, "head.bias")
    keys, versions = list(plain.state_dict()), plain.state_dict()._metadata
    constrain(model, target, "nonnegative")
    shown = {row.path: row.holds for row in report(model).rows}
    assert {f"{part}.weight": None for part in ("conv", "norm", "head")}.items() <= shown.items()
    before = model.conv.weight.detach().clone()
    baked = baked_state_dict(model)
    assert list(baked) == keys and baked._metadata == versions
    plain.load_state_dict(baked)
    assert_close(plain.conv.weight, before)
    assert torch.equal(plain.conv.bias, model.conv.bias)
    everything = baked_state_dict(model, everything=True)
    assert list(everything) == [
        f"{part}.{name}" for part in ("conv", "norm", "head") for name in ("weight", "bias")
    ]
    held = model.state_dict()
    released = release(model).state_dict()
    assert list(released) == keys and same(released, baked)
    assert all(torch.equal(held[key], released[key]) for key in held.keys() & released.keys())
    plain.load_state_dict(released)


def test_e06_baked_state_dict_of_torchs_models():
    for function in (torchs.orthogonal, torchs.weight_norm, torchs.spectral_norm):
        model = function(nn.Linear(4, 4))
        _, before = bits(model)
        assert same(baked_state_dict(model), before)
        baked = baked_state_dict(model, everything=True)
        assert same(model.state_dict(), before)
        plain = nn.Linear(4, 4)
        plain.load_state_dict(baked)
        torch_parametrize.remove_parametrizations(model, "weight")
        assert_close(plain.weight, model.weight)


def test_e06_baked_state_dict_leaves_other_keys_alone():
    """Such as those of a user's module called ``parametrizations``, or those that a hook adds."""
    inner = nn.Sequential(constrain(nn.Linear(2, 2), "weight", "sphere"))
    model = nn.ModuleDict({"0": nn.Linear(2, 2), "user": nn.Module()})
    model["user"].parametrizations = nn.Sequential(inner)
    model._register_state_dict_hook(lambda m, state, *_: state.update({"extra.key": torch.ones(1)}))
    user = "user.parametrizations.0.0"
    plain = ["0.weight", "0.bias", f"{user}.weight", f"{user}.bias", "extra.key"]
    assert list(baked_state_dict(model)) == plain


# ------------------------------------------------------------------------- what comes afterwards


def test_e06_nothing_leaks(measured):
    model = nn.Linear(3, 3)
    for _ in range(5):
        constrain(model, "weight", "symmetric")
        model.load_state_dict(baked_state_dict(model))
        release(model)
        weight_norm = torchs._WeightNorm()
        ours.register_parametrization(model, "weight", weight_norm, unsafe=True)
        ours.remove_parametrizations(model, "weight")
    constrain(model, "weight", "symmetric")
    with pytest.raises(RuntimeError):
        model.load_state_dict({})
    assert hooks_of(model) == []
    measured(f"{len(hooks_of(model))} hooks after 5 register/remove cycles")


@torch_today
def test_e06_nothing_leaks_in_torch_today(measured):
    model = nn.Linear(3, 3)
    for _ in range(5):
        torchs.weight_norm(model)
        torch_parametrize.remove_parametrizations(model, "weight")
    assert len(hooks_of(model)) == 5
    measured(f"{len(hooks_of(model))} hooks after 5 register/remove cycles")


def test_e06_values_are_not_stale_and_originals_canonical():
    model, plain = constrained_and_plain("orthogonal", (4, 4))
    with torch.no_grad():
        plain.weight.mul_(1 + 1e-6)  # A member up to rounding, but not its own polar factor.
    old = model.weight
    model.load_state_dict(plain.state_dict())
    assert not torch.equal(model.weight, old)
    own = model.parametrizations.weight
    canonical = own[0].canonical(own.original.detach())[0]
    assert torch.equal(canonical, own.original)
    assert torch.equal(model.weight, own.original)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert same(model.state_dict(), state)


def test_e06_an_optimizer_goes_on_after_a_plain_checkpoint():
    def step(model, optimizer):
        optimizer.zero_grad()
        (model.weight - torch.eye(3)).pow(2).sum().backward()
        optimizer.step()

    for spec in ("orthogonal", "positive_definite", "low_rank(rank=2)"):
        model, plain = constrained_and_plain(spec, (3, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        step(model, optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        model.load_state_dict(plain.state_dict())
        # torch's optimizers share the tensors of what they load.
        optimizer.load_state_dict(copy.deepcopy(saved))
        twin = copy.deepcopy(model)
        other = torch.optim.Adam(twin.parameters(), lr=0.01)
        other.load_state_dict(copy.deepcopy(saved))
        before = model.weight.detach().clone()
        for _ in range(3):
            step(model, optimizer)
            step(twin, other)
        assert torch.equal(model.weight, twin.weight) and not torch.equal(model.weight, before)
        constrained.assert_feasible(model)


def test_e06_averaged_models():
    model, plain = constrained_and_plain("orthogonal", (3, 3))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    state = {f"module.{k}": v for k, v in plain.state_dict().items()}
    averaged.load_state_dict({**state, "n_averaged": torch.tensor(5)})
    assert_close(averaged.module.weight, plain.weight)
    assert list(baked_state_dict(averaged)) == ["n_averaged", "module.weight", "module.bias"]


def test_e06_a_checkpoint_takes_the_place_of_a_lost_write():
    """A checkpoint still loads after a value was written in place."""
    for own in (False, True):
        model, plain = constrained_and_plain("orthogonal", (3, 3))
        state = copy.deepcopy(model.state_dict()) if own else plain.state_dict()
        with torch.no_grad():
            model.weight.mul_(2)
        model.load_state_dict(state)
        constrained.assert_feasible(model)
