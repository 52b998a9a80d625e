"""`firsthand tokenizer` and `firsthand data`, as typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TEXT = "the quick brown fox jumps over the lazy dog; naïve café, 12 dogs\n" * 40


def firsthand(
    *words: str, folder: Path, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firsthand", *words],
        cwd=folder,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a tokenizer and prepared shards."""
    path: Path = tmp_path_factory.mktemp("stack")
    (path / "texts").mkdir()
    for number in range(12):
        (path / "texts" / f"{number}.txt").write_text(f"{number} {TEXT}", encoding="utf-8")
    trained = firsthand("tokenizer", "train", "texts", "--vocabulary", "300", folder=path)
    assert trained.returncode == 0, trained.stderr
    assert "300 tokens" in trained.stdout
    prepared = firsthand("data", "prepare", "texts", "--validation-share", "0.3", folder=path)
    assert prepared.returncode == 0, prepared.stderr
    return path


def test_text_comes_back_from_its_ids(folder: Path) -> None:
    ids = firsthand("tokenizer", "encode", "naïve <|end|> 🙂", folder=folder)
    assert ids.returncode == 0
    back = firsthand("tokenizer", "decode", folder=folder, given=ids.stdout)
    assert back.stdout == "naïve <|end|> 🙂\n"
    allowed = firsthand("tokenizer", "encode", "<|end|>", "--allow-special", folder=folder)
    assert len(allowed.stdout.split()) == 1
    assert len(firsthand("tokenizer", "encode", "<|end|>", folder=folder).stdout.split()) > 1


def test_inspect_shows_tokens_the_merges_of_a_word_and_the_cost(folder: Path) -> None:
    shown = firsthand("tokenizer", "inspect", TEXT, "--word", "the", folder=folder).stdout
    assert "bytes per token" in shown
    assert ", merge " in shown
    assert "embedding, MB" in shown
    assert "\x1b" not in shown


def test_data_is_inspected_and_counted(folder: Path) -> None:
    inspected = firsthand("data", "inspect", "--document", "0", folder=folder)
    assert inspected.returncode == 0
    assert "whole" in inspected.stdout
    assert "quick brown fox" in inspected.stdout
    assert "bytes per token" in firsthand("data", "stats", folder=folder).stdout


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    copy.mkdir()
    for file in (folder / "data").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-7])
    found = firsthand("data", "inspect", str(copy), folder=folder)
    assert found.returncode == 1
    assert "train-00000.bin" in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tokenizer", "encode", "x", "-t", "nope.json"), "nope.json"),
        (("tokenizer", "decode", "999999"), "999999"),
        (("tokenizer", "train", "texts", "--vocabulary", "10"), "10"),
        (("tokenizer", "train", "texts", "--pattern", "gpt9"), "gpt9"),
        (("tokenizer", "train", "nowhere"), "nowhere"),
        (("data", "prepare", "nowhere"), "nowhere"),
        (("data", "prepare", "texts", "--unit", "page"), "page"),
        (("data", "prepare", "hf:a/b", "texts"), "one dataset"),
        (("data", "prepare", "texts", "--size", "9"), "a size is for"),
        (("data", "inspect", "texts"), "texts"),
        (("data", "inspect", "--document", "9999"), "9999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_sentence(folder: Path, words: tuple[str, ...], said: str) -> None:
    found = firsthand(*words, folder=folder)
    assert found.returncode == 1
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_dataset_is_read_by_its_name(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"body": [f"{number} {TEXT}" for number in range(6)]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "saved"))
    words = ("data", "prepare", "hf:saved", "--field", "body", "--out", "fromhub")
    found = firsthand(*words, folder=folder)
    assert found.returncode == 0, found.stderr
    assert "fromhub: train: " in found.stdout


def test_lines_can_be_documents(folder: Path) -> None:
    words = ("data", "prepare", "texts/1.txt", "--unit", "line", "--out", "lines")
    found = firsthand(*words, "--validation-share", "0", folder=folder)
    assert found.returncode == 0, found.stderr
    # the first line begins with its number; the others are equal, and kept once
    assert "in 2 documents" in found.stdout


def test_ids_that_are_no_numbers_are_named(folder: Path) -> None:
    found = firsthand("tokenizer", "decode", folder=folder, given="12 twelve")
    assert found.returncode == 1
    assert "'twelve'" in found.stderr
