"""``python notebooks/run.py [folder]``: execute all notebooks headless, in place or elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent


def execute(path: Path, into: Path) -> None:
    """Run a notebook with this interpreter, and write it with its outputs into a folder."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        # Where Jupyter runs them.
        resources={"metadata": {"path": str(HERE)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"{path.name}: {error}")
    # Of the environment only what readers need: the language.
    notebook.metadata = nbformat.NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    into.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, into / path.name)


def main(folder: str | None = None) -> None:
    """Execute the notebooks, one after the other."""
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        execute(path, Path(folder) if folder else HERE)


if __name__ == "__main__":
    main(*sys.argv[1:])
