"""The setting of long runs: small by default, full if the environment says ``FULL=1``."""

from __future__ import annotations

import os


def is_full() -> bool:
    """Whether the full setting is wanted."""
    return os.environ.get("FULL") == "1"
