import pickle
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.tokenizer import Tokenizer, TokenizerError, naive, train
from firsthand.llm.tokenizer.streaming import cut_blocks

SPECIALS = ("<|end|>", "<|end|>more", "[pad]")


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest, library: tuple[str, ...]) -> Tokenizer:
    return train(library, 1200, pattern=request.param, special_tokens=SPECIALS)


def _plain(tokenizer: Tokenizer, text: str | bytes) -> list[int]:
    pieces = naive.split_bytes(text, tokenizer.pattern)
    return [i for piece in pieces for i in tokenizer.encode_piece(piece)]


def test_real_and_awkward_text_as_the_plain_encoder(
    tokenizer: Tokenizer, library: tuple[str, ...], awkward: tuple[str, ...]
) -> None:
    for text in (*library[:3], *awkward):
        expected = _plain(tokenizer, text)
        assert tokenizer.encode_array(text).tolist() == expected
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text


@given(text=st.text())
def test_every_string_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).tolist() == ids


@given(data=st.binary(max_size=300))
def test_every_byte_string_comes_back(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode_array(data)
    assert tokenizer.decode_bytes(ids) == data
    assert ids.tolist() == _plain(tokenizer, data)


def test_short_texts_get_the_same_ids_before_and_after_compiled_code_is_loaded(
    tokenizer: Tokenizer, awkward: tuple[str, ...]
) -> None:
    fresh = pickle.loads(pickle.dumps(tokenizer))
    before = [fresh.encode(text) for text in awkward]
    fresh.encode("x y " * 2000)
    assert [fresh.encode(text) for text in awkward] == before


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), letters=st.sampled_from(["ab", "the n", "=-"]))
def test_long_pieces_use_the_heap_and_give_the_same(
    tokenizer: Tokenizer, seed: int, letters: str
) -> None:
    generator = np.random.default_rng(seed)
    piece = "".join(generator.choice(list(letters.replace(" ", "")), 700))
    assert tokenizer.encode_array(piece).tolist() == _plain(tokenizer, piece)


def test_merges_whose_order_is_not_that_of_their_ids_work_alike() -> None:
    a, b, c = (naive.BYTE_IDS[byte] for byte in b"abc")
    tokenizer = Tokenizer([(b, c), (a, b), (a, 400), (300, c)], merge_ids=[400, 300, 299, 299])
    for text in ("abc", "aabcbcab" * 30, "cba", "abc " * 20):
        assert tokenizer.encode_array(text + " x" * 2000).tolist() == _plain(
            tokenizer, text + " x" * 2000
        )


