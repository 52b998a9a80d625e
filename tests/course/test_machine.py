"""Reading a machine from the files that the kernel shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firsthand.course.machine import GIB, Gpu, Machine, measure_machine


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Some CPU 3000\n")
    write(tmp_path, "etc/machine-id", "0123456789abcdef\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


def test_without_limits(root: Path) -> None:
    machine = measure_machine(root)
    assert (machine.cores, machine.memory, machine.gpu) == (8, 16 * GIB, None)
    assert machine.processor == "Some CPU 3000"
    assert Machine.from_json(machine.to_json()) == machine
    assert "16.0 GiB RAM, no NVIDIA GPU" in machine.summary


def test_the_affinity_mask_limits_the_cores(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert measure_machine(root).cores == 2


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 3), ("max 100000", 8)])
def test_a_cgroup_limits_cores_and_memory(root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "0::/user/box\n")
    write(root, "sys/fs/cgroup/user/cpu.max", quota + "\n")  # the parent's limit holds as well
    write(root, "sys/fs/cgroup/user/box/memory.max", str(4 * GIB))
    machine = measure_machine(root)
    assert (machine.cores, machine.memory) == (cores, 4 * GIB)


def test_the_first_cgroup_version(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "150000")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000")
    write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", str(2 * GIB))
    machine = measure_machine(root)
    assert (machine.cores, machine.memory) == (2, 2 * GIB)


@pytest.mark.parametrize(
    ("script", "gpu"),
    [
        ("echo 'RTX 4080, 16376'; echo 'GT 710, 2048'", Gpu("RTX 4080", 16376 * 2**20)),
        ("echo 'No devices were found'; exit 6", None),
        ("echo 'Failed to initialize NVML'", None),
    ],
)
def test_the_largest_gpu_that_the_driver_reports(root: Path, script: str, gpu: Gpu | None) -> None:
    write(root, "bin/nvidia-smi", f"#!/bin/sh\n{script}\n").chmod(0o755)
    assert measure_machine(root).gpu == gpu


def test_the_id_is_stable_and_tells_machines_apart(root: Path) -> None:
    first = measure_machine(root).id
    write(root, "proc/meminfo", "MemTotal: 8388608 kB\n")
    assert measure_machine(root).id == first
    write(root, "etc/machine-id", "another\n")
    assert measure_machine(root).id != first


def test_this_machine_can_be_read() -> None:
    machine = measure_machine()
    assert machine.cores >= 1
    assert machine.memory > 0


def test_which_sessions_belong_on_a_machine(root: Path) -> None:
    machine = measure_machine(root)
    assert [machine.serves(needs) for needs in ("any", "cpu", "gpu")] == [True, True, False]
