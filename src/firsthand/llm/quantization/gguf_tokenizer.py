"""A tokenizer as a GGUF file describes it to llama.cpp, both ways.

Two differences stay. llama.cpp looks for special tokens in whatever text it is asked to parse them
in, here they are recognised only where the caller allows it. And characters are letters or numbers
by llama.cpp's own Unicode tables, which may be older or newer than those of the package regex.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firsthand.llm.generation.prompts import END_OF_TEXT
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.quantization.gguf_layout import gguf_package
from firsthand.llm.tokenizer import Tokenizer, TokenizerError
from firsthand.llm.tokenizer.byte_alphabet import to_printable
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, END, ChatTemplate
from firsthand.llm.tokenizer.formats import from_vocabulary, merge_list, printable_merges

# llama.cpp's name of each of our patterns. "llama-bpe" cuts like "smaug-bpe", but takes a piece
# that is a token whole, even where the merges lead elsewhere.
PRE_TOKENIZERS = {"gpt2": "gpt-2", "gpt4": "smaug-bpe"}
_MERGES_ALONE = {"gpt-2": "gpt2", "smaug-bpe": "gpt4", "dbrx": "gpt4", "chatglm-bpe": "gpt4"}
_TOKENS_FIRST = {"llama-bpe": "gpt4", "llama3": "gpt4", "llama-v3": "gpt4", "falcon3": "gpt4"}

# Token types of the format.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def describe_tokenizer(writer: Any, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Add the keys of a tokenizer to a file.

    Args:
        writer: a gguf.GGUFWriter.
        tokenizer: its <|endoftext|>, or without one its <|end|>, ends a text.
        vocabulary_size: of the model; rows beyond the tokenizer's are told to be unused.
    Raises:
        ExchangeError: more tokens than rows, no merge, none that ends a text, or two tokens that
            the file would spell alike.
    """
    if tokenizer.vocabulary_size > vocabulary_size:
        raise ExchangeError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, but the model's embedding only "
            f"{vocabulary_size} rows"
        )
    if not tokenizer.merges:
        raise ExchangeError("llama.cpp loads no tokenizer without merges, and this one has none")
    specials = tokenizer.special_tokens
    end = specials.get(END_OF_TEXT, specials.get(END))
    if end is None:
        raise ExchangeError(
            f"the tokenizer has neither {END_OF_TEXT} nor {END}: llama.cpp would take the token 11 "
            "for the end of a text; train the tokenizer with one of them"
        )
    tokens, types = _token_list(tokenizer, vocabulary_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[tokenizer.pattern])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in printable_merges(tokenizer)])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    if END in specials:
        writer.add_eot_token_id(specials[END])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if all(token in specials for token in CHAT_TOKENS):
        writer.add_chat_template(ChatTemplate.jinja())


def described_tokenizer(fields: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that the keys of a file describe.

    Args:
        fields: values by key.
        path: of the file, for messages.
    Raises:
        TokenizerError: no byte-level BPE, another pattern than ours, or damaged.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise TokenizerError(
            f"{path}: the tokenizer is {kind!r}; only byte-level BPE ('gpt2') can be read"
        )
    pre = str(fields.get("tokenizer.ggml.pre"))
    pattern = _MERGES_ALONE.get(pre) or _TOKENS_FIRST.get(pre)
    if pattern is None:
        known = ", ".join([*_MERGES_ALONE, *_TOKENS_FIRST])
        raise TokenizerError(f"{path}: tokenizer.ggml.pre is {pre!r}; known are {known}")
    tokens = _array(fields, "tokenizer.ggml.tokens", str, path)
    merges = _array(fields, "tokenizer.ggml.merges", str, path)
    types = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in fields:
        types = _array(fields, "tokenizer.ggml.token_type", int, path)
    if len(types) != len(tokens):
        raise TokenizerError(f"{path}: {len(types)} token types for {len(tokens)} tokens")
    vocabulary: dict[str, int] = {}
    specials: dict[str, int] = {}
    for identity, (text, token_type) in enumerate(zip(tokens, types, strict=True)):
        if token_type == _UNUSED:
            continue
        if token_type not in (_NORMAL, _CONTROL, _USER_DEFINED):
            raise TokenizerError(
                f"{path}: token {identity}, {text!r}, has the type {token_type}, which byte-level "
                "BPE does not use"
            )
        if text in vocabulary:
            raise TokenizerError(f"{path}: the tokens {vocabulary[text]} and {identity} are alike")
        vocabulary[text] = identity
        if token_type != _NORMAL:
            specials[text] = identity
    place = f"{path}: tokenizer.ggml.merges"
    tokenizer = from_vocabulary(
        vocabulary,
        merge_list(merges, place),
        path,
        place,
        pattern=pattern,
        special_tokens=specials,
    )
    if pre in _TOKENS_FIRST:
        _require_reachable(tokenizer, pre, path)
    return tokenizer


def _token_list(tokenizer: Tokenizer, vocabulary_size: int) -> tuple[list[str], list[int]]:
    """Spelling and type of every row of the embedding."""
    special = set(tokenizer.special_tokens.values())
    found = tokenizer.tokens()
    tokens, types = [], []
    for identity in range(vocabulary_size):
        if identity not in found:
            tokens.append(f"[UNUSED {identity}]")
            types.append(_UNUSED)
        elif identity in special:
            tokens.append(found[identity].decode())
            types.append(_CONTROL)
        else:
            tokens.append(to_printable(found[identity]))
            types.append(_NORMAL)
    first: dict[str, int] = {}
    for identity, text in enumerate(tokens):
        if first.setdefault(text, identity) != identity:
            raise ExchangeError(
                f"the tokens {first[text]} and {identity} are both spelled {text!r}, which GGUF "
                "cannot hold"
            )
    types_of = gguf_package().TokenType
    return tokens, [types_of(number) for number in types]


def _array(fields: Mapping[str, Any], key: str, kind: type, path: Path) -> list[Any]:
    values = fields.get(key)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        state = "is missing" if key not in fields else f"is no array of {kind.__name__}"
        raise TokenizerError(f"{path}: {key} {state}")
    return values


def _require_reachable(tokenizer: Tokenizer, pre: str, path: Path) -> None:
    special = set(tokenizer.special_tokens.values())
    for identity, token in tokenizer.tokens().items():
        if identity not in special and tokenizer.encode_piece(token) != [identity]:
            raise TokenizerError(
                f"{path}: by {pre!r} a piece that is a token is taken whole, but the merges do not "
                f"lead to the token {to_printable(token)!r}; this is not supported"
            )
