"""``diff``: two checkpoints, with what they record of their constraints."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import constrained


@pytest.fixture
def files(folder):
    """A model before and after three steps, in several formats."""
    namespace: dict[str, object] = {}
    exec((folder / "toy_models.py").read_text("utf-8"), namespace)
    model = namespace["kept"]()  # type: ignore[operator]
    torch.save(model.state_dict(), "a.pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum((model[i].weight - 1).square().sum() for i in (0, 2, 3)).backward()
        optimizer.step()
    torch.save({"state_dict": model.state_dict(), "step": 3}, "b.pt")
    save_file(dict(model.state_dict()), "b.safetensors")
    baked = constrained.baked_state_dict(model)
    torch.save(baked, "plain.pt")
    baked["0.weight"] = 2 * baked["0.weight"]
    save_file(baked, "double.safetensors")
    return model


def rows(result) -> dict[str, dict]:
    assert result.exit_code == 0, result.output
    return {row["path"]: row for row in json.loads(result.stdout)["tensors"]}


@pytest.mark.parametrize("factory", ["", "net", "kept"])
def test_values_follow_from_the_records(run, files, factory):
    model = ("--model", f"toy_models:{factory}") if factory else ()
    found = rows(run("diff", "a.pt", "b.pt", *model, "--json"))
    orthogonal, positive = found["0.weight"], found["3.weight"]
    assert orthogonal["constraint"] == "orthogonal()"
    assert orthogonal["holds"] == [True, True]
    for spectrum in orthogonal["spectra"]:
        assert spectrum == pytest.approx([1, 1], abs=1e-5)
    assert orthogonal["distance"] > 0.1
    assert positive["constraint"] == "positive()"
    assert found["0.bias"]["distance"] == 0
    unknown = json.loads(run("diff", "a.pt", "b.pt", *model, "--json").stdout)["unknown"]
    if model:
        assert unknown == []
        expected = torch.linalg.svdvals(files[2].weight.detach().flatten(1))
        assert found["2.weight"]["spectra"][1] == pytest.approx(
            [float(expected[0]), float(expected[-1])], rel=1e-4
        )
    else:
        # The shape of a tensor with a view is not in the file.
        assert unknown == ["2.weight"]
        assert "2.parametrizations.weight.original" in found


def test_a_file_of_save_records_everything(run, files, folder):
    constrained.save(files, folder / "saved.safetensors")
    found = rows(run("diff", "saved.safetensors", "b.pt", "--model", "toy_models:kept", "--json"))
    assert all(row["distance"] == 0 for row in found.values())
    alone = rows(run("diff", "saved.safetensors", "saved.safetensors", "--json"))
    assert "viewed as" in alone["2.weight"]["constraint"]
    assert alone["2.weight"]["shapes"][0] == [4, 8, 3]
    assert alone["2.weight"]["spectra"] == found["2.weight"]["spectra"]


def test_the_table(run, files):
    result = run("diff", "a.pt", "b.pt")
    assert "\n0.weight " in result.stdout
    assert "5 tensors are the same in both." in result.stdout
    text = " ".join(result.stdout.split())
    assert "'2.weight' follows from its parameters is not recorded: give --model." in text


def test_a_plain_file_is_measured_by_the_constraint_of_the_other(run, files):
    same = rows(run("diff", "plain.pt", "b.pt", "--json"))["0.weight"]
    assert (same["distance"], same["holds"]) == (0, [True, True])
    found = rows(run("diff", "b.pt", "double.safetensors", "--json"))["0.weight"]
    assert found["distance"] == pytest.approx(1, rel=1e-6)
    assert found["holds"] == [True, False]
    assert "(outside)" in run("diff", "b.pt", "double.safetensors", columns=140).stdout


def test_a_file_without_a_record_needs_the_model(run, files):
    found = json.loads(run("diff", "b.safetensors", "b.pt", "--json").stdout)
    assert found["unknown"] == ["0.weight", "2.weight", "3.weight"]
    same = rows(run("diff", "b.safetensors", "b.pt", "--model", "toy_models:kept", "--json"))
    assert all(row["distance"] == 0 for row in same.values())


def test_a_folder_is_the_file_that_save_writes_there(run, folder):
    (folder / "saved").mkdir()
    constrained.save(constrained.constrain(torch.nn.Linear(2, 2), "weight", "sphere"), "saved")
    assert (
        rows(run("diff", "saved", "saved/model.safetensors", "--json"))["weight"]["distance"] == 0
    )


def test_tensors_of_one_file_only(run, folder):
    torch.save({"a": torch.ones(2), "b": torch.ones(2, 2)}, "one.pt")
    torch.save({"b": torch.ones(2, 3), "c": torch.full((2,), torch.nan)}, "two.pt")
    found = rows(run("diff", "one.pt", "two.pt", "--json"))
    assert found["a"]["shapes"] == [[2], None]
    assert found["b"]["distance"] is None
    assert found["c"]["shapes"] == [None, [2]]
    table = run("diff", "one.pt", "two.pt").stdout
    assert "in the first only" in table and "in the second only" in table
    assert "2 x 2 -> 2 x 3" in table
    with_nan = rows(run("diff", "two.pt", "two.pt", "--json"))
    assert with_nan["c"]["distance"] == "nan"


def test_files_that_are_no_checkpoints(problem, folder):
    torch.save({"w": torch.ones(2)}, "a.pt")
    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    torch.save({"step": 3}, "no.pt")
    (folder / "junk.pt").write_text("hello")
    (folder / "junk.safetensors").write_text("hello")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"w": 1}))
    assert problem("diff", "none.pt", "a.pt") == "none.pt: there is no such file."
    assert problem("diff", "a.pt", "pickle.pt") == "pickle.pt: this is no file of torch.save."
    assert problem("diff", "a.pt", ".") == "model.safetensors: there is no such file."
    assert "write torch.save(model.state_dict(), path)" in problem("diff", "a.pt", "whole.pt")
    assert problem("diff", "a.pt", "junk.pt") == "junk.pt: this is no file of torch.save."
    assert "is no file of safetensors" in problem("diff", "junk.safetensors", "a.pt")
    assert problem("diff", "no.pt", "a.pt") == "no.pt: the file holds no state dict."
    assert "a.pt does not fit the model" in problem(
        "diff", "a.pt", "a.pt", "--model", "toy_models:kept"
    )
