"""What a process may use, read from the files that the kernel shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand import resources

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 cores and 16 GiB, of which 12 are free, without any limit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 12582912 kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_without_limits(root: Path) -> None:
    assert resources.usable_cores(root) == 8
    assert resources.core_quota(root) is None
    assert resources.usable_memory(root) == resources.total_memory(root) == 16 * GIB
    assert resources.free_memory(root) == 12 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("max 100000", 8)],
)
def test_the_quota_counts_and_not_the_machine(root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", quota + "\n")
    assert resources.usable_cores(root) == cores


@pytest.mark.parametrize("text", ["", "nonsense", "-1 100000", "100000 0", "100000"])
def test_a_quota_that_says_nothing_is_none(root: Path, text: str) -> None:
    write(root, "sys/fs/cgroup/cpu.max", text)
    assert resources.core_quota(root) is None


def test_the_innermost_group_does_not_lift_an_outer_limit(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/outer/inner\n")
    write(root, "sys/fs/cgroup/outer/cpu.max", "200000 100000")
    write(root, "sys/fs/cgroup/outer/inner/cpu.max", "700000 100000")
    write(root, "sys/fs/cgroup/outer/memory.max", str(4 * GIB))
    write(root, "sys/fs/cgroup/outer/memory.current", str(3 * GIB))
    write(root, "sys/fs/cgroup/outer/inner/memory.max", "max")
    assert resources.usable_cores(root) == 2
    assert resources.usable_memory(root) == 4 * GIB
    assert resources.free_memory(root) == GIB


def test_the_first_version_of_control_groups(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:memory:/box\n4:cpu,cpuacct:/box\n")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "250000")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000")
    write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", str(2 * GIB))
    write(root, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", str(GIB // 2))
    assert resources.core_quota(root) == 2.5
    assert resources.usable_cores(root) == 3
    assert resources.usable_memory(root) == 2 * GIB
    assert resources.free_memory(root) == 3 * GIB // 2


def test_a_group_that_uses_more_than_its_limit_leaves_nothing(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory.max", "1000")
    write(root, "sys/fs/cgroup/memory.current", "1001")
    assert resources.free_memory(root) == 0


def test_a_system_without_these_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resources.usable_cores(tmp_path) == 1
    assert resources.usable_memory(tmp_path) == resources.free_memory(tmp_path) > 0


@given(quota=st.integers(1, 10**7), period=st.integers(1, 10**6), cores=st.integers(1, 512))
def test_never_more_than_the_mask_nor_less_than_one(
    tmp_path_factory: pytest.TempPathFactory, quota: int, period: int, cores: int
) -> None:
    root = tmp_path_factory.mktemp("root")
    write(root, "sys/fs/cgroup/cpu.max", f"{quota} {period}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        found = resources.usable_cores(root)
    assert 1 <= found <= cores
    assert found == cores or found >= quota / period > found - 1
