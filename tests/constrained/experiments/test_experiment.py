"""Reading an experiment: what may stand in a file, and all that is wrong with it."""

from __future__ import annotations

import pytest

from constrained import ConfigErrors
from constrained.experiments import ExperimentError, read_experiment


def sentences(path) -> list[str]:
    """All that is wrong with a file."""
    try:
        read_experiment(path)
    except ConfigErrors as errors:
        found = list(errors.exceptions)
    except ExperimentError as error:
        found = [error]
    else:
        return []
    assert all(isinstance(error, ExperimentError) for error in found)
    assert all(str(error).startswith(f"{path}: ") for error in found)
    assert all("\n" not in str(error) for error in found)
    return [str(error).removeprefix(f"{path}: ") for error in found]


class TestWhatMayStandInAFile:
    def test_defaults(self, bench):
        found = read_experiment(bench.write())
        assert (found.training.batch, found.training.schedule) == (35, "constant")
        assert (found.training.clip, found.training.seed) == (None, 0)
        assert (found.compare, found.monitor, found.save) == (False, None, True)
        assert found.param_groups == {}

    def test_a_name_alone_is_a_part_without_arguments(self, bench):
        short = read_experiment(bench.write({"data": "iris", "optimizer": "SGD"}))
        assert short.data == read_experiment(bench.write()).data
        assert short.optimizer.arguments == {}

    def test_every_default_is_written_out_and_read_again(self, bench):
        import yaml

        groups = {"0.*": {"lr": 0.5}}
        changes = {"optimizer.param_groups": groups, "compare": True, "monitor": 3}
        first = read_experiment(bench.write(changes))
        path = bench.folder / "again.yaml"
        path.write_text(yaml.safe_dump(first.to_dict()), "utf-8")
        assert read_experiment(path) == first
        assert first.optimizer.arguments == {"lr": 0.1}
        assert first.param_groups == groups

    def test_changes_from_the_command_line(self, bench):
        found = read_experiment(bench.write(), epochs=9, seed=4)
        assert (found.training.epochs, found.training.seed) == (9, 4)

    def test_json(self, bench):
        import json

        path = bench.folder / "small.json"
        path.write_text(json.dumps(read_experiment(bench.write()).to_dict()), "utf-8")
        assert read_experiment(path) == read_experiment(bench.write())

    @pytest.mark.parametrize(
        "config",
        [
            {"0": {"weight": "orthogonal"}},
            {"**.weight": {"name": "orthogonal", "where": "matrices"}, "2.weight": None},
            {"0.weight": ["symmetric", "spectral_norm"]},
        ],
    )
    def test_constraints_are_any_config(self, bench, config):
        assert read_experiment(bench.write({"constraints": config})).constraints == config


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"training.epocs": 3}, "training has an unknown key 'epocs'. Known are epochs, batch, "
             "schedule, clip, seed."),
            ({"training.epocs": 3, "training.epochs": ...}, "training has an unknown key 'epocs'. "
             "Did you mean 'epochs'?"),
            ({"training.epochs": ...}, "training lacks the key 'epochs'."),
            ({"model": ...}, "the file lacks the key 'model'."),
            ({"model.name": ...}, "model lacks the key 'name'."),
            ({"training.epochs": "many"}, "training.epochs must be a whole number, got 'many'."),
            ({"training.epochs": 0}, "training.epochs must be at least 1, got 0."),
            ({"training.epochs": True}, "training.epochs must be a whole number, got True."),
            ({"training.clip": 0}, "training.clip must be greater than 0, got 0."),
            ({"training.clip": "1"}, "training.clip must be a number or null, got '1'."),
            ({"training.seed": -1}, "training.seed must be at least 0, got -1."),
            ({"training.schedule": "linear"}, "training.schedule must be one of constant, cosine, "
             "got 'linear'."),
            ({"name": "../up"}, "name must consist of letters, digits, '-' and '_', got '../up'."),
            ({"name": ""}, "name must consist of letters, digits, '-' and '_', got ''."),
            ({"compare": "yes please"}, "compare must be true or false, got 'yes please'."),
            ({"monitor": 0}, "monitor must be at least 1, got 0."),
            ({"data": 3}, "data must be a mapping, got 3."),
            ({"data.7": 1}, None),
            ({"constraints": {}}, "constraints must name at least one tensor, got {}."),
            ({"constraints": {7: "sphere"}}, "constraints has the key 7, which must be text."),
            ({"constraints": "sphere"}, "constraints must be a mapping, got 'sphere'."),
            ({"optimizer.param_groups": 3}, "optimizer.param_groups must be a mapping, got 3."),
            ({"optimizer.param_groups": {"0.*": 3}}, "optimizer.param_groups.0.* must be a mapping "
             "or null, got 3."),
            ({"optimizer.lr": "1e-3"}, "optimizer.lr is the text '1e-3': write the number "
             "without quotes."),
            ({"optimizer.lr": "1e999", "model.hidden": ["-1.5E+2"]}, "model.hidden.0 is the text "
             "'-1.5E+2': write the number without quotes."),
            ({"optimizer.lr": float("nan")}, "optimizer.lr is nan; an experiment holds only "
             "mappings, lists, text, true, false, null and finite numbers."),
            ({"model.hidden": [float("inf")]}, "model.hidden.0 is inf; an experiment holds only "
             "mappings, lists, text, true, false, null and finite numbers."),
        ],
    )  # fmt: skip
    def test_one(self, bench, changes, sentence):
        assert sentences(bench.write(changes)) == ([] if sentence is None else [sentence])

    def test_all_at_once(self, bench):
        changes = {"training.epochs": 0, "data": ..., "nam": "x", "name": ..., "compare": 1}
        assert sorted(sentences(bench.write(changes))) == [
            "compare must be true or false, got 1.",
            "the file has an unknown key 'nam'. Did you mean 'name'?",
            "the file lacks the key 'data'.",
            "training.epochs must be at least 1, got 0.",
        ]

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("", "the file must hold a mapping, and it is empty."),
            ("[1, 2]", "the file must hold a mapping, and it is a list."),
            ("name: [", "line 1, column 8: this is no YAML"),
            ("name: a\nname: b", "the key 'name' stands twice in one mapping."),
            ('name: !!python/object/apply:print ["hi"]', "could not determine a constructor"),
            ("name: 2020-01-01", "name is datetime.date(2020, 1, 1); an experiment holds only"),
            ("a: &a [*a]", "holds itself"),
            (
                "a: &a [x, x, x, x, x, x, x, x, x]\n"
                + "\n".join(
                    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]"
                    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
                ),
                "written out in full",
            ),
        ],
    )
    def test_files_that_are_none(self, bench, text, part):
        path = bench.folder / "other.yaml"
        path.write_text(text, "utf-8")
        (sentence,) = sentences(path)
        assert part in sentence

    def test_missing_file(self, bench):
        assert sentences(bench.folder / "none.yaml") == ["No such file or directory."]

    def test_no_text(self, bench):
        path = bench.folder / "bytes.yaml"
        path.write_bytes(b"\xff\xfe\x00name: x")
        assert len(sentences(path)) == 1
