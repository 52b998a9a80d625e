"""The tokenizer in a GGUF file: every id comes back, and what cannot be told is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.gguf_export import save_gguf
from firsthand.llm.quantization.gguf_import import load_gguf
from firsthand.llm.quantization.gguf_tokenizer import described_tokenizer
from firsthand.llm.tokenizer import Tokenizer, TokenizerError, train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate

gguf = pytest.importorskip("gguf")
TEXT = "the quick brown fox jumps over the lazy dog; naïve café, 12 dogs, 日本語\n" * 9
END = "<|endoftext|>"


def model_for(vocabulary: int) -> Transformer:
    config = ModelConfig(vocab_size=vocabulary, context=8, d_model=8, n_layers=1, n_heads=2, d_ff=8)
    return Transformer(config, FAST)


def written(path: Path, tokenizer: Tokenizer, more: int = 0) -> dict[str, Any]:
    """The keys of a file with this tokenizer."""
    save_gguf(model_for(tokenizer.vocabulary_size + more), path, tokenizer)
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("more", [0, 3])
def test_it_comes_back(tmp_path: Path, pattern: str, more: int) -> None:
    tokenizer = train([TEXT], 320, pattern=pattern, special_tokens=(*CHAT_TOKENS, END))
    path = tmp_path / "model.gguf"
    fields = written(path, tokenizer, more)
    assert load_gguf(path, FAST).tokenizer == tokenizer
    assert fields["tokenizer.ggml.pre"] == {"gpt2": "gpt-2", "gpt4": "smaug-bpe"}[pattern]
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.special_tokens[END]
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.special_tokens[END]
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.special_tokens["<|end|>"]
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == ChatTemplate.jinja()
    types = fields["tokenizer.ggml.token_type"]
    assert types.count(3) == len(tokenizer.special_tokens)
    assert types.count(5) == more


def test_ids_of_any_order_and_gaps_come_back(tmp_path: Path) -> None:
    order = [7 * byte % 256 + 3 for byte in range(256)]
    merges = [(order[0x61], order[0x62]), (270, order[0x63])]
    tokenizer = Tokenizer(
        merges, byte_ids=order, merge_ids=[270, 0], special_tokens={END: 264, "ends Ġ here": 290}
    )
    path = tmp_path / "model.gguf"
    fields = written(path, tokenizer)
    assert load_gguf(path, FAST).tokenizer == tokenizer
    assert "tokenizer.chat_template" not in fields
    assert "tokenizer.ggml.eot_token_id" not in fields


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(model_for(12), path)
    found = load_gguf(path, FAST)
    assert found.tokenizer is None
    assert "'no_vocab'; only byte-level BPE" in found.no_tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "rows", "words"),
    [
        (Tokenizer([(0, 1)], special_tokens=[END]), 200, "258 tokens, .* only 200 rows"),
        (Tokenizer([], special_tokens=[END]), 257, "without merges"),
        (Tokenizer([(0, 1)]), 257, r"neither <\|endoftext\|> nor <\|end\|>.*the token 11"),
        (Tokenizer([(0, 1)], special_tokens=[END, "a"]), 259, "64 and 258 are both spelled 'a'"),
        (
            Tokenizer([(0, 1), (1, 2), (256, 2), (0, 257)], special_tokens=[END]),
            261,
            "258 and 259 are both spelled",
        ),
    ],
)
def test_what_gguf_cannot_hold(tmp_path: Path, tokenizer: Tokenizer, rows: int, words: str) -> None:
    with pytest.raises(ExchangeError, match=words):
        save_gguf(model_for(rows), tmp_path / "model.gguf", tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    return written(tmp_path / "model.gguf", train([TEXT], 300, special_tokens=(END,)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", "llama", "the tokenizer is 'llama'; only byte-level BPE"),
        ("pre", "tekken", "tokenizer.ggml.pre is 'tekken'; known are gpt-2"),
        ("tokens", None, "tokenizer.ggml.tokens is missing"),
        ("merges", [1, 2], "tokenizer.ggml.merges is no array of str"),
        ("merges", ["a b c"], r"merges\[0\] is 'a b c', not two tokens"),
        ("token_type", [1, 1], "2 token types for 300 tokens"),
        ("token_type", [6] * 300, "token 0, '!', has the type 6"),
        ("token_type", [1] * 300, r"'<\|endoftext\|>' is made by no merge and is not special"),
        ("token_type", [5] + [1] * 298 + [3], "token '!' has no id"),
        ("tokens", ["!"] * 300, "the tokens 0 and 1 are alike"),
    ],
)
def test_keys_that_are_wrong(fields: dict[str, Any], key: str, value: Any, words: str) -> None:
    fields[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del fields[f"tokenizer.ggml.{key}"]
    with pytest.raises(TokenizerError, match=words):
        described_tokenizer(fields, Path("model.gguf"))


def test_pieces_that_are_taken_whole(tmp_path: Path) -> None:
    # "abc" is a token, but "ab" never meets "c": "bc" is merged first.
    a, b, c = (Tokenizer([]).encode(letter)[0] for letter in "abc")
    astray = Tokenizer([(b, c), (a, b), (257, c)], pattern="gpt4", special_tokens=[END])
    fields = written(tmp_path / "model.gguf", astray)
    assert described_tokenizer(fields, tmp_path) == astray
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    with pytest.raises(TokenizerError, match="do not lead to the token 'abc'"):
        described_tokenizer(fields, tmp_path)
    whole = train([TEXT], 300, pattern="gpt4", special_tokens=(END,))
    fields = written(tmp_path / "model.gguf", whole)
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    assert described_tokenizer(fields, tmp_path) == whole
