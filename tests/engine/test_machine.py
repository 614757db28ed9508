"""Free memory (the smallest of what the machine has and what the limits of cgroups leave), cores, processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teachonce.engine.machine import free_memory, local_ranks, quota_cores

GB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712  # what version 1 says without a limit


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write(
        tmp_path / "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 5 kB\nMemAvailable: {32 << 20} kB\nHugePages: 0"
    )
    return tmp_path / "proc"


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def write_v2(group: Path, limit: object, use: int, *, active_file: int = 0, inactive_file: int = 0) -> None:
    write(group / "memory.max", limit)
    write(group / "memory.current", use)
    stat = f"anon 1\nfile {active_file + inactive_file}\ninactive_anon 7\nactive_anon 9\n"
    write(group / "memory.stat", f"{stat}inactive_file {inactive_file}\nactive_file {active_file}")


def write_v1(group: Path, limit: int, use: int, *, total_inactive_file: int = 0) -> None:
    write(group / "memory.limit_in_bytes", limit)
    write(group / "memory.usage_in_bytes", use)
    write(group / "memory.stat", f"inactive_file 12345\ntotal_inactive_file {total_inactive_file}\ntotal_active_file 0")


def test_without_cgroups_it_is_what_the_machine_has(proc: Path, cgroups: Path) -> None:
    assert free_memory(proc, cgroups) == 32 * GB
    write(proc / "self/cgroup", "0::/user.slice/session-1.scope")
    assert free_memory(proc, cgroups) == 32 * GB, "the root has no limit, and the groups none"


@pytest.mark.parametrize("name", ["/", "/jobs", "/jobs/step-0"])
def test_version_2_limits(proc: Path, cgroups: Path, name: str) -> None:
    """``/`` is what a container with a namespace of its own sees."""
    write(proc / "self/cgroup", f"0::{name}")
    write_v2(cgroups / name.lstrip("/"), 8 * GB, 3 * GB)
    assert free_memory(proc, cgroups) == 5 * GB


def test_the_page_cache_is_free(proc: Path, cgroups: Path) -> None:
    """A container that has read its data once would have no memory left else."""
    write(proc / "self/cgroup", "0::/job")
    write_v2(cgroups / "job", 8 * GB, 8 * GB - 4096, active_file=2 * GB, inactive_file=4 * GB)
    assert free_memory(proc, cgroups) == 6 * GB + 4096


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/job/step", {"job/cpu.max": "400000 100000"}, 4),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "150000 100000"}, 2),
        ("0::/job/step", {"job/cpu.max": "max 100000"}, None),
        ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {}, None),
    ],
)
def test_the_time_that_a_cgroup_has(
    proc: Path, cgroups: Path, line: str, files: dict[str, str], cores: int | None
) -> None:
    """A container that may use 4 cores' worth of time sees all 64 of its machine."""
    write(proc / "self/cgroup", line)
    for name, content in files.items():
        write(cgroups / name, content)
    quota_cores.cache_clear()  # the folders of tests that passed are removed, and their names used again
    found = quota_cores(proc, cgroups)
    assert found == cores if cores is not None else found > 10**6


def test_every_ancestor_counts(proc: Path, cgroups: Path) -> None:
    write(proc / "self/cgroup", "0::/a/b/c")
    write_v2(cgroups / "a/b/c", 20 * GB, GB)
    write_v2(cgroups / "a/b", "max", 3 * GB)
    write_v2(cgroups / "a", 16 * GB, 14 * GB)
    write_v2(cgroups / "other", GB, GB)
    assert free_memory(proc, cgroups) == 2 * GB
    write_v2(cgroups / "a", "max", 14 * GB)
    assert free_memory(proc, cgroups) == 19 * GB
    write_v2(cgroups / "a/b/c", 200 * GB, GB)
    assert free_memory(proc, cgroups) == 32 * GB, "a limit beyond what the machine has"


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_version_1_limits(proc: Path, cgroups: Path, controllers: str) -> None:
    write(
        proc / "self/cgroup", f"11:{controllers}:/slurm/job_7\n4:cpuset:/elsewhere\n1:name=systemd:/x\n0::/init.scope"
    )
    write_v1(cgroups / "memory/slurm/job_7", 10 * GB, 9 * GB, total_inactive_file=3 * GB)
    write_v1(cgroups / "memory/slurm", NO_LIMIT_V1, 50 * GB)
    write_v1(cgroups / "memory/elsewhere", GB, GB)
    assert free_memory(proc, cgroups) == 4 * GB
    write_v1(cgroups / "memory/slurm", 51 * GB, 50 * GB)
    assert free_memory(proc, cgroups) == GB


def test_a_container_sees_its_own_group_as_the_root(proc: Path, cgroups: Path) -> None:
    """The path is the host's, and is not there."""
    write(proc / "self/cgroup", "9:memory:/docker/0123abc")
    write_v1(cgroups / "memory", 4 * GB, GB)
    assert free_memory(proc, cgroups) == 3 * GB


def test_use_beyond_the_limit_leaves_nothing(proc: Path, cgroups: Path) -> None:
    write(proc / "self/cgroup", "0::/job")
    write_v2(cgroups / "job", GB, 2 * GB)
    assert free_memory(proc, cgroups) == 0


def test_where_the_system_does_not_say_it_is_all_of_the_machine(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_this_machine_has_some() -> None:
    assert 0 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, 1),  # of a batch script
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "8"}, 8),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": "23",
                "SLURM_STEP_TASKS_PER_NODE": "8(x2),7",
                "SLURM_NODEID": "2",
            },
            7,
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "?"}, 1),
    ],
)
def test_processes_of_one_training_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_ranks() == expected
