"""The fast encoder: scan a piece, look it up, and merge only what has not been seen before."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.batch_scan import BATCH, next_pieces
from firsthand.llm.tokenizer.compiling import Integer, compiled, compiled_part
from firsthand.llm.tokenizer.merging import SCRATCH, Integers, merge_piece, rank_table
from firsthand.llm.tokenizer.patterns import character_classes
from firsthand.llm.tokenizer.pieces import (
    LONGEST_PIECE,
    PieceTable,
    Words,
    buffer_of,
    find,
    has_room,
    insert,
    key_of,
)
from firsthand.llm.tokenizer.scan import PATTERN_NUMBERS, Bytes

Ids = NDArray[np.uint32]

# A value of the piece table: the number of tokens in the low 16 bits; above, up to two ids of 24
# bits each, or the place of three and more in the arena of tokens. Two ids are always written, so
# that the processor need not guess whether a piece has one token or two.
_COUNT, _ID = (1 << 16) - 1, (1 << 24) - 1
_SPARE = 2
_SLOT_LIMIT = 1 << 20
_DONE, _OUTPUT_FULL, _NO_ROOM = 0, 1, 2
_POSITION, _DOCUMENT, _WRITTEN, _TOKENS, _NEEDED = range(5)


class PieceEncoder:
    """Encodes bytes with one list of merges. Safe to call from several threads, one at a time runs.

    The pieces it has seen are kept in at most about 60 MB; then it forgets them all.
    """

    def __init__(
        self,
        merges: list[tuple[int, int]],
        merge_ids: list[int],
        byte_ids: Sequence[int],
        pattern: str,
    ) -> None:
        self._ranks = rank_table(merges, merge_ids)
        self._byte_ids = np.array(byte_ids, np.int64)
        self._pattern = PATTERN_NUMBERS[pattern]
        self._table = PieceTable()
        self._tokens: Ids = np.zeros(1 << 16, np.uint32)
        self._tokens_used = 0
        self._lock = threading.Lock()

    def encode(self, documents: list[bytes]) -> tuple[Ids, Integers]:
        """The ids of all documents, (tokens,), and where each of them ends there, (documents,)."""
        data, words, ends = buffer_of(documents)
        size = int(ends[-1]) if len(ends) else 0
        out = np.empty(size // 3 + 64, np.uint32)
        token_ends = np.zeros(len(ends), np.int64)
        progress = np.zeros(5, np.int64)
        starts = np.empty(BATCH, np.int64)
        symbols, scratch = np.empty(256, np.int64), np.empty(SCRATCH * 256, np.int64)
        with self._lock:
            while True:
                progress[_TOKENS] = self._tokens_used
                status = _encode(
                    data,
                    words,
                    ends,
                    character_classes(),
                    self._pattern,
                    self._byte_ids,
                    self._ranks,
                    self._table.views,
                    self._tokens,
                    starts,
                    symbols,
                    scratch,
                    out,
                    token_ends,
                    progress,
                )
                self._tokens_used = int(progress[_TOKENS])
                if status == _DONE:
                    break
                needed = int(progress[_NEEDED])
                if status == _OUTPUT_FULL:
                    larger = np.empty(min(size, 2 * len(out)) + needed, np.uint32)
                    larger[: progress[_WRITTEN]] = out[: progress[_WRITTEN]]
                    out = larger
                else:
                    self._make_room(needed)
                    if needed > len(symbols):
                        symbols = np.empty(needed, np.int64)
                        scratch = np.empty(SCRATCH * needed, np.int64)
        return out[: progress[_WRITTEN]].copy(), token_ends

    def _make_room(self, needed: int) -> None:
        table = self._table
        if max(2 * table.sizes[0], table.sizes[1] // 8, self._tokens_used // 4) >= _SLOT_LIMIT:
            table.clear()
            self._tokens_used = 0
        table.make_room(needed)
        while len(self._tokens) < self._tokens_used + needed:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])


@compiled
def _encode(
    data: Bytes,
    words: Words,
    ends: Integers,
    classes: Bytes,
    pattern: int,
    byte_ids: Integers,
    ranks: Integers,
    table: tuple[Words, Bytes, Words, Integers],
    tokens: Ids,
    starts: Integers,
    symbols: Integers,
    scratch: Integers,
    out: Ids,
    token_ends: Integers,
    progress: Integers,
) -> int:
    """Goes on from `progress` until all is encoded or an array is full, which it says."""
    slots, arena, arena_words, sizes = table
    start, written = progress[_POSITION], progress[_WRITTEN]
    while progress[_DOCUMENT] < len(ends):
        end = ends[progress[_DOCUMENT]]
        while start < end:
            pieces = next_pieces(data, words, start, end, classes, pattern, starts)
            if written + starts[pieces] - start + _SPARE > len(out):
                progress[_POSITION], progress[_WRITTEN] = start, written
                progress[_NEEDED] = starts[pieces] - start + _SPARE
                return _OUTPUT_FULL
            for piece in range(pieces):
                start = starts[piece]
                length = starts[piece + 1] - start
                key = key_of(words, start, length)
                slot = find(slots, arena_words, words, start, length, key)
                if slots[slot, 2] != 0:
                    value: Integer = np.int64(slots[slot, 3])
                    count: Integer = value & _COUNT
                    out[written] = value >> 16 & _ID
                    out[written + 1] = value >> 40
                    if count > 2:
                        place = value >> 16
                        for i in range(count):
                            out[written + i] = tokens[place + i]
                else:
                    stored = length <= LONGEST_PIECE
                    if length > len(symbols) or (
                        stored
                        and not (
                            has_room(slots, arena, sizes, length)
                            and progress[_TOKENS] + length <= len(tokens)
                        )
                    ):
                        progress[_POSITION], progress[_WRITTEN] = start, written
                        progress[_NEEDED] = length
                        return _NO_ROOM
                    for i in range(length):
                        symbols[i] = byte_ids[data[start + i]]
                    count = merge_piece(symbols, length, ranks, scratch)
                    for i in range(count):
                        out[written + i] = symbols[i]
                    if stored:
                        value = _stored_value(symbols, count, tokens, progress)
                        insert(slots, arena, sizes, data, start, length, key, slot, value)
                written += count
            start = starts[pieces]
        token_ends[progress[_DOCUMENT]] = written
        progress[_DOCUMENT] += 1
    progress[_WRITTEN] = written
    return _DONE


@compiled_part
def _stored_value(symbols: Integers, count: Integer, tokens: Ids, progress: Integers) -> Integer:
    value: int = symbols[0] << 16
    if count == 2:
        value |= symbols[1] << 40
    elif count > 2:
        value = progress[_TOKENS] << 16
        for i in range(count):
            tokens[progress[_TOKENS] + i] = symbols[i]
        progress[_TOKENS] += count
    return value | count
