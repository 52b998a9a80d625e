"""Documents to token shards: once, in bounded memory, and after a kill from where it stopped.

The folder then holds train-00000.bin, validation-00000.bin, ..., tokenizer.json, preparation.json
and, written last, manifest.json. The bytes depend on the text, the tokenizer and the settings:
not on the number of processes, and not on how often it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firsthand.llm.data.batches import Batch, read_batches
from firsthand.llm.data.documents import PIECE_BYTES, SPLITS, SeenDocuments, Split
from firsthand.llm.data.encoding import Encoded, encode_batches
from firsthand.llm.data.journal import (
    JOURNAL,
    Journal,
    SplitProgress,
    plan_hash,
    read_journal,
    write_journal,
)
from firsthand.llm.data.manifest import (
    LISTED_PROBLEMS,
    MANIFEST,
    TOKENIZER,
    Counts,
    Manifest,
    Settings,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from firsthand.llm.data.problems import DiskError, ManifestError, OnProblem, SourceError
from firsthand.llm.data.shards import PARTIAL, DataTokenizer, TokenFormat, token_format
from firsthand.llm.data.sources import Source
from firsthand.llm.data.split_writers import SplitWriter, split_entry
from firsthand.resources import usable_cores

SEEN = "seen.sqlite"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows. total_bytes is None where nobody knows."""

    documents: int
    text_bytes: int
    total_bytes: int | None
    tokens: int


class _Preparation:
    """The state between two commits."""

    def __init__(
        self, folder: Path, form: TokenFormat, settings: Settings, journal: Journal
    ) -> None:
        self._folder, self._journal = folder, journal
        self._counts, self._problems = journal.counts, list(journal.problems)
        self._cursor = journal.place
        self._writers: dict[Split, SplitWriter] = {}
        for split in SPLITS:
            progress = journal.splits.get(split, SplitProgress())
            self._writers[split] = SplitWriter(folder, split, form, settings.shard_tokens, progress)

    def add(self, batch: Batch, encoded: Encoded) -> None:
        for split, writer in self._writers.items():
            writer.append(encoded[split], batch)
        counts = self._counts
        self._counts = Counts(
            read=counts.read + batch.read,
            kept=counts.kept + sum(batch.kept.values()),
            duplicates=counts.duplicates + batch.duplicates,
            empty=counts.empty + batch.empty,
            skipped=counts.skipped + len(batch.problems),
        )
        self._problems += batch.problems[: LISTED_PROBLEMS - len(self._problems)]
        if batch.after is not None:
            self._cursor = batch.after

    def commit(self, *, complete: bool = False) -> Journal:
        if complete:
            for writer in self._writers.values():
                writer.finish()
        cursor = self._cursor
        self._journal = Journal(
            plan=self._journal.plan,
            fingerprint=self._journal.fingerprint,
            complete=complete,
            cursor=[cursor.file, cursor.offset, cursor.line],
            counts=self._counts,
            problems=self._problems,
            splits={split: writer.progress() for split, writer in self._writers.items()},
        )
        write_journal(self._folder, self._journal)
        return self._journal

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def progress(self, text_bytes: int, total_bytes: int | None) -> Progress:
        tokens = sum(writer.tokens for writer in self._writers.values())
        return Progress(self._counts.read, text_bytes, total_bytes, tokens)


def _clear(folder: Path) -> None:
    # The manifest goes first: what is left must not look whole.
    for name in (MANIFEST, JOURNAL, TOKENIZER):
        (folder / name).unlink(missing_ok=True)
    for split in SPLITS:
        for pattern in (f"{split}-*.bin", f"{split}-*.bin{PARTIAL}"):
            for path in folder.glob(pattern):
                path.unlink()


def _existing(folder: Path, plan: str, fingerprint: str, restart: bool) -> Journal | None:
    """The journal to go on with, None where the preparation begins.

    Raises:
        ManifestError: the folder holds something else.
    """
    journal = None if restart else read_journal(folder)
    if journal is None:
        if not restart and (folder / MANIFEST).exists():
            raise ManifestError(f"{folder}: holds other prepared data; restart replaces it")
        return None
    if journal.plan != plan:
        reason = "begun with another source, other settings or another tokenizer"
        raise ManifestError(f"{folder / JOURNAL}: {reason}; restart prepares it anew")
    if journal.fingerprint != fingerprint:
        reason = "the source has changed since"
        raise ManifestError(f"{folder / JOURNAL}: {reason}; restart prepares it anew")
    return journal


def _begin(folder: Path, plan: str, fingerprint: str) -> Journal:
    """Clear the folder and write the first journal."""
    _clear(folder)
    journal = Journal(
        plan=plan,
        fingerprint=fingerprint,
        complete=False,
        cursor=[0, 0, 0],
        counts=Counts(),
        problems=[],
        splits={},
    )
    write_journal(folder, journal)
    return journal


def _finish(
    folder: Path, source: Source, form: TokenFormat, settings: Settings, journal: Journal
) -> Manifest:
    """The manifest from a complete journal."""
    splits = {split: split_entry(journal.splits[split]) for split in SPLITS}
    notes = []
    if settings.validation_share > 0 and not splits["validation"].tokens:
        notes.append(
            f"no document of {journal.counts.kept} fell into validation at a share of "
            f"{settings.validation_share}; smaller documents (unit='section') or a greater share "
            "give it some"
        )
    manifest = Manifest(
        source=source.describe(),
        tokenizer=TokenizerEntry(
            file=TOKENIZER,
            hash=form.tokenizer_hash,
            vocabulary_size=form.vocabulary_size,
            end_of_text=form.end_of_text,
        ),
        token_bytes=form.token_bytes,
        settings=settings,
        counts=journal.counts,
        problems=journal.problems,
        notes=notes,
        splits=splits,
    )
    write_manifest(folder, manifest)
    return manifest


