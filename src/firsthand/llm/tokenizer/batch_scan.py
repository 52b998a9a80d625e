"""Many pieces at once: where do the next some hundred pieces begin?

A processor guesses wrongly at the end of nearly every run of letters, and that costs more than all
the rest of the scan. But by GPT-2's pattern three neighbouring classes decide whether a piece
begins at a byte of ASCII text, without any branch:

- at a letter, number or sign: the class differs from the one before, which is not a blank;
- at white space: one of its neighbours is not white space.

Only contractions look further; they are put right afterwards. Other text, and GPT-4's pattern, go
piece by piece.
"""

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.compiling import Integer, compiled_part
from firsthand.llm.tokenizer.merging import Integers
from firsthand.llm.tokenizer.patterns import LETTER, NUMBER, OTHER, SPACE
from firsthand.llm.tokenizer.scan import Bytes, contraction_end, piece_end

BLOCK = 2048
"""Bytes that are looked at in one go."""
BATCH = BLOCK + 2
"""Entries that the array of beginnings needs."""

_AT_ONCE = 32
_WORTHWHILE = 16
_QUOTE = 0x27
_BLANK = 4
_NOT_ASCII = np.uint64(0x8080808080808080)


def _ascii_classes() -> Bytes:
    classes = [OTHER] * 256
    for code in range(128):
        character = chr(code)
        if character.isalpha():
            classes[code] = LETTER
        elif character.isdigit():
            classes[code] = NUMBER
        elif character in "\t\n\v\f\r":
            classes[code] = SPACE
    classes[0x20] = _BLANK
    return np.array(classes, np.uint8)


def _beginnings() -> Bytes:
    """1 where a piece begins, by before << 6 | here << 3 | after."""
    table = np.zeros(512, np.uint8)
    for index in range(512):
        before, here, after = index >> 6, index >> 3 & 7, index & 7
        if here >= SPACE:
            table[index] = before < SPACE or after < SPACE
        else:
            table[index] = here != before != _BLANK
    return table


_CLASSES, _BEGINS = _ascii_classes(), _beginnings()


@compiled_part
def next_pieces(
    data: Bytes,
    words: NDArray[np.uint64],
    start: Integer,
    end: Integer,
    classes: Bytes,
    pattern: int,
    starts: Integers,
) -> Integer:
    """Writes where the next pieces begin, and after them where the last of them ends.

    Args:
        data, words: the bytes, and the same 8 at a time, with padding behind.
        start: where a piece begins, before `end`.
        end: the end of the document.
        classes: `patterns.character_classes()`.
        pattern: `scan.PATTERN_NUMBERS`.
        starts: takes them; at least BATCH long.
    Returns:
        How many pieces, at least 1.
    """
    if pattern == 0:
        stop = _ascii_end(words, start, min(end, start + BLOCK))
        if stop - start > _WORTHWHILE:
            count = _join_contractions(data, starts, _ascii_pieces(data, start, stop, starts))
            if count > 0:
                return count
    count = 0
    while start < end and count < _AT_ONCE:
        starts[count] = start
        start = piece_end(data, start, end, classes, pattern)
        count += 1
    starts[count] = start
    return count


@compiled_part
def _ascii_end(words: NDArray[np.uint64], start: Integer, end: Integer) -> Integer:
    """An end of ASCII text before `end`, at most 7 bytes too early."""
    i = start
    while i + 8 <= end and words[i] & _NOT_ASCII == 0:
        i += 8
    return i


@compiled_part
def _ascii_pieces(data: Bytes, start: Integer, stop: Integer, starts: Integers) -> Integer:
    """Beginnings in ASCII text, contractions apart; how many pieces are whole."""
    starts[0] = start
    count: Integer = 1
    around = np.int64(_CLASSES[data[start]]) << 3 | np.int64(_CLASSES[data[start + 1]])
    for i in range(start + 1, stop - 1):
        around = (around << 3 | np.int64(_CLASSES[data[i + 1]])) & 511
        # Written in any case, and kept by counting on: no branch.
        starts[count] = i
        count += np.int64(_BEGINS[around])
    return count - 1


@compiled_part
def _join_contractions(data: Bytes, starts: Integers, count: Integer) -> Integer:
    """Moves the borders around 's, 't, 'll ...; how many pieces are left."""
    kept = 0
    i = 0
    while i < count:
        start = starts[i]
        if data[start] == _QUOTE:
            if i + 2 > count:
                break
            # Only a lone quote stands before letters, which then run until the piece after.
            joined = contraction_end(data, start + 1, starts[i + 2])
            if joined == starts[i + 2]:
                i += 1
            elif joined > 0:
                starts[i + 1] = joined
        starts[kept] = start
        kept += 1
        i += 1
    starts[kept] = starts[i]
    return kept
