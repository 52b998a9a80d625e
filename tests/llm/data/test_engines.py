from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from firsthand.llm.data.documents import PIECE_BYTES
from firsthand.llm.data.engines import ShardStep
from firsthand.llm.data.inspection import show_document
from firsthand.llm.data.loading import open_split
from firsthand.llm.data.manifest import read_manifest
from firsthand.llm.data.problems import ManifestError, SourceError

SETTINGS = {"validation_share": 0.25, "shard_tokens": 500}


def documents(texts: list[str]) -> list[SimpleNamespace]:
    return [SimpleNamespace(text=text, id=number) for number, text in enumerate(texts)]


def all_texts(folder: Path, tokenizer) -> list[str]:  # type: ignore[no-untyped-def]
    manifest = read_manifest(folder, tokenizer_hash=tokenizer.hash)
    return [
        show_document(folder, split, number, tokenizer, most=1 << 30)
        for split, entry in manifest.splits.items()
        for number in range(entry.documents)
    ]


def test_tasks_join_into_one_folder(tmp_path: Path, tokenizer, words, prepared) -> None:  # type: ignore[no-untyped-def]
    step = ShardStep(tokenizer, tmp_path / "p", **SETTINGS)
    for rank in range(3):
        given = documents([*words[rank::3], ""])
        assert list(step(given, rank, 3)) == given, "they are passed on"
    manifest = step.assemble(name="words")
    assert sorted(all_texts(tmp_path / "p", tokenizer)) == sorted(words)
    assert (manifest.counts.kept, manifest.counts.empty) == (60, 3)
    _, alone = prepared(words, **SETTINGS)
    for split in ("train", "validation"):
        assert manifest.splits[split].text_hash == alone.splits[split].text_hash
        assert manifest.splits[split].bytes == alone.splits[split].bytes
        stream = open_split(tmp_path / "p", split)
        ids = np.empty(len(stream), np.int64)
        stream.read(0, ids)
        assert ids[-1] == 256


def test_long_documents_keep_their_order(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    texts = ["short", "long " * (PIECE_BYTES // 2), "after"]
    step = ShardStep(tokenizer, tmp_path, validation_share=0.0)
    list(step(documents(texts)))
    step.assemble(name="long")
    assert all_texts(tmp_path, tokenizer) == texts


def test_a_task_that_did_not_finish_is_missed(tmp_path: Path, tokenizer, words) -> None:  # type: ignore[no-untyped-def]
    step = ShardStep(tokenizer, tmp_path, **SETTINGS)
    list(step(documents(words), 0, 2))
    with pytest.raises(ManifestError, match=r"task-00001\.json: missing: that task"):
        step.assemble(name="words")
    broken = [*documents(words), SimpleNamespace(text="\ud800", id="bad")]
    with pytest.raises(SourceError, match=r"task 1, document bad: .*lone surrogate"):
        list(step(broken, 1, 2))
    with pytest.raises(ManifestError, match=r"task-00001\.json: missing"):
        step.assemble(name="words")
    list(step(documents(["again"]), 1, 2))
    assert step.assemble(name="words").counts.kept == 61
    with pytest.raises(ManifestError, match="never prepared"):
        read_manifest(tmp_path / "elsewhere")


def test_another_tokenizer_or_run_is_noticed(tmp_path: Path, tokenizer, wide_tokenizer) -> None:  # type: ignore[no-untyped-def]
    list(ShardStep(tokenizer, tmp_path)(documents(["a"]), 0, 2))
    list(ShardStep(wide_tokenizer, tmp_path)(documents(["b"]), 1, 2))
    with pytest.raises(ManifestError, match=r"task-00001\.json: written by another tokenizer"):
        ShardStep(tokenizer, tmp_path).assemble(name="x")
    list(ShardStep(tokenizer, tmp_path)(documents(["b"]), 1, 3))
    with pytest.raises(ManifestError, match="of a run of 3 tasks"):
        ShardStep(tokenizer, tmp_path).assemble(name="x")


def test_datatrove_runs_it(tmp_path: Path, tokenizer, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    executor = pytest.importorskip("datatrove.executor")
    document = pytest.importorskip("datatrove.data").Document

    def reader(data: object, rank: int, world_size: int):  # type: ignore[no-untyped-def]
        return (document(text, id=text[:8]) for text in words[rank::world_size])

    step = ShardStep(tokenizer, tmp_path / "out", **SETTINGS)
    executor.LocalPipelineExecutor(
        pipeline=[reader, step],
        tasks=2,
        workers=1,
        logging_dir=str(tmp_path / "logs"),
    ).run()
    step.assemble(name="words")
    assert sorted(all_texts(tmp_path / "out", tokenizer)) == sorted(words)
