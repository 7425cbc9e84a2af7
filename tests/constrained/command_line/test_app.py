"""The command as a whole: exit codes, errors in one line, real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import constrained
from constrained.command_line.output import print_lines

COMMAND = [sys.executable, "-m", "constrained"]


def test_without_arguments_it_lists_its_commands(run):
    result = run()
    assert result.exit_code == 0
    for command in ("list", "show", "check", "schema", "run", "diff", "bench", "doctor"):
        assert f"\n  {command} " in result.stdout
    assert "..." not in result.stdout.partition("Commands")[2], "sentences fit into 80 columns"


def test_version(run):
    assert run("--version").stdout == f"{constrained.__version__}\n"


@pytest.mark.parametrize("command", ["list", "show", "check", "schema", "diff", "bench", "doctor"])
def test_every_command_has_help_and_json(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_unknown_commands_and_options(problem):
    assert problem("lst").startswith("No such command 'lst'.")
    assert problem("list", "--jsn").startswith("No such option: --jsn")
    assert problem("show").startswith("Missing argument")
    assert problem("bench", "sphere", "--threads", "many").startswith(
        "Invalid value for '--threads'"
    )


def test_in_a_process(tmp_path):
    done = subprocess.run([*COMMAND, "show", "ball"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ball(radius=1.0, p=2.0)\n")
    done = subprocess.run([*COMMAND, "show", "bal"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "Error: Unknown constraint 'bal'. Did you mean 'ball'? 'constrained list' lists them all.\n"
    )


def test_a_terminal_without_the_characters_of_formulas(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [*COMMAND, "show", "orthogonal"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"{W ? ????" in done.stdout


def test_what_reads_the_output_may_stop(tmp_path):
    with subprocess.Popen([*COMMAND, "schema"], stdout=-1, stderr=-1, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("command", ["list", "schema"])
def test_a_disk_that_is_full(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, command], stdout=full, stderr=-1, text=True)
    assert done.returncode == 2
    assert done.stderr == "Error: The output cannot be written: No space left on device.\n"


def test_output_that_is_closed():
    command = f'"{sys.executable}" -m constrained list >&-'
    done = subprocess.run(command, shell=True, stderr=-1, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_headings_are_bold_on_a_terminal_unless_it_says_no(monkeypatch, setting):
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **setting}.items():
        monkeypatch.setenv(name, value)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    print_lines(["Use", "a heading"], ["Use"])
    assert ("\x1b[" in terminal.getvalue()) == (not setting)


def test_ctrl_c(tmp_path):
    (tmp_path / "slow_model.py").write_text(
        "import time\nprint('building', flush=True)\ndef model():\n    time.sleep(60)\n",
        "utf-8",
    )
    (tmp_path / "c.yaml").write_text("weight: sphere\n", "utf-8")
    command = [*COMMAND, "check", "c.yaml", "--model", "slow_model:model"]
    with subprocess.Popen(
        command,
        stdout=-1,
        stderr=-1,
        cwd=tmp_path,
        text=True,
        # A job in the background of a shell ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "building\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()


def test_the_entry_point_is_declared():
    import tomllib
    from importlib.metadata import entry_points
    from pathlib import Path

    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    path, _, name = project["scripts"]["constrained"].partition(":")
    module = __import__(path, fromlist=[name])
    assert callable(getattr(module, name))
    assert entry_points(group="constrained.constraints")


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(run, folder):
    (folder / "warns.py").write_text("import warnings\nwarnings.warn('old\\nthing')\n", "utf-8")
    result = run("list", "simplex", "--import", "warns", "--json")
    assert result.stderr == "Warning: old thing\n"
    assert json.loads(result.stdout)[0]["name"] == "simplex"
