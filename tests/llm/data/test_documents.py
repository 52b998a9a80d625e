import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data.documents import (
    PIECE_BYTES,
    SeenDocuments,
    cut_pieces,
    digest_of,
    document_of,
    safe_cut,
    split_of,
)
from firsthand.llm.data.problems import Cursor, DataError
from firsthand.llm.tokenizer import naive


def parts_of(text: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@given(st.text(max_size=300), st.lists(st.integers(0, 10_000)), st.integers(8, 64))
def test_pieces_depend_on_the_text_alone(text: str, cuts: list[int], limit: int) -> None:
    raw = text.encode()
    whole = list(cut_pieces([raw], limit))
    assert list(cut_pieces(parts_of(raw, cuts), limit)) == whole
    assert b"".join(whole) == raw
    assert all(0 < len(piece) <= limit for piece in whole)
    for piece in whole:
        piece.decode("utf-8")  # no character is cut


@given(st.lists(st.integers(0, 10_000)), st.binary(max_size=200))
def test_a_digest_does_not_depend_on_the_parts(cuts: list[int], text: bytes) -> None:
    assert digest_of(parts_of(text, cuts)) == digest_of([text])


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@given(
    text=st.lists(
        st.sampled_from(
            ["word", "it's", " ", "  ", "\n", "1234", "...", "é", "日本", "\t", "'S", "\xa0"]
        ),
        min_size=40,
        max_size=120,
    ).map("".join)
)
def test_a_cut_before_a_space_leaves_the_pretokens_as_they_are(pattern: str, text: str) -> None:
    raw = text.encode()
    limit = 60
    if len(raw) <= limit:
        return
    cut = safe_cut(raw[: limit + 1], limit)
    if raw[cut : cut + 1] != b" " or not raw[cut - 1 : cut].isalnum():
        return  # no such place was in reach
    both = [*naive.split_bytes(raw[:cut], pattern), *naive.split_bytes(raw[cut:], pattern)]
    assert both == list(naive.split_bytes(raw, pattern))


def test_a_cut_takes_the_last_place_in_reach() -> None:
    assert safe_cut(b"aaaa bbb cc", 9) == 8
    assert safe_cut(b"aaaa bb, cc", 10) == 10, "before ' cc' stands a comma: no space will do"
    assert safe_cut("ééééé".encode(), 5) == 4


def test_a_long_document_gives_bounded_pieces() -> None:
    text = b"word " * (PIECE_BYTES // 2)
    document = document_of(text, "here", Cursor(1))
    pieces = list(document.pieces())
    assert len(pieces) == 3
    assert b"".join(pieces) == text


def test_the_split_comes_from_the_text_alone() -> None:
    digests = [digest_of([str(n).encode()]) for n in range(4000)]
    drawn = [split_of(digest, 0.1) for digest in digests]
    assert drawn == [split_of(digest, 0.1) for digest in digests]
    # 400 expected with a standard deviation of 19.
    assert 300 < drawn.count("validation") < 500
    assert [split_of(digest, 0.1, seed=1) for digest in digests] != drawn
    assert {split_of(digest, 0.0) for digest in digests} == {"train"}
    wider = [split_of(digest, 0.3) for digest in digests]
    assert all(b == "validation" for a, b in zip(drawn, wider, strict=True) if a == "validation")


def test_the_first_document_is_the_first_however_often_it_is_asked(tmp_path: Path) -> None:
    seen = SeenDocuments(tmp_path / "seen")
    one, two = digest_of([b"1"]), digest_of([b"2"])
    assert seen.is_first(one, 1)
    assert seen.is_first(two, 2)
    assert not seen.is_first(one, 3)
    assert seen.is_first(one, 1), "reading the same document again"
    seen.commit()
    seen.is_first(digest_of([b"lost"]), 4)
    seen.close()
    again = SeenDocuments(tmp_path / "seen")
    assert not again.is_first(two, 5)
    assert again.is_first(digest_of([b"lost"]), 6), "it was never committed"
    again.clear()
    assert again.is_first(two, 7)
    again.close()


def test_two_preparations_exclude_each_other(tmp_path: Path) -> None:
    seen = SeenDocuments(tmp_path / "seen")
    with pytest.raises(DataError, match="another preparation is at work"):
        SeenDocuments(tmp_path / "seen")
    seen.close()


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="seen: cannot be used"):
        SeenDocuments(tmp_path / "seen")
