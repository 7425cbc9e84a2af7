"""Lightning: fit, checkpoints, resuming, averaging of weights, inference."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from network import CONSTRAINTS, data, network, plain
from torch.utils.data import DataLoader, TensorDataset
from trained import same, trains, values

from constrained import assert_feasible, baked_state_dict, load, spec


class Regression(L.LightningModule):
    def __init__(self, constrained=True, optimizer="Adam"):
        super().__init__()
        self.save_hyperparameters()
        self.body = network() if constrained else plain()

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, _):
        x, y = batch
        return (self(x) - y).square().mean()

    def validation_step(self, batch, _):
        self.log("loss", self.training_step(batch, _))

    def configure_optimizers(self):
        kind = getattr(torch.optim, self.hparams.optimizer)
        return kind(self.parameters(), lr=1e-2 if self.hparams.optimizer == "Adam" else 0.1)


def batches():
    return DataLoader(TensorDataset(*data()), batch_size=16)


def trainer(folder, epochs, **more):
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=more.pop("summary", False),
        **more,
    )


@pytest.mark.parametrize("optimizer", ["Adam", "LBFGS"])
def test_it_fits(optimizer, tmp_path):
    model = Regression(optimizer=optimizer)
    with trains(model):
        trainer(tmp_path, 2, summary=True).fit(model, batches(), batches())


def test_it_resumes(tmp_path):
    model = Regression()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer(tmp_path, 3, callbacks=[saving]).fit(model, batches())
    resumed = Regression()
    trainer(tmp_path, 3).fit(resumed, batches(), ckpt_path=tmp_path / "epoch=1.ckpt")
    same(model, resumed, 1e-5)


def test_checkpoints_are_loaded(tmp_path):
    model = Regression()
    fitting = trainer(tmp_path, 1)
    fitting.fit(model, batches())
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Regression.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    same(model, loaded)
    x, _ = data()
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_plain_checkpoints_are_loaded(tmp_path):
    model = Regression()
    trainer(tmp_path, 1).fit(model, batches())
    free = Regression(constrained=False)
    free.load_state_dict(baked_state_dict(model))
    again = Regression()
    again.load_state_dict(free.state_dict())
    same(model, again, 1e-5)


def test_precision_clipping_and_accumulation(tmp_path):
    model = Regression()
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
    with trains(model):
        trainer(tmp_path, 2, **settings).fit(model, batches())


def test_weights_are_averaged(tmp_path):
    model = Regression()
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    trainer(tmp_path, 4, callbacks=[averaging]).fit(model, batches())
    assert_feasible(model)


def test_predictions_and_copies(tmp_path):
    model = Regression()
    fitting = trainer(tmp_path, 1)
    fitting.fit(model, batches())
    twin = copy.deepcopy(model)
    same(model, twin)
    x, _ = data()
    outputs = fitting.predict(model, DataLoader(x, batch_size=16))
    torch.testing.assert_close(torch.cat(outputs), twin.eval()(x))


def ran(processes, config, folder):
    """Run `lightning_app` as on a command line."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    command = [sys.executable, str(here / "lightning_app.py"), str(config), str(processes)]
    return subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_train_what_one_does(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONSTRAINTS))
    models = []
    for processes in (1, 2):
        done = ran(processes, config, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        assert ("All distributed processes registered" in done.stderr) is (processes == 2)
        models.append(load(tmp_path / str(processes), plain()))
    one, two = models
    L.seed_everything(0, verbose=False)
    start = values(network())
    for path, value in values(two).items():
        assert not torch.allclose(value, start[path], rtol=0, atol=1e-3), path
    assert_feasible(two)
    assert spec(two) == spec(network())
    # The mean of the gradients of two halves is the gradient of the whole.
    same(one, two, 1e-5)
    # A checkpoint of the two goes on in one.
    resumed = Regression()
    with trains(resumed):
        last = tmp_path / "2" / "last.ckpt"
        trainer(tmp_path, 6).fit(resumed, batches(), ckpt_path=last, weights_only=False)


def test_what_is_wrong_with_a_config_stops_both_processes(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"0.weigth": "orthogonal", "2.weight": "low_rank(rank=7)"}))
    done = ran(2, config, tmp_path)
    assert done.returncode
    assert "matches '0.weigth'. Did you mean '0.weight'?" in done.stderr
    assert "'2.weight': low_rank(rank=7): each element must have at least 7 rows" in done.stderr
    assert not list(tmp_path.glob("*.ckpt"))
