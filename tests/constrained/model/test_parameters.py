import copy

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, param_groups, parameters_of, tensor_paths
from constrained.model import targets
from constrained.parametrize import register_parametrization
from constrained.parametrized.tensor_locations import locations


class Shift(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x + self.shift

    def right_inverse(self, x):
        return x - self.shift


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.embed = nn.Embedding(5, 3)
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def model():
    specs = {"layers.0.weight": "low_rank(rank=1)", "embed.weight": "sphere", "gain": Shift()}
    return constrain(Network(), {**specs, "layers.1.running_var": "positive"})


class TestParametersOf:
    def test_a_constrained_tensor(self, model):
        found = parameters_of(model, "layers.0.weight")
        prefix = "layers.0.parametrizations.weight.original"
        assert list(found) == [prefix + "0", prefix + "1"]
        every = dict(model.named_parameters())
        assert all(every[name] is parameter for name, parameter in found.items())

    def test_parameters_of_the_parametrization(self, model):
        assert list(parameters_of(model, "gain")) == [
            "parametrizations.gain.original",
            "parametrizations.gain.0.shift",
        ]

    def test_a_plain_tensor_and_a_buffer(self, model):
        assert list(parameters_of(model, "layers.2.bias")) == ["layers.2.bias"]
        assert parameters_of(model, "layers.1.running_mean") == {}
        assert parameters_of(model, "layers.1.running_var") == {}

    def test_globs(self, model):
        assert list(parameters_of(model, "layers.*.bias")) == [
            *("layers.0.bias", "layers.1.bias", "layers.2.bias")
        ]
        everything = parameters_of(model, "**")
        assert everything.keys() == dict(model.named_parameters()).keys()

    def test_patterns_of_configs(self, model):
        assert list(parameters_of(model, "layers.{0..1}.bias")) == [
            "layers.0.bias",
            "layers.1.bias",
        ]
        assert list(parameters_of(model, "BatchNorm1d.bias")) == ["layers.1.bias"]

    def test_tied_tensors_by_any_path(self, model):
        for path in ("embed.weight", "head.weight"):
            assert list(parameters_of(model, path)) == ["embed.parametrizations.weight.original"]

    def test_of_a_part_of_the_model(self, model):
        names = list(parameters_of(model.head, "weight"))
        assert names == ["parametrizations.weight.original"]

    def test_lazy_tensors(self):
        layer = constrain(nn.LazyLinear(3), "weight", "sphere")
        assert list(parameters_of(layer, "weight")) == ["weight"]
        layer(torch.ones(1, 2))
        assert list(parameters_of(layer, "weight")) == ["parametrizations.weight.original"]

    def test_errors(self, model):
        with pytest.raises(ValueError, match=r"No tensor of .*matches 'head.wieght'.*Did you mean"):
            parameters_of(model, "head.wieght")
        with pytest.raises(TypeError, match="must be a path or a pattern, got list"):
            parameters_of(model, ["gain"])
        with pytest.raises(TypeError, match=r"A model is a torch\.nn\.Module"):
            parameters_of("model", "gain")


class TestTensorPaths:
    def test_are_the_reverse(self, model):
        paths = tensor_paths(model)
        assert list(paths) == [name for name, _ in model.named_parameters()]
        for name, path in paths.items():
            assert name in parameters_of(model, path)

    def test_of_every_kind(self, model):
        paths = tensor_paths(model)
        assert paths["layers.0.parametrizations.weight.original1"] == "layers.0.weight"
        assert paths["parametrizations.gain.0.shift"] == "gain"
        assert paths["embed.parametrizations.weight.original"] == "embed.weight"
        assert paths["layers.2.bias"] == "layers.2.bias"

    def test_of_a_plain_model(self):
        assert tensor_paths(nn.Linear(2, 2)) == {"weight": "weight", "bias": "bias"}
        assert tensor_paths(nn.Tanh()) == {}

    def test_of_torch_s_parametrizations(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        assert tensor_paths(layer) == {
            "bias": "bias",
            "parametrizations.weight.original0": "weight",
            "parametrizations.weight.original1": "weight",
        }

    def test_of_a_parametrized_original(self):
        layer = constrain(nn.Linear(3, 3), "weight", "sphere")
        register_parametrization(layer.parametrizations.weight, "original", nn.Softplus())
        paths = tensor_paths(layer)
        assert set(paths.values()) == {"weight", "bias"}
        assert parameters_of(layer, "weight").keys() == paths.keys() - {"bias"}


def held(groups):
    return [[id(p) for p in group["params"]] for group in groups]


class TestParamGroups:
    def test_hold_every_parameter_once(self, model):
        rules = {"**.weight": {"weight_decay": 0.1}, "layers.**": {"lr": 0.5}, "gain": {"lr": 0.2}}
        groups = param_groups(model, rules)
        ids = [i for group in held(groups) for i in group]
        assert sorted(ids) == sorted(map(id, model.parameters())) and len({*ids}) == len(ids)
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        assert options == [
            *({"weight_decay": 0.1}, {"weight_decay": 0.1, "lr": 0.5}, {"lr": 0.5}, {"lr": 0.2})
        ]
        assert held(groups)[0] == [id(model.embed.parametrizations.weight.original)]
        assert len(groups[1]["params"]) == 4 and len(groups[2]["params"]) == 3

    @pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop", "Adafactor"])
    def test_train_with_optimizers_of_torch(self, model, kind):
        groups = param_groups(model, {"layers.0.weight": {"lr": 0.0}, "*": {}})
        optimizer = getattr(torch.optim, kind)(groups, lr=0.1)
        before = copy.deepcopy(model.state_dict())
        weight = model.layers[0].weight.detach().clone()
        (model.layers(model.embed.weight * model.gain)).sin().sum().backward()
        optimizer.step()
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        # What is restored after a step may differ by rounding.
        torch.testing.assert_close(model.layers[0].weight, weight, atol=1e-6, rtol=1e-5)
        assert {"embed.parametrizations.weight.original", "layers.2.weight"} <= changed

    def test_go_on_with_the_optimizer_given_to_constrain(self, model):
        optimizer = torch.optim.SGD(param_groups(model, {"layers.2.*": {"lr": 0.5}}), lr=0.1)
        constrain(model, "layers.2.weight", "orthogonal", optimizer=optimizer)
        paths = tensor_paths(model)
        names = {id(p): name for name, p in model.named_parameters()}
        assert {paths[names[id(p)]] for p in optimizer.param_groups[0]["params"]} == {
            *("layers.2.weight", "layers.2.bias")
        }

    def test_without_rules(self, model):
        (group,) = param_groups(model, {})
        assert held([group]) == [[id(p) for p in model.parameters()]]
        assert group.keys() == {"params"}
        assert param_groups(nn.Tanh(), {}) == []

    def test_a_path_replaces_globs(self, model):
        groups = param_groups(model, {"layers.2.weight": {"lr": 1.0}, "**": {"weight_decay": 0.1}})
        assert held(groups)[0] == [id(model.layers[2].weight)]
        assert groups[0].keys() == {"params", "lr"} and len(groups) == 2
        for nothing in ({}, None):
            groups = param_groups(model, {"**": {"lr": 1.0}, "layers.2.weight": nothing})
            assert held(groups)[-1] == [id(model.layers[2].weight)]
            assert groups[-1].keys() == {"params"}

    def test_exceptions(self, model):
        for rules in (
            {"**.weight": {"weight_decay": 0.1}, "layers.1.*": None},
            {"layers.1.*": None, "**.weight": {"weight_decay": 0.1}},
            {"type=nn.BatchNorm1d": None, "**.weight": {"weight_decay": 0.1}},
        ):
            decayed, others = param_groups(model, rules)
            assert id(model.layers[1].weight) in held([others])[0]
            assert id(model.layers[2].weight) in held([decayed])[0]

    def test_alike_values_do_not_contradict(self, model):
        rules = {"**.weight": {"betas": (0.9, 0.99)}, "layers.**": {"betas": (0.9, 0.99)}}
        assert len(param_groups(model, rules)) == 4
        lr = torch.tensor(0.1)
        assert len(param_groups(model, {"**.weight": {"lr": lr}, "layers.**": {"lr": lr}})) == 4

    def test_contradictions(self, model):
        with pytest.raises(
            ValueError,
            match=r"'layers.0.weight' has the option lr=0.1 by '\*\*.weight', and 0.2 by "
            r"'layers.\*\*'; give it one by its path, or map a pattern to None that excepts it\.",
        ):
            param_groups(model, {"**.weight": {"lr": 0.1}, "layers.**": {"lr": 0.2}})
        with pytest.raises(ValueError, match="'head.weight'; they name one tied tensor"):
            param_groups(model, {"embed.weight": {"lr": 0.1}, "head.weight": {"lr": 0.2}})

    @pytest.mark.parametrize(
        ("rules", "error", "words"),
        [
            ([("gain", {})], TypeError, "The rules are a mapping"),
            ({3: {}}, TypeError, "a string, got 3"),
            ({"gain": 0.1}, TypeError, "'gain' must have a mapping of options"),
            ({"gain": {"params": []}}, ValueError, "'gain': an option is a name .* got 'params'"),
            ({"gain": {1: 2}}, ValueError, "an option is a name .* got 1"),
            ({"gian": {"lr": 1}}, ValueError, "No tensor of .*'gian'.* Did you mean 'gain'"),
            ({"**.wieght": {"lr": 1}}, ValueError, "No tensor of"),
            ({"**.wieght": None}, ValueError, "No tensor of"),
            ({"gian": {}}, ValueError, "No tensor of .*'gian'.* Did you mean 'gain'"),
            ({"layers.1.running_mean": {"lr": 1}}, ValueError, "means a buffer"),
        ],
    )
    def test_errors(self, model, rules, error, words):
        with pytest.raises(error, match=words):
            param_groups(model, rules)

    def test_of_something_else(self):
        with pytest.raises(TypeError, match=r"A model is a torch\.nn\.Module"):
            param_groups("model", {})


def test_a_model_of_many_tensors_is_searched_once(model, monkeypatch):
    calls = []
    monkeypatch.setattr(targets, "locations", lambda m: calls.append(m) or locations(m))
    rules = {"gain": {"lr": 0.1}, "embed.weight": {"lr": 0.2}, "layers.**": {"lr": 0.3}}
    assert len(param_groups(model, rules)) == 3
    assert calls == [model]


def test_they_are_public():
    assert {"param_groups", "parameters_of", "tensor_paths"} <= {*constrained.__all__}
