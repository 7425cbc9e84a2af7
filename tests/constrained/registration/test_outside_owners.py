"""A tensor that a module outside of the given one owns as well is not untied silently."""

import gc
import warnings

import pytest
import torch
from torch import nn

import constrained.parametrize as ours
from constrained import constrain, release, violations
from constrained.registration import outside_owners as owners


class Tied(nn.Module):
    def __init__(self, layer=nn.Linear):
        super().__init__()
        self.enc, self.dec = layer(4, 4), layer(4, 4)
        self.dec.weight = self.enc.weight


def nested():
    return nn.ModuleDict({"first": nn.Linear(2, 2), "body": nn.Sequential(Tied())})


@pytest.mark.parametrize("target", ["weight", "*", {"weight": "positive"}])
@pytest.mark.parametrize("name", ["enc", "dec"])
def test_another_owner_is_named_with_the_cure(name, target):
    model = nested()
    tied = model["body"][0]
    part, other = getattr(tied, name), "dec" if name == "enc" else "enc"
    before, bits = dict(part.named_parameters()), part.weight.detach().clone()
    match = f"'weight' is the same tensor as '{other}.weight' of the Tied around it.*holds both"
    with pytest.raises(ValueError, match=match):
        constrain(part, target, *([] if isinstance(target, dict) else ["positive"]))
    assert type(part) is nn.Linear and torch.equal(part.weight, bits)
    assert all(p is before[n] for n, p in part.named_parameters())
    constrain(tied, f"{name}.weight", "positive")
    assert torch.equal(tied.enc.weight, tied.dec.weight)
    assert violations(model) == {"body.0.enc.weight": 0.0}


def test_owners_without_a_common_module():
    a, b = nn.Linear(4, 4), nn.Embedding(4, 4)
    b.weight = a.weight
    with pytest.raises(ValueError, match=r"'weight' of another Embedding.*put both.*ModuleList"):
        constrain(a, "weight", "positive")
    constrain(nn.ModuleList([a, b]), "0.weight", "positive")
    assert torch.equal(a.weight, b.weight)


def test_buffers_and_lazy_tensors():
    a, b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    b.running_var = a.running_var
    with pytest.raises(ValueError, match="'running_var' of another BatchNorm1d"):
        constrain(a, "running_var", "positive")
    a, b = nn.LazyLinear(4), nn.LazyLinear(4)
    b.weight = a.weight
    with pytest.raises(ValueError, match="'weight' of another LazyLinear"):
        constrain(a, "weight", "positive")


def test_an_original_of_another_tensor():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    ours.register_parametrization(a, "weight", nn.Softplus())
    with pytest.raises(ValueError, match="an original of one that is parametrized by Softplus"):
        constrain(b, "weight", "positive")


def test_who_merely_holds_the_tensor_is_no_owner():
    layer = nn.LSTM(4, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, 4))[0].sum().backward()
    optimizer.step()
    held = [*layer.parameters()], dict(layer.named_parameters()), layer.weight_hh_l0
    graph = layer(torch.ones(1, 2, 4))[0]
    average = torch.optim.swa_utils.AveragedModel(layer)
    constrain(layer, "weight_hh_l0", "positive")
    assert list(violations(layer)) == ["weight_hh_l0"]
    del held, graph, average


def test_a_former_owner_is_none():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    b.itself = [b]
    gc.disable()
    try:
        del b
        constrain(a, "weight", "positive")
    finally:
        gc.enable()


def test_nobody_is_looked_for_where_nobody_holds_a_tensor(monkeypatch):
    monkeypatch.setattr(owners, "_owners", lambda *_: pytest.fail("a search"))
    for target in ("enc.weight", "**"):
        constrain(Tied(), target, "positive")
    for layer in (nn.Linear, nn.LazyLinear):
        shared = layer(4) if layer is nn.LazyLinear else layer(4, 4)
        constrain(nn.Sequential(shared, shared), "1.weight", "positive")
    layer = nn.Linear(4, 4)
    torch.compile(layer, backend="eager")(torch.ones(2, 4)).sum().backward()
    constrain(layer, "weight", "positive")


def test_one_search_is_enough_where_no_other_module_may_own_a_tensor(monkeypatch):
    searches, search = [], gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *of: searches.append(of) or search(*of))
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("a collection"))
    layer = nn.Linear(4, 4)
    held = list(layer.parameters())
    constrain(layer, "*", "positive")
    assert len(searches) == 1
    del held


