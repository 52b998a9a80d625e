"""The manifest of a prepared folder: what is in it, from what, by which tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from firsthand.llm.data.documents import Split
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.problems import ManifestError
from firsthand.llm.data.shards import TokenFormat, read_header

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
LISTED_PROBLEMS = 100


class Record(BaseModel):
    """Strict and frozen: an unknown or missing key is an error with its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardEntry(Record):
    """One shard: the file, its tokens, the documents that end in it, the payload's CRC-32."""

    file: str
    tokens: int
    documents: int
    crc32: int


class SplitEntry(Record):
    """One split.

    bytes: of UTF-8 text, the denominator of bits per byte. tokens: with one end-of-text for each
    document. text_hash: of the set of texts, whatever their order and whatever the tokenizer.
    """

    tokens: int
    documents: int
    bytes: int
    text_hash: str
    shards: list[ShardEntry]


class TokenizerEntry(Record):
    """The tokenizer that wrote the shards."""

    file: str
    hash: str
    vocabulary_size: int
    end_of_text: int


class Counts(Record):
    """Documents: read, kept, exact duplicates dropped, empty, unreadable; bytes of text kept."""

    read: int = 0
    kept: int = 0
    duplicates: int = 0
    empty: int = 0
    skipped: int = 0


class Settings(Record):
    """What decides the content of the shards beside the text and the tokenizer."""

    validation_share: float
    split_seed: int
    shard_tokens: int
    drop_duplicates: bool
    on_problem: Literal["fatal", "skip"]


class Manifest(Record):
    """All of it. Equal text, tokenizer and settings give equal bytes.

    problems: the first unreadable documents, as text. notes: what the reader should know.
    """

    format: Literal["firsthand token shards"] = "firsthand token shards"
    version: Literal[1] = 1
    source: dict[str, Any]
    tokenizer: TokenizerEntry
    token_bytes: int
    settings: Settings
    counts: Counts
    problems: list[str]
    notes: list[str]
    splits: dict[Split, SplitEntry]

    @property
    def form(self) -> TokenFormat:
        """What every shard's header must say."""
        return TokenFormat(
            self.token_bytes,
            self.tokenizer.end_of_text,
            self.tokenizer.vocabulary_size,
            self.tokenizer.hash,
        )


def reasons(error: ValidationError) -> str:
    """A validation error in one line: the place in the file and the reason, for each."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'the file'}: {item['msg']}"
        for item in error.errors()
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it last: a folder with a manifest is whole."""
    text = manifest.model_dump_json(indent=2) + "\n"
    write_atomically(folder / MANIFEST, text.encode("utf-8"))


def read_manifest(folder: Path, *, tokenizer_hash: str | None = None) -> Manifest:
    """The manifest of a whole folder, checked against the headers of its shards.

    Args:
        tokenizer_hash: of the tokenizer that will be used; None where none is.
    Raises:
        ManifestError: unfinished, damaged, or written by another tokenizer.
        ShardError: a shard is missing, cut short, or not what the manifest says.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        reason = "no manifest: the folder was never prepared, or not to the end"
        raise ManifestError(f"{path}: {reason}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(f"{path}: {reasons(error)}") from error
    if tokenizer_hash is not None and tokenizer_hash != manifest.tokenizer.hash:
        raise ManifestError(
            f"{path}: prepared with another tokenizer: its hash is "
            f"{manifest.tokenizer.hash[:12]}..., this one's is {tokenizer_hash[:12]}..."
        )
    for split in manifest.splits.values():
        for entry in split.shards:
            shard = folder / entry.file
            form, tokens, documents = read_header(shard)
            if form != manifest.form:
                raise ManifestError(f"{shard}: of another tokenizer or format than {MANIFEST} says")
            if (tokens, documents) != (entry.tokens, entry.documents):
                raise ManifestError(
                    f"{shard}: {tokens} tokens in {documents} documents; {MANIFEST} says "
                    f"{entry.tokens} in {entry.documents}"
                )
        if split.tokens != sum(entry.tokens for entry in split.shards):
            raise ManifestError(f"{path}: the tokens of the shards do not add up")
    return manifest
