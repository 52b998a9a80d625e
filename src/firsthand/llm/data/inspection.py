"""What a prepared folder holds: its shards checked, its documents shown, its numbers counted.

Plain data for `firsthand data inspect` and `firsthand data stats`; memory does not grow with the
corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.data.documents import SPLITS, Split
from firsthand.llm.data.loading import TokenStream, open_split
from firsthand.llm.data.manifest import Manifest, read_manifest
from firsthand.llm.data.problems import ShardError
from firsthand.llm.data.shards import Ids, verify_shard

_CHUNK = 1 << 20


class Decoder(Protocol):
    """What showing documents needs of a tokenizer."""

    def decode(self, ids: list[int], /) -> str: ...


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One shard: its entry in the manifest, its bytes on disk, and what is wrong ('': nothing)."""

    file: str
    split: Split
    tokens: int
    documents: int
    file_bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """The numbers of one split.

    bytes_per_token: of text, without the end-of-text tokens. length_percentiles: tokens of a
    document at 0, 50, 90, 99 and 100 %, exact below 2^16 tokens and rounded up to a power of two
    beyond; lengths count the end-of-text. used_ids: how many of the vocabulary occur.
    most_frequent: (id, count), ten.
    """

    tokens: int
    documents: int
    bytes: int
    bytes_per_token: float
    length_percentiles: tuple[int, int, int, int, int]
    used_ids: int
    vocabulary_size: int
    most_frequent: list[tuple[int, int]]


def inspect_folder(folder: Path) -> tuple[Manifest, list[ShardReport]]:
    """The manifest, and every shard read against its checksums.

    A damaged payload is reported; a folder that is not whole is an error.

    Raises:
        ManifestError, ShardError: see read_manifest.
    """
    manifest = read_manifest(folder)
    reports = []
    for split in SPLITS:
        for entry in manifest.splits[split].shards:
            path, problem = folder / entry.file, ""
            try:
                if verify_shard(path) != entry.crc32:
                    problem = f"{path}: whole, but not the shard that the manifest lists"
            except ShardError as error:
                problem = str(error)
            size = path.stat().st_size
            reports.append(
                ShardReport(entry.file, split, entry.tokens, entry.documents, size, problem)
            )
    return manifest, reports


def _chunks(stream: TokenStream) -> Iterator[Ids]:
    for start in range(0, len(stream), _CHUNK):
        ids = np.empty(min(_CHUNK, len(stream) - start), np.uint32)
        stream.read(start, ids)
        yield ids


def read_document(folder: Path, split: Split, number: int, *, most: int = 1 << 16) -> Ids:
    """The ids of one document, (tokens,), without its end-of-text; at most `most` of them.

    Raises:
        IndexError: the split has fewer documents, or the number is negative.
    """
    stream = open_split(folder, split, verify=False)
    if number < 0:
        raise IndexError(f"document {number} of {split}")
    seen = start = 0
    begin = 0 if number == 0 else None
    held: list[Ids] = []
    length = 0
    for ids in _chunks(stream):
        ends = np.flatnonzero(ids == stream.end_of_text)
        if begin is None and seen + ends.size >= number:
            begin = start + int(ends[number - seen - 1]) + 1
        if begin is not None:
            part = ids[max(0, begin - start) :]
            closing = np.flatnonzero(part == stream.end_of_text)
            held.append(part[: closing[0]] if closing.size else part)
            length += held[-1].size
            if closing.size or length >= most:
                return np.concatenate(held)[:most]
        seen += ends.size
        start += ids.size
    raise IndexError(f"document {number} of {split}, which has {seen}")


def show_document(
    folder: Path, split: Split, number: int, tokenizer: Decoder, *, most: int = 1 << 16
) -> str:
    """The text of one document, of its first tokens where it is long.

    Raises:
        IndexError: see read_document.
    """
    return tokenizer.decode(read_document(folder, split, number, most=most).tolist())


_EXACT = 1 << 16


def _bucket(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    # Exact for short documents; the long ones share a bucket for each power of two.
    beyond = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64) - 16 + _EXACT
    return np.where(lengths < _EXACT, lengths, beyond)


def _percentile(histogram: NDArray[np.int64], share: float) -> int:
    total = int(histogram.sum())
    if not total:
        return 0
    rank = max(1, int(np.ceil(share * total)))
    bucket = int(np.searchsorted(np.cumsum(histogram), rank))
    return bucket if bucket < _EXACT else 1 << (bucket - _EXACT + 16)


def split_statistics(folder: Path, split: Split) -> SplitStatistics:
    """Count the tokens of one split.

    Raises:
        ManifestError, ShardError: see open_split.
    """
    manifest = read_manifest(folder)
    stream = open_split(folder, split, verify=False)
    size = manifest.tokenizer.vocabulary_size
    counts = np.zeros(size, np.int64)
    histogram = np.zeros(_EXACT + 64, np.int64)
    before, start = -1, 0
    for ids in _chunks(stream):
        counts += np.bincount(ids, minlength=size)
        ends = start + np.flatnonzero(ids == stream.end_of_text)
        if ends.size:
            lengths = np.diff(ends, prepend=before)
            histogram += np.bincount(_bucket(lengths), minlength=histogram.size)
            before = int(ends[-1])
        start += ids.size
    entry = manifest.splits[split]
    most = np.argsort(-counts, kind="stable")[:10]
    text_tokens = entry.tokens - entry.documents
    at = [_percentile(histogram, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)]
    return SplitStatistics(
        tokens=entry.tokens,
        documents=entry.documents,
        bytes=entry.bytes,
        bytes_per_token=entry.bytes / text_tokens if text_tokens else 0.0,
        length_percentiles=(at[0], at[1], at[2], at[3], at[4]),
        used_ids=int(np.count_nonzero(counts)),
        vocabulary_size=size,
        most_frequent=[(int(i), int(counts[i])) for i in most if counts[i]],
    )
