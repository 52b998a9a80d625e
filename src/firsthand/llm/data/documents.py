"""A document: its bytes, its identity, its split, and whether it was seen before."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firsthand.llm.data.problems import Cursor, DataError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

DIGEST_BYTES = 16
# Also the most text that one message to an encoding process holds.
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """One text, held whole where it is short and read again piece by piece where it is long.

    place: file (and line), for messages. digest: of the whole text as UTF-8. size: bytes of
    UTF-8. after: the cursor behind it. text: the bytes, or None when it is longer than
    PIECE_BYTES. reread: gives a long text in pieces of bounded size; concatenated they are the
    text, and it raises SourceError if the text has changed since it was hashed.
    """

    place: str
    digest: bytes
    size: int
    after: Cursor
    text: bytes | None
    reread: Callable[[], Iterator[bytes]] | None = None

    def pieces(self) -> Iterator[bytes]:
        """The text in pieces of at most PIECE_BYTES, cut by `cut_pieces`."""
        if self.text is not None:
            parts: Iterable[bytes] = (self.text,)
        else:
            assert self.reread is not None
            parts = self.reread()
        return cut_pieces(parts, PIECE_BYTES)


class Digest:
    """The identity of a text that comes in parts; how it is cut makes no difference."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def update(self, part: bytes) -> None:
        """Go on with the next part."""
        self._state.update(part)

    def digest(self) -> bytes:
        """The identity of what came so far: BLAKE2b, 16 bytes."""
        return self._state.digest()


def digest_of(parts: Iterable[bytes]) -> bytes:
    """The `Digest` of a text given in parts."""
    state = Digest()
    for part in parts:
        state.update(part)
    return state.digest()


def document_of(text: bytes, place: str, after: Cursor) -> Document:
    """A document from UTF-8 that is in memory already."""
    return Document(place, digest_of((text,)), len(text), after, text)


def split_of(digest: bytes, validation_share: float, seed: int = 0) -> Split:
    """The split of a document, from its text alone.

    The digest is a number spread evenly over [0, 1); below the share it is validation. So adding,
    removing or reordering other documents moves none.

    Args:
        validation_share: at least 0 and below 1.
        seed: another seed draws another validation split.
    """
    drawn = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return "validation" if int.from_bytes(drawn, "little") < validation_share * 2**64 else "train"


def add_to_text_hash(text_hash: int, digest: bytes) -> int:
    """Add one document to the hash of a set of documents: a sum modulo 2^128.

    The order does not matter and the state is one integer, so an interrupted sum goes on. Against
    an adversary it is weak (Clarke et al. 2003, "Incremental multiset hash functions", section 5);
    it is here to tell whether two runs were judged on the same validation text.
    """
    return (text_hash + int.from_bytes(digest, "little")) % (1 << (8 * DIGEST_BYTES))


def safe_cut(text: bytes, limit: int) -> int:
    """Where to cut text, at most at limit, so that both sides encode as the whole would.

    Before a space that follows an ASCII letter or digit every pre-tokenization pattern in use
    (GPT-2's, GPT-4's) starts a new piece, and neither looks behind itself. A text without such a
    place in reach is cut between two characters, which may cost a token at the seam.

    Args:
        text: UTF-8, longer than limit.
        limit: at least 4.
    """
    end = limit + 1
    while (space := text.rfind(b" ", limit // 2, end)) > 0:
        if text[space - 1 : space].isalnum():
            return space
        end = space
    cut = limit
    while text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def cut_pieces(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Regroup UTF-8 given in parts (cut anywhere) into pieces of at most limit bytes.

    Where a cut lies depends on the text and the limit alone, not on how the parts were cut.
    Holds at most limit bytes and one part.
    """
    held = b""
    for part in parts:
        held = held + part if held else part
        start = 0
        # One byte more than the limit decides whether the limit itself is a place to cut.
        while len(held) - start > limit:
            window = held[start : start + limit + 1]
            cut = safe_cut(window, limit)
            yield window[:cut]
            start += cut
        held = held[start:]
    if held:
        yield held


class SeenDocuments:
    """Which texts came before, on disk, so that memory does not grow with the corpus.

    A digest is kept with the ordinal of its first document. Asking again with the same ordinal
    gives the same answer, which is what makes reading a stretch twice after a crash harmless.
    """

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            DataError: another process has it open, or it is damaged.
        """
        self._path = path
        self._connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
        try:
            # Exclusive: two preparations in one folder would spoil each other.
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA cache_size=-32768")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS seen"
                "(digest BLOB PRIMARY KEY, ordinal INTEGER NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            self._connection.close()
            if "locked" in str(error):
                reason = "another preparation is at work here"
            else:
                reason = f"cannot be used: {error}"
            raise DataError(f"{path}: {reason}") from error

    def is_first(self, digest: bytes, ordinal: int) -> bool:
        """Whether no document with a smaller ordinal has this digest."""
        try:
            inserted = self._connection.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, ordinal)
            )
            if inserted.rowcount == 1:
                return True
            row = self._connection.execute(
                "SELECT ordinal FROM seen WHERE digest = ?", (digest,)
            ).fetchone()
        except sqlite3.Error as error:
            raise DataError(f"{self._path}: {error}") from error
        return bool(row[0] >= ordinal)

    def clear(self) -> None:
        """Forget all."""
        self._connection.execute("DELETE FROM seen")

    def commit(self) -> None:
        """Make what was asked so far survive a crash."""
        try:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise DataError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Close; what was not committed is lost."""
        self._connection.close()
