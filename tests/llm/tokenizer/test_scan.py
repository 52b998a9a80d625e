from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.tokenizer import naive
from firsthand.llm.tokenizer.batch_scan import BATCH, BLOCK, next_pieces
from firsthand.llm.tokenizer.compiling import compiled
from firsthand.llm.tokenizer.merging import Integers
from firsthand.llm.tokenizer.patterns import (
    LETTER,
    NUMBER,
    OTHER,
    SPACE,
    character_classes,
    last_safe_cut,
    split,
)
from firsthand.llm.tokenizer.pieces import Words, buffer_of
from firsthand.llm.tokenizer.scan import PATTERN_NUMBERS, Bytes, character_at, piece_end

PATTERN_NAMES = sorted(PATTERN_NUMBERS)
# Characters between which the patterns decide; plain random text hardly ever has them together.
TELLING = st.text(st.sampled_from("ab'sSlLvVeErRdtTmſ 1٣½ \t\r\n\u00a0\u3000-.!世é\u0301😀"))


@compiled
def _mark(
    data: Bytes,
    words: Words,
    end: int,
    classes: Bytes,
    pattern: int,
    starts: Integers,
    one_by_one: bool,
    ends: Bytes,
) -> None:
    i = 0
    while i < end:
        if one_by_one:
            i = piece_end(data, i, end, classes, pattern)
            ends[i - 1] += 1
        else:
            count = next_pieces(data, words, i, end, classes, pattern, starts)
            for k in range(count):
                ends[starts[k + 1] - 1] += 1
            i = starts[count]


@compiled
def _character_at(data: Bytes, end: int, classes: Bytes) -> int:
    return character_at(data, 0, end, classes)


def _scanned(data: bytes, pattern: str) -> list[bytes]:
    """The pieces, one by one and in batches, which must be the same."""
    buffer, words, _ = buffer_of([data])
    starts = np.zeros(BATCH, np.int64)
    marks = np.zeros((2, len(data)), np.uint8)
    for one_by_one in (False, True):
        _mark(
            buffer,
            words,
            len(data),
            character_classes(),
            PATTERN_NUMBERS[pattern],
            starts,
            one_by_one,
            marks[int(one_by_one)],
        )
    assert np.array_equal(marks[0], marks[1])
    assert marks.size == 0 or marks.max() == 1
    ends = [0, *(np.flatnonzero(marks[0]) + 1).tolist()]
    return [data[a:b] for a, b in pairwise(ends)]


def test_every_code_point_has_the_class_that_the_pattern_engine_sees() -> None:
    classes = character_classes()
    tests = {
        LETTER: regex.compile(r"\p{L}"),
        NUMBER: regex.compile(r"\p{N}"),
        SPACE: regex.compile(r"\s"),
        OTHER: regex.compile(r"[^\s\p{L}\p{N}]"),
    }
    wrong = [code for code in range(0x110000) if not tests[int(classes[code])].match(chr(code))]
    assert wrong == []


def test_every_code_point_is_decoded() -> None:
    classes = character_classes()
    for code in [*range(0x3000), *range(0x3000, 0x110000, 37), 0xFFFF, 0x10000, 0x10FFFF]:
        if 0xD800 <= code < 0xE000:
            continue
        data = chr(code).encode()
        buffer, _, _ = buffer_of([data])
        found = _character_at(buffer, len(data), classes)
        assert (found >> 2, found & 3) == (len(data), classes[code]), hex(code)


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
def test_awkward_text_is_cut_as_by_the_pattern(pattern: str, awkward: tuple[str, ...]) -> None:
    for text in awkward:
        assert _scanned(text.encode(), pattern) == naive.split_bytes(text, pattern), text


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
def test_real_text_is_cut_as_by_the_pattern(pattern: str, library: tuple[str, ...]) -> None:
    for text in library:
        assert _scanned(text.encode(), pattern) == naive.split_bytes(text, pattern)


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
@given(text=TELLING)
def test_telling_text_is_cut_as_by_the_pattern(pattern: str, text: str) -> None:
    assert _scanned(text.encode(), pattern) == naive.split_bytes(text, pattern)


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
@given(data=st.binary() | st.text().map(str.encode))
def test_any_bytes_are_cut_as_by_the_pattern(pattern: str, data: bytes) -> None:
    assert _scanned(data, pattern) == naive.split_bytes(data, pattern)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0\xaf",  # overlong
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",  # a surrogate
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",  # above U+10FFFF
        b"\xf5\x80\x80\x80",
        b"\xe4\xb8",  # cut off
        b"\xe4\xb8a",
        b"a\x80\x80b",
        b"\xc3",
    ],
)
@pytest.mark.parametrize("pattern", PATTERN_NAMES)
def test_invalid_utf8_is_cut_as_by_the_pattern(pattern: str, data: bytes) -> None:
    for text in (data, data + b" x", b"x " + data, data + "é".encode()):
        assert _scanned(text, pattern) == naive.split_bytes(text, pattern)


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
@given(before=TELLING, after=TELLING)
def test_a_safe_cut_changes_no_piece_whatever_follows(
    pattern: str, before: str, after: str
) -> None:
    cut = last_safe_cut(before)
    whole = before + after
    assert split(before[:cut], pattern) + split(whole[cut:], pattern) == split(whole, pattern)


def test_ordinary_text_has_safe_cuts(library: tuple[str, ...]) -> None:
    for text in library:
        assert last_safe_cut(text) > len(text) - 2000
    assert last_safe_cut("one two") == 3
    assert last_safe_cut("oneword") == 0


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
@given(
    words=st.lists(
        st.text(st.sampled_from("ab'sl1 \t\n.é"), min_size=1, max_size=12), min_size=1, max_size=8
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_text_of_several_blocks_is_cut_as_by_the_pattern(
    pattern: str, words: list[str], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    text = "".join(generator.choice(words, 3 * BLOCK // len("".join(words)) * len(words) + 1))
    assert _scanned(text.encode(), pattern) == naive.split_bytes(text, pattern)


@pytest.mark.parametrize("pattern", PATTERN_NAMES)
@pytest.mark.parametrize("unit", ["x", " ", "=", "7", "'", "'s", "x'll", "\n", " x"])
def test_runs_longer_than_a_block_are_cut_as_by_the_pattern(pattern: str, unit: str) -> None:
    for length in (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 9):
        text = (unit * length)[:length] + "y z"
        assert _scanned(text.encode(), pattern) == naive.split_bytes(text, pattern)
