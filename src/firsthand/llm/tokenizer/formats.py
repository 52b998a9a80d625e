"""Files: the project's own JSON, and GPT-2's `vocab.json` with `merges.txt`. Never pickle.

A file is written under another name and then renamed, so a crash or a full disk leaves the old one.
What is read is checked in full: each error names the file and the place in it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from firsthand.llm.tokenizer.byte_alphabet import BYTE_IDS, from_printable, to_printable
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Tokenizer

FORMAT, VERSION = "firsthand tokenizer", 1
Kind = TypeVar("Kind")


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes the own format; one merge per line, as printable characters (`"Ġt he"`).

    Ids are written only where they differ from those that `train` gives.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "pattern": tokenizer.pattern,
        "vocabulary_size": tokenizer.vocabulary_size,
        "special_tokens": tokenizer.special_tokens,
    }
    if not tokenizer.is_standard:
        record["byte_ids"] = tokenizer.byte_ids
        record["merge_ids"] = tokenizer.merge_ids
    record["merges"] = [" ".join(pair) for pair in printable_merges(tokenizer)]
    record["hash"] = tokenizer.hash
    write_text(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads what `write_tokenizer` has written.

    Raises:
        TokenizerError: another format or version, a field that is missing or wrong, a merge that
            cannot be, or contents that do not have the hash in the file.
    """
    record = read_json(path)
    if record.get("format") != FORMAT:
        raise TokenizerError(f"{path}: is not a {FORMAT} file (no format field that says so)")
    if record.get("version") != VERSION:
        raise TokenizerError(
            f"{path}: has the version {record.get('version')!r}; this program reads {VERSION}"
        )
    pairs = merge_list(field(record, "merges", list, path), f"{path}: merges")
    specials = special_ids(field(record, "special_tokens", dict, path), path)
    tokenizer: Tokenizer
    if "byte_ids" in record or "merge_ids" in record:
        byte_ids = _integers(field(record, "byte_ids", list, path), f"{path}: byte_ids")
        merge_ids = _integers(field(record, "merge_ids", list, path), f"{path}: merge_ids")
        if len(byte_ids) != 256 or len(merge_ids) != len(pairs):
            raise TokenizerError(
                f"{path}: {len(byte_ids)} byte_ids and {len(merge_ids)} merge_ids do not fit 256 "
                f"bytes and {len(pairs)} merges"
            )
    else:
        byte_ids, merge_ids = list(BYTE_IDS), list(range(256, 256 + len(pairs)))
    identities = {bytes([byte]): identity for byte, identity in enumerate(byte_ids)}
    for (left, right), identity in zip(pairs, merge_ids, strict=True):
        identities.setdefault(left + right, identity)
    merges = numbered_merges(pairs, identities, f"{path}: merges")
    pattern = field(record, "pattern", str, path)
    tokenizer = built(path, merges, pattern, specials, byte_ids=byte_ids, merge_ids=merge_ids)
    if tokenizer.hash != record.get("hash"):
        raise TokenizerError(
            f"{path}: the contents have the hash {tokenizer.hash[:12]}..., but the file says "
            f"{str(record.get('hash'))[:12]}...: it was changed or damaged after it was written"
        )
    return tokenizer


def read_gpt2(vocabulary: Path, merges: Path, *, pattern: str = "gpt2") -> Tokenizer:
    """Reads `vocab.json` (token to id) and `merges.txt` (a merge per line, `#version` first).

    Entries of the vocabulary that are no byte and no merge are special tokens: `<|endoftext|>`.

    Raises:
        TokenizerError: a damaged file, or one that does not fit the other.
        OSError: a file that cannot be read.
    """
    identities = read_json(vocabulary)
    lines = read_text(merges).split("\n")
    first = 1 if lines and lines[0].startswith("#version") else 0
    numbered = [(n, line) for n, line in enumerate(lines[first:], first + 1) if line]
    pairs = [split_merge(line, f"{merges}: line {n}") for n, line in numbered]
    return from_vocabulary(
        identities, pairs, vocabulary, f"{merges}: merges", pattern=pattern, special_tokens=None
    )


