from pathlib import Path

import numpy as np
import pytest

from firsthand.llm.data import inspection
from firsthand.llm.data.inspection import (
    inspect_folder,
    read_document,
    show_document,
    split_statistics,
)


def test_every_document_is_found(prepared, tokenizer, words, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(inspection, "_CHUNK", 100)  # documents lie across chunks and shards
    folder, _ = prepared(words, validation_share=0.0, shard_tokens=333)
    shown = [show_document(folder, "train", n, tokenizer) for n in range(len(words))]
    assert shown == words
    assert read_document(folder, "train", 3, most=5).tolist() == list(words[3].encode()[:5])
    for number in (-1, len(words), len(words) + 9):
        with pytest.raises(IndexError, match=f"document {number} of train"):
            read_document(folder, "train", number)


def test_shards_are_reported_with_their_damage(prepared, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder, manifest = prepared(words, shard_tokens=500)
    read, reports = inspect_folder(folder)
    assert read == manifest
    assert [report.problem for report in reports] == [""] * len(reports)
    assert sum(r.tokens for r in reports) == sum(e.tokens for e in manifest.splits.values())
    assert all(r.file_bytes == (folder / r.file).stat().st_size for r in reports)
    damaged = folder / reports[1].file
    raw = bytearray(damaged.read_bytes())
    raw[200] ^= 4
    damaged.write_bytes(raw)
    _, reports = inspect_folder(folder)
    assert [bool(report.problem) for report in reports] == [n == 1 for n in range(len(reports))]
    assert "bytes 128 to 1128: differ" in reports[1].problem


def test_statistics_are_those_of_the_tokens(prepared, words, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(inspection, "_CHUNK", 77)
    folder, _ = prepared(words, validation_share=0.0, shard_tokens=500)
    found = split_statistics(folder, "train")
    raw = [text.encode() for text in words]
    lengths = sorted(len(text) + 1 for text in raw)
    assert found.documents == len(words)
    assert found.bytes == sum(map(len, raw))
    assert found.bytes_per_token == 1.0
    assert found.length_percentiles[0] == lengths[0]
    assert found.length_percentiles[1] == lengths[29]
    assert found.length_percentiles[2] == lengths[53]
    assert found.length_percentiles[4] == lengths[-1]
    counts = np.bincount(np.frombuffer(b"".join(raw), np.uint8), minlength=257)
    counts[256] = len(words)
    assert found.used_ids == np.count_nonzero(counts)
    assert found.most_frequent[0] == (int(counts.argmax()), int(counts.max()))
    assert len(found.most_frequent) == 10


def test_long_documents_share_buckets(prepared) -> None:  # type: ignore[no-untyped-def]
    folder, _ = prepared(["a" * 65_534, "b" * 65_535, "c" * 100_000], validation_share=0.0)
    percentiles = split_statistics(folder, "train").length_percentiles
    assert percentiles == (65_535, 65_536, 131_072, 131_072, 131_072)


def test_an_empty_split_has_no_numbers(prepared) -> None:  # type: ignore[no-untyped-def]
    folder, _ = prepared(["a"], validation_share=0.0)
    found = split_statistics(folder, "validation")
    assert (found.tokens, found.bytes_per_token, found.used_ids) == (0, 0.0, 0)
    assert found.length_percentiles == (0, 0, 0, 0, 0)
    assert isinstance(folder, Path)
