"""Configs in files: each key once, errors in one sentence with the line, nothing executed."""

from __future__ import annotations

import sys

import pytest

from constrained import SpecError, read_config

SAME = {"encoder.weight": {"name": "ball", "radius": 0.001}, "layers": {"0": "sphere"}}


def written(folder, name: str, text: str | bytes):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "encoder.weight: {name: ball, radius: 1.0e-3}\nlayers: {'0': sphere}\n"),
        ("a.YML", "encoder.weight: {name: ball, radius: 0.001}\nlayers:\n  '0': sphere\n"),
        (
            "a.json",
            '{"encoder.weight": {"name": "ball", "radius": 1e-3}, "layers": {"0": "sphere"}}',
        ),
        ("a.toml", '["encoder.weight"]\nname = "ball"\nradius = 1e-3\n[layers]\n0 = "sphere"\n'),
        ("a.yaml", "\ufeffencoder.weight: {name: ball, radius: 0.001}\nlayers: {'0': sphere}\n"),
    ],
)
def test_all_formats_give_the_same(tmp_path, name, text):
    assert read_config(written(tmp_path, name, text)) == SAME


def test_a_merged_key_may_stand_again(tmp_path):
    text = "x: &x {name: ball, radius: 1}\ny: {<<: *x, radius: 2}\n"
    assert read_config(written(tmp_path, "a.yaml", text))["y"] == {"name": "ball", "radius": 2}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.yaml", "a: 1\nb: {c: 2, c: 4}\n", "line 2, column 11: the key 'c' stands twice in one"),
        ("a.yaml", "a: 1\n'a': 2\n", "line 2, column 1: the key 'a' stands twice"),
        ("a.yaml", "yes: 1\ntrue: 2\n", "line 2, column 1: the key True stands twice"),
        (
            "a.json",
            '{"a": 1,\n\t"b": {"c": 1,\n\t\t"c": 2}}',
            "line 3, column 3: the key 'c' stands",
        ),
        ("a.toml", "a = 1\na = 2\n", "this is no TOML: Cannot overwrite a value (at line 2"),
        ("a.toml", "[x]\n[x]\n", "Cannot declare ('x',) twice (at line 2"),
        ("a.yaml", "a: [1\nb: 2", "line 2, column 2: this is no YAML: "),
        ("a.yaml", "a: 1\n---\nb: 2", "line 2, column 1: this is no YAML: "),
        ("a.yaml", "? [a, b]\n: 1\n", "this is no YAML: found unhashable key"),
        ("a.yaml", "a: !!python/object/apply:print [x]", "could not determine a constructor"),
        (
            "a.yaml",
            "a: 1\nb: 2001-99-99\n",
            "line 2, column 4: this is no YAML: '2001-99-99' is no timestamp (month must be in 1",
        ),
        ("a.yaml", "2001-13-01: sphere\n", "line 1, column 1: this is no YAML: '2001-13-01' is"),
        ("a.yaml", "a: !!bool x\n", "line 1, column 4: this is no YAML: 'x' is no bool"),
        ("a.yaml", "a: !!int x\n", "line 1, column 4: this is no YAML: 'x' is no int"),
        ("a.yaml", "a: !!float x\n", "line 1, column 4: this is no YAML: 'x' is no float"),
        ("a.yaml", "a: \0\n", "this is no YAML: unacceptable character"),
        ("a.yaml", "[" * 5000, "nested too deep"),
        ("a.json", "[" * 200_000, "nested too deep"),
        ("a.yaml", "a: " + "9" * 6000, "Exceeds the limit"),
        ("a.json", '{"a": 1,,}', "line 1, column 9: this is no JSON: "),
        ("a.json", '["a"]', "the file must hold a mapping, and it is a list"),
        ("a.yaml", "", "the file must hold a mapping, and it is empty"),
        ("a.yaml", b"\xff\xfea", "this is no text file in UTF-8"),
        ("a.ymal", "a: 1", "a config ends in .yaml, .yml, .json, .toml. Did you mean '.yml'?"),
        ("a", "a: 1", "a config ends in .yaml, .yml, .json, .toml."),
    ],
)
def test_errors_are_one_sentence_with_the_path(tmp_path, name, text, sentence, capsys):
    path = written(tmp_path, name, text)
    with pytest.raises(SpecError) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert sentence in message
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert capsys.readouterr().out == "", "nothing was executed"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match=r"No file is called 'a\\x00.yaml', which holds a NUL"):
        read_config("a\0.yaml")
    with pytest.raises(FileNotFoundError, match=r"none.yaml: No such file or directory.$"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder.yaml: Is a directory.$"):
        read_config(str(tmp_path / "folder.yaml"))


def test_libraries_are_imported_when_a_file_is_read():
    import subprocess

    program = "import sys, constrained; print({'yaml', 'tomllib', 'pylatexenc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".1e-2", "1.e-3", "+1e-3", "0.01e-1"])
def test_a_number_with_an_exponent_is_one_as_in_yaml_1_2(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(f"w: {{name: ball, radius: {text}}}\nv: '{text}'\nu: {text}x\n")
    found = read_config(file)
    assert found["w"]["radius"] == 1e-3
    assert found["v"] == text
    assert found["u"] == f"{text}x"


@pytest.mark.parametrize("text", ["*.weight: sphere\n", "a: sphere\n**.weight: sphere\n"])
def test_a_key_that_begins_with_a_wildcard_needs_quotes(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=r"needs quotes: '\*+\.weight'"):
        read_config(file)
