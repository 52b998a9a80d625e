import json
from pathlib import Path
from typing import Any

import pytest

from firsthand.llm.tokenizer import Tokenizer, TokenizerError, train
from firsthand.llm.tokenizer.formats import printable_merges, read_gpt2
from firsthand.llm.tokenizer.hugging_face import read_hugging_face, write_hugging_face
from firsthand.llm.tokenizer.tiktoken_export import to_tiktoken, write_tiktoken


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest, library: tuple[str, ...]) -> Tokenizer:
    return train(library, 3000, pattern=request.param, special_tokens=["<|end|>", "[pad]"])


def test_the_own_format_keeps_everything(
    tokenizer: Tokenizer, tmp_path: Path, library: tuple[str, ...]
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.encode(library[0]) == tokenizer.encode(library[0])
    assert " ".join(printable_merges(tokenizer)[0]) in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_the_own_format_keeps_unusual_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        [(5, 6), (300, 7)],
        special_tokens={"<s>": 0, "</s>": 1},
        byte_ids=range(2, 258),
        merge_ids=[300, 290],
    )
    tokenizer.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json") == tokenizer


def test_a_save_that_fails_leaves_the_old_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    path = tmp_path / "t.json"
    tokenizer.save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.truncated(2000).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tokenizers_gives_the_same_ids(
    tokenizer: Tokenizer,
    tmp_path: Path,
    library: tuple[str, ...],
    awkward: tuple[str, ...],
    shared_texts: tuple[str, ...],
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    write_hugging_face(tokenizer, path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    assert peer.get_vocab_size() == tokenizer.vocabulary_size
    for text in (*library, *awkward, *shared_texts):
        ids = tokenizer.encode(text)
        assert peer.encode(text).ids == ids
        assert peer.decode(ids, skip_special_tokens=False) == text
    marked = "a<|end|>b[pad]"
    assert peer.encode(marked).ids == tokenizer.encode(marked, "all")


def test_a_tokenizer_json_comes_back_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_hugging_face(tokenizer, tmp_path / "tokenizer.json")
    assert read_hugging_face(tmp_path / "tokenizer.json") == tokenizer


def test_what_tokenizers_has_trained_gives_its_ids_here(
    tmp_path: Path,
    library: tuple[str, ...],
    awkward: tuple[str, ...],
    shared_texts: tuple[str, ...],
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    peer.train_from_iterator(library, trainer)
    peer.save(str(tmp_path / "tokenizer.json"))
    ours = read_hugging_face(tmp_path / "tokenizer.json")
    assert ours.special_tokens == {"<s>": 0, "</s>": 1}
    for text in (*library, *awkward, *shared_texts):
        assert ours.encode(text) == peer.encode(text).ids


def test_gpt2_files_give_the_ids_of_tokenizers(tmp_path: Path, library: tuple[str, ...]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = train(library, 1000, special_tokens=["<|endoftext|>"])
    write_hugging_face(tokenizer, tmp_path / "tokenizer.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    peer.model.save(str(tmp_path))
    ours = read_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert ours == tokenizer


def test_tiktoken_gives_the_same_ids(
    tokenizer: Tokenizer,
    tmp_path: Path,
    library: tuple[str, ...],
    awkward: tuple[str, ...],
    shared_texts: tuple[str, ...],
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    encoding = to_tiktoken(tokenizer)
    for text in (*library, *awkward, *shared_texts):
        assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    marked = "a<|end|>b[pad]"
    assert encoding.encode(marked, allowed_special="all") == tokenizer.encode(marked, "all")
    write_tiktoken(tokenizer, tmp_path / "ranks.tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    assert load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken")) == encoding._mergeable_ranks
    assert tiktoken.Encoding is type(encoding)


def test_ids_out_of_order_are_no_ranks() -> None:
    with pytest.raises(TokenizerError, match="in the order of the ids"):
        to_tiktoken(Tokenizer([(1, 2), (3, 4)], merge_ids=[257, 256]))


def _damaged(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "damaged.json"
    train(["hello hello world"] * 5, 262, special_tokens=["<e>"]).save(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    record.update(changes)
    kept = {name: value for name, value in record.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a firsthand tokenizer file"),
        ({"version": 9}, "version 9"),
        ({"merges": ...}, "field 'merges' is missing"),
        ({"merges": "h e"}, "field 'merges' is no list"),
        ({"merges": ["h e", "he"]}, r"merges\[1\] is 'he', not two tokens"),
        ({"merges": ["h e", 7]}, r"merges\[1\] is 7, not two tokens"),
        ({"merges": ["h e", "l 世"]}, r"merges\[1\] has the character '世'"),
        ({"merges": ["h e", "l "]}, r"merges\[1\] has an empty half"),
        ({"merges": ["h e", "hel l"]}, r"merges\[1\] joins 'hel', which no merge makes"),
        ({"merges": ["h e"], "special_tokens": {}}, "contents have the hash"),
        ({"pattern": "gpt9"}, "pattern 'gpt9' is unknown"),
        ({"special_tokens": {"<e>": "x"}}, "special token '<e>' has the id 'x'"),
        ({"special_tokens": {"<e>": 3}}, "already that of"),
        ({"byte_ids": [1], "merge_ids": []}, "1 byte_ids and 0 merge_ids do not fit"),
        ({"hash": "00"}, "changed or damaged"),
    ],
)
def test_damaged_files_name_the_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = _damaged(tmp_path, **changes)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is not JSON at line 1, column 1"),
        (b'{\n "format": \n', "is not JSON at line 3, column 1"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b"[1, 2]", "holds no JSON object"),
        (b'{"a": 1, "a": 2}', "has 'a' twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_records(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(contents)
    for read in (Tokenizer.load, read_hugging_face):
        with pytest.raises(TokenizerError, match=message):
            read(path)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    train(["hello hello world"] * 5, 262).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match=r"t\.json: is not JSON"):
            Tokenizer.load(path)


def _hugging_face(tmp_path: Path, **model: Any) -> dict[str, Any]:
    tokenizer = train(["hello hello world"] * 5, 260)
    write_hugging_face(tokenizer, tmp_path / "t.json")
    record: dict[str, Any] = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    record["model"].update(model)
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece"}}, "model is 'WordPiece'"),
        ({"model": {"byte_fallback": True}}, "model.byte_fallback is True"),
        ({"model": {"dropout": 0.1}}, "model.dropout is 0.1"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"\['Whitespace'\] is not supported"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "prefix space"),
        ({"added_tokens": [{"id": 1}]}, r"added_tokens\[0\] has no content and id"),
        ({"model": {"vocab": {"a": "x"}}}, "token 'a' has the id 'x'"),
        ({"model": {"merges": [["h", "q"], ["zz", "h"]]}}, "made by no merge|has no id"),
    ],
)
def test_tokenizer_json_with_what_is_not_supported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    record = _hugging_face(tmp_path, **change.pop("model", {}))
    path = tmp_path / "t.json"
    path.write_text(json.dumps(record | change), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message) as caught:
        read_hugging_face(path)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_pattern_in_a_tokenizer_json_is_named(tmp_path: Path) -> None:
    record = _hugging_face(tmp_path)
    record["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+"}
    (tmp_path / "t.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"splits by '\\\\w\+'"):
        read_hugging_face(tmp_path / "t.json")


def test_ignore_merges_is_taken_where_it_changes_nothing(tmp_path: Path) -> None:
    record = _hugging_face(tmp_path, ignore_merges=True)
    (tmp_path / "t.json").write_text(json.dumps(record), encoding="utf-8")
    assert read_hugging_face(tmp_path / "t.json") == train(["hello hello world"] * 5, 260)
    # "lo" before "el", "he" and "ll": then "hel" can no longer be reached.
    merges = [["l", "l"], ["e", "ll"], ["h", "e"], ["he", "ll"]]
    vocabulary = {token: i for token, i in record["model"]["vocab"].items() if i < 256}
    for i, token in enumerate(["ll", "ell", "he", "hell"]):
        vocabulary[token] = 256 + i
    record["model"].update(vocab=vocabulary, merges=merges)
    (tmp_path / "t.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(TokenizerError, match="ignore_merges"):
        read_hugging_face(tmp_path / "t.json")


def test_gpt2_files_name_the_line(tmp_path: Path) -> None:
    tokenizer = train(["hello hello world"] * 5, 260)
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    write_hugging_face(tokenizer, tmp_path / "t.json")
    record = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    vocabulary.write_text(json.dumps(record["model"]["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in record["model"]["merges"])]
    merges.write_text("\n".join(lines), encoding="utf-8")
    assert read_gpt2(vocabulary, merges) == tokenizer
    merges.write_text("\n".join([*lines[:2], "broken"]), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"merges\.txt: line 3 is 'broken'"):
        read_gpt2(vocabulary, merges)


def test_tokenizer_json_rows_are_checked_against_special_spelling(tmp_path: Path) -> None:
    tokenizer = Tokenizer([(0, 1)], special_tokens=['!"'])
    with pytest.raises(TokenizerError, match="spelled like an ordinary one"):
        write_hugging_face(tokenizer, tmp_path / "t.json")