def test_a_full_table_of_pieces_starts_anew(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firsthand.llm.tokenizer import encoding

    monkeypatch.setattr(encoding, "_SLOT_LIMIT", 1 << 12)
    fresh = pickle.loads(pickle.dumps(tokenizer))
    text = " ".join(f"word{i} {'x' * (i % 90)}{i}" for i in range(30_000))
    assert fresh.decode(fresh.encode_array(text)) == text
    assert fresh.encode_array(text[-5000:]).tolist() == _plain(fresh, text[-5000:])
    assert len(fresh._piece_encoder()._table.slots) <= 1 << 14


def test_documents_are_encoded_apart(tokenizer: Tokenizer) -> None:
    texts = ["one tw", "", "o three", b"\xff", "x" * 5000]
    expected = [_plain(tokenizer, text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch([]) == []
    ids, ends = tokenizer.encode_documents(texts)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [i for part in expected for i in part]
    assert ends.tolist() == np.cumsum([len(part) for part in expected]).tolist()


def test_plain_text_forges_no_special_token(tokenizer: Tokenizer) -> None:
    special = set(tokenizer.special_tokens.values())
    text = "a<|end|>b [pad]<|end|>more <|end" + "|>"
    for ids in (
        tokenizer.encode(text),
        tokenizer.encode_array(text * 500).tolist(),
        tokenizer.encode_batch([text])[0],
        [int(i) for block in tokenizer.encode_stream([text]) for i in block],
    ):
        assert not special & set(ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_text_made_of_special_tokens_trains_no_special_token() -> None:
    tokenizer = train(["<|end|>" * 50], 400, special_tokens=["<|end|>"], minimum_frequency=1)
    assert tokenizer.special_tokens["<|end|>"] not in tokenizer.encode("<|end|>" * 3)


def test_special_tokens_are_encoded_where_allowed(tokenizer: Tokenizer) -> None:
    specials = tokenizer.special_tokens
    text = "a<|end|>more<|end|>[pad]"
    a = tokenizer.encode("a")
    ids = [*a, specials["<|end|>more"], specials["<|end|>"], specials["[pad]"]]
    assert tokenizer.encode(text, "all") == ids
    assert tokenizer.decode(ids) == text
    only = tokenizer.encode(text, {"[pad]"})
    assert only == [*tokenizer.encode("a<|end|>more<|end|>"), specials["[pad]"]]
    with pytest.raises(TokenizerError, match=r"'<\|x\|>' is no special token"):
        tokenizer.encode(text, ["<|x|>"])


def test_a_lone_surrogate_names_its_place(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(TokenizerError, match=r"character 2 is the lone surrogate U\+DC80"):
            encode("ab\udc80")


def test_ids_that_are_no_token_name_their_place(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocabulary_size
    with pytest.raises(TokenizerError, match=f"id {size} at position 1 is no token"):
        tokenizer.decode([0, size])
    with pytest.raises(TokenizerError, match="id -1"):
        tokenizer.decode(np.array([-1]))
    with pytest.raises(TokenizerError, match=f"id {size} is no token"):
        tokenizer.stream_decoder().push(size)


def test_invalid_utf8_is_shown_as_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_array(b"a\xffb")) == "a\ufffdb"


@given(data=st.text().map(str.encode) | st.binary())
def test_the_stream_decoder_gives_whole_characters(tokenizer: Tokenizer, data: bytes) -> None:
    # Byte by byte is the worst case: every character arrives in parts.
    ids = [tokenizer.byte_ids[byte] for byte in data]
    decoder = tokenizer.stream_decoder()
    parts = [decoder.push(i) for i in ids]
    assert "".join(parts) + decoder.finish() == tokenizer.decode(ids)
    if data.decode("utf-8", "ignore").encode() == data:
        assert "\ufffd" not in "".join(parts) or b"\xef\xbf\xbd" in data


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    first, second, third = (tokenizer.byte_ids[byte] for byte in "世".encode())
    assert [decoder.push(first), decoder.push(second), decoder.push(third)] == ["", "", "世"]
    assert decoder.push(first) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


@settings(max_examples=50)
@given(data=st.data())
def test_streams_equal_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text("ab 's\n\t1.!é世ll", max_size=80))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    block = data.draw(st.integers(1, 20))
    blocks = list(cut_blocks(parts, block))
    assert "".join(blocks) == text
    ids = [i for part in blocks for i in tokenizer.encode(part)]
    assert ids == tokenizer.encode(text)


def test_a_long_stream_is_read_bit_by_bit(tokenizer: Tokenizer, library: tuple[str, ...]) -> None:
    text = "\n".join(library)[:50_000]
    read = 0

    def parts() -> Iterator[str]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield text

    stream = tokenizer.encode_stream(parts())
    blocks = [next(stream)]
    assert read < 30
    blocks += list(stream)
    assert np.array_equal(np.concatenate(blocks), tokenizer.encode_array(text * 100))
    assert max(map(len, blocks)) < len(text) * 30


def test_threads_may_share_a_tokenizer(tokenizer: Tokenizer, library: tuple[str, ...]) -> None:
    shared = pickle.loads(pickle.dumps(tokenizer))
    texts = library[:6]
    expected = [tokenizer.encode_array(text) for text in texts]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: shared.encode_array(texts[i])}))
        for i in range(len(texts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[i], expected[i]) for i in range(len(texts)))


def test_truncating_is_training_to_a_smaller_size(
    tokenizer: Tokenizer, library: tuple[str, ...]
) -> None:
    small = train(library, 700, pattern=tokenizer.pattern, special_tokens=SPECIALS)
    assert tokenizer.truncated(700) == small
    with pytest.raises(TokenizerError, match="too small"):
        tokenizer.truncated(258)


def test_the_hash_covers_all_that_decides_the_ids() -> None:
    merges = [(1, 2), (256, 3)]
    variants = [
        Tokenizer(merges),
        Tokenizer(merges[:1]),
        Tokenizer(merges, pattern="gpt4"),
        Tokenizer(merges, special_tokens=["x"]),
        Tokenizer(merges, special_tokens={"x": 999}),
        Tokenizer(merges, merge_ids=[256, 300]),
    ]
    assert len({variant.hash for variant in variants}) == len(variants)
    assert Tokenizer(merges) == variants[0]
    assert len(variants[0].hash) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"merges": [(1, 999)]}, "merge 0 joins the ids 1 and 999, but no earlier merge made 999"),
        ({"merges": [(1, 2), (1, 2)], "merge_ids": [256, 256]}, "given twice"),
        ({"merges": [(1, 2)], "merge_ids": [3]}, "merge 0 makes the id 3, which is taken"),
        ({"merges": [(1, 2)], "merge_ids": []}, "1 merges, but 0 ids"),
        ({"merges": [], "byte_ids": [0] * 256}, "256 different ids"),
        ({"merges": [], "special_tokens": {"x": 5}}, "already that of"),
        ({"merges": [], "special_tokens": {"": 500}}, "empty"),
        ({"merges": [], "special_tokens": {"x": 1 << 23}}, "between 0 and"),
        ({"merges": [], "special_tokens": {"x": -1}}, "between 0 and"),
        ({"merges": [], "pattern": "none"}, "'none' is unknown"),
    ],
)
def test_tokenizers_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(**arguments)
