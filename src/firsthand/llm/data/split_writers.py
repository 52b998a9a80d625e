"""One split on its way to disk: its shards one after the other, and its sums."""

from __future__ import annotations

from pathlib import Path

from firsthand.llm.data.batches import Batch
from firsthand.llm.data.documents import Split
from firsthand.llm.data.journal import SplitProgress
from firsthand.llm.data.manifest import ShardEntry, SplitEntry
from firsthand.llm.data.shards import Ids, ShardWriter, TokenFormat


def shard_name(split: Split, index: int, part: int | None = None) -> str:
    """The file name of a shard; part is the task of an engine that wrote it, if one did."""
    middle = "" if part is None else f"{part:05d}-"
    return f"{split}-{middle}{index:05d}.bin"


class SplitWriter:
    """The shards of one split, cut after shard_tokens each; a document may lie in two.

    It goes on where `progress` was; what the disk holds beyond that is cut off. part: see
    shard_name.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        form: TokenFormat,
        shard_tokens: int,
        progress: SplitProgress,
        *,
        part: int | None = None,
    ) -> None:
        self._folder, self._split, self._form = folder, split, form
        self._shard_tokens, self._part = shard_tokens, part
        self._finished = list(progress.finished)
        self._documents, self._bytes = progress.documents, progress.bytes
        self._text_hash = int(progress.text_hash, 16)
        self._open: ShardWriter | None = None
        if progress.open_tokens:
            self._open = ShardWriter(
                self._path(),
                form,
                tokens=progress.open_tokens,
                documents=progress.open_documents,
                crc=progress.open_crc32,
            )

    def _path(self) -> Path:
        return self._folder / shard_name(self._split, len(self._finished), self._part)

    @property
    def tokens(self) -> int:
        """In all shards so far."""
        started = self._open.tokens if self._open else 0
        return sum(entry.tokens for entry in self._finished) + started

    def append(self, ids: Ids, batch: Batch) -> None:
        """Add a batch: its ids of this split, and its counts.

        Raises:
            DiskError: the disk took only a part.
        """
        self._documents += batch.kept[self._split]
        self._bytes += batch.text_bytes[self._split]
        self._text_hash = (self._text_hash + batch.text_hashes[self._split]) % (1 << 128)
        while ids.size:
            if self._open is None:
                self._open = ShardWriter(self._path(), self._form)
            room = self._shard_tokens - self._open.tokens
            self._open.append(ids[:room])
            ids = ids[room:]
            if self._open.tokens == self._shard_tokens:
                self.finish()

    def finish(self) -> None:
        """Make the open shard whole; the next ids begin another one."""
        if self._open is not None:
            self._open.close()
            self._finished.append(
                ShardEntry(
                    file=self._open.path.name,
                    tokens=self._open.tokens,
                    documents=self._open.documents,
                    crc32=self._open.crc,
                )
            )
            self._open = None

    def abandon(self) -> None:
        """Leave the open shard partial."""
        if self._open is not None:
            self._open.abandon()

    def progress(self) -> SplitProgress:
        """For the journal; what it says is on the disk by then."""
        if self._open is not None:
            self._open.sync()
        return SplitProgress(
            finished=tuple(self._finished),
            open_tokens=self._open.tokens if self._open else 0,
            open_documents=self._open.documents if self._open else 0,
            open_crc32=self._open.crc if self._open else 0,
            documents=self._documents,
            bytes=self._bytes,
            text_hash=f"{self._text_hash:032x}",
        )


def split_entry(progress: SplitProgress) -> SplitEntry:
    """The manifest's entry of a finished split."""
    return SplitEntry(
        tokens=sum(entry.tokens for entry in progress.finished),
        documents=progress.documents,
        bytes=progress.bytes,
        text_hash=progress.text_hash,
        shards=list(progress.finished),
    )
