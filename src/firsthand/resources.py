"""What this process may use: cores and memory, with the standard library alone.

A machine has more than a process gets: the affinity mask and the control group's quota limit the
cores, the control group the memory. Both versions of control groups count, and a group's limit
holds for the groups within it.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max, memory.max, memory.current) and
scheduler/sched-bwc.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process keeps busy at most, at least 1; a share of a core counts as one.

    Args:
        root: where /proc and /sys are found.
    """
    cores, quota = affine_cores(), core_quota(root)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def affine_cores() -> int:
    """Cores that this process may run on: the affinity mask, or all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the control groups allow, such as 1.5; None without a limit."""
    quotas = []
    for folder in _group_folders(root, "cpu"):
        quota, _, period = read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = read(folder / "cpu.cfs_quota_us")
            period = read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0 and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def usable_memory(root: Path = ROOT) -> int:
    """Bytes of RAM that this process may use; 0 where the system does not say.

    Args:
        root: where /proc and /sys are found.
    """
    total = total_memory(root)
    limits = [limit for limit, _ in _memory_groups(root)]
    return min([total, *limits]) if total else 0


def total_memory(root: Path = ROOT) -> int:
    """Bytes of RAM of the machine; 0 where the system does not say."""
    total = _of_meminfo(root, "MemTotal")
    if total is not None:
        return total
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def free_memory(root: Path = ROOT) -> int:
    """Bytes of RAM that this process may still take now; 0 where the system does not say."""
    available = _of_meminfo(root, "MemAvailable")
    if available is None:
        return usable_memory(root)
    left = [limit - used for limit, used in _memory_groups(root)]
    return max(0, min([available, *left]))


def read(file: Path) -> str:
    """The text of a small file of the system, without its end of line; "" if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _of_meminfo(root: Path, name: str) -> int | None:
    for line in read(root / "proc/meminfo").splitlines():
        field, _, amount = line.partition(":")
        number = amount.split()
        if field == name and number and number[0].isdigit():
            return int(number[0]) * 1024
    return None


def _memory_groups(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use) of each group with a limit."""
    found = []
    for folder in _group_folders(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = read(folder / limit_name), read(folder / used_name)
            if limit.isdigit():
                found.append((int(limit), int(used) if used.isdigit() else 0))
    return found


def _group_folders(root: Path, controller: str) -> list[Path]:
    """Folders whose limits hold for this process, innermost first (cgroup v2, then v1)."""
    folders: list[Path] = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")
        names, _, path = entry.partition(":")
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        inner = base / path.lstrip("/")
        folders += [inner, *(p for p in inner.parents if p.is_relative_to(base))]
    return folders or [root / "sys/fs/cgroup", root / "sys/fs/cgroup" / controller]
