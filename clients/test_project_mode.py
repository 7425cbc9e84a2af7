"""The same libraries over plain parameters that each optimizer step leaves in their sets."""

import copy
import pickle

import lightning as L
import pyro
import pytest
import torch
import yaml
from accelerate import Accelerator, cpu_offload
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from network import CONSTRAINTS, data, network, plain
from peft import LoraConfig, get_peft_model
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn.module import to_pyro_module_
from safetensors.torch import load_file
from skorch import NeuralNetRegressor
from test_accelerate import fit as fit_prepared
from test_accelerate import prepared
from test_lightning import Regression, batches, ran, trainer
from test_pyro import Regression as PyroRegression
from test_skorch import Network, arrays
from test_torch_geometric import Network as GraphNetwork
from test_torch_geometric import fit as fit_graphs
from test_transformers import CONSTRAINTS as OF_TRANSFORMERS
from test_transformers import fit as fit_sentences
from tiny_transformers import Sentences, arguments, bert, gpt2, llama, logits
from torch import nn
from torch_geometric.nn import GATConv
from trained import same, trains
from transformers import Trainer

from constrained import (
    InfeasibleError,
    assert_feasible,
    constrain,
    load,
    load_state_dict,
    save,
    spec,
)


def by_projection(constraints):
    """The same constraints, kept by the optimizer."""
    return {path: {"name": name, "mode": "project"} for path, name in constraints.items()}


def specs_by_projection():
    names = spec(network())
    return {path: {**each, "mode": "project"} for path, each in names.items()}


def projected():
    return constrain(plain(), specs_by_projection())


class Projected(Regression):
    def __init__(self, optimizer="Adam"):
        super().__init__(False, optimizer)
        constrain(self.body, specs_by_projection())


class ProjectedNetwork(Network):
    def __init__(self):
        super().__init__(specs_by_projection())


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "LBFGS"])
def test_lightning_fits(optimizer, tmp_path):
    model = Projected(optimizer)
    with trains(model):
        trainer(tmp_path, 2).fit(model, batches(), batches())
    assert model.state_dict().keys() == Regression(False).state_dict().keys()


def test_lightning_resumes(tmp_path):
    model = Projected()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer(tmp_path, 3, callbacks=[saving]).fit(model, batches())
    resumed = Projected()
    trainer(tmp_path, 3).fit(resumed, batches(), ckpt_path=tmp_path / "epoch=1.ckpt")
    same(model, resumed, 1e-6)


def test_precision_clipping_and_accumulation(tmp_path):
    model = Projected()
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
    with trains(model):
        trainer(tmp_path, 2, **settings).fit(model, batches())


def test_averaged_weights_are_outside_until_they_are_projected(tmp_path):
    model = Projected()
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    trainer(tmp_path, 4, callbacks=[averaging]).fit(model, batches())
    with pytest.raises(InfeasibleError, match="body.*weight"):
        assert_feasible(model)
    load_state_dict(model, model.state_dict(), on_infeasible="project")
    assert_feasible(model)


def test_two_processes_train_what_one_does(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(by_projection({"0.weight": "orthogonal", "6.bias": "simplex"}))
    )
    models = []
    for processes in (1, 2):
        done = ran(processes, config, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        models.append(load(tmp_path / str(processes), plain()))
        assert_feasible(models[-1])
    same(*models, 1e-5)


def test_accelerate(tmp_path):
    model, twin = projected(), projected()
    accelerator, *parts = prepared(model)
    with trains(model):
        fit_prepared(accelerator, *parts)
    accelerator.save_state(tmp_path)
    fit_prepared(accelerator, *parts)
    other, *others = prepared(twin)
    other.load_state(tmp_path)
    fit_prepared(other, *others)
    same(model, twin)
    model.eval()
    expected = model(data()[0])
    cpu_offload(model, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(data()[0]), expected)
    Accelerator(cpu=True).save_model(twin, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == plain().state_dict().keys()


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_the_trainer_trains_saves_and_resumes(kind, tmp_path):
    make, constraints = {"gpt2": gpt2, "bert": bert, "llama": llama}[kind], OF_TRANSFORMERS[kind]
    torch.manual_seed(0)
    model = constrain(make(), by_projection(constraints))
    first = copy.deepcopy(model)
    with trains(model):
        Trainer(model, arguments(tmp_path, 4), train_dataset=Sentences()).train()
    again = Trainer(first, arguments(tmp_path, 4), train_dataset=Sentences())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(model, first, 1e-6)
    model.save_pretrained(tmp_path / "plain")
    served = type(model).from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(served), logits(model))
    constrain(served, by_projection(constraints), init="strict")
    with trains(served):
        fit_sentences(served)
    save(served, tmp_path / "whole")
    same(load(tmp_path / "whole", make()), served)


def test_adapters_are_trained_and_merged():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = projected()

        def forward(self, x):
            return self.layers(x)

    x, y = data()
    model = get_peft_model(Body(), LoraConfig(r=2, target_modules=["layers.2", "layers.4"]))
    constrain(model, "**.lora_A.*.weight", "orthogonal", mode="project")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        assert_feasible(model)
    expected = model(x)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected)
    with pytest.raises(InfeasibleError, match="layers.2.weight"):
        assert_feasible(merged)


def test_skorch(tmp_path):
    settings = {"optimizer": torch.optim.Adam, "lr": 1e-2, "max_epochs": 2, "train_split": None}
    net = NeuralNetRegressor(ProjectedNetwork, **settings, verbose=0).initialize()
    with trains(net.module_):
        net.partial_fit(*arrays())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        same(net.module_, twin.module_)
        with trains(twin.module_):
            twin.partial_fit(*arrays())
    net.save_params(f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt")
    twin = NeuralNetRegressor(ProjectedNetwork, **settings, verbose=0).initialize()
    twin.load_params(f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt")
    net.partial_fit(*arrays())
    twin.partial_fit(*arrays())
    same(net.module_, twin.module_, 1e-6)


def test_pyro():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    body = projected()
    to_pyro_module_(body)
    model = PyroRegression(body)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    with trains(model):
        losses = [svi.step(*data()) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_torch_geometric():
    graphs = GraphNetwork(lambda: GATConv(6, 3, heads=2))
    targets = by_projection({"*.lin.weight": "orthogonal", "*.att_src": "sphere"})
    model = constrain(graphs, targets)
    with trains(model):
        fit_graphs(model)


def test_lightning_checkpoints_are_plain(tmp_path):
    model = Projected()
    fitting = trainer(tmp_path, 1)
    fitting.fit(model, batches())
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    free = Regression(constrained=False)
    free.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"])
    assert torch.equal(free(data()[0]), model(data()[0]))
    assert CONSTRAINTS.keys() == spec(model.body).keys()
    L.seed_everything(0, verbose=False)
