"""Working sets, and loops that go over all of their bytes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.audit import bandwidth as module
from firsthand.llm.audit.bandwidth import KINDS, MemoryProbe, bandwidths_of, working_sets
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.gpu_bandwidth import TensorProbe, gpu_working_sets
from firsthand.llm.audit.processor import GraphicsCard, Level
from firsthand.llm.audit.rounds import in_rounds
from firsthand.llm.audit.threads import run_together

KIB, MIB, GIB = 2**10, 2**20, 2**30
CACHES = (Level("L1", 32 * KIB, 1), Level("L2", MIB, 1), Level("L3", 96 * MIB, 8))


def test_from_the_first_cache_to_well_beyond_the_last() -> None:
    sizes, note = working_sets(CACHES, 8, 64 * GIB)
    assert sizes[0] == 8 * 16 * KIB < 8 * 32 * KIB
    assert sizes[-1] >= 4 * 96 * MIB > sizes[-2]
    assert note == ""


def test_too_little_memory_is_said() -> None:
    sizes, note = working_sets(CACHES, 8, 256 * MIB)
    assert sizes[-1] == 64 * MIB
    assert "256 MiB" in note
    assert "384 MiB" in note


def test_without_the_sizes_of_the_caches() -> None:
    assert working_sets((), 2, 64 * GIB)[0][-1] == 512 * MIB


@given(threads=st.integers(1, 256), free=st.integers(0, 1 << 44))
def test_sizes_double_and_leave_most_of_the_memory(threads: int, free: int) -> None:
    sizes, _ = working_sets(CACHES, threads, free)
    assert all(2 * a == b for a, b in pairwise(sizes))
    assert len(sizes) == 1 or sizes[-1] <= free / 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_loop_goes_over_all_bytes_in_portions(kind: str, threads: int) -> None:
    words, portion = 48, 16
    rows = np.arange(1, threads * words + 1).reshape(threads, words)
    before = rows.copy()
    kernel = module._KERNELS[kind]
    times = run_together(kernel, threads, 1, 3, lambda thread: (rows[thread], portion, 1))
    assert len(times) == 1
    if kind == "read":
        assert np.array_equal(rows, before)
    elif kind == "write":
        # Turn 1 writes the second portion, turn 3 the first again.
        assert rows.tolist() == [[3] * 16 + [1] * 16 + [2] * 16] * threads
    else:
        assert np.array_equal(rows[:, 24:], before[:, :24])


def test_a_read_adds_up_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, times = np.zeros(16, np.int64), np.zeros(2, np.int64)
    source = np.arange(100, 132)
    module._read(0, 1, numbers, times, 2, source, 16, 0)
    first, second = source[:16].sum(), source[16:].sum()
    assert numbers[1] == first ^ (second + 1) ^ (first + 2) ^ (second + 3)
    assert (times > 0).all()


def test_small_working_sets_of_two_threads() -> None:
    probe = MemoryProbe([32 * KIB, 128 * KIB], 2)
    in_rounds([probe], 0)
    found = probe.result()
    assert [record.working_set for record in found] == [32 * KIB, 128 * KIB]
    assert all(record.spread >= 0 for record in found)


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(module.np, "empty", refuse)
    with pytest.raises(AuditError, match="65536 bytes of memory cannot be had"):
        MemoryProbe([65536], 2)


def test_the_best_run_counts_and_the_median_is_the_spread() -> None:
    times = {"read": [2.0, 1.0, 1.5], "write": [1.0, 1.0, 1.0], "copy": [4.0, 2.0, 5.0]}
    found = bandwidths_of(10, times, {"read": 8, "write": 8, "copy": 16})
    assert (found.read, found.write, found.copy) == (8.0, 8.0, 8.0)
    assert found.spread == pytest.approx(1.0)


def test_tensors_on_a_device() -> None:
    probe = TensorProbe([KIB, 64 * KIB], "cpu")
    in_rounds([probe], 0)
    assert [record.working_set for record in probe.result()] == [KIB, 64 * KIB]
    assert (probe._whole == 1.0).all()


def test_working_sets_of_a_gpu() -> None:
    card = GraphicsCard("a card", 16 * GIB, "8.9", 60, (Level("L2", 32 * MIB),))
    sizes = gpu_working_sets(card, 15 * GIB)
    assert sizes[0] == 8 * MIB
    assert sizes[-1] >= GIB
    assert gpu_working_sets(card, GIB)[-1] <= GIB / 4
    unknown = GraphicsCard("a card", 16 * GIB, "8.9", 60)
    assert gpu_working_sets(unknown, 15 * GIB)[0] == 8 * MIB
