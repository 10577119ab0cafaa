"""What the process may use, as containers and batch systems say it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlfn_pipe.allowance import cores, free_memory

GIB = 1 << 30
MEMINFO = "MemTotal: 67108864 kB\nMemAvailable: 41943040 kB\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A root folder with a machine's /proc and nothing of groups."""
    write(tmp_path, "proc/meminfo", MEMINFO)
    return tmp_path


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def test_here_there_is_something() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert free_memory() > 1 << 28


def test_without_groups_the_machine_counts(system: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert free_memory(system) == 40 * GIB
    assert cores(system) == len(os.sched_getaffinity(0))
    assert free_memory(tmp_path_factory.mktemp("nothing")) == 4 * GIB


def test_version_2_files_that_lie_in_memory_are_free(system: Path) -> None:
    write(system, "proc/self/cgroup", "0::/")
    write(system, "sys/fs/cgroup/memory.max", 8 * GIB)
    write(system, "sys/fs/cgroup/memory.current", 8 * GIB - 4096)
    assert free_memory(system) == 4096
    write(system, "sys/fs/cgroup/memory.stat", f"anon {GIB}\nfile {7 * GIB}\ninactive_file {6 * GIB}")
    assert free_memory(system) == 6 * GIB + 4096
    write(system, "sys/fs/cgroup/memory.max", "max")
    assert free_memory(system) == 40 * GIB


def test_limits_of_groups_above_count(system: Path) -> None:
    write(system, "proc/self/cgroup", "0::/system.slice/night.service")
    write(system, "sys/fs/cgroup/system.slice/memory.max", 3 * GIB)
    write(system, "sys/fs/cgroup/system.slice/memory.current", GIB)
    write(system, "sys/fs/cgroup/system.slice/night.service/memory.max", "max")
    write(system, "sys/fs/cgroup/system.slice/night.service/memory.current", GIB)
    assert free_memory(system) == 2 * GIB


def test_version_1(system: Path) -> None:
    write(system, "proc/self/cgroup", "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/")
    # In a container the mount is the group itself, whatever the path says.
    write(system, "sys/fs/cgroup/memory/memory.limit_in_bytes", 2 * GIB)
    write(system, "sys/fs/cgroup/memory/memory.usage_in_bytes", 2 * GIB)
    write(system, "sys/fs/cgroup/memory/memory.stat", f"cache {GIB}\ntotal_inactive_file {GIB}")
    assert free_memory(system) == GIB
    write(system, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", 50_000)
    write(system, "sys/fs/cgroup/cpu/cpu.cfs_period_us", 100_000)
    assert cores(system) == 1
    write(system, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    assert cores(system) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 2), ("100000 100000", 1), ("110000 100000", 2)]
)
def test_a_share_of_time_counts_as_cores(system: Path, quota: str, expected: int) -> None:
    write(system, "proc/self/cgroup", "0::/")
    write(system, "sys/fs/cgroup/cpu.max", quota)
    assert min(2, cores(system)) == expected


def test_an_engine_takes_the_cores_that_it_may_use() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from rlfn_pipe.engine.settings import Settings; print(Settings.resolve(device='cpu').threads)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
