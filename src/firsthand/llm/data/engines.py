"""The way beyond one machine: a step for datatrove that writes the same shards.

datatrove (or any engine that runs numbered tasks over documents) reads, filters, deduplicates and
schedules; each of its tasks writes its own shards through `ShardStep`, and `assemble` joins them
under one manifest. docs/data.md has a whole pipeline. Nothing here imports the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from firsthand.llm.data.batches import BATCH_DOCUMENTS, Batch, put_document
from firsthand.llm.data.documents import PIECE_BYTES, SPLITS, Document
from firsthand.llm.data.encoding import encode_pieces
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.journal import SplitProgress
from firsthand.llm.data.jsonl import text_document
from firsthand.llm.data.manifest import (
    TOKENIZER,
    Counts,
    Manifest,
    Record,
    Settings,
    SplitEntry,
    TokenizerEntry,
    reasons,
    write_manifest,
)
from firsthand.llm.data.preparation import END_OF_TEXT, save_tokenizer
from firsthand.llm.data.problems import Cursor, ManifestError, Problem, SourceError
from firsthand.llm.data.shards import DataTokenizer, token_format
from firsthand.llm.data.split_writers import SplitWriter, split_entry


class EngineDocument(Protocol):
    """What a datatrove document has: its text, and an id for messages."""

    text: str
    id: Any


class TaskRecord(Record):
    """What one task wrote; its file is there only when the task is whole."""

    task: int
    tasks: int
    tokenizer_hash: str
    counts: Counts
    splits: dict[str, SplitEntry]


def _record_path(folder: Path, task: int) -> Path:
    return folder / f"task-{task:05d}.json"


class ShardStep:
    """The last step of a pipeline: called with documents, the task's number and how many there are.

    It passes the documents on. A task that was interrupted is done again from its beginning, as
    engines do. Duplicates are the engine's to drop: only it sees all documents.
    """

    def __init__(
        self,
        tokenizer: DataTokenizer,
        folder: Path,
        *,
        end_of_text: str = END_OF_TEXT,
        validation_share: float = 0.02,
        split_seed: int = 0,
        shard_tokens: int = 1 << 26,
    ) -> None:
        """Remember the settings; the folder must be one that all machines share.

        Raises:
            ValueError: see token_format.
        """
        self._tokenizer, self._folder = tokenizer, Path(folder)
        self._form = token_format(tokenizer, end_of_text)
        self.settings = Settings(
            validation_share=validation_share,
            split_seed=split_seed,
            shard_tokens=shard_tokens,
            drop_duplicates=False,
            on_problem="fatal",
        )

    def __call__(
        self, data: Iterable[EngineDocument], rank: int = 0, world_size: int = 1
    ) -> Iterator[EngineDocument]:
        """Write the documents of one task and pass them on.

        Raises:
            SourceError: a text that is not UTF-8.
            DiskError: no room.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        _record_path(self._folder, rank).unlink(missing_ok=True)
        writers = {
            split: SplitWriter(
                self._folder,
                split,
                self._form,
                self.settings.shard_tokens,
                SplitProgress(),
                part=rank,
            )
            for split in SPLITS
        }
        counts = Counts()

        def flush(batch: Batch) -> None:
            nonlocal counts
            encoded = encode_pieces(self._tokenizer, self._form, batch.pieces)
            for split, writer in writers.items():
                writer.append(encoded[split], batch)
            counts = Counts(
                read=counts.read + batch.read,
                kept=counts.kept + sum(batch.kept.values()),
                empty=counts.empty + batch.empty,
            )

        batch = Batch()
        try:
            for item in data:
                document = self._document(item, rank)
                if batch.pieces and batch.size + document.size > PIECE_BYTES:
                    flush(batch)
                    batch = Batch()
                batch.read += 1
                if document.size == 0:
                    batch.empty += 1
                else:
                    for full in put_document(batch, document, self.settings):
                        flush(full)
                if batch.size >= PIECE_BYTES or batch.read >= BATCH_DOCUMENTS:
                    flush(batch)
                    batch = Batch()
                yield item
            flush(batch)
            for writer in writers.values():
                writer.finish()
        finally:
            for writer in writers.values():
                writer.abandon()
        record = TaskRecord(
            task=rank,
            tasks=world_size,
            tokenizer_hash=self._form.tokenizer_hash,
            counts=counts,
            splits={split: split_entry(writer.progress()) for split, writer in writers.items()},
        )
        path = _record_path(self._folder, rank)
        write_atomically(path, record.model_dump_json().encode("utf-8"))

    @staticmethod
    def _document(item: EngineDocument, rank: int) -> Document:
        place = Problem(f"task {rank}, document {item.id}", "", Cursor())
        document = text_document(item.text, "text", place)
        if isinstance(document, Problem):
            raise SourceError(str(document))
        return document

    def assemble(self, *, name: str) -> Manifest:
        """Join what all tasks wrote under one manifest, in the order of the tasks.

        Args:
            name: of the corpus, for the manifest.
        Raises:
            ManifestError: a task is missing, damaged, or of another tokenizer.
        """
        records = self._records()
        splits = {}
        for split in SPLITS:
            entries = [record.splits[split] for record in records]
            text_hash = sum(int(entry.text_hash, 16) for entry in entries) % (1 << 128)
            splits[split] = SplitEntry(
                tokens=sum(entry.tokens for entry in entries),
                documents=sum(entry.documents for entry in entries),
                bytes=sum(entry.bytes for entry in entries),
                text_hash=f"{text_hash:032x}",
                shards=[shard for entry in entries for shard in entry.shards],
            )
        save_tokenizer(self._tokenizer, self._folder)
        manifest = Manifest(
            source={"kind": "engine", "name": name, "tasks": len(records)},
            tokenizer=TokenizerEntry(
                file=TOKENIZER,
                hash=self._form.tokenizer_hash,
                vocabulary_size=self._form.vocabulary_size,
                end_of_text=self._form.end_of_text,
            ),
            token_bytes=self._form.token_bytes,
            settings=self.settings,
            counts=Counts(
                read=sum(record.counts.read for record in records),
                kept=sum(record.counts.kept for record in records),
                empty=sum(record.counts.empty for record in records),
            ),
            problems=[],
            notes=[],
            splits=splits,
        )
        write_manifest(self._folder, manifest)
        return manifest

    def _records(self) -> list[TaskRecord]:
        records: list[TaskRecord] = []
        while not records or len(records) < records[0].tasks:
            path = _record_path(self._folder, len(records))
            try:
                record = TaskRecord.model_validate_json(path.read_bytes())
            except FileNotFoundError as error:
                raise ManifestError(f"{path}: missing: that task has not finished") from error
            except ValidationError as error:
                raise ManifestError(f"{path}: {reasons(error)}") from error
            if record.tokenizer_hash != self._form.tokenizer_hash:
                raise ManifestError(f"{path}: written by another tokenizer")
            if records and record.tasks != records[0].tasks:
                raise ManifestError(f"{path}: of a run of {record.tasks} tasks")
            records.append(record)
        return records
