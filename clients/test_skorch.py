"""skorch: scikit-learn's interface, with clones, grids, pickles and checkpoints."""

import copy
import pickle

import numpy as np
import pytest
import torch
from network import CONSTRAINTS, data, plain
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from skorch.callbacks import Checkpoint, LoadInitState
from torch import nn
from trained import same, trains

from constrained import assert_feasible, constrain, spec


class Network(nn.Module):
    def __init__(self, constraints=None):
        super().__init__()
        self.body = plain()
        constrain(self.body, constraints or CONSTRAINTS)

    def forward(self, x):
        return self.body(x)


def regressor(**more):
    settings = {"optimizer": torch.optim.Adam, "lr": 1e-2, "max_epochs": 2, "train_split": None}
    return NeuralNetRegressor(Network, **settings, verbose=0, **more)


def arrays():
    return tuple(t.numpy() for t in data())


def test_it_fits_and_predicts():
    net = regressor().initialize()
    with trains(net.module_):
        net.partial_fit(*arrays())
    x, _ = arrays()
    expected = net.module_.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(net.predict(x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies(copied):
    net = regressor().fit(*arrays())
    twin = copied(net)
    same(net.module_, twin.module_)
    with trains(twin.module_):
        twin.partial_fit(*arrays())


def test_it_is_saved_and_loaded(tmp_path):
    net = regressor().fit(*arrays())
    files = {"f_params": tmp_path / "p.pt", "f_optimizer": tmp_path / "o.pt"}
    net.save_params(**files)
    twin = regressor().initialize()
    twin.load_params(**files)
    same(net.module_, twin.module_)
    net.partial_fit(*arrays())
    twin.partial_fit(*arrays())
    same(net.module_, twin.module_, 1e-5)


def test_it_is_saved_as_safetensors(tmp_path):
    net = regressor().fit(*arrays())
    net.save_params(f_params=tmp_path / "p.safetensors", use_safetensors=True)
    twin = regressor().initialize()
    twin.load_params(f_params=tmp_path / "p.safetensors", use_safetensors=True)
    same(net.module_, twin.module_)


def test_it_goes_on_from_a_checkpoint(tmp_path):
    saving = Checkpoint(dirname=tmp_path, monitor=None)
    net = regressor(callbacks=[saving]).fit(*arrays())
    twin = regressor(callbacks=[LoadInitState(saving)], warm_start=True).initialize()
    assert spec(twin.module_) == spec(net.module_)
    with trains(twin.module_):
        twin.fit(*arrays())


def test_a_grid_of_constraints():
    grid = {"module__constraints": [{"0.weight": "orthogonal"}, {"0.weight": "spectral_norm"}]}
    search = GridSearchCV(clone(regressor()), grid, cv=2, scoring="neg_mean_squared_error")
    search.fit(*arrays())
    assert_feasible(search.best_estimator_.module_)


class Named(nn.Module):
    """A network whose users choose the constraint of its layers by a name."""

    def __init__(self, constraint="orthogonal"):
        super().__init__()
        self.body = constrain(plain(), {"{0,2,4}.weight": constraint})

    def forward(self, x):
        return self.body(x)


def search(names, **more):
    net = NeuralNetRegressor(
        Named, optimizer=torch.optim.Adam, lr=1e-2, max_epochs=3, train_split=None, verbose=0
    )
    grid = {"module__constraint": names}
    return GridSearchCV(net, grid, cv=2, scoring="neg_mean_squared_error", **more)


def test_a_grid_of_names():
    names = ["orthogonal", "low_rank(rank=2)", {"name": "spectral_norm", "bound": 0.5}, None]
    found = search(names).fit(*arrays())
    scores = found.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and len(set(scores)) == len(names)
    assert found.best_params_ == {"module__constraint": names[scores.argmax()]}
    best = found.best_estimator_
    assert_feasible(best.module_)
    expected = Named(names[scores.argmax()])
    assert spec(best.module_) == spec(expected)
    twin = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(twin.predict(arrays()[0]), found.predict(arrays()[0]))


@pytest.mark.parametrize("name", ["orthogonal", "low_rank(rank=2)", "spectral_norm(bound=0.5)"])
def test_each_name_of_a_grid_trains_in_its_set(name):
    found = search([name]).fit(*arrays())
    net = found.best_estimator_
    assert [*spec(net.module_)] == [f"body.{i}.weight" for i in (0, 2, 4)]
    with trains(net.module_):
        net.partial_fit(*arrays())


def test_a_wrong_name_in_a_grid_is_told_in_a_sentence():
    with pytest.raises(ValueError, match="Unknown constraint 'orthogonl'. Did you mean 'orthogo"):
        search(["orthogonl"], error_score="raise").fit(*arrays())
