"""The machine as its files describe it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from firsthand.llm.audit import processor as module
from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.processor import GraphicsCard, Level, read_processor

KIB, GIB = 2**10, 2**30
CARD = GraphicsCard("a card", 8 * GIB, "8.6", 20)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(module, "read_gpu", lambda: None)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Some CPU\nflags : fma avx avx2\n")
    write(tmp_path, "sys/devices/system/cpu/online", "0-7\n")
    for index, (level, kind, size, cpus) in enumerate(
        [
            (1, "Data", "48K", "0-1"),
            (1, "Instruction", "32K", "0-1"),
            (2, "Unified", "2048K", "0-1"),
            (3, "Unified", "24M", "0-7"),
        ]
    ):
        entry = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        for name, text in (
            ("level", str(level)),
            ("type", kind),
            ("size", size),
            ("ways_of_associativity", "16"),
            ("coherency_line_size", "64"),
            ("shared_cpu_list", cpus),
        ):
            write(tmp_path, f"{entry}/{name}", text + "\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_machine_that_says_everything(root: Path) -> None:
    found = read_processor(root)
    assert (found.model, found.cores, found.machine_cores, found.quota) == ("Some CPU", 8, 8, None)
    assert found.simd == ("AVX", "FMA", "AVX2")
    assert found.caches == (
        Level("L1", 48 * KIB, 2),
        Level("L2", 2048 * KIB, 2),
        Level("L3", 24 * KIB * KIB, 8),
    )
    assert found.levels[-1] == Level("DRAM", 16 * GIB)
    assert (found.memory, found.gpu) == (16 * GIB, None)


def test_how_much_all_caches_of_a_level_hold() -> None:
    assert Level("L1", 48, 2).total(8) == 4 * 48
    assert Level("L1", 48, 2).total(5) == 3 * 48
    assert Level("L3", 1000, 8).total(3) == 1000
    assert Level("DRAM", 1000).total(64) == 1000


def test_a_machine_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_gpu", lambda: None)
    found = read_processor(tmp_path)
    assert found.model
    assert (found.simd, found.caches, found.quota) == ((), (), None)
    assert found.levels == (Level("DRAM", found.memory),)


@pytest.mark.parametrize("damage", ["many", "", "0K", "-4K"])
def test_a_cache_that_cannot_be_read_is_left_out(root: Path, damage: str) -> None:
    write(root, "sys/devices/system/cpu/cpu0/cache/index2/size", damage)
    assert [level.name for level in read_processor(root).caches] == ["L1", "L3"]


def test_a_container_with_a_quota(root: Path) -> None:
    write(root, "sys/fs/cgroup/cpu.max", "150000 100000")
    write(root, "sys/fs/cgroup/memory.max", str(GIB))
    found = read_processor(root)
    assert (found.cores, found.machine_cores, found.quota) == (2, 8, 1.5)
    assert (found.memory, found.machine_memory) == (GIB, 16 * GIB)


def test_no_avx2_is_said_of_an_x86_alone(root: Path) -> None:
    assert not read_processor(root).lacks_avx2
    write(root, "proc/cpuinfo", "model name : Old CPU\nflags : sse4_2 avx\n")
    old = read_processor(root)
    assert old.lacks_avx2
    assert not replace(old, architecture="aarch64").lacks_avx2


@pytest.mark.parametrize(("listed", "count"), [("0", 1), ("0-3,8", 5), ("", 0), ("0-x", 0)])
def test_lists_of_processors(listed: str, count: int) -> None:
    assert module._processors(listed) == count


def test_the_same_machine(ceilings: MachineCeilings) -> None:
    this = ceilings.processor
    assert this.same_machine(this)
    assert this.same_machine(replace(this, memory=int(this.memory * 0.97)))
    for other in (
        replace(this, model="another"),
        replace(this, cores=2),
        replace(this, quota=1.5),
        replace(this, caches=()),
        replace(this, memory=this.memory // 2),
        replace(this, gpu=CARD),
    ):
        assert not this.same_machine(other)
