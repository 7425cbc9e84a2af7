"""Parts, copies and unions of containers of constrained tensors, and what is taken out of them."""

import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from constrained import constrain, release, violations


def in_list(targets="*"):
    torch.manual_seed(0)
    ws = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])
    return constrain(ws, dict.fromkeys(targets, "orthogonal"))


def in_dict(targets="*", keys="abc"):
    torch.manual_seed(0)
    d = nn.ParameterDict({k: nn.Parameter(torch.randn(4, 4)) for k in keys})
    return constrain(d, dict.fromkeys(targets, "orthogonal"))


LISTS = {
    "a slice": (lambda x: x[1:], [1, 2]),
    "from the end": (lambda x: x[::-1], [2, 1, 0]),
    "a slice of a slice": (lambda x: x[1:][1:], [2]),
    "nothing": (lambda x: x[3:], []),
    "every other": (lambda x: x[::2], [0, 2]),
    "extended": (lambda x: x[:2].extend(x[1:]), [0, 1, 1, 2]),
}
DICTS = {
    "copy": (lambda d: d.copy(), "abc"),
    "or": (lambda d: d | nn.ParameterDict(), "abc"),
    "or, reflected": (lambda d: nn.ParameterDict() | d, "abc"),
    "or with a dict": (lambda d: d | {}, "abc"),
}
MADE = [
    *((in_list, *case) for case in LISTS.values()),
    *((in_dict, *case) for case in DICTS.values()),
]


@pytest.mark.parametrize("part", ["*", "1", "01"])
@pytest.mark.parametrize(("make", "derive", "keys"), MADE, ids=[*LISTS, *DICTS])
def test_a_container_made_of_another_has_its_parameters(make, derive, keys, part):
    whole = make(part if make is in_list else part.translate({48: "a", 49: "b"}))
    new = derive(whole)
    assert len(new) == len(keys)
    items = [whole[k] for k in keys]
    got = [new[k] for k in (keys if make is in_dict else range(len(keys)))]
    assert all(a is b for a, b in zip(got, items, strict=True))
    mine = {id(p) for p in whole.parameters()}
    assert all(id(p) in mine for p in new.parameters())
    before = {k: whole[k].detach().clone() for k in (range(3) if make is in_list else "abc")}
    if keys:
        sum(w.sin().sum() for w in got).backward()
        torch.optim.SGD(new.parameters(), lr=0.1).step()
    for k, old in before.items():
        assert torch.equal(whole[k], old) == (k not in keys)
    assert max(violations(whole).values()) < 1e-5
    again = pickle.loads(pickle.dumps(new))
    for k in keys if make is in_dict else range(len(keys)):
        assert_close(again[k].detach(), new[k].detach())


def test_parameters_come_in_the_order_of_the_entries():
    for whole in (in_list("1"), in_list("02")):
        order = [id(p) for p in whole.parameters()]
        assert [id(p) for p in whole[:].parameters()] == order
        assert [id(p) for p in whole[::-1].parameters()] == order[::-1]
    d = in_dict("ac")
    assert [id(p) for p in d.copy().parameters()] == [id(p) for p in d.parameters()]


def test_a_union_has_the_entries_of_the_second_and_assigns_nothing():
    d, e = in_dict(), in_dict(keys="cd")
    old = {k: v.detach().clone() for k, v in d.items()}
    both = d | e
    assert list(both) == ["a", "b", "c", "d"]
    assert both["c"] is e["c"] and both["d"] is e["d"] and both["a"] is d["a"]
    assert all(torch.equal(d[k], old[k]) for k in old)
    p = nn.Parameter(torch.zeros(2))
    both = d | {"c": p}
    assert both["c"] is p and both["b"] is d["b"]
    assert torch.equal(d["c"], old["c"])
    assert ({"x": 1} | d) == {"x": 1, **d}


def test_an_update_shares_new_entries_and_assigns_those_that_are_there():
    d, e = in_dict(), in_dict(keys="cd")
    original = d.parametrizations.c.original
    d |= e
    assert d["d"] is e["d"]
    assert d.parametrizations.c.original is original
    assert_close(d["c"].detach(), e["c"].detach())
    assert list(d) == ["a", "b", "c", "d"]


def test_a_class_that_is_derived_keeps_its_own_way():
    class Named(nn.ParameterList):
        def __getitem__(self, idx):
            return "slice" if isinstance(idx, slice) else super().__getitem__(idx)

    ws = constrain(Named([nn.Parameter(torch.randn(4, 4))]), "*", "sphere")
    assert ws[0:] == "slice"


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.ws = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])

    def forward(self, x):
        x = x @ self.ws[0]
        for w in self.ws[1:]:
            x = x @ w
        return x


@pytest.mark.parametrize("run", [lambda m: m, lambda m: torch.compile(m, backend="eager")])
def test_a_model_that_slices_trains_all_of_its_tensors(run):
    m = constrain(Deep(), "ws.*", "orthogonal")
    run(m)(torch.eye(4)).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    w = torch.randn(4, 4)
    expected = m.ws[0] @ w @ m.ws[2]
    assert_close(functional_call(m, {"ws.1": w}, (torch.eye(4),)), expected)


def test_what_a_model_slices_is_soon_forgotten_and_releases():
    m = constrain(Deep(), "ws.*", "orthogonal")
    part = weakref.ref(m.ws[1:])
    gc.collect()
    assert part() is None
    mine = list(m.parameters())
    release(m)
    assert type(m.ws) is nn.ParameterList
    assert all(a is b for a, b in zip(m.parameters(), mine, strict=True))


TAKEN = {
    "pop": lambda d: d.pop("b"),
    "popitem": lambda d: d.popitem(),
    "del": lambda d: d.__delitem__("b"),
    "clear": lambda d: d.clear(),
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_an_entry_that_cannot_be_taken_out_stays(take):
    d = in_dict("bc")
    before, items = dict(d.named_parameters()), dict(d.items())
    with pytest.raises(RuntimeError, match=r"'[bc]' is parametrized .*constrained.release"):
        take(d)
    assert list(d) == ["a", "b", "c"]
    assert all(d[k] is v for k, v in items.items())
    assert {k: id(p) for k, p in d.named_parameters()} == {k: id(p) for k, p in before.items()}
    assert d.pop("a") is items["a"] and list(d) == ["b", "c"]
    release(d)
    d.clear()
    assert len(d) == 0
