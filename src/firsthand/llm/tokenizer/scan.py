"""The two patterns as hand-written scanners over UTF-8 bytes: where does the piece at i end?

A regular expression engine tries the alternatives one by one and copies each match; here the class
of the first characters decides. Bytes that are part of no valid character are signs (OTHER), one
each, as if they had been decoded with `surrogateescape`.
"""

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.compiling import Integer, compiled_part, inlined
from firsthand.llm.tokenizer.patterns import LETTER, NUMBER, OTHER, SPACE

Bytes = NDArray[np.uint8]

PATTERN_NUMBERS = {"gpt2": 0, "gpt4": 1}
_BLANK, _QUOTE, _LINE_FEED, _RETURN = 0x20, 0x27, 0x0A, 0x0D
_D, _E, _L, _M, _R, _S, _T, _V = (ord(letter) for letter in "delmrstv")


@compiled_part
def character_at(data: Bytes, i: Integer, end: Integer, classes: Bytes) -> Integer:
    """Length and class of the character at i, as 4 * length + class."""
    first = np.int64(data[i])
    if first < 0x80:
        return 4 + np.int64(classes[first])
    if 0xC2 <= first < 0xE0:
        if i + 1 < end and data[i + 1] & 0xC0 == 0x80:
            return 8 + np.int64(classes[(first & 0x1F) << 6 | (data[i + 1] & 0x3F)])
    elif 0xE0 <= first < 0xF0:
        if i + 2 < end and data[i + 1] & 0xC0 == 0x80 and data[i + 2] & 0xC0 == 0x80:
            code = (first & 0x0F) << 12 | (data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F)
            if code >= 0x800 and not 0xD800 <= code < 0xE000:
                return 12 + np.int64(classes[code])
    elif (
        0xF0 <= first < 0xF5
        and i + 3 < end
        and data[i + 1] & 0xC0 == 0x80
        and data[i + 2] & 0xC0 == 0x80
        and data[i + 3] & 0xC0 == 0x80
    ):
        code = (first & 0x07) << 18 | (data[i + 1] & 0x3F) << 12
        code |= (data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F)
        if 0x10000 <= code < 0x110000:
            return 16 + np.int64(classes[code])
    return 4 + OTHER


@inlined
def run_end(data: Bytes, i: Integer, end: Integer, classes: Bytes, kind: Integer) -> Integer:
    """Where the run of characters of one class ends that starts at i (i if there is none)."""
    while i < end:
        if data[i] < 0x80:
            if classes[data[i]] != kind:
                return i
            i += 1
        else:
            character = character_at(data, i, end, classes)
            if character & 3 != kind:
                return i
            i += character >> 2
    return i


@inlined
def gpt2_piece_end(data: Bytes, start: Integer, end: Integer, classes: Bytes) -> Integer:
    """The end of the piece at `start` (start < end) by GPT-2's pattern."""
    character = character_at(data, start, end, classes)
    kind, i = character & 3, start + (character >> 2)
    if data[start] == _QUOTE and i < end:
        contraction = contraction_end(data, i, end)
        if contraction > 0:
            return contraction
    elif data[start] == _BLANK and i < end:
        # The one blank that goes with what follows it.
        following = character_at(data, i, end, classes)
        if following & 3 != SPACE:
            kind, i = following & 3, i + (following >> 2)
    if kind != SPACE:
        return run_end(data, i, end, classes, kind)
    last = start
    while i < end:
        character = character_at(data, i, end, classes)
        if character & 3 != SPACE:
            # \s+(?!\S) leaves the last character of the run; a run of one is taken whole.
            return last if last > start else i
        last = i
        i += character >> 2
    return i


@inlined
def gpt4_piece_end(data: Bytes, start: Integer, end: Integer, classes: Bytes) -> Integer:
    """The end of the piece at `start` (start < end) by GPT-4's pattern."""
    character = character_at(data, start, end, classes)
    kind, i = character & 3, start + (character >> 2)
    if data[start] == _QUOTE:
        contraction = _any_contraction_end(data, i, end)
        if contraction > 0:
            return contraction
    if kind == LETTER:
        return run_end(data, i, end, classes, LETTER)
    if kind == NUMBER:
        for _ in range(2):
            if i < end:
                character = character_at(data, i, end, classes)
                if character & 3 == NUMBER:
                    i += character >> 2
                else:
                    break
        return i
    following = character_at(data, i, end, classes) if i < end else 0
    if following & 3 == LETTER and not _ends_line(data[start]):
        return run_end(data, i + (following >> 2), end, classes, LETTER)
    if kind == SPACE and data[start] == _BLANK and following >> 2 > 0 and following & 3 == OTHER:
        kind = OTHER
    if kind == OTHER:
        i = run_end(data, i, end, classes, OTHER)
        while i < end and _ends_line(data[i]):
            i += 1
        return i
    last, after_line = start, i if _ends_line(data[start]) else 0
    while i < end:
        character = character_at(data, i, end, classes)
        if character & 3 != SPACE:
            break
        last = i
        i += character >> 2
        if _ends_line(data[last]):
            after_line = i
    if after_line > 0:
        return after_line
    return last if i < end and last > start else i


@compiled_part
def _ends_line(byte: int) -> bool:
    return byte in (_LINE_FEED, _RETURN)


@compiled_part
def contraction_end(data: Bytes, i: Integer, end: Integer) -> Integer:
    """The end of 's 't 're 've 'm 'll 'd, when i follows the apostrophe; else 0."""
    if i >= end:
        return 0
    a = data[i]
    if a in (_S, _D, _M, _T):
        return i + 1
    if i + 1 < end:
        b = data[i + 1]
        if (a == _L and b == _L) or (b == _E and a in (_V, _R)):
            return i + 2
    return 0


@compiled_part
def _any_contraction_end(data: Bytes, i: Integer, end: Integer) -> Integer:
    """The end of 's 't 're 've 'm 'll 'd in any case, when i follows the apostrophe; else 0."""
    if i >= end:
        return 0
    a = data[i] | 0x20
    if a in (_S, _D, _M, _T):
        return i + 1
    if i + 1 < end:
        b = data[i + 1] | 0x20
        if (a == _L and b == _L) or (b == _E and a in (_V, _R)):
            return i + 2
        # U+017F, the long s, is an s to a pattern that ignores case.
        if data[i] == 0xC5 and data[i + 1] == 0xBF:
            return i + 2
    return 0


@compiled_part
def piece_end(
    data: Bytes, start: Integer, end: Integer, classes: Bytes, pattern: Integer
) -> Integer:
    """The end of the piece at `start` by the pattern with this number (PATTERN_NUMBERS)."""
    if pattern == 0:
        return gpt2_piece_end(data, start, end, classes)
    return gpt4_piece_end(data, start, end, classes)
