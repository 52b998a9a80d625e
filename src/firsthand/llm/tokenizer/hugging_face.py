"""Hugging Face's `tokenizer.json`, both ways.

The one difference that stays: `tokenizers` recognises special tokens in any text it is given, here
they are recognised only where the caller allows it.
"""

import json
from pathlib import Path
from typing import Any

from firsthand.llm.tokenizer.byte_alphabet import to_printable
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.formats import (
    field,
    from_vocabulary,
    merge_list,
    printable_merges,
    read_json,
    write_text,
)
from firsthand.llm.tokenizer.patterns import PATTERNS
from firsthand.llm.tokenizer.tokenizer import Tokenizer

# Other spellings of the two patterns that are in use and cut alike.
_SPELLINGS = {
    **{expression: name for name, expression in PATTERNS.items()},
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "gpt4",
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "gpt4",
}


def write_hugging_face(tokenizer: Tokenizer, path: Path | str) -> None:
    """Writes a `tokenizer.json` with which `tokenizers` and `transformers` give the same ids."""
    text = json.dumps(hugging_face_record(tokenizer), ensure_ascii=False, indent=1)
    write_text(Path(path), text + "\n")


def hugging_face_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of the `tokenizer.json`."""
    special = set(tokenizer.special_tokens.values())
    vocabulary = {
        to_printable(token): identity
        for identity, token in tokenizer.tokens().items()
        if identity not in special
    }
    for text, identity in tokenizer.special_tokens.items():
        if text in vocabulary:
            raise TokenizerError(
                f"special token {text!r} is spelled like an ordinary one, which tokenizer.json "
                "cannot hold"
            )
        vocabulary[text] = identity
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[tokenizer.pattern]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": identity,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, identity in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in printable_merges(tokenizer)],
        },
    }


def read_hugging_face(path: Path | str) -> Tokenizer:
    """Reads a `tokenizer.json` of byte-level BPE with GPT-2's or GPT-4's pattern.

    Raises:
        TokenizerError: a damaged file, or a setting that would give other ids here; names it.
        OSError: the file cannot be read.
    """
    path = Path(path)
    record = read_json(path)
    model = field(record, "model", dict, path)
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"{path}: the model is {model['type']!r}; only BPE is supported")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise TokenizerError(f"{path}: model.{name} is {model[name]!r}; it is not supported")
    if record.get("normalizer") is not None:
        raise TokenizerError(f"{path}: has a normalizer, which changes the text; not supported")
    specials = _added_tokens(record.get("added_tokens") or [], path)
    tokenizer = from_vocabulary(
        field(model, "vocab", dict, path),
        merge_list(field(model, "merges", list, path), f"{path}: model.merges"),
        path,
        f"{path}: model.merges",
        pattern=_pattern(record.get("pre_tokenizer"), path),
        special_tokens=specials,
    )
    if model.get("ignore_merges"):
        _require_reachable(tokenizer, path)
    return tokenizer


def _added_tokens(entries: Any, path: Path) -> dict[str, int]:
    specials: dict[str, int] = {}
    for number, entry in enumerate(entries):
        place = f"{path}: added_tokens[{number}]"
        if not isinstance(entry, dict):
            raise TokenizerError(f"{place} is no object")
        text, identity = entry.get("content"), entry.get("id")
        if not isinstance(text, str) or type(identity) is not int:
            raise TokenizerError(f"{place} has no content and id")
        specials[text] = identity
    return specials


def _pattern(pre_tokenizer: Any, path: Path) -> str:
    """The name of the pattern: a lone ByteLevel has GPT-2's, else a Split says which."""
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers") or []
    steps = [step if isinstance(step, dict) else {} for step in steps]
    kinds = [step.get("type") for step in steps]
    level = steps[-1] if steps else {}
    if kinds in (["ByteLevel"], ["Split", "ByteLevel"]) and not level.get("add_prefix_space"):
        uses_pattern = level.get("use_regex", True)
        if kinds == ["ByteLevel"] and uses_pattern:
            return "gpt2"
        if kinds == ["Split", "ByteLevel"] and not uses_pattern:
            split = steps[0]
            pattern = split.get("pattern")
            expression = pattern.get("Regex") if isinstance(pattern, dict) else None
            plain = split.get("behavior") == "Isolated" and not split.get("invert")
            if plain and expression in _SPELLINGS:
                return _SPELLINGS[expression]
            raise TokenizerError(
                f"{path}: the pre_tokenizer splits by {expression!r}; only the patterns of GPT-2 "
                "and GPT-4 are supported"
            )
    raise TokenizerError(
        f"{path}: the pre_tokenizer {kinds} is not supported; it must be ByteLevel, or Split and "
        "ByteLevel, without a prefix space"
    )


def _require_reachable(tokenizer: Tokenizer, path: Path) -> None:
    """With ignore_merges a piece that is a token is taken whole; that must be what merges give."""
    special = set(tokenizer.special_tokens.values())
    for identity, token in tokenizer.tokens().items():
        if identity not in special:
            ids = tokenizer.encode_piece(token)
            if ids != [identity]:
                raise TokenizerError(
                    f"{path}: model.ignore_merges is set, and its merges give {ids} for the token "
                    f"{to_printable(token)!r} with the id {identity}; this is not supported"
                )
