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