def prepare(
    source: Source,
    tokenizer: DataTokenizer,
    folder: Path,
    *,
    end_of_text: str = END_OF_TEXT,
    token_bytes: int | None = None,
    validation_share: float = 0.02,
    split_seed: int = 0,
    shard_tokens: int = 1 << 26,
    drop_duplicates: bool = True,
    on_problem: OnProblem = "fatal",
    processes: int | None = None,
    restart: bool = False,
    commit_bytes: int = 8 << 20,
    report: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Tokenize a source into a folder of shards, or go on where an earlier call was stopped.

    A finished folder whose source, settings and tokenizer are the same is returned as it is.

    Args:
        source: the documents.
        tokenizer: has the special token end_of_text; plain text is encoded without special tokens.
        folder: made if missing.
        token_bytes: 2 or 4; None takes 2 where the vocabulary fits.
        validation_share: at least 0 and below 1.
        split_seed: draws another validation split.
        shard_tokens: in every shard but the last of a split.
        on_problem: "fatal" stops at the first unreadable document, "skip" counts and lists it.
        processes: that encode; see default_processes for None.
        restart: throw away what the folder holds.
        commit_bytes: of text between two commits: how much a kill may cost.
        report: called after every batch.
    Raises:
        SourceError: an unreadable document with on_problem="fatal", or no text at all.
        ManifestError: the folder was begun with something else.
        DiskError: no room; go on with the same call when there is some.
        DataError: the tokenizer failed, or another preparation is at work in the folder.
        ValueError: settings that make no sense.
    """
    if not 0.0 <= validation_share < 1.0:
        raise ValueError(f"validation_share must be at least 0 and below 1: {validation_share}")
    if shard_tokens < 1 or commit_bytes < 1 or (processes is not None and processes < 1):
        raise ValueError("shard_tokens, commit_bytes and processes must be at least 1")
    form = token_format(tokenizer, end_of_text, token_bytes)
    settings = Settings(
        validation_share=float(validation_share),
        split_seed=split_seed,
        shard_tokens=shard_tokens,
        drop_duplicates=drop_duplicates,
        on_problem=on_problem,
    )
    described = json.dumps(source.describe(), sort_keys=True)
    plan = plan_hash(described, settings.model_dump_json(), repr(form))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be created: {error}") from error
    fingerprint = source.fingerprint()
    existing = _existing(folder, plan, fingerprint, restart)
    if existing is not None and existing.complete and (folder / MANIFEST).exists():
        remove_seen(folder)  # a kill may have come right before
        return read_manifest(folder, tokenizer_hash=form.tokenizer_hash)
    seen = SeenDocuments(folder / SEEN)
    state: _Preparation | None = None
    finished = False
    try:
        # Once more: another preparation may have ended here meanwhile.
        journal = _existing(folder, plan, fingerprint, restart)
        if journal is None:
            journal = _begin(folder, plan, fingerprint)
        if not journal.complete:
            if journal.counts.read == 0:
                seen.clear()
            save_tokenizer(tokenizer, folder)
            state = _Preparation(folder, form, settings, journal)
            batches = read_batches(
                source,
                journal.place,
                journal.counts.read,
                settings,
                seen,
                min(PIECE_BYTES, commit_bytes),
            )
            total, done, uncommitted = source.total_bytes(), 0, 0
            count = processes or default_processes(total)
            for batch, encoded in encode_batches(
                batches, tokenizer, folder / TOKENIZER, form, count
            ):
                state.add(batch, encoded)
                size = sum(len(piece.text) for piece in batch.pieces)
                done, uncommitted = done + size, uncommitted + size
                if uncommitted >= commit_bytes and batch.after is not None:
                    seen.commit()
                    state.commit()
                    uncommitted = 0
                if report is not None:
                    report(state.progress(done, total))
            seen.commit()
            journal = state.commit(complete=True)
        if not journal.counts.kept:
            _clear(folder)
            finished = True
            raise SourceError(f"the corpus is empty: {_emptiness(journal.counts)} ({described})")
        manifest = _finish(folder, source, form, settings, journal)
        finished = True
    finally:
        if state is not None:
            state.abandon()
        seen.close()
        if finished:
            remove_seen(folder)
    return manifest


def _emptiness(counts: Counts) -> str:
    return f"{counts.read} documents read, {counts.empty} empty, {counts.skipped} unreadable"


def default_processes(total_bytes: int | None) -> int:
    """How many processes encode a corpus of this size.

    One for every 32 MB: starting one takes as long as encoding so much. At most the cores, and at
    most 3, with which all processes together stay below 500 MB; each further one takes about 80.
    """
    most = min(3, usable_cores())
    return most if total_bytes is None else min(most, 1 + total_bytes // 32_000_000)


def save_tokenizer(tokenizer: DataTokenizer, folder: Path) -> None:
    """Put the tokenizer beside the shards, whole or not at all.

    Raises:
        DiskError: it could not be written.
    """
    partial = folder / f"partial-{TOKENIZER}"
    try:
        tokenizer.save(partial)
        os.replace(partial, folder / TOKENIZER)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(f"{folder / TOKENIZER}: cannot write: {error}") from error


def remove_seen(folder: Path) -> None:
    """Drop the digests of a finished preparation."""
    for suffix in ("", "-wal", "-shm"):
        (folder / (SEEN + suffix)).unlink(missing_ok=True)
