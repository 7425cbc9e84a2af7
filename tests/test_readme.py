import re
from pathlib import Path

import pytest

from constrained import registry

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def registered(monkeypatch):
    """What a snippet registers is gone afterwards, and nothing else."""
    registry.names()
    monkeypatch.setattr(registry, "_constraints", dict(registry._constraints))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def test_the_snippets_run(registered, capsys):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 5
    namespace: dict = {"__name__": "readme"}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), namespace)
    assert "0.weight" in capsys.readouterr().out


def test_every_constraint_is_in_the_list(registered):
    text = README.read_text()
    missing = [name for name in registry.names() if f"`{name}`" not in text]
    assert not missing