class Holding(nn.Module):
    """Keeps its weight in a way of its own as well."""

    def __init__(self, hold):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))
        hold(self)


HOLDS = {
    "a list": lambda m: setattr(m, "ws", [m.w]),
    "a dictionary": lambda m: setattr(m, "ws", {"w": m.w}),
    "a tuple in a list": lambda m: setattr(m, "ws", [("w", m.w)]),
    "groups of an optimizer": lambda m: setattr(m, "ws", [{"params": [m.w, m.b]}]),
    "an attribute": lambda m: object.__setattr__(m, "ws", m.w),
}


@pytest.mark.parametrize("spec", ["positive", "low_rank(rank=1)"])
@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_what_holds_the_very_parameter_is_named(hold, spec):
    model = nn.Sequential(
        Holding(lambda m: (setattr(m, "w", nn.Parameter(torch.ones(2, 2))), hold(m)))
    )
    match = r"^'0\.ws' of the Sequential holds the plain tensor of '0\.w', .*: read '0\.w' wherever"
    with pytest.warns(UserWarning, match=match) as caught:
        constrain(model, "0.w", spec)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert list(violations(model)) == ["0.w"]


def test_one_attribute_is_named_once():
    model = Holding(lambda m: setattr(m, "ws", list(m.parameters())))
    with pytest.warns(UserWarning, match="'ws' of the Holding holds .* 'w', 'b'") as caught:
        constrain(model, "*", "positive")
    assert len(caught) == 1


def test_another_module_of_the_model_is_looked_at():
    layer = nn.Linear(3, 3)
    other = nn.Identity()
    other.seen = [layer.weight]
    with pytest.warns(UserWarning, match=r"'1\.seen' of the Sequential"):
        constrain(nn.Sequential(layer, other), "0.weight", "sphere")


def test_what_is_warned_of_as_an_error_has_changed_nothing():
    model = Holding(HOLDS["a list"])
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        constrain(model, "w", "positive")
    assert type(model) is Holding and isinstance(model.w, nn.Parameter)


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_what_is_renewed_and_what_holds_others_is_no_case(layer):
    model = nn.Sequential(layer(3, 3), nn.MultiheadAttention(4, 2), Holding(HOLDS["a list"]))
    kept = list(model.parameters())
    optimizer = torch.optim.Adam(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrain(model, "0.weight_*", "spectral_norm")
        constrain(model, "1.in_proj_weight", "sphere")
        constrain(model, "2.b", "positive", optimizer=optimizer)


@pytest.mark.parametrize("name", ["enc", "dec"])
def test_what_another_owner_has_is_not_released_alone(name):
    """It would be untied silently, and no optimizer would hold the new parameter."""
    model = nested()
    tied = model["body"][0]
    constrain(model, "body.0.enc.weight", "sphere")
    part, other = getattr(tied, name), "dec" if name == "enc" else "enc"
    before = dict(model.named_parameters())
    match = f"^'weight' is the same tensor as '{other}.weight' of the Tied.* stay constrained: rel"
    for target in ("weight", "**"):
        with pytest.raises(ValueError, match=match):
            release(part, target)
    assert all(p is before[n] for n, p in model.named_parameters())
    assert violations(model).keys() == {"body.0.enc.weight"}
    release(tied, f"{name}.weight")
    assert tied.enc.weight is tied.dec.weight and type(tied.enc) is type(tied.dec) is nn.Linear


def test_what_a_former_owner_had_is_released():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    both = constrain(nn.ModuleList([a, b]), "0.weight", "sphere")
    with pytest.raises(ValueError, match=r"'weight' of another Linear.*put both .* release that"):
        del both
        release(a)
    b.itself = [b]
    gc.disable()
    try:
        del b
        assert type(release(a)) is nn.Linear
    finally:
        gc.enable()


class Unbuilt(nn.Module):
    """As any module is until its __init__ has called that of nn.Module."""

    def __init__(self):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [Unbuilt, lambda: torch.jit.script(nn.Sequential(nn.Tanh()))])
def test_modules_without_a_dictionary_of_submodules_are_no_owners(make):
    other = make()
    tied = Tied()
    with pytest.raises(ValueError, match="of the Tied around it"):
        constrain(tied.enc, "weight", "positive")
    constrain(tied, "enc.weight", "positive")
    with pytest.raises(ValueError, match="of the Tied around it"):
        release(tied.dec)
    del other