def from_vocabulary(
    vocabulary: dict[str, Any],
    pairs: list[tuple[bytes, bytes]],
    path: Path,
    merges_place: str,
    *,
    pattern: str,
    special_tokens: dict[str, int] | None,
) -> Tokenizer:
    """A tokenizer from ids by printable token and merges as bytes.

    Args:
        special_tokens: None takes for special whatever is neither a byte nor made by a merge;
            otherwise such entries must be among these.
    Raises:
        TokenizerError: a byte or a merged token without an id, or an entry that nothing makes.
    """
    known = {bytes([byte]) for byte in range(256)} | {left + right for left, right in pairs}
    identities: dict[bytes, int] = {}
    rest: dict[str, int] = {}
    for text, identity in vocabulary.items():
        if type(identity) is not int or identity < 0:
            raise TokenizerError(f"{path}: token {text!r} has the id {identity!r}, no number")
        try:
            token = from_printable(text)
        except KeyError:
            token = b""
        if token in known and text not in (special_tokens or {}):
            identities[token] = identity
        else:
            rest[text] = identity
    if special_tokens is None:
        special_tokens = rest
    for text in rest:
        if text not in special_tokens:
            raise TokenizerError(
                f"{path}: token {text!r} is made by no merge and is not special; vocabularies that "
                "are not byte-level BPE throughout are not supported"
            )
    for token in known:
        if token not in identities:
            raise TokenizerError(f"{path}: token {to_printable(token)!r} has no id")
    return built(
        path,
        numbered_merges(pairs, identities, merges_place),
        pattern,
        special_tokens,
        byte_ids=[identities[bytes([byte])] for byte in range(256)],
        merge_ids=[identities[left + right] for left, right in pairs],
    )


def built(
    path: Path,
    merges: list[tuple[int, int]],
    pattern: str,
    special_tokens: dict[str, int],
    *,
    byte_ids: list[int],
    merge_ids: list[int],
) -> Tokenizer:
    """The tokenizer; what it finds wrong is told with the file's name."""
    try:
        return Tokenizer(
            merges,
            pattern=pattern,
            special_tokens=special_tokens,
            byte_ids=byte_ids,
            merge_ids=merge_ids,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def printable_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Both halves of each merge in printable characters."""
    return [
        (to_printable(tokenizer.token_bytes(left)), to_printable(tokenizer.token_bytes(right)))
        for left, right in tokenizer.merges
    ]


def merge_list(entries: list[Any], place: str) -> list[tuple[bytes, bytes]]:
    """Merges as bytes, from `"a b"` or `["a", "b"]` each."""
    pairs = []
    for number, entry in enumerate(entries):
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry):
            pairs.append(_pair(entry[0], entry[1], f"{place}[{number}]"))
        elif isinstance(entry, str):
            pairs.append(split_merge(entry, f"{place}[{number}]"))
        else:
            raise TokenizerError(f"{place}[{number}] is {entry!r}, not two tokens")
    return pairs


def split_merge(text: str, place: str) -> tuple[bytes, bytes]:
    """Both halves of `"a b"` as bytes."""
    halves = text.split(" ")
    if len(halves) != 2:
        raise TokenizerError(f"{place} is {text!r}, not two tokens with a space between them")
    return _pair(halves[0], halves[1], place)


def numbered_merges(
    pairs: list[tuple[bytes, bytes]], identities: dict[bytes, int], place: str
) -> list[tuple[int, int]]:
    """Merges as ids."""
    merges = []
    for number, (left, right) in enumerate(pairs):
        for token in (left, right):
            if token not in identities:
                raise TokenizerError(
                    f"{place}[{number}] joins {to_printable(token)!r}, which no merge makes"
                )
        merges.append((identities[left], identities[right]))
    return merges


def special_ids(record: dict[str, Any], path: Path) -> dict[str, int]:
    """Ids by spelling, checked."""
    for text, identity in record.items():
        if type(identity) is not int:
            raise TokenizerError(f"{path}: special token {text!r} has the id {identity!r}")
    return record


def field(record: dict[str, Any], name: str, kind: type[Kind], path: Path) -> Kind:
    """A field that must be there and of this kind."""
    value = record.get(name)
    if not isinstance(value, kind):
        state = "is missing" if name not in record else f"is no {kind.__name__}"
        raise TokenizerError(f"{path}: the field {name!r} {state}")
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text of a file; what is none is an error with its offset."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 at byte {error.start}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; each key once."""
    try:
        record = json.loads(read_text(path), object_pairs_hook=_unique(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(
            f"{path}: is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise TokenizerError(f"{path}: is nested too deeply") from None
    if not isinstance(record, dict):
        raise TokenizerError(f"{path}: holds no JSON object")
    return record


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _unique(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise TokenizerError(f"{path}: has {twice!r} twice")
        return record

    return build


def _pair(left: str, right: str, place: str) -> tuple[bytes, bytes]:
    try:
        pair = from_printable(left), from_printable(right)
    except KeyError as error:
        raise TokenizerError(
            f"{place} has the character {error}, which stands for no byte"
        ) from None
    if not all(pair):
        raise TokenizerError(f"{place} has an empty half")
    return pair


def _integers(values: list[Any], place: str) -> list[int]:
    for number, value in enumerate(values):
        if type(value) is not int:
            raise TokenizerError(f"{place}[{number}] is {value!r}, no id")
    return values
