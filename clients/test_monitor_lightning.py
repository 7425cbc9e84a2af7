"""A monitor as a callback of Lightning."""

import csv
import pickle
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from network import CONSTRAINTS
from test_lightning import Regression, batches
from trained import values

from constrained import Monitor
from constrained.seeing import LightningMonitor
from constrained.seeing.sinks import read_csv


def fit(folder, callbacks=(), epochs=3, logger=False, optimizer="Adam", **more):
    torch.manual_seed(0)
    model = Regression(optimizer=optimizer)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **more,
    )
    trainer.fit(model, batches())
    return model


def test_it_logs_to_the_loggers_of_the_trainer(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    monitor = LightningMonitor(every=2, to=tmp_path / "monitor.csv")
    fit(tmp_path, [monitor], logger=logger)
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["constrained/violation"]]
    # Two batches an epoch; the last record is of where training ends.
    assert steps == [0, 2, 4, 6]
    for path in CONSTRAINTS:
        assert float(rows[-1][f"constrained/drift/body.{path}"]) > 0
    assert float(rows[0]["constrained/gradient_norm/body.0.weight"]) > 0
    written = read_csv(tmp_path / "monitor.csv")
    assert [record.step for record in written] == steps
    assert written == monitor.monitor.records
    assert all(
        reading.violation <= reading.tolerance
        for record in written
        for reading in record.tensors.values()
    )


SETTINGS = [
    {"optimizer": "Adam"},
    {"optimizer": "LBFGS"},
    {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
]


@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_training_is_the_same(more, tmp_path):
    plain = fit(tmp_path, **more)
    monitor = LightningMonitor(every=1)
    watched = fit(tmp_path, [monitor], **more)
    assert len(monitor.monitor.records) > 3
    mine, theirs = values(plain), values(watched)
    for path, value in mine.items():
        assert torch.equal(value, theirs[path]), path


def test_the_gradient_is_that_of_the_step(tmp_path):
    class Compared(L.Callback):
        """What a plain monitor reads between the backward pass and the step."""

        records = ()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            monitor = Monitor(pl_module)
            self.records = [*self.records, monitor.record(trainer.global_step)]

    other, monitor = Compared(), LightningMonitor(every=1)
    fit(tmp_path, [monitor, other], epochs=1)
    for mine, theirs in zip(monitor.monitor.records, other.records, strict=False):
        for path, reading in mine.tensors.items():
            assert reading.gradient_norm == theirs.tensors[path].gradient_norm > 0


def test_without_a_logger_and_twice(tmp_path):
    monitor = LightningMonitor(every=3)
    fit(tmp_path, [monitor])
    first = monitor.monitor
    fit(tmp_path, [monitor])
    assert monitor.monitor is not first
    assert [r.step for r in monitor.monitor.records] == [0, 3, 6]


def test_the_class_is_found_by_pickle():
    assert pickle.loads(pickle.dumps(LightningMonitor(every=7))).every == 7
    assert issubclass(LightningMonitor, L.Callback)
