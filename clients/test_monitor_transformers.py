"""A monitor as a callback of the Trainer of transformers."""

import json
import math
import pickle

import pytest
import torch
from test_transformers import CONSTRAINTS, Sentences, arguments, gpt2
from trained import values
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from constrained import Monitor, constrain
from constrained.seeing import TransformersMonitor
from constrained.seeing.sinks import read_csv


def fit(folder, callbacks=(), steps=4):
    torch.manual_seed(0)
    model = constrain(gpt2(), CONSTRAINTS["gpt2"])
    settings = arguments(folder, steps)
    trainer = Trainer(model, settings, train_dataset=Sentences(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def logged(state):
    return [entry for entry in state.log_history if "constrained/violation" in entry]


def test_it_logs_to_the_history_and_to_a_file(tmp_path):
    monitor = TransformersMonitor(every=2, to=tmp_path / "monitor.csv")
    trainer = fit(tmp_path, [monitor])
    entries = logged(trainer.state)
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    path = "transformer.h.1.mlp.c_fc.weight"
    assert entries[0][f"constrained/gradient_norm/{path}"] > 0
    assert entries[-1][f"constrained/drift/{path}"] > 0
    assert read_csv(tmp_path / "monitor.csv") == monitor.monitor.records
    saved = TrainerState.load_from_json(str(tmp_path / "checkpoint-4" / "trainer_state.json"))
    assert [entry["step"] for entry in logged(saved)] == [0, 2]


def test_training_is_the_same(tmp_path):
    plain = fit(tmp_path / "a")
    watched = fit(tmp_path / "b", [TransformersMonitor(every=1)])
    mine, theirs = values(plain.model), values(watched.model)
    for path, value in mine.items():
        assert torch.equal(value, theirs[path]), path


def test_a_nan_is_in_the_history(tmp_path):
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    next(model.parameters())[0, 0] = math.nan

    trainer = fit(tmp_path, [TransformersMonitor(every=1), Broken()])
    entries = logged(trainer.state)
    assert math.isfinite(entries[1]["constrained/violation"])
    assert entries[2]["constrained/violation"] == math.inf
    drift = entries[2]["constrained/drift/transformer.wte.weight"]
    assert math.isnan(drift)
    json.dumps(trainer.state.log_history)


def test_it_reports_to_where_the_trainer_reports(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs)

    torch.manual_seed(0)
    model = constrain(gpt2(), CONSTRAINTS["gpt2"])
    trainer = Trainer(
        model, arguments(tmp_path, 2), train_dataset=Sentences(), callbacks=[Reporter()]
    )
    report = lambda step, metrics: trainer.log(metrics)  # noqa: E731 - as the documentation says
    trainer.add_callback(TransformersMonitor(every=1, to=report))
    trainer.train()
    assert sum("constrained/violation" in logs for logs in seen) == 3


def test_the_plain_monitor_by_the_optimizers_hook(tmp_path):
    torch.manual_seed(0)
    model = constrain(gpt2(), CONSTRAINTS["gpt2"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = Monitor(model)
    optimizer.register_step_pre_hook(monitor)
    settings = arguments(tmp_path, 3)
    Trainer(model, settings, train_dataset=Sentences(), optimizers=(optimizer, None)).train()
    assert [record.step for record in monitor.records] == [1, 2, 3]
    assert all(
        reading.violation <= reading.tolerance and reading.gradient_norm > 0
        for record in monitor.records
        for reading in record.tensors.values()
    )


@pytest.mark.parametrize("every", [3, 5])
def test_the_class_is_found_by_pickle(every):
    assert pickle.loads(pickle.dumps(TransformersMonitor(every=every))).every == every
    assert issubclass(TransformersMonitor, TrainerCallback)
