import platform

import numpy as np
import pytest

from firsthand.llm.kernels.memory_hierarchy import counters
from firsthand.llm.kernels.memory_hierarchy.counters import Misses, count_misses
from firsthand.llm.kernels.memory_hierarchy.hierarchy import last_level


def test_the_call_runs_whether_it_is_counted_or_not() -> None:
    ran: list[int] = []
    found = count_misses(lambda: ran.append(1))
    assert ran == [1]
    assert (found.lines is None) == bool(found.reason)


def test_a_machine_without_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    found = count_misses(lambda: None)
    assert found.lines is None
    assert "x86-64 and AArch64" in found.reason


def test_a_closed_counter_stays_closed_when_the_call_fails() -> None:
    def fails() -> None:
        raise KeyError("from the call")

    with pytest.raises(KeyError, match="from the call"):
        count_misses(fails)


def test_random_reads_miss_where_the_model_says() -> None:
    level = last_level()
    counted = count_misses(lambda: None)
    if counted.lines is None:
        pytest.skip(counted.reason)
    if level is None or level.size > 2**27:
        pytest.skip("the last-level cache is unknown or too large for this test")
    numbers = np.ones(4 * level.size // 8)
    order = np.random.default_rng(0).permutation(len(numbers) // 8) * 8
    found = count_misses(lambda: numbers[order].sum())
    assert found.lines is not None
    # Each line once, in no order that can be prefetched; at most a quarter is still there.
    assert 0.3 * len(order) < found.lines < 2 * len(order)


def test_the_description_that_the_kernel_takes() -> None:
    attributes = bytes(counters._attributes(3, 0x10002))
    assert len(attributes) == 64
    assert int.from_bytes(attributes[4:8], "little") == 64
    assert int.from_bytes(attributes[8:16], "little") == 0x10002
    assert int.from_bytes(attributes[40:48], "little") & 0b1100001 == 0b1100001
    assert Misses(None, "why").reason == "why"
