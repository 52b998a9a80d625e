import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.tokenizer import TokenizerError, naive, train

RULES = ("smallest_ids", "greatest_bytes")
SMALL_TEXT = st.lists(st.text("aab  cé'\n1", max_size=40), min_size=1, max_size=6)


@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("minimum_frequency", [0, 1, 2, 7])
def test_the_merges_are_those_of_the_naive_trainer(
    ties: str,
    pattern: str,
    minimum_frequency: int,
    library: tuple[str, ...],
    awkward: tuple[str, ...],
) -> None:
    texts = [text[:4000] for text in library[:4]] + list(awkward)
    settings = {"pattern": pattern, "ties": ties, "minimum_frequency": minimum_frequency}
    expected = naive.train(texts, 150, **settings)
    found = train(texts, 256 + 150, **settings)
    assert len(expected) == 150
    assert found.merges == expected


@pytest.mark.parametrize("ties", RULES)
@settings(max_examples=60)
@given(texts=SMALL_TEXT)
def test_random_text_gives_the_merges_of_the_naive_trainer(ties: str, texts: list[str]) -> None:
    if not any(texts):
        return
    expected = naive.train(texts, 40, ties=ties, minimum_frequency=1)
    assert train(texts, 296, ties=ties, minimum_frequency=1, workers=1).merges == expected


@settings(max_examples=40)
@given(texts=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5))
def test_random_bytes_give_the_merges_of_the_naive_trainer(texts: list[bytes]) -> None:
    expected = naive.train(texts, 40, minimum_frequency=1)
    assert train(texts, 296, minimum_frequency=1, workers=1).merges == expected


def test_neither_workers_nor_the_order_of_texts_matter(library: tuple[str, ...]) -> None:
    texts = [*library, "x" * 40, "=" * 40]
    one = train(texts, 600, workers=1)
    assert train(texts, 600, workers=3) == one
    assert train(texts[::-1], 600, workers=2) == one


def test_a_text_is_a_border_that_no_token_crosses() -> None:
    apart = train(["ab"] * 9 + ["cd"] * 9, 300, minimum_frequency=1)
    assert len(apart.merges) == 2


def test_a_small_corpus_gives_a_small_vocabulary() -> None:
    tokenizer = train(["aaaa"], 5000, special_tokens=["<|end|>"])
    assert tokenizer.vocabulary_size == 256 + len(tokenizer.merges) + 1
    assert len(tokenizer.merges) == 1


def test_the_least_vocabulary_has_no_merges() -> None:
    assert train(["aaaa"], 257, special_tokens=["<|end|>"]).merges == []
    with pytest.raises(TokenizerError, match=r"vocabulary of 256 is too small.*at least 257"):
        train(["aaaa"], 256, special_tokens=["<|end|>"])


@pytest.mark.parametrize("texts", [[], [""], ["", b""]])
def test_an_empty_corpus_is_an_error(texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="corpus is empty"):
        train(texts, 300)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pattern": "gpt3"}, "'gpt3' is unknown: choose one of gpt2, gpt4"),
        ({"ties": "random"}, "'random' is unknown: choose one of smallest_ids, greatest_bytes"),
        ({"minimum_frequency": -1}, "cannot be negative"),
        ({"workers": 0}, "at least one"),
        ({"special_tokens": ["<a>", "<a>"]}, "'<a>' is given twice"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train(["text"], 300, **setting)


def test_a_lone_surrogate_names_its_text_and_place() -> None:
    with pytest.raises(TokenizerError, match=r"text 1: character 2 .*U\+D800"):
        train(["fine", "ab\ud800"], 300)


def test_a_text_without_a_place_to_cut_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"text 2: a piece of 17000001 bytes at byte 1 "):
        train(["fine", "x" * 3_000_000, "a " + "=" * 17_000_000], 300)


def test_an_error_in_the_source_comes_through() -> None:
    def broken() -> object:
        yield "text"
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(broken(), 300)


def test_progress_reaches_its_end(library: tuple[str, ...]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    text = library[0]
    train([text], 500, progress=lambda *step: seen.append(step))
    assert ("counting", len(text.encode()), None) in seen
    assert seen[-1] == ("merging", 500 - 256, 500 - 256)
    merging = [done for stage, done, _ in seen if stage == "merging"]
    assert merging == sorted(merging)


@pytest.mark.parametrize("minimum_frequency", [0, 3])
def test_the_merges_are_those_of_the_tokenizers_library(
    minimum_frequency: int, library: tuple[str, ...], shared_texts: tuple[str, ...]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = [*library, *shared_texts[:2]]
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=minimum_frequency,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    peer.train_from_iterator(texts, trainer)
    ours = train(texts, 2000, minimum_frequency=minimum_frequency)
    ids = {token.encode(): i for token, i in peer.get_vocab().items()}
    from firsthand.llm.tokenizer.byte_alphabet import to_printable

    expected = {i: token for token, i in ids.items()}
    found = {i: to_printable(token).encode() for i, token in ours.tokens().items()}
    assert found == expected
