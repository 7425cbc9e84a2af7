"""Constraints on tensors that stay plain parameters: where they go, and what knows them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import constrained
from constrained import (
    InfeasibleError,
    SpecError,
    assert_feasible,
    baked_state_dict,
    constrain,
    load,
    plan,
    release,
    report,
    save,
    spec,
    violations,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def constrained_network(mode="project"):
    model = constrain(network(), "0.weight", "orthogonal", mode=mode)
    return constrain(model, "2.weight", "simplex", mode=mode)


def train(model, steps=3, make=torch.optim.SGD):
    optimizer = make(model.parameters(), lr=0.1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


class TestPlain:
    def test_the_class_the_keys_and_the_parameter_stay(self):
        model = network()
        classes, keys = [type(m) for m in model.modules()], list(model.state_dict())
        weight, hooks = model[0].weight, len(model[0]._forward_hooks)
        constrain(model, "0.weight", "orthogonal", mode="project")
        assert model[0].weight is weight
        assert [type(m) for m in model.modules()] == classes
        assert list(model.state_dict()) == keys
        assert len(model[0]._forward_hooks) == hooks
        assert list(dict(model.named_parameters())) == keys

    def test_an_optimizer_made_before_goes_on(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        constrain(model, "0.weight", "orthogonal", mode="project", optimizer=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
        assert_feasible(model)


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_are_kept_by_their_own_steps(self, copied):
        model = constrained_network()
        other = copied(model)
        before = model[0].weight.detach().clone()
        train(other)
        assert_feasible(other)
        assert spec(other) == spec(model)
        assert torch.equal(model[0].weight, before)
        assert not torch.allclose(other[0].weight, before)

    def test_of_a_released_model_are_free(self):
        model = constrained_network()
        other = copy.deepcopy(model)
        release(other)
        train(other)
        assert spec(other) == {}
        assert spec(model) != {}
        with torch.no_grad():
            gram = other[0].weight @ other[0].weight.T
        assert not torch.allclose(gram, torch.eye(6), atol=1e-3)

    def test_a_replaced_parameter_is_kept(self):
        model = constrained_network()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        train(model)
        assert_feasible(model)

    def test_another_dtype_is_kept(self):
        model = constrained_network().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.ones(2, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert_feasible(model)


class TestSeeing:
    def test_a_write_that_leaves_the_set_is_seen_and_mended_by_the_next_step(self):
        model = constrained_network()
        with torch.no_grad():
            model[0].weight.mul_(2)
        with pytest.raises(InfeasibleError, match=r"'0\.weight' violates orthogonal"):
            assert_feasible(model)
        train(model, 1)
        assert_feasible(model)

    def test_what_tells_of_constraints_tells_of_these(self):
        model = constrained_network()
        expected = {
            "0.weight": {"name": "orthogonal", "mode": "project"},
            "2.weight": {"name": "simplex", "mode": "project"},
        }
        assert spec(model) == expected
        assert list(violations(model)) == list(expected)
        rows = report(model).rows
        assert [row.constraint for row in rows] == [
            "orthogonal() by mode='project'",
            "simplex() by mode='project'",
        ]
        assert rows[1].flat == 0
        assert spec(constrain(network(), spec(model))) == expected
        assert list(baked_state_dict(model)) == list(network().state_dict())

    def test_rows_are_in_the_order_of_the_model(self):
        model = constrain(network(), "2.weight", "orthogonal")
        constrain(model, "0.weight", "orthogonal", mode="project")
        assert [row.path for row in report(model).rows] == ["0.weight", "2.weight"]

    def test_a_plan_tells_the_mode(self):
        config = {"0.weight": {"name": "orthogonal", "mode": "project"}}
        found = plan(network(), config)
        assert found.rows[0].constraint == "orthogonal() by mode='project'"
        assert found.rows[0].parameters == 36
        model = constrain(network(), found)
        assert spec(model) == config

    def test_a_monitor_reads_them(self):
        model = constrained_network()
        monitor = constrained.Monitor(model)
        train(model)
        reading = monitor.record(1).tensors["0.weight"]
        assert reading.violation < 1e-5
        assert reading.gradient_norm > 0


class TestFiles:
    def test_a_file_has_the_mode(self, tmp_path):
        model = constrained_network()
        constrain(model, "2.bias", "nonnegative", mode="project", on_nonfinite="skip")
        train(model)
        save(model, tmp_path)
        new = load(tmp_path, network())
        assert spec(new) == spec(model)
        for key, value in model.state_dict().items():
            assert torch.equal(new.state_dict()[key], value)
        assert spec(load(tmp_path, new)) == spec(model)

    def test_another_mode_is_refused(self, tmp_path):
        save(constrained_network(), tmp_path)
        other = constrain(network(), {"0.weight": "orthogonal", "2.weight": "simplex"})
        with pytest.raises(ValueError, match="orthogonal.. by mode='project' in the file"):
            load(tmp_path, other)


class TestTied:
    def test_tensors_are_one(self):
        model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        model[1].weight = model[0].weight
        constrain(model, "0.weight", "orthogonal", mode="project")
        assert model[1].weight is model[0].weight
        assert list(spec(model)) == ["0.weight"]
        train_both = torch.optim.SGD(model.parameters(), lr=0.1)
        (model[0](torch.ones(2, 4)) + model[1](torch.ones(2, 4))).sum().backward()
        train_both.step()
        assert_feasible(model)
        release(model, "1.weight")
        assert spec(model) == {}


class TestErrors:
    def test_names_the_modes(self):
        with pytest.raises(
            ValueError, match=r"'0\.weight': mode must be .* Did you mean 'project'"
        ):
            constrain(network(), "0.weight", "orthogonal", mode="projct")

    def test_a_buffer_is_not_moved_by_optimizers(self):
        with pytest.raises(
            SpecError, match=r"'running_mean': mode='project' goes with a parameter"
        ):
            constrain(nn.BatchNorm1d(3), "running_mean", "sphere", mode="project")

    def test_twice(self):
        model = constrained_network()
        with pytest.raises(ValueError, match=r"'0\.weight' is constrained already, by orthogonal"):
            constrain(model, "0.weight", "sphere")

    def test_leave_the_model_as_it_was(self):
        model = network()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        config = {"0.weight": {"name": "orthogonal", "mode": "project"}, "2.weigth": "simplex"}
        with pytest.raises(ValueError, match=r"2\.weigth"):
            constrain(model, config)
        assert spec(model) == {}
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_a_module_that_is_no_constraint_has_no_mode(self):
        with pytest.raises(SpecError, match="mode='project' goes with a Constraint"):
            constrain(network(), "0.weight", nn.Softplus(), mode="project")


def test_a_lazy_tensor_is_kept_when_it_has_its_shape():
    model = constrain(nn.LazyLinear(4), "weight", "orthogonal", mode="project")
    assert spec(model) == {"weight": {"name": "orthogonal", "mode": "project"}}
    model(torch.ones(2, 6))
    assert type(model) is nn.Linear
    assert "parametrizations" not in dict(model.named_modules())
    assert_feasible(model)


def test_a_setting_of_another_mode_is_refused():
    model = network()
    with pytest.raises(SpecError, match="'0.weight': on_nonfinite='skip' goes with mode='project'"):
        constrain(model, "0.weight", "orthogonal", on_nonfinite="skip")
    assert not spec(model)


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)


def normed(layer):
    nn.utils.parametrizations.weight_norm(layer)


def without(layer):
    layer.register_parameter("weight", None)


@pytest.mark.parametrize("take", [pruned, normed, without])
@pytest.mark.parametrize("mode", ["project", "penalize"])
def test_a_parameter_that_is_no_longer_there_is_told_of(take, mode):
    model = constrained_network(mode)
    take(model[0])
    for act in (assert_feasible, violations, report, spec, constrained.penalty):
        with pytest.raises(RuntimeError, match="'0.weight' .* release '0.weight'"):
            act(model)
    release(model, "0.weight")
    assert list(spec(model)) == ["2.weight"]


def test_a_step_warns_of_a_parameter_that_is_no_longer_there():
    model = constrained_network()
    pruned(model[0])
    with pytest.warns(UserWarning, match="'0.weight' .* No step keeps it"):
        train(model)
    prune.remove(model[0], "weight")
    train(model)
    assert_feasible(model)
    assert list(spec(model)) == ["0.weight", "2.weight"]


def test_all_constraints_are_released_with_those_whose_parameter_is_gone():
    model = constrained_network()
    pruned(model[0])
    assert not spec(release(model))
