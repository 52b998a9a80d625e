from firsthand.llm.tokenizer import naive
from firsthand.llm.tokenizer.byte_alphabet import (
    BYTE_IDS,
    BYTE_ORDER,
    from_printable,
    to_printable,
)


def _ids(text: str) -> list[int]:
    return [BYTE_IDS[byte] for byte in text.encode()]


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    merges = naive.train(["low low low lower"], 2)
    first, second = tuple(_ids("lo")), (256, _ids("w")[0])
    assert merges == [first, second]


def test_merges_stop_at_the_minimum_frequency() -> None:
    assert naive.train(["ab ac"], 5, minimum_frequency=2) == []
    assert len(naive.train(["ab ac"], 5, minimum_frequency=1)) == 3


def test_ties_follow_the_named_rule() -> None:
    text = ["ab", "cd"]
    assert naive.train(text, 1, minimum_frequency=1) == [tuple(_ids("ab"))]
    greatest = naive.train(text, 1, minimum_frequency=1, ties="greatest_bytes")
    assert greatest == [tuple(_ids("cd"))]


def test_the_order_of_ids_is_not_that_of_bytes() -> None:
    # A space has the byte 0x20, before the quotes' 0x22, but the id 220, after theirs.
    text = [" !", '""']
    for ties in ("smallest_ids", "greatest_bytes"):
        assert naive.train(text, 1, minimum_frequency=1, ties=ties) == [tuple(_ids('""'))]


def test_join_takes_pairs_from_left_to_right() -> None:
    assert naive.join([1, 1, 1], (1, 1), 9) == [9, 1]
    assert naive.join([2, 1, 2, 1], (1, 2), 9) == [2, 9, 1]


def test_encode_piece_applies_the_earliest_merge_first() -> None:
    ranks = {(1, 2): (1, 300), (2, 3): (0, 301)}
    assert naive.encode_piece([1, 2, 3], ranks) == [1, 301]
    assert naive.encode_piece([1, 2, 1, 2], ranks) == [300, 300]
    assert naive.encode_piece([], ranks) == []


def test_bytes_that_are_no_text_are_signs() -> None:
    assert naive.split_bytes(b"a\xff\xfeb", "gpt2") == [b"a", b"\xff\xfe", b"b"]


def test_the_printable_alphabet_is_one_to_one() -> None:
    assert sorted(BYTE_ORDER) == list(range(256))
    assert all(BYTE_ORDER[BYTE_IDS[byte]] == byte for byte in range(256))
    everything = bytes(range(256))
    printable = to_printable(everything)
    assert len(set(printable)) == 256
    assert printable.isprintable()
    assert " " not in printable
    assert from_printable(printable) == everything
    assert to_printable(b" the") == "Ġthe"
