"""Learning the merges, incrementally: each merge touches only the places where its pair occurs.

The different pieces lie in a row in `symbols`, one entry per byte, with -1 before, between and
after them; the first and the last entry of a token hold its id, so both neighbours of a token are
found from its own borders. `pair_of[i]` is the pair that starts with the token at i, or -1.

All places of a pair arise in one step: (x, c) and (c, y) cannot exist before the step that makes c.
So the list of places of a pair is written once, in order, and only goes stale: a place counts no
more when `pair_of` says otherwise. And counts only fall, which is what the lazy heap rests on.
Source: Sennrich et al. 2016, section 3.2, for what is computed; the layout is this project's.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.byte_alphabet import BYTE_IDS
from firsthand.llm.tokenizer.compiling import Integer, compiled, compiled_part, inlined
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.merging import Integers
from firsthand.llm.tokenizer.pair_heap import (
    COUNT,
    LEFT,
    LENGTH,
    RIGHT,
    START,
    Order,
    push,
    replace_top,
)
from firsthand.llm.tokenizer.scan import Bytes

Places = NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.int64)

_STEPS_PER_CALL = 128
_WORKING, _NO_ROOM, _NO_PAIR = 0, 1, 2
# What `state` counts: merges learnt, rows of the table of pairs, entries of heap and pool.
_MERGES, _PAIRS, _HEAP, _POOL = range(4)


class Corpus(NamedTuple):
    """The different pieces in a row, one entry per byte and one -1 between pieces."""

    symbols: Places
    """The id of a token at its first and its last byte; what is between has no meaning."""
    piece_of: Places
    """Which piece a byte belongs to."""
    counts: Integers
    """How often each piece occurs in the text, (pieces,)."""
    pair_of: Places
    """The row of the pair that starts with the token at a byte; -1 if there is none that counts."""


def learn_merges(
    pieces: tuple[Bytes, Integers, Integers],
    merge_count: int,
    *,
    minimum_frequency: int,
    greatest_bytes: bool,
    on_merge: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, int]]:
    """At most `merge_count` merges as pairs of ids (bytes first in GPT-2's order, then 256 + k).

    Args:
        pieces: bytes in a row, ends and counts, as `counting.unpack` gives them.
        minimum_frequency: rarer pairs are never merged.
        greatest_bytes: of equally frequent pairs take the greatest (left bytes, right bytes)
            instead of the smallest (left id, right id).
        on_merge: called now and then with the number of merges learnt.
    Raises:
        TokenizerError: the different pieces have 2**31 bytes or more.
    """
    data, ends, counts = pieces
    size = len(data) + len(ends) + 1
    if size >= 1 << 31:
        raise TokenizerError(
            f"the different pieces have {len(data)} bytes, and this trainer takes fewer than "
            "2**31: train on a sample of the corpus"
        )
    threshold = max(minimum_frequency, 1)
    symbols = np.full(size, -1, np.int32)
    text = np.zeros(size, np.uint8)
    piece_of = np.zeros(size, np.int32)
    samples = np.zeros(256 + merge_count, np.int64)
    byte_ids = np.array(BYTE_IDS, np.int64)
    _lay_out(data, ends, byte_ids, symbols, text, piece_of, samples)
    corpus = Corpus(symbols, piece_of, counts, np.full(size, -1, np.int32))
    state = np.zeros(4, np.int64)
    pairs, pool = _first_pairs(corpus, threshold, state)
    order = Order(pairs, text, samples, np.ones(256 + merge_count, np.int64), greatest_bytes)
    heap = np.zeros((len(pairs), 2), np.int64)
    _fill_heap(heap, order, state)
    merged = np.zeros(1024, np.int32)
    rows = np.full((2, 256 + merge_count), -1, np.int64)
    merges = np.zeros((merge_count, 2), np.int64)
    status = _WORKING
    while state[_MERGES] < merge_count and status != _NO_PAIR:
        until = min(merge_count, int(state[_MERGES]) + _STEPS_PER_CALL)
        status = _learn(until, threshold, corpus, order, heap, pool, merged, rows, merges, state)
        if status == _NO_ROOM:
            places = int(order.pairs[heap[0, 1], LENGTH])
            order = order._replace(pairs=_with_room(order.pairs, int(state[_PAIRS]) + 2 * places))
            heap = _with_room(heap, len(order.pairs))
            pool = _with_room(pool, int(state[_POOL]) + 2 * places)
            merged = _with_room(merged, places)
        on_merge(int(state[_MERGES]))
    return [(left, right) for left, right in merges[: state[_MERGES]].tolist()]


def _with_room(array: NDArray[Number], rows: int) -> NDArray[Number]:
    if rows <= len(array):
        return array
    larger = np.zeros((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


@compiled
def _lay_out(
    data: Bytes,
    ends: Integers,
    byte_ids: Integers,
    symbols: Places,
    text: Bytes,
    piece_of: Places,
    samples: Integers,
) -> None:
    at, start = 1, 0
    for piece in range(len(ends)):
        for i in range(start, ends[piece]):
            symbols[at] = byte_ids[data[i]]
            text[at] = data[i]
            piece_of[at] = piece
            samples[symbols[at]] = at
            at += 1
        start = ends[piece]
        at += 1


def _first_pairs(corpus: Corpus, threshold: int, state: Integers) -> tuple[Integers, Places]:
    """The table of the pairs of bytes that are frequent enough, and the pool of their places."""
    weights, numbers = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    _count_first_pairs(corpus, weights, numbers)
    kept = np.flatnonzero(weights >= threshold)
    ends = np.cumsum(numbers[kept])
    pairs = np.zeros((len(kept) + 1024, 5), np.int64)
    pairs[: len(kept), LEFT] = kept >> 8
    pairs[: len(kept), RIGHT] = kept & 0xFF
    pairs[: len(kept), COUNT] = weights[kept]
    pairs[: len(kept), START] = ends - numbers[kept]
    rows = np.full(1 << 16, -1, np.int64)
    rows[kept] = np.arange(len(kept))
    filled = int(ends[-1]) if len(ends) else 0
    pool = np.zeros(2 * filled + 1024, np.int32)
    _list_first_places(corpus, rows, pairs, pool)
    state[_PAIRS], state[_POOL] = len(kept), filled
    return pairs, pool


@compiled
def _count_first_pairs(corpus: Corpus, weights: Integers, numbers: Integers) -> None:
    symbols = corpus.symbols
    for i in range(1, len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            key = symbols[i] << 8 | symbols[i + 1]
            weights[key] += corpus.counts[corpus.piece_of[i]]
            numbers[key] += 1


@compiled
def _list_first_places(corpus: Corpus, rows: Integers, pairs: Integers, pool: Places) -> None:
    symbols = corpus.symbols
    for i in range(1, len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            row = rows[symbols[i] << 8 | symbols[i + 1]]
            if row >= 0:
                _add_place(pairs, pool, row, i)
                corpus.pair_of[i] = row


@inlined
def _add_place(pairs: Integers, pool: Places, row: int, place: Integer) -> None:
    pool[pairs[row, START] + pairs[row, LENGTH]] = place
    pairs[row, LENGTH] += 1


@compiled
def _fill_heap(heap: Integers, order: Order, state: Integers) -> None:
    for row in range(state[_PAIRS]):
        push(heap, row, order, order.pairs[row, COUNT], row)
    state[_HEAP] = state[_PAIRS]


@compiled
def _learn(
    until: int,
    threshold: int,
    corpus: Corpus,
    order: Order,
    heap: Integers,
    pool: Places,
    merged: Places,
    rows: Integers,
    merges: Integers,
    state: Integers,
) -> int:
    """Learns merges until there are `until` of them, no pair is left, or an array is too small."""
    pairs = order.pairs
    while state[_MERGES] < until:
        if not _bring_best_to_top(heap, order, threshold, state):
            return _NO_PAIR
        best = heap[0, 1]
        places = pairs[best, LENGTH]
        if (
            state[_PAIRS] + 2 * places > len(pairs)
            or state[_POOL] + 2 * places > len(pool)
            or places > len(merged)
        ):
            return _NO_ROOM
        left, right = pairs[best, LEFT], pairs[best, RIGHT]
        merges[state[_MERGES], 0] = left
        merges[state[_MERGES], 1] = right
        joined = 256 + state[_MERGES]
        order.lengths[joined] = order.lengths[left] + order.lengths[right]
        state[_MERGES] += 1
        found = _join(best, joined, corpus, order, pool, merged)
        order.samples[joined] = merged[0]
        first = state[_PAIRS]
        _find_new_pairs(merged, found, joined, corpus, order, rows, state)
        _list_new_places(merged, found, joined, first, threshold, corpus, order, pool, state)
        for row in range(first, state[_PAIRS]):
            if pairs[row, COUNT] >= threshold:
                push(heap, state[_HEAP], order, pairs[row, COUNT], row)
                state[_HEAP] += 1
    return _WORKING


@compiled_part
def _bring_best_to_top(heap: Integers, order: Order, threshold: int, state: Integers) -> bool:
    """Puts outdated tops back with their present count until the top is up to date."""
    while state[_HEAP] > 0:
        count, row = order.pairs[heap[0, 1], COUNT], heap[0, 1]
        if count < threshold:
            state[_HEAP] -= 1
            last = state[_HEAP]
            replace_top(heap, last, order, heap[last, 0], heap[last, 1])
        elif count == heap[0, 0]:
            return True
        else:
            replace_top(heap, state[_HEAP], order, count, row)
    return False


@compiled_part
def _join(
    best: int, joined: int, corpus: Corpus, order: Order, pool: Places, merged: Places
) -> int:
    """Joins the pair at all its places, takes its neighbours' pairs away; writes where it did."""
    symbols, piece_of, counts, pair_of = corpus
    pairs, lengths = order.pairs, order.lengths
    left_length, length = lengths[pairs[best, LEFT]], lengths[joined]
    found = 0
    for k in range(pairs[best, START], pairs[best, START] + pairs[best, LENGTH]):
        i = np.int64(pool[k])
        if pair_of[i] != best:
            continue
        count = counts[piece_of[i]]
        # The pair that starts with the right half; in "aaa" it may be this very pair.
        row = pair_of[i + left_length]
        if row >= 0:
            pairs[row, COUNT] -= count
            pair_of[i + left_length] = -1
        before = symbols[i - 1]
        if before >= 0:
            row = pair_of[i - lengths[before]]
            if row >= 0:
                pairs[row, COUNT] -= count
                pair_of[i - lengths[before]] = -1
        pair_of[i] = -1
        symbols[i] = joined
        symbols[i + length - 1] = joined
        merged[found] = i
        found += 1
    # The pair itself is used up; nothing may take it for frequent again.
    pairs[best, COUNT] = 0
    return found


@compiled_part
def _find_new_pairs(
    merged: Places,
    found: int,
    joined: int,
    corpus: Corpus,
    order: Order,
    rows: Integers,
    state: Integers,
) -> None:
    """Rows and counts for the pairs that the new token makes with its neighbours."""
    symbols, piece_of, counts, pair_of = corpus
    pairs, lengths = order.pairs, order.lengths
    first = state[_PAIRS]
    for k in range(found):
        i = np.int64(merged[k])
        count = counts[piece_of[i]]
        after, before = symbols[i + lengths[joined]], symbols[i - 1]
        if after >= 0:
            if rows[1, after] < 0:
                rows[1, after] = _new_pair(pairs, joined, after, state)
            pairs[rows[1, after], COUNT] += count
            pair_of[i] = rows[1, after]
        # A new token on the left has made this pair already, as its right neighbour's.
        if before >= 0 and before != joined:
            if rows[0, before] < 0:
                rows[0, before] = _new_pair(pairs, before, joined, state)
            pairs[rows[0, before], COUNT] += count
            pair_of[i - lengths[before]] = rows[0, before]
    for row in range(first, state[_PAIRS]):
        rows[1, pairs[row, RIGHT]] = -1
        rows[0, pairs[row, LEFT]] = -1


@compiled_part
def _new_pair(pairs: Integers, left: int, right: int, state: Integers) -> int:
    row: int = state[_PAIRS]
    state[_PAIRS] += 1
    pairs[row, LEFT] = left
    pairs[row, RIGHT] = right
    pairs[row, COUNT] = 0
    pairs[row, LENGTH] = 0
    return row


@compiled_part
def _list_new_places(
    merged: Places,
    found: int,
    joined: int,
    first: int,
    threshold: int,
    corpus: Corpus,
    order: Order,
    pool: Places,
    state: Integers,
) -> None:
    """Writes the places of each new pair that is frequent enough; drops the others for good."""
    symbols, _, _, pair_of = corpus
    pairs, lengths = order.pairs, order.lengths
    for writing in (False, True):
        for k in range(found):
            i = np.int64(merged[k])
            before = symbols[i - 1]
            if pair_of[i] >= first:
                _list_place(pairs, pool, pair_of, i, threshold, writing)
            if before >= 0 and before != joined and pair_of[i - lengths[before]] >= first:
                _list_place(pairs, pool, pair_of, i - lengths[before], threshold, writing)
        if not writing:
            for row in range(first, state[_PAIRS]):
                pairs[row, START] = state[_POOL]
                state[_POOL] += pairs[row, LENGTH]
                pairs[row, LENGTH] = 0


@compiled_part
def _list_place(
    pairs: Integers, pool: Places, pair_of: Places, place: Integer, threshold: int, writing: bool
) -> None:
    row = pair_of[place]
    if pairs[row, COUNT] < threshold:
        pair_of[place] = -1
    elif writing:
        _add_place(pairs, pool, row, place)
    else:
        pairs[row, LENGTH] += 1
