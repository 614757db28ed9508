"""The user's cache folder: what is kept there is for speed alone and may be removed at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """``XDG_CACHE_HOME/teachonce`` or ``~/.cache/teachonce``; None for a user without a home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teachonce"
    except RuntimeError:
        return None
