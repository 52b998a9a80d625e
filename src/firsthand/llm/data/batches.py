"""Documents on their way to the tokenizer: without duplicates, split, in bounded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from firsthand.llm.data.documents import (
    PIECE_BYTES,
    SPLITS,
    Document,
    SeenDocuments,
    Split,
    add_to_text_hash,
    split_of,
)
from firsthand.llm.data.manifest import Settings
from firsthand.llm.data.problems import Cursor, Problem, SourceError
from firsthand.llm.data.sources import Source

# Bounds what a batch weighs when documents are tiny.
BATCH_DOCUMENTS = 8192


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one document, the whole or a stretch; ends says whether the document ends with it."""

    split: Split
    place: str
    text: bytes
    ends: bool


@dataclass(slots=True)
class Batch:
    """Pieces of `size` bytes that are encoded together, and what reading them added to the counts.

    after: the cursor behind the last document, or None when it ends inside one. text_hashes: the
    sum of the digests of the documents kept, by split. A document in several batches is counted
    in its last.
    """

    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    after: Cursor | None = None
    read: int = 0
    duplicates: int = 0
    empty: int = 0
    problems: list[str] = field(default_factory=list)
    kept: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    text_bytes: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    text_hashes: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


def read_batches(
    source: Source,
    start: Cursor,
    ordinal: int,
    settings: Settings,
    seen: SeenDocuments,
    limit: int = PIECE_BYTES,
) -> Iterator[Batch]:
    """Read, drop duplicates, split, and group into batches.

    Args:
        start: where reading begins. ordinal: the number of documents before it.
        limit: bytes of text in a batch of several documents, at most PIECE_BYTES.
    Raises:
        SourceError: an unreadable document with on_problem="fatal".
    """
    batch = Batch()
    for item in source.documents(start):
        if isinstance(item, Problem):
            if settings.on_problem == "fatal":
                raise SourceError(f"{item} (on_problem='skip' leaves it out)")
            batch.problems.append(str(item))
        else:
            if batch.pieces and batch.size + item.size > limit:
                yield batch
                batch = Batch()
            ordinal += 1
            batch.read += 1
            if item.size == 0:
                batch.empty += 1
            elif settings.drop_duplicates and not seen.is_first(item.digest, ordinal):
                batch.duplicates += 1
            else:
                yield from put_document(batch, item, settings)
        batch.after = item.after
        if batch.size >= limit or batch.read + len(batch.problems) >= BATCH_DOCUMENTS:
            yield batch
            batch = Batch()
    if batch.after is not None:
        yield batch


def put_document(batch: Batch, item: Document, settings: Settings) -> Iterator[Batch]:
    """Put a document into the batch; of a long one all but the last piece leave before it.

    The document must not be empty.
    """
    split = split_of(item.digest, settings.validation_share, settings.split_seed)
    batch.kept[split] += 1
    batch.text_bytes[split] += item.size
    batch.text_hashes[split] = add_to_text_hash(batch.text_hashes[split], item.digest)
    held: bytes | None = None
    for piece in item.pieces():
        if held is not None:
            yield Batch(pieces=[Piece(split, item.place, held, ends=False)])
        held = piece
    assert held is not None
    batch.pieces.append(Piece(split, item.place, held, ends=True))
    batch.size += len(held)
