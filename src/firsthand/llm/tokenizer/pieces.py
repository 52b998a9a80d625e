"""A hash table from pieces (short runs of bytes) to one integer each, for compiled loops.

Text repeats itself: 31 MB of source code have 8 million pieces but only some 300,000 different
ones, so one look-up per piece replaces nearly all of the work. A slot is four integers, half a
cache line. Pieces of up to 16 bytes are their own key in the first two; longer ones have two hashes
there and their bytes in an arena, where they are compared in full.

    slot = [bytes 0-7 or hash, bytes 8-15 or hash, length << 40 | place in the arena, value]
"""

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.compiling import Integer, compiled, compiled_part, inlined
from firsthand.llm.tokenizer.scan import Bytes

Words = NDArray[np.uint64]

PADDING = 16
"""Bytes that must follow the last piece of a buffer, so that 8 at a time can be read."""
LONGEST_PIECE = (1 << 16) - 1
"""Longer pieces are never stored: they hardly repeat."""

_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_U32, _U40 = np.uint64(32), np.uint64(40)
# Looked up by length, because whether a piece is longer than 8 bytes is hard to predict.
_FIRST_MASKS = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(17)], np.uint64)
_SECOND_MASKS = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(17)], np.uint64)
_PLACE = np.uint64((1 << 40) - 1)
USED, FILLED = 0, 1
"""Indices of `PieceTable.sizes`: slots in use, bytes of the arena in use."""


class PieceTable:
    """Slots, arena and how much of both is used; grows between compiled calls, never in one."""

    def __init__(self, slot_count: int = 1 << 14) -> None:
        self.slots: Words = np.zeros((slot_count, 4), np.uint64)
        self.arena: Bytes = np.zeros(1 << 16, np.uint8)
        self.sizes = np.zeros(2, np.int64)

    def make_room(self, arena_bytes: int) -> None:
        """Room for as many pieces again and for `arena_bytes` more bytes of long ones."""
        if 2 * self.sizes[USED] >= len(self.slots):
            slots = np.zeros((2 * len(self.slots), 4), np.uint64)
            rehash(self.slots, slots)
            self.slots = slots
        while len(self.arena) < self.sizes[FILLED] + arena_bytes + PADDING:
            self.arena = np.concatenate([self.arena, np.zeros_like(self.arena)])

    def clear(self) -> None:
        """Forgets all pieces."""
        self.slots[:] = 0
        self.sizes[:] = 0

    @property
    def views(self) -> tuple[Words, Bytes, Words, NDArray[np.int64]]:
        """What compiled functions take: slots, arena, the arena 8 bytes at a time, sizes."""
        return self.slots, self.arena, words_of(self.arena), self.sizes


def buffer_of(documents: list[bytes]) -> tuple[Bytes, Words, NDArray[np.int64]]:
    """Documents in one padded buffer: its bytes, the same 8 at a time, where documents end."""
    data = np.frombuffer(bytearray().join([*documents, bytes(PADDING)]), np.uint8)
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    return data, words_of(data), ends


def words_of(data: Bytes) -> Words:
    """A view whose entry i is the 8 bytes from i on: (bytes - 7,), stride one byte."""
    return np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))


@inlined
def key_of(words: Words, start: Integer, length: Integer) -> tuple[np.uint64, np.uint64]:
    """The first two integers of the slot of a piece."""
    if length <= 16:
        return words[start] & _FIRST_MASKS[length], words[start + 8] & _SECOND_MASKS[length]
    a, b = _A, np.uint64(length)
    for i in range(start, start + length - 8, 8):
        a = (a ^ words[i]) * _B
        a ^= a >> _U32
        b = (b + words[i]) * _A
        b ^= b >> _U32
    # The last 8 bytes, which may overlap those before: no byte is left out.
    tail = words[start + length - 8]
    return (a ^ tail) * _B, (b + tail) * _A


@inlined
def find(
    slots: Words,
    arena_words: Words,
    words: Words,
    start: Integer,
    length: Integer,
    key: tuple[np.uint64, np.uint64],
) -> Integer:
    """The slot of a piece, or the empty one where it belongs."""
    mask = len(slots) - 1
    mixed = (key[0] ^ (key[1] * _B) ^ np.uint64(length)) * _A
    mixed ^= mixed >> _U32
    i = np.int64((mixed * _B) >> _U32) & mask
    while True:
        extent = slots[i, 2]
        if extent == 0:
            return i
        if (
            slots[i, 0] == key[0]
            and slots[i, 1] == key[1]
            and np.int64(extent >> _U40) == length
            and (
                length <= 16 or _same(arena_words, np.int64(extent & _PLACE), words, start, length)
            )
        ):
            return i
        i = (i + 1) & mask


@compiled_part
def insert(
    slots: Words,
    arena: Bytes,
    sizes: NDArray[np.int64],
    data: Bytes,
    start: Integer,
    length: Integer,
    key: tuple[np.uint64, np.uint64],
    i: Integer,
    value: Integer,
) -> None:
    """Puts a piece into the empty slot i; the caller has made room."""
    place = sizes[FILLED]
    if length > 16:
        for offset in range(length):
            arena[place + offset] = data[start + offset]
        sizes[FILLED] += length
    slots[i, 0] = key[0]
    slots[i, 1] = key[1]
    slots[i, 2] = np.uint64(length) << _U40 | np.uint64(place)
    slots[i, 3] = np.uint64(value)
    sizes[USED] += 1


@inlined
def has_room(slots: Words, arena: Bytes, sizes: NDArray[np.int64], length: Integer) -> bool:
    """Whether one more piece of this length fits and at most half of the slots are used."""
    room: bool = 2 * sizes[USED] < len(slots) and sizes[FILLED] + length + PADDING <= len(arena)
    return room


@compiled
def rehash(old: Words, new: Words) -> None:
    """Moves all slots into a larger, empty table. The arena stays as it is."""
    mask = len(new) - 1
    for j in range(len(old)):
        if old[j, 2] != 0:
            length = old[j, 2] >> _U40
            mixed = (old[j, 0] ^ (old[j, 1] * _B) ^ length) * _A
            mixed ^= mixed >> _U32
            i = np.int64((mixed * _B) >> _U32) & mask
            while new[i, 2] != 0:
                i = (i + 1) & mask
            for column in range(4):
                new[i, column] = old[j, column]


@compiled_part
def copy_piece(slots: Words, arena: Bytes, i: Integer, target: Bytes, at: Integer) -> Integer:
    """Writes the bytes of the piece in slot i to target[at:]; returns its length."""
    length = np.int64(slots[i, 2] >> _U40)
    place = np.int64(slots[i, 2] & _PLACE)
    for j in range(length):
        if length > 16:
            target[at + j] = arena[place + j]
        else:
            word = slots[i, 0] if j < 8 else slots[i, 1]
            target[at + j] = (word >> np.uint64(8 * (j & 7))) & np.uint64(0xFF)
    return length


@compiled_part
def _same(first: Words, i: Integer, second: Words, j: Integer, length: Integer) -> bool | np.bool_:
    for offset in range(0, length - 8, 8):
        if first[i + offset] != second[j + offset]:
            return False
    same: bool = first[i + length - 8] == second[j + length - 8]
    return same
