"""The policy on deprecations in CONTRIBUTING.md: two minor versions, a warning, and a list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import constrained
from constrained.constraint.deprecated import RENAMED
from constrained.constraint.moved import UNTIL

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text("utf-8")


def minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def deprecated() -> dict[str, str]:
    """The changelog's entries under "Deprecated", by version."""
    found = re.findall(r"^## (\S+).*?(?=^## |\Z)", CHANGELOG, re.M | re.S)
    texts = re.split(r"^## \S+.*\n", CHANGELOG, flags=re.M)[1:]
    section = re.compile(r"^### Deprecated\n(.*?)(?=^###? |\Z)", re.M | re.S)
    return {
        version: match[1]
        for version, text in zip(found, texts, strict=True)
        if (match := section.search(text))
    }


def test_what_is_due_has_gone():
    assert minor(constrained.__version__) < minor(UNTIL), "remove what is listed as deprecated"


def test_two_minor_versions_have_the_old_names():
    (since,) = (version for version, text in deprecated().items() if f"until {UNTIL}" in text)
    major, number = minor(since)
    assert minor(UNTIL) == (major, number + 2)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_changelog_lists_what_is_renamed(old, new):
    listed = " ".join("".join(deprecated().values()).split())
    assert f"`{old}` is `{new}`" in listed
