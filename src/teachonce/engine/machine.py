"""What this process has of its machine: cores, and memory that it can still take.

Memory is the machine's, or what the limits of its cgroup leave: in a container or a scheduler's job the machine may
have far more than the process may use, and what takes more is killed without a message. Files that the page cache holds
count as free in both: the kernel drops them when memory is requested.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
_INT_MAX = 2**31 - 1


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for the next batch of a network that runs on the CPU.

    By default glibc returns each large block to the kernel, which then clears it again, page by page, for the next
    layer: half of the time of a network with large activations and little arithmetic (depthwise convolutions). Blocks
    of every size come from the heap instead, and it is not trimmed. Between the batches
    memory is not given back, and gaps in the heap add to its peak, a fifth where it was measured; so it is for few
    processes, not for many that take turns. It holds for the process and cannot be undone. Without glibc nothing is
    done.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _INT_MAX)


def num_cores() -> int:
    """Cores that this process may use (a container's or scheduler's mask counts, and the time that its cgroup has)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, quota_cores()))


@functools.cache
def quota_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Cores' worth of time, rounded up, that the cgroup and its ancestors leave; very many without a limit."""
    quotas = [_INT_MAX]
    for controllers, group in _cgroups(proc):
        if not controllers:
            quota, _, period = _read(cgroups / group / "cpu.max").strip().partition(" ")
        elif "cpu" in controllers.split(","):
            names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
            quota, period = (_read(cgroups / "cpu" / group / name).strip() for name in names)
        else:
            continue
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 are no limits
            quotas.append(-(-int(quota) // int(period)))
    return min(quotas)


def local_rank() -> int:
    """Number of this process among those that torchrun or srun started on its machine; 0 where it is the only one."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def slurm_step_tasks(environment: Mapping[str, str]) -> int:
    """How many processes srun started beside this one, itself counted; 0 where it is alone.

    A batch script of many tasks is one process: only the steps within it are many.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    count = int(tasks) if "SLURM_STEP_ID" in environment and tasks.isdecimal() else 0
    return count if count > 1 else 0


def local_ranks() -> int:
    """How many of them torchrun, or srun, started on this machine."""
    if os.environ.get("LOCAL_WORLD_SIZE"):
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return _slurm_tasks_here(os.environ) if slurm_step_tasks(os.environ) else 1


def _slurm_tasks_here(environment: Mapping[str, str]) -> int:
    """Of a text such as 8(x2),7: the tasks of each node in turn, "(x2)" where as many nodes have as many."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part):
            counts += [int(match[1])] * min(int(match[2] or 1), 1 << 16)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 1


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that are free or can be freed; where the system does not say, all that the machine has."""
    return max(0, min([_free_in_machine(proc), *_free_in_cgroups(proc, cgroups)]))


def _free_in_machine(proc: Path) -> int:
    available = _read_table(proc / "meminfo").get("MemAvailable:")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if available is None else available * 1024


def _free_in_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What the process's cgroup and each of its ancestors leave, where they have a limit; of versions 1 and 2.

    In a container the path may be the host's, of which only the ancestor that the container sees as root is there.
    """
    for controllers, group in _cgroups(proc):
        if not controllers:
            yield from _free_in(cgroups / group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            folder = cgroups / "memory" / group
            yield from _free_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _cgroups(proc: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """(controllers, "" for version 2; path) of the process's cgroups and of each of their ancestors."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        path = PurePosixPath(name).relative_to("/")
        yield from ((controllers, group) for group in (path, *path.parents))


def _free_in(group: Path, limit_name: str, use_name: str, prefix: str) -> Iterator[int]:
    limit, use = _read(group / limit_name).strip(), _read(group / use_name).strip()
    if limit.isdecimal() and use.isdecimal():  # "max" is not a limit
        kinds = _read_table(group / "memory.stat")
        yield int(limit) - int(use) + sum(kinds.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))


def _read_table(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    rows = [line.split() for line in _read(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
