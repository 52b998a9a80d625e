"""Applying merges to one piece: always the pair of neighbours whose merge was learnt first.

Short pieces are scanned for it, which is quadratic but has no overhead; long ones keep all their
pairs in a heap, so that a megabyte without a space takes n log n.
"""

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.compiling import Integer, compiled, compiled_part, inlined

Integers = NDArray[np.int64]

SCANNED = 64
"""Up to so many symbols a piece is scanned; above, the heap is faster."""
SCRATCH = 4
"""Entries of scratch space that merging needs for each symbol."""
NO_MERGE = np.int64((1 << 63) - 1)
_A = np.uint64(0x9E3779B97F4A7C15)
_U32 = np.uint64(32)


def rank_table(merges: list[tuple[int, int]], merge_ids: list[int]) -> Integers:
    """A hash table of all merges: rows of [pair + 1, rank << 32 | id], empty ones 0."""
    size = 1 << max(4, (2 * len(merges)).bit_length())
    table = np.zeros((size, 2), np.int64)
    pairs = np.array(merges, np.int64).reshape(-1, 2)
    _fill(table, pairs, np.array(merge_ids, np.int64))
    return table


@compiled
def _fill(table: Integers, pairs: Integers, merge_ids: Integers) -> None:
    mask = len(table) - 1
    for rank in range(len(pairs)):
        key = (pairs[rank, 0] << 32 | pairs[rank, 1]) + 1
        i = np.int64((np.uint64(key) * _A) >> _U32) & mask
        while table[i, 0] != 0:
            i = (i + 1) & mask
        table[i, 0] = key
        table[i, 1] = np.int64(rank) << 32 | merge_ids[rank]


@inlined
def merge_of(table: Integers, left: Integer, right: Integer) -> Integer:
    """rank << 32 | id of the merge of two ids, or NO_MERGE."""
    key = (np.int64(left) << 32 | np.int64(right)) + 1
    mask = len(table) - 1
    i = np.int64((np.uint64(key) * _A) >> _U32) & mask
    while table[i, 0] != 0:
        if table[i, 0] == key:
            merge: int = table[i, 1]
            return merge
        i = (i + 1) & mask
    return NO_MERGE


@compiled_part
def merge_piece(symbols: Integers, count: int, table: Integers, scratch: Integers) -> Integer:
    """Merges symbols[:count] in place; returns how many are left.

    `scratch` has at least SCRATCH times `count` entries.
    """
    if count > SCANNED:
        return _merge_with_heap(symbols, count, table, scratch)
    for i in range(count - 1):
        scratch[i] = merge_of(table, symbols[i], symbols[i + 1])
    while count > 1:
        best = 0
        for i in range(1, count - 1):
            if scratch[i] < scratch[best]:
                best = i
        if scratch[best] == NO_MERGE:
            break
        symbols[best] = scratch[best] & 0xFFFFFFFF
        count -= 1
        for i in range(best + 1, count):
            symbols[i] = symbols[i + 1]
            scratch[i - 1] = scratch[i]
        if best > 0:
            scratch[best - 1] = merge_of(table, symbols[best - 1], symbols[best])
        if best < count - 1:
            scratch[best] = merge_of(table, symbols[best], symbols[best + 1])
    return count


@compiled_part
def _merge_with_heap(symbols: Integers, count: int, table: Integers, scratch: Integers) -> Integer:
    # The scratch space: neighbours on both sides, and a heap that each merge makes longer by one.
    following, preceding, heap = 0, count, 2 * count
    size: Integer = 0
    for i in range(count):
        scratch[following + i] = i + 1
        scratch[preceding + i] = i - 1
        if i + 1 < count:
            size = _push(scratch, heap, size, _candidate(table, symbols[i], symbols[i + 1], i))
    left = count
    while size > 0:
        candidate = scratch[heap]
        size = _pop(scratch, heap, size)
        i = candidate & 0xFFFFFFFF
        j = scratch[following + i]
        if symbols[i] < 0 or j >= count:
            continue
        merge = merge_of(table, symbols[i], symbols[j])
        if merge == NO_MERGE or merge >> 32 != candidate >> 32:
            # Stale: one of the two has been merged with its other neighbour since.
            continue
        symbols[i] = merge & 0xFFFFFFFF
        symbols[j] = -1
        left -= 1
        after, before = scratch[following + j], scratch[preceding + i]
        scratch[following + i] = after
        if after < count:
            scratch[preceding + after] = i
            size = _push(scratch, heap, size, _candidate(table, symbols[i], symbols[after], i))
        if before >= 0:
            candidate = _candidate(table, symbols[before], symbols[i], before)
            size = _push(scratch, heap, size, candidate)
    kept = 0
    for i in range(count):
        if symbols[i] >= 0:
            symbols[kept] = symbols[i]
            kept += 1
    return left


@compiled_part
def _candidate(table: Integers, left: Integer, right: Integer, place: int) -> Integer:
    """The rank above, the place below: of equal rank the leftmost is the smallest number."""
    merge = merge_of(table, left, right)
    return merge if merge == NO_MERGE else (merge >> 32) << 32 | place


@compiled_part
def _push(heap: Integers, base: int, size: Integer, candidate: Integer) -> Integer:
    if candidate == NO_MERGE:
        return size
    i = size
    while i > 0 and heap[base + ((i - 1) >> 1)] > candidate:
        heap[base + i] = heap[base + ((i - 1) >> 1)]
        i = (i - 1) >> 1
    heap[base + i] = candidate
    return size + 1


@compiled_part
def _pop(heap: Integers, base: int, size: Integer) -> Integer:
    """Takes the smallest candidate away; returns the new size."""
    size -= 1
    last = heap[base + size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[base + child + 1] < heap[base + child]:
            child += 1
        if heap[base + child] >= last:
            break
        heap[base + i] = heap[base + child]
        i = child
    heap[base + i] = last
    return size
