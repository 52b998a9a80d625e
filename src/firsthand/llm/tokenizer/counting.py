"""Counting the pieces of a corpus: how often does each different piece occur?

Training needs no more of the corpus than this. Workers are threads: the compiled loop holds no lock
of the interpreter, so they run side by side as processes would, with nothing to copy. Each has a
table of its own; which worker counts what makes no difference to the sum.
"""

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from firsthand.llm.tokenizer.batch_scan import BATCH, next_pieces
from firsthand.llm.tokenizer.compiling import Integer, compiled
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.merging import Integers
from firsthand.llm.tokenizer.patterns import character_classes, to_utf8
from firsthand.llm.tokenizer.pieces import (
    PieceTable,
    Words,
    buffer_of,
    copy_piece,
    find,
    has_room,
    insert,
    key_of,
)
from firsthand.llm.tokenizer.scan import PATTERN_NUMBERS, Bytes

_BATCH_BYTES = 1 << 21
_LONGEST = 1 << 24
_DONE, _FULL = 0, 1
_POSITION, _DOCUMENT, _NEEDED = range(3)


def count_pieces(
    texts: Iterable[str | bytes],
    pattern: str,
    workers: int,
    on_bytes: Callable[[int], None] = lambda total: None,
) -> tuple[PieceTable, int]:
    """A table with the count of each piece as its value, and the bytes of text that were read.

    Memory: the different pieces, and a few megabytes of text per worker, or the longest text.

    Args:
        on_bytes: called now and then with the bytes counted so far.
    Raises:
        TokenizerError: a text that UTF-8 cannot carry (names its number), or a piece of more than
            16 MB.
    """
    total = 0
    tables = [PieceTable() for _ in range(workers)]
    free: queue.SimpleQueue[PieceTable] = queue.SimpleQueue()
    for table in tables:
        free.put(table)

    def work(first: int, documents: list[bytes]) -> int:
        table = free.get()
        try:
            return _count(table, first, documents, pattern)
        finally:
            free.put(table)

    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[int]] = deque()
        for first, batch in _batches(texts):
            running.append(pool.submit(work, first, batch))
            # No more text in memory than the workers can take.
            while len(running) > workers:
                total += running.popleft().result()
                on_bytes(total)
        while running:
            total += running.popleft().result()
            on_bytes(total)
    for table in tables[1:]:
        _add(table, tables[0])
    return tables[0], total


def unpack(table: PieceTable) -> tuple[Bytes, Integers, Integers]:
    """The pieces of a table of counts.

    Returns:
        Their bytes in a row, (bytes,); the end of each, (pieces,); the count of each, (pieces,).
    """
    lengths = table.slots[:, 2] >> np.uint64(40)
    data = np.zeros(int(lengths.sum()), np.uint8)
    ends = np.zeros(int(table.sizes[0]), np.int64)
    counts = np.zeros(int(table.sizes[0]), np.int64)
    _unpack(table.slots, table.arena, data, ends, counts)
    return data, ends, counts


def _batches(texts: Iterable[str | bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Texts of some megabytes together, with the number of the first of them."""
    batch: list[bytes] = []
    size = 0
    for number, text in enumerate(texts):
        try:
            batch.append(text if isinstance(text, bytes) else to_utf8(text))
        except TokenizerError as error:
            raise TokenizerError(f"text {number}: {error}") from None
        size += len(batch[-1])
        if size >= _BATCH_BYTES:
            yield number + 1 - len(batch), batch
            batch, size = [], 0
    if batch:
        yield number + 1 - len(batch), batch


def _count(table: PieceTable, first: int, documents: list[bytes], pattern: str) -> int:
    data, words, ends = buffer_of(documents)
    progress = np.zeros(3, np.int64)
    starts = np.empty(BATCH, np.int64)
    number, classes = PATTERN_NUMBERS[pattern], character_classes()
    while _count_pieces(data, words, ends, classes, number, table.views, starts, progress) == _FULL:
        needed = int(progress[_NEEDED])
        if needed >= _LONGEST:
            document = int(progress[_DOCUMENT])
            offset = int(progress[_POSITION]) - (int(ends[document - 1]) if document else 0)
            raise TokenizerError(
                f"text {first + document}: a piece of {needed} bytes at byte {offset} in which the "
                f"pattern makes no cut; fewer than {_LONGEST} are words to learn from"
            )
        table.make_room(needed)
    return int(ends[-1])


def _add(source: PieceTable, target: PieceTable) -> None:
    data, ends, counts = unpack(source)
    padded, words, _ = buffer_of([data.tobytes()])
    progress = np.zeros(3, np.int64)
    while _add_counts(padded, words, ends, counts, target.views, progress) == _FULL:
        target.make_room(int(progress[_NEEDED]))


@compiled
def _count_pieces(
    data: Bytes,
    words: Words,
    ends: Integers,
    classes: Bytes,
    pattern: int,
    table: tuple[Words, Bytes, Words, Integers],
    starts: Integers,
    progress: Integers,
) -> int:
    slots, arena, arena_words, sizes = table
    start = progress[_POSITION]
    while progress[_DOCUMENT] < len(ends):
        end = ends[progress[_DOCUMENT]]
        while start < end:
            pieces = next_pieces(data, words, start, end, classes, pattern, starts)
            for piece in range(pieces):
                start = starts[piece]
                length = starts[piece + 1] - start
                key = key_of(words, start, length)
                slot = find(slots, arena_words, words, start, length, key)
                if slots[slot, 2] != 0:
                    slots[slot, 3] += np.uint64(1)
                elif length < _LONGEST and has_room(slots, arena, sizes, length):
                    insert(slots, arena, sizes, data, start, length, key, slot, 1)
                else:
                    progress[_POSITION], progress[_NEEDED] = start, length
                    return _FULL
            start = starts[pieces]
        progress[_DOCUMENT] += 1
    return _DONE


@compiled
def _add_counts(
    data: Bytes,
    words: Words,
    ends: Integers,
    counts: Integers,
    table: tuple[Words, Bytes, Words, Integers],
    progress: Integers,
) -> int:
    slots, arena, arena_words, sizes = table
    while progress[_DOCUMENT] < len(ends):
        i = progress[_DOCUMENT]
        start = ends[i - 1] if i > 0 else 0
        length = ends[i] - start
        key = key_of(words, start, length)
        slot = find(slots, arena_words, words, start, length, key)
        if slots[slot, 2] != 0:
            slots[slot, 3] += np.uint64(counts[i])
        elif has_room(slots, arena, sizes, length):
            insert(slots, arena, sizes, data, start, length, key, slot, counts[i])
        else:
            progress[_NEEDED] = length
            return _FULL
        progress[_DOCUMENT] += 1
    return _DONE


@compiled
def _unpack(slots: Words, arena: Bytes, data: Bytes, ends: Integers, counts: Integers) -> None:
    at: Integer = 0
    piece = 0
    for i in range(len(slots)):
        if slots[i, 2] != 0:
            at += copy_piece(slots, arena, i, data, at)
            ends[piece] = at
            counts[piece] = slots[i, 3]
            piece += 1
