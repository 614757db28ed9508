"""How many cores this process may use: what the number of threads and worker processes follows."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores that this process may use (a container's or scheduler's mask counts)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
