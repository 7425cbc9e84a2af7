"""Methods of `ParametrizationList` that have other names since version 0.2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constrained import get
from constrained.parametrize import ParametrizationList


def test_methods_go_on_working_under_their_old_names():
    original = nn.Parameter(torch.eye(3))
    found = ParametrizationList([get("orthogonal")()], original, deferred=True)
    with pytest.warns(DeprecationWarning, match=r"ParametrizationList\.take is called attach now"):
        found.take(original)
    assert found.original is original
    new = -torch.eye(3)
    with pytest.warns(DeprecationWarning, match="put is called store_originals"), torch.no_grad():
        found.put([new])
    assert torch.equal(original, new)
    other = nn.Parameter(torch.zeros(3, 3))
    with pytest.warns(DeprecationWarning, match="begin_with is called replace_originals"):
        found.begin_with(other, new)
    assert found.original is other and torch.equal(other, new)
