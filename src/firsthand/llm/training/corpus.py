"""The text of a run: its tokenizer, its shards, and what a compressor makes of it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from firsthand.llm.data.documents import Document
from firsthand.llm.data.loading import TokenStream, open_split
from firsthand.llm.data.manifest import Manifest, read_manifest
from firsthand.llm.data.named import named_source
from firsthand.llm.data.preparation import END_OF_TEXT, Progress, prepare
from firsthand.llm.data.sources import Source
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer import train as train_tokenizer
from firsthand.llm.tokenizer.chat import CHAT_TOKENS
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.evaluation import byte_lengths
from firsthand.llm.training.next_token import Corpus

Report = Callable[[str, float, float | None], None]

_READ_TOKENS = 1 << 20


def prepare_corpus(config: RunConfig, folder: Path, tokenizer_file: Path, report: Report) -> None:
    """Make what `open_corpus` opens, or go on with it after an interruption.

    Args:
        config: its data table and the size of the vocabulary.
        folder: for the shards, unless the config names a prepared folder.
        tokenizer_file: for the run's tokenizer.
        report: is told the stage, how far it is, and the total where it is known.
    Raises:
        DataError, TokenizerError: text, tokenizer or folder cannot be used.
    """
    data = config.data
    if data.folder:
        if not tokenizer_file.exists():
            Tokenizer.load(Path(data.folder, "tokenizer.json")).save(tokenizer_file)
        return
    source = named_source(data.source, field=data.field, size=data.size or None, unit=data.unit)
    if not tokenizer_file.exists():
        if data.tokenizer:
            tokenizer = Tokenizer.load(data.tokenizer)
        else:
            tokenizer = _trained(source, config.model.vocab_size, report)
        tokenizer.save(tokenizer_file)

    def show(now: Progress) -> None:
        report("reading text", now.text_bytes, now.total_bytes)

    prepare(
        source,
        Tokenizer.load(tokenizer_file),
        folder,
        validation_share=data.validation_share,
        report=show,
    )


def open_corpus(config: RunConfig, folder: Path, tokenizer_file: Path) -> tuple[Corpus, Manifest]:
    """The splits that `prepare_corpus` made, every shard verified.

    Raises:
        DataError, TokenizerError: a file is missing or damaged, or of another tokenizer.
    """
    place = Path(config.data.folder) if config.data.folder else folder
    tokenizer = Tokenizer.load(tokenizer_file)
    corpus = Corpus(
        train=open_split(place, "train", tokenizer_hash=tokenizer.hash),
        validation=open_split(place, "validation", tokenizer_hash=tokenizer.hash),
        byte_lengths=byte_lengths(tokenizer),
        tokenizer=tokenizer,
    )
    return corpus, read_manifest(place)


def gzip_bits_per_byte(stream: TokenStream, tokenizer: Tokenizer) -> float:
    """What gzip -9 makes of the same text, documents one after the other, in bits per byte."""
    text = b"".join(_text(stream, tokenizer))
    return 8 * len(gzip.compress(text, compresslevel=9)) / len(text) if text else 0.0


def _text(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[bytes]:
    spelt = tokenizer.tokens()
    for name in tokenizer.special_tokens:
        spelt[tokenizer.special_tokens[name]] = b""
    for start in range(0, len(stream), _READ_TOKENS):
        ids = np.empty(min(_READ_TOKENS, len(stream) - start), np.int64)
        stream.read(start, ids)
        yield b"".join(spelt[token] for token in ids.tolist())


def _trained(source: Source, vocabulary: int, report: Report) -> Tokenizer:
    def texts() -> Iterable[bytes]:
        for item in source.documents():
            if isinstance(item, Document):
                yield from item.pieces()

    def show(stage: str, done: int, total: int | None) -> None:
        report(f"tokenizer: {stage}", done, total)

    return train_tokenizer(
        texts(), vocabulary, special_tokens=(END_OF_TEXT, *CHAT_TOKENS), progress=show
    )
