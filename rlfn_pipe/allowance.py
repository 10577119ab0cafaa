"""What the system lets this process have: cores and memory, whatever the machine has besides, and its instructions.

Containers and batch systems give a process a part of the machine: some of its cores, a share of their time, so much
memory (Linux: sched_getaffinity(2), and cgroups(7) of either version).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

__all__ = ["cores", "free_memory", "processor_flags", "system_lines"]

#: What is taken for free where the system does not say.
_UNKNOWN_MEMORY = 4 << 30
_ROOT = Path("/")


def cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, 1 or more; a share of their time counts as the cores that it comes to.

    `root` is where /proc and /sys lie.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        # Version 2 has both in one file, "max" for no limit; version 1 has -1 for it.
        quota, period = [*_words(group / "cpu.max"), "", ""][:2]
        quota = quota or "".join(_words(group / "cpu.cfs_quota_us"))
        period = period or "".join(_words(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period):
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process can have without taking them from others.

    Files that lie in memory until it is wanted count as free, in the machine and in a container. `root` is where
    /proc and /sys lie.
    """
    free = _UNKNOWN_MEMORY
    for line in system_lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for group in _groups(root, "memory"):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            free = min(free, max(0, int(limit[0]) - int(used[0]) + _idle_files(group)))
    return free


def _idle_files(group: Path) -> int:
    """Bytes of a group's memory in which files lie that were not read of late: the first to go."""
    statistics = dict(line.split() for line in system_lines(group / "memory.stat"))
    return int(statistics.get("total_inactive_file") or statistics.get("inactive_file") or 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, with all above them: each may have a limit."""
    for line in system_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may be that of the machine, which is not to be seen: its own group is the mount.
        inner = PurePosixPath(path).relative_to("/")
        yield from (mounted / part for part in (inner, *inner.parents))


def _words(path: Path) -> list[str]:
    return [word for line in system_lines(path) for word in line.split()]


@cache
def processor_flags() -> frozenset[str]:
    """What Linux says that an x86 processor can do (`flags` in /proc/cpuinfo); nothing elsewhere."""
    for line in system_lines(Path("/proc/cpuinfo")):
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def system_lines(path: Path) -> list[str]:
    """The lines of a file of the system, none where it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
