"""The compiled cache against one of dictionaries, and against streams counted by hand."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.simulator import CHANGE, FILL, READ, Cache
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic


def naive(level: CacheLevel, uses: list[tuple[int, int]]) -> Traffic:
    sets: list[OrderedDict[int, bool]] = [OrderedDict() for _ in range(level.sets)]
    read = written = 0
    for number, mode in uses:
        lines = sets[number % level.sets]
        if number not in lines:
            read += mode != FILL
            if len(lines) == (level.ways or level.lines):
                written += lines.popitem(last=False)[1]
        lines[number] = lines.pop(number, False) or mode != READ
    written += sum(changed for lines in sets for changed in lines.values())
    return Traffic(read * level.line, written * level.line)


def run(level: CacheLevel, uses: list[tuple[int, int]]) -> Cache:
    cache = Cache(level)
    cache.access(np.array([line for line, _ in uses]), np.array([mode for _, mode in uses]))
    return cache


@settings(max_examples=100, deadline=None)
@given(
    sets=st.integers(1, 5),
    ways=st.integers(0, 4),
    line=st.sampled_from([1, 16, 64]),
    uses=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([READ, CHANGE, FILL]))),
)
def test_as_a_cache_of_dictionaries(
    sets: int, ways: int, line: int, uses: list[tuple[int, int]]
) -> None:
    level = CacheLevel("c", sets * max(1, ways) * line, line, ways)
    cache = run(level, uses)
    assert cache.traffic == naive(level, uses)
    assert cache.touches == len(uses)


def test_what_is_used_longest_ago_goes() -> None:
    level = CacheLevel("c", 3 * 64)
    order = [1, 2, 3, 1, 4, 1, 2]  # 4 takes the place of 2
    assert run(level, [(number, READ) for number in order]).traffic == Traffic(5 * 64, 0)


def test_going_round_more_than_fits_finds_nothing() -> None:
    level = CacheLevel("c", 4 * 64)
    rounds = [(number, READ) for number in range(5)] * 10
    assert run(level, rounds).traffic == Traffic(50 * 64, 0)
    fits = [(number, READ) for number in range(4)] * 10
    assert run(level, fits).traffic == Traffic(4 * 64, 0)


def test_a_changed_line_is_written_once_until_it_changes_again() -> None:
    level = CacheLevel("c", 64)
    assert run(level, [(0, CHANGE), (0, CHANGE)]).traffic == Traffic(64, 64)
    assert run(level, [(0, CHANGE), (1, READ), (0, READ), (1, READ)]).traffic == Traffic(256, 64)
    assert run(level, [(0, FILL), (1, READ), (0, CHANGE)]).traffic == Traffic(128, 128)


def test_lines_a_power_of_two_apart_meet_in_one_set() -> None:
    uses = [(number * 8, READ) for number in range(4)] * 5
    assert run(CacheLevel("c", 8 * 2 * 64, 64, 2), uses).traffic.read == 20 * 64
    assert run(CacheLevel("c", 8 * 2 * 64), uses).traffic.read == 4 * 64


@pytest.mark.parametrize(
    ("lines", "modes"),
    [([-1], [READ]), ([1], [3]), ([1], [-1]), ([1, 2], [READ]), ([[1]], [[READ]])],
)
def test_uses_that_cannot_be(lines: list[int], modes: list[int]) -> None:
    with pytest.raises(TrafficError):
        Cache(CacheLevel("c", 64)).access(np.array(lines), np.array(modes))
