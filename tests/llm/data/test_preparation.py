import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from firsthand.llm.data import files, shards
from firsthand.llm.data.documents import PIECE_BYTES, digest_of, split_of
from firsthand.llm.data.loading import open_split
from firsthand.llm.data.manifest import Manifest, read_manifest
from firsthand.llm.data.preparation import default_processes, prepare
from firsthand.llm.data.problems import DataError, DiskError, ManifestError, SourceError
from firsthand.llm.data.sources import LocalFiles, Texts
from firsthand.llm.tokenizer import Tokenizer

END = 256
SMALL = {"processes": 1, "shard_tokens": 700, "commit_bytes": 300, "validation_share": 0.2}


def tokens_of(folder: Path, split: str) -> list[int]:
    stream = open_split(folder, split)  # type: ignore[arg-type]
    ids = np.empty(len(stream), np.int64)
    stream.read(0, ids)
    return ids.tolist()


def texts_of(folder: Path, split: str) -> list[str]:
    ids = np.array(tokens_of(folder, split))
    documents = np.split(ids, np.flatnonzero(ids == END) + 1)[:-1]
    return [bytes(document[:-1].tolist()).decode() for document in documents]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_tokens_are_the_texts_in_order(prepared, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder, manifest = prepared(words, **SMALL)
    by_split = {
        split: [text for text in words if split_of(digest_of([text.encode()]), 0.2) == split]
        for split in ("train", "validation")
    }
    assert by_split["validation"]
    for split, expected in by_split.items():
        assert texts_of(folder, split) == expected
        entry = manifest.splits[split]
        assert entry.documents == len(expected)
        assert entry.bytes == sum(len(text.encode()) for text in expected)
        assert entry.tokens == entry.bytes + entry.documents
        assert all(shard.tokens == 700 for shard in entry.shards[:-1])
        assert sum(shard.documents for shard in entry.shards) == len(expected)
    names = {shard.file for entry in manifest.splits.values() for shard in entry.shards}
    assert set(contents(folder)) == {*names, "manifest.json", "tokenizer.json", "preparation.json"}
    assert read_manifest(folder) == manifest


def test_duplicates_and_empty_texts_are_dropped(prepared) -> None:  # type: ignore[no-untyped-def]
    texts = ["a", "b", "", "a", "c", "b", "", "a"]
    folder, manifest = prepared(texts, validation_share=0.0)
    assert texts_of(folder, "train") == ["a", "b", "c"]
    counts = manifest.counts
    assert (counts.read, counts.kept, counts.duplicates, counts.empty) == (8, 3, 3, 2)
    folder, manifest = prepared(texts, validation_share=0.0, drop_duplicates=False)
    assert texts_of(folder, "train") == ["a", "b", "a", "c", "b", "a"]


def test_the_split_is_stable_when_documents_are_added(prepared, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    first, one = prepared(words[:40], **SMALL)
    mixed = list(words)
    random.Random(0).shuffle(mixed)
    second, two = prepared(mixed, **SMALL)
    for split in ("train", "validation"):
        assert set(texts_of(first, split)) <= set(texts_of(second, split))
    _, three = prepared(words, **SMALL)
    for split in ("train", "validation"):
        hashes = [manifest.splits[split].text_hash for manifest in (one, two, three)]
        assert hashes[1] == hashes[2] != hashes[0], "of the set, whatever its order"


def test_special_tokens_in_documents_are_never_forged(tmp_path: Path) -> None:
    tokenizer = Tokenizer([], special_tokens=["<|endoftext|>"])
    end = tokenizer.special_tokens["<|endoftext|>"]
    texts = ["<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>\n"]
    manifest = prepare(
        Texts("t", lambda: texts), tokenizer, tmp_path / "p", processes=1, validation_share=0.0
    )
    ids = np.array(tokens_of(tmp_path / "p", "train"))
    assert np.count_nonzero(ids == end) == len(texts) == manifest.splits["train"].documents
    documents = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
    assert [tokenizer.decode(document[:-1]) for document in documents] == texts


def test_a_tokenizer_that_forges_is_caught(prepared, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    honest = type(tokenizer).encode_documents

    def forging(self, texts):  # type: ignore[no-untyped-def]
        ids, ends = honest(self, texts)
        return np.where(ids == ord("#"), END, ids), ends

    monkeypatch.setattr(type(tokenizer), "encode_documents", forging)
    with pytest.raises(DataError, match="test, line 3: the tokenizer gave the id 256 for text"):
        prepared(["ab", "cd", "e#f", "g"])


def test_an_empty_corpus_is_an_error(prepared, tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    for texts in ([], ["", ""]):
        with pytest.raises(SourceError, match=f"empty: {len(texts)} documents read"):
            prepared(texts)
    (tmp_path / "empty.txt").touch()
    folder = tmp_path / "out"
    with pytest.raises(SourceError, match="1 documents read, 1 empty"):
        prepare(LocalFiles([tmp_path / "empty.txt"]), tokenizer, folder, processes=1)
    assert not (folder / "manifest.json").exists()
    (tmp_path / "empty.txt").write_text("something")
    prepare(LocalFiles([tmp_path / "empty.txt"]), tokenizer, folder, processes=1)


def test_no_validation_is_noted(prepared) -> None:  # type: ignore[no-untyped-def]
    _, manifest = prepared(["a single text"], validation_share=0.01)
    assert "no document of 1 fell into validation" in manifest.notes[0]
    _, manifest = prepared(["a single text"], validation_share=0.0)
    assert manifest.notes == []


def test_a_bad_document_is_fatal_or_skipped(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"text {number}")
    (folder / "2.txt").write_bytes(b"text \xff")
    (folder / "4.txt").write_bytes(b"te\0xt")
    with pytest.raises(SourceError, match=r"2\.txt, byte 5: not UTF-8: byte 0xff.*skip"):
        prepare(LocalFiles([folder]), tokenizer, tmp_path / "a", processes=1)
    assert not (tmp_path / "a" / "manifest.json").exists()
    manifest = prepare(
        LocalFiles([folder]), tokenizer, tmp_path / "b", processes=1, on_problem="skip"
    )
    assert manifest.counts.skipped == 2
    assert manifest.counts.kept == 4
    assert "4.txt, byte 2: binary" in manifest.problems[1]


def test_wide_vocabularies_take_four_bytes(tmp_path: Path, wide_tokenizer) -> None:  # type: ignore[no-untyped-def]
    source = Texts("t", lambda: ["abc", "def"])
    with pytest.raises(ValueError, match="70000 does not fit 2 bytes"):
        prepare(source, wide_tokenizer, tmp_path / "p", token_bytes=2)
    assert not (tmp_path / "p").exists()
    manifest = prepare(source, wide_tokenizer, tmp_path / "p", processes=1, validation_share=0)
    assert manifest.token_bytes == 4
    assert texts_of(tmp_path / "p", "train") == ["abc", "def"]


def test_a_long_document_is_cut_into_bounded_pieces(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    text = "short words é " * 300_000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    (tmp_path / "next.txt").write_text("after it")
    lengths = []
    honest = type(tokenizer).encode_documents

    def watched(self, texts):  # type: ignore[no-untyped-def]
        lengths.append(sum(map(len, texts)))
        return honest(self, texts)

    monkeypatch.setattr(type(tokenizer), "encode_documents", watched)
    files = LocalFiles([tmp_path / "long.txt", tmp_path / "next.txt"])
    manifest = prepare(files, tokenizer, tmp_path / "p", processes=1, validation_share=0.0)
    assert texts_of(tmp_path / "p", "train") == [text, "after it"]
    assert manifest.counts.kept == 2
    assert max(lengths) <= PIECE_BYTES < len(text)


def test_a_finished_folder_is_returned_and_guarded(
    tmp_path: Path, tokenizer, wide_tokenizer, words: list[str]
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "p"
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in words))
    first = prepare(LocalFiles([file]), tokenizer, folder, processes=1)
    before = contents(folder)
    assert prepare(LocalFiles([file]), tokenizer, folder, processes=1) == first
    assert contents(folder) == before
    with pytest.raises(ManifestError, match="another source, other settings or another tokenizer"):
        prepare(LocalFiles([file]), tokenizer, folder, processes=1, validation_share=0.5)
    with pytest.raises(ManifestError, match="another tokenizer"):
        prepare(LocalFiles([file]), wide_tokenizer, folder, processes=1)
    with open(file, "a") as stream:
        stream.write('\n{"text": "one more"}')
    with pytest.raises(ManifestError, match="the source has changed"):
        prepare(LocalFiles([file]), tokenizer, folder, processes=1)
    assert contents(folder) == before
    again = prepare(LocalFiles([file]), tokenizer, folder, processes=1, restart=True)
    assert again.counts.kept == first.counts.kept + 1
    (folder / "preparation.json").write_text("{")
    with pytest.raises(ManifestError, match=r"preparation\.json.*prepare with restart"):
        prepare(LocalFiles([file]), tokenizer, folder, processes=1)
    (folder / "preparation.json").unlink()
    with pytest.raises(ManifestError, match="holds other prepared data"):
        prepare(LocalFiles([file]), tokenizer, folder, processes=1)


@pytest.mark.parametrize("damage", ["", "{}", '{"format": "other"}', "[1", '{"version": 2}'])
def test_a_damaged_manifest_is_named(prepared, words: list[str], damage: str) -> None:  # type: ignore[no-untyped-def]
    folder, _ = prepared(words)
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(ManifestError, match=r"manifest\.json: "):
        read_manifest(folder)


def kill_at(call: int, left: list[int] | None = None) -> Callable[[], None]:
    """Have this process killed before its call-th write, rename or sync; left counts down."""
    left = [call] if left is None else left

    def counted(real):  # type: ignore[no-untyped-def]
        def run(*arguments):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return run

    def install() -> None:
        for name in ("write", "replace", "fsync"):
            setattr(os, name, counted(getattr(os, name)))

    return install


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; how it ended: 0, an exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer, words: list[str]
) -> None:  # type: ignore[no-untyped-def]
    texts = [*words, *words[:20], "", *(text + "!" for text in words)]
    source = Texts("test", lambda: texts)

    def work(folder: Path) -> Manifest:
        return prepare(source, tokenizer, folder, **SMALL)  # type: ignore[arg-type]

    def counted() -> None:
        left = [1 << 30]
        kill_at(0, left)()
        work(tmp_path / "whole")
        (tmp_path / "calls").write_text(str((1 << 30) - left[0]))

    assert in_child(counted) == 0
    calls = int((tmp_path / "calls").read_text())
    assert calls > 200, "many commits"
    expected = contents(tmp_path / "whole")
    generator = random.Random(0)
    moments = [0, 2, 5, 9, *range(calls - 12, calls, 3)]
    moments += [generator.randrange(calls) for _ in range(6)]
    for number, moment in enumerate(moments):
        folder = tmp_path / f"killed-{number}"

        def doomed(folder: Path = folder, moment: int = moment) -> None:
            kill_at(moment)()
            work(folder)

        assert in_child(doomed) == -signal.SIGKILL
        if not (folder / "manifest.json").exists():
            with pytest.raises(ManifestError):
                read_manifest(folder)
            # And once more on the way.
            again = generator.randrange(80)
            in_child(lambda folder=folder, again=again: (kill_at(again)(), work(folder)))
        work(folder)
        assert contents(folder) == expected, moment


def test_a_full_disk_is_an_error_and_then_goes_on(
    tmp_path: Path, tokenizer, words: list[str]
) -> None:  # type: ignore[no-untyped-def]
    source = Texts("test", lambda: words * 3)
    settings = {**SMALL, "shard_tokens": 100_000, "drop_duplicates": False}
    prepare(source, tokenizer, tmp_path / "whole", **settings)  # type: ignore[arg-type]
    expected = contents(tmp_path / "whole")
    size = max(map(len, expected.values()))
    folder = tmp_path / "full"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 2000, size - 2000))
        try:
            prepare(source, tokenizer, folder, **settings)  # type: ignore[arg-type]
        except DiskError as error:
            (tmp_path / "message").write_text(str(error))
            raise SystemExit(5) from error

    assert in_child(work) == 3
    message = (tmp_path / "message").read_text()
    assert f"train-00000.bin.partial, byte {size - 2000}: cannot write" in message
    assert not list(folder.glob("*.bin"))
    with pytest.raises(ManifestError, match="not to the end"):
        read_manifest(folder)
    prepare(source, tokenizer, folder, **settings)  # type: ignore[arg-type]
    assert contents(folder) == expected


@pytest.mark.parametrize("target", ["manifest.json", "preparation.json"])
def test_a_disk_full_at_the_small_files_leaves_the_old_ones(
    tmp_path: Path, tokenizer, words: list[str], monkeypatch, target: str
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "p"
    real = files.write_all

    def full(descriptor: int, data: bytes, path: Path, offset: int) -> None:
        if path.name == f"{target}.partial" and b'"complete":true' not in data[:0] + data:
            real(descriptor, data[:20], path, offset)
            raise DiskError(f"{path}, byte 20: cannot write")
        real(descriptor, data, path, offset)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", full)
        with pytest.raises(DiskError, match=f"{target}.partial, byte 20"):
            prepare(Texts("t", lambda: words), tokenizer, folder, **SMALL)  # type: ignore[arg-type]
    assert not list(folder.glob(f"{target}*"))
    manifest = prepare(Texts("t", lambda: words), tokenizer, folder, **SMALL)  # type: ignore[arg-type]
    assert manifest.counts.kept == len(words)
    assert shards.open_shard(folder / "train-00000.bin").tokens == 700


def test_processes_change_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer([(0, 1), (2, 3)], special_tokens=["<|endoftext|>"])
    # Short enough for the tokenizer's plain code: compiling would take longer than the test.
    texts = [f"document {n} " * 40 for n in range(60)]
    source = Texts("t", lambda: texts)
    settings = {"shard_tokens": 5000, "commit_bytes": 1000, "validation_share": 0.1}
    for processes in (1, 2):
        prepare(source, tokenizer, tmp_path / str(processes), processes=processes, **settings)  # type: ignore[arg-type]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


FOREVER = """
from itertools import count
from pathlib import Path
from firsthand.llm.data.preparation import prepare
from firsthand.llm.data.sources import Texts
from firsthand.llm.tokenizer import Tokenizer

if __name__ == "__main__":
    texts = Texts("t", lambda: (f"text {n}" for n in count()))
    tokenizer = Tokenizer([], special_tokens=["<|endoftext|>"])
    prepare(texts, tokenizer, Path("out"), processes=2, commit_bytes=1000, report=print)
"""


def test_killed_with_its_processes_it_leaves_none_behind(tmp_path: Path) -> None:
    script = tmp_path / "forever.py"
    script.write_text(FOREVER)
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert b"Progress" in running.stdout.readline()
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


class Undecodable(Tokenizer):
    """Fails on loading, as a damaged file or a killed process would."""

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        raise RuntimeError("cannot be loaded")


def test_a_dead_process_is_an_error(tmp_path: Path) -> None:
    tokenizer = Undecodable([], special_tokens=["<|endoftext|>"])
    with pytest.raises(DataError, match="an encoding process died"):
        prepare(Texts("t", lambda: ["a", "b"]), tokenizer, tmp_path / "p", processes=2)
    assert not (tmp_path / "p" / "manifest.json").exists()


def test_progress_is_told(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    texts = [f"{n}" * 400_000 for n in range(8)]
    told = []
    prepare(Texts("t", lambda: texts), tokenizer, tmp_path / "p", processes=1, report=told.append)
    assert [p.documents for p in told] == sorted(p.documents for p in told)
    assert told[-1].documents == 8
    assert told[-1].text_bytes == 8 * 400_000
    assert told[-1].tokens == 8 * 400_001
    assert len(told) > 2


def test_what_makes_no_sense_is_refused(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    source = Texts("t", lambda: ["a"])
    for settings in ({"validation_share": 1.0}, {"shard_tokens": 0}, {"processes": 0}):
        with pytest.raises(ValueError, match=r"share|at least 1"):
            prepare(source, tokenizer, tmp_path, **settings)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be created"):
        prepare(source, tokenizer, tmp_path / "file" / "p")
    assert default_processes(1000) == 1
