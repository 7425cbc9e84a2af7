"""The ways in which a model is copied."""

import copy
import io
import pickle

import pytest
import torch


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save({"model": model, "epoch": 3}, file)
    file.seek(0)
    return torch.load(file, weights_only=False)["model"]


def cloudpickled(model):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(model))


COPIES = [pickled, saved, cloudpickled, copy.deepcopy]
