"""A heap of pairs: the most frequent one on top, and among equals the first by the rule for ties.

The counts in the heap may be older than those of the pairs; since counts only fall, an entry never
stands too low. Whoever takes the top compares its count with the present one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.compiling import compiled_part
from firsthand.llm.tokenizer.merging import Integers
from firsthand.llm.tokenizer.scan import Bytes

LEFT, RIGHT, COUNT, START, LENGTH = range(5)
"""Columns of the table of pairs: two ids, how often, and the slice of its places in the pool."""


class Order(NamedTuple):
    """What the comparison of two pairs needs."""

    pairs: Integers
    """The table of pairs, (pairs, 5)."""
    text: Bytes
    """Bytes in which every token can be read."""
    samples: NDArray[np.int64]
    """Where each token begins in `text`, (tokens,)."""
    lengths: NDArray[np.int64]
    """Bytes of each token, (tokens,)."""
    greatest_bytes: bool
    """Of equally frequent pairs the greatest (left bytes, right bytes) first, not the least ids."""


@compiled_part
def push(heap: Integers, size: int, order: Order, count: int, pair: int) -> None:
    """Adds an entry to the `size` entries [count, pair] of the heap."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(order, count, pair, heap[parent, 0], heap[parent, 1]):
            break
        heap[i, 0] = heap[parent, 0]
        heap[i, 1] = heap[parent, 1]
        i = parent
    heap[i, 0] = count
    heap[i, 1] = pair


@compiled_part
def replace_top(heap: Integers, size: int, order: Order, count: int, pair: int) -> None:
    """Puts an entry in the place of the top one and lets it sink to where it belongs."""
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _before(
            order, heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1]
        ):
            child += 1
        if not _before(order, heap[child, 0], heap[child, 1], count, pair):
            break
        heap[i, 0] = heap[child, 0]
        heap[i, 1] = heap[child, 1]
        i = child
    heap[i, 0] = count
    heap[i, 1] = pair


@compiled_part
def _before(order: Order, count: int, pair: int, other_count: int, other: int) -> bool:
    if count != other_count:
        return count > other_count
    pairs = order.pairs
    for column in (LEFT, RIGHT):
        a, b = pairs[pair, column], pairs[other, column]
        if a != b:
            first: bool = _greater_bytes(order, a, b) if order.greatest_bytes else a < b
            return first
    return False


@compiled_part
def _greater_bytes(order: Order, a: int, b: int) -> bool:
    i, j = order.samples[a], order.samples[b]
    for offset in range(min(order.lengths[a], order.lengths[b])):
        first, second = order.text[i + offset], order.text[j + offset]
        if first != second:
            greater: bool = first > second
            return greater
    longer: bool = order.lengths[a] > order.lengths[b]
    return longer
