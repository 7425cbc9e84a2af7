"""Sparse gradients, as of ``nn.Embedding(sparse=True)``, reach constraints as dense ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import constrained.parametrize as ours
from constrained import constrain, get, names, violations

#: Sets of kernels, which are no table of vectors.
KERNELS = {"orthogonal_conv", "spectral_norm_conv"}


def table(name, sparse):
    """An embedding whose weight, of vectors or one matrix, is constrained, and some of its rows."""
    cls = get(name)
    kwargs, shape = cls.examples[0]
    torch.manual_seed(0)
    shape = ((6, 4), (6, *shape), shape)[len(shape)]
    m = nn.Embedding(*shape, sparse=sparse)
    constrain(m, "weight", cls(**kwargs))
    return m, torch.tensor([0, shape[0] - 1, 0])


def gradients(m, loss):
    m.zero_grad()
    loss().backward()
    return [p.grad for p in m.parameters()]


@pytest.mark.parametrize("name", sorted({get(name).name for name in names()} - KERNELS))
def test_gradients_are_those_of_a_dense_embedding(name):
    (m, rows), (dense, _) = table(name, True), table(name, False)
    found, expected = (
        gradients(model, lambda model=model: model(rows).square().sum()) for model in (m, dense)
    )
    assert all(g is None or g.layout is torch.strided for g in found)
    assert_close(found, expected)
    # Where nothing is stored.
    found = gradients(m, lambda: checkpoint(lambda: m(rows).square().sum(), use_reentrant=False))
    assert_close(found, expected)
    for model in (m, dense):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_close(m.weight, dense.weight)
    assert max(violations(m).values()) < 1e-4
    # One sentence of torch's own, which names the cure, whatever the constraint.
    if any(p.grad is not None for p in m.parameters()):
        with pytest.raises(RuntimeError, match="does not support dense gradients.*Adam instead"):
            torch.optim.SparseAdam(list(m.parameters())).step()


@pytest.mark.parametrize("spec", ["sphere", "orthogonal", "simplex"])
@pytest.mark.parametrize(
    "read",
    [
        lambda w, i, sparse: F.embedding_bag(i, w, mode="sum", sparse=sparse),
        lambda w, i, sparse: F.embedding_bag(i, w, mode="mean", sparse=sparse),
        lambda w, i, sparse: w.gather(0, i, sparse_grad=sparse),
    ],
)
def test_other_operations_with_sparse_gradients(spec, read):
    m = constrain(nn.Linear(4, 4, bias=False), "weight", spec)
    i = torch.tensor([[0, 1, 2, 0], [3, 3, 0, 1]])
    found, expected = (
        gradients(m, lambda sparse=sparse: read(m.weight, i, sparse).pow(3).sum())
        for sparse in (True, False)
    )
    assert_close(found, expected)
    assert torch.count_nonzero(found[0]) > 0


def test_second_derivatives_of_a_sparse_embedding():
    found = []
    for sparse in (True, False):
        m, rows = table("sphere", sparse)
        (p,) = m.parameters()
        (g,) = torch.autograd.grad(m(rows).pow(3).sum(), p, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), p)[0])
    assert_close(*found)


def test_a_foreign_parametrization_gets_what_torch_gives_it():
    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    for P in (ours, nn.utils.parametrize):
        m = P.register_parametrization(nn.Embedding(6, 4, sparse=True), "weight", Halved())
        m(torch.tensor([1, 2])).sum().backward()
        assert m.parametrizations.weight.original.grad.is_sparse
        torch.optim.SparseAdam(list(m.parameters())).step()
