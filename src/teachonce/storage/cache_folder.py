"""The user's cache folder: what is kept there is for speed alone and may be removed at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from teachonce.storage.lock import LockHeldError, hold_lock
from teachonce.terminal import print_note

_LOOK_SECONDS = 0.2


def cache_folder() -> Path | None:
    """``XDG_CACHE_HOME/teachonce`` or ``~/.cache/teachonce``; None for a user without a home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teachonce"
    except RuntimeError:
        return None


@contextmanager
def filling_cache(name: str) -> Iterator[None]:
    """Fill the cache with what ``name`` stands for, one process of this machine at a time.

    Ranks of one training and tasks of a job array begin together and lack the same: whoever waited looks again. Where
    no lock can be had nothing is waited for, and several make the same.
    """
    folder = cache_folder()
    with ExitStack() as stack:
        has_waited = False
        while folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(folder / f".{name}.lock", is_needed=False))
                break
            except LockHeldError as error:
                if not has_waited:
                    print_note(f"waiting for {error}, which fills {folder} with the same")
                has_waited = True
                time.sleep(_LOOK_SECONDS)
            except OSError:
                break
        yield
