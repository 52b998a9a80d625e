"""The text of a run: prepared once, opened verified, compared with a compressor."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firsthand.llm.data.problems import DataError
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.config import DataSettings, RunConfig
from firsthand.llm.training.corpus import gzip_bits_per_byte, open_corpus, prepare_corpus

LINES = [f"line {number} says {number * number % 97} naïvely, twice" for number in range(200)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    return RunConfig(
        model=ModelConfig(vocab_size=300, d_model=8, n_heads=1, n_layers=1),
        data=DataSettings(source=(str(text),), unit="line", validation_share=0.2),
    )


def prepared(config: RunConfig, folder: Path) -> tuple[Path, Path, list[str]]:
    folder.mkdir(exist_ok=True)
    stages: list[str] = []
    shards, tokenizer = folder / "data", folder / "tokenizer.json"
    prepare_corpus(config, shards, tokenizer, lambda name, done, total: stages.append(name))
    return shards, tokenizer, stages


def test_a_corpus_is_prepared_once_and_then_found(config: RunConfig, tmp_path: Path) -> None:
    shards, file, stages = prepared(config, tmp_path / "run")
    assert {"tokenizer: counting", "tokenizer: merging", "reading text"} <= set(stages)
    corpus, manifest = open_corpus(config, shards, file)
    assert len(corpus.train) == manifest.splits["train"].tokens
    assert len(corpus.byte_lengths) == 300
    before = file.read_bytes()
    _, _, again = prepared(config, tmp_path / "run")
    assert not any(stage.startswith("tokenizer") for stage in again)
    assert file.read_bytes() == before


def test_a_given_tokenizer_and_a_prepared_folder_are_used(
    config: RunConfig, tmp_path: Path
) -> None:
    shards, file, _ = prepared(config, tmp_path / "run")
    given = replace(config, data=replace(config.data, tokenizer=str(file)))
    _, copied, stages = prepared(given, tmp_path / "second")
    assert copied.read_bytes() == file.read_bytes()
    assert not any(stage.startswith("tokenizer") for stage in stages)
    ready = replace(config, data=replace(config.data, folder=str(shards)))
    place, own, stages = prepared(ready, tmp_path / "third")
    assert stages == []
    assert not place.exists()
    assert open_corpus(ready, place, own)[1] == open_corpus(config, shards, file)[1]


def test_shards_of_another_tokenizer_are_refused(config: RunConfig, tmp_path: Path) -> None:
    shards, _, _ = prepared(config, tmp_path / "run")
    other = replace(config, model=replace(config.model, vocab_size=280))
    _, file, _ = prepared(other, tmp_path / "other")
    with pytest.raises(DataError, match="tokenizer"):
        open_corpus(config, shards, file)


def test_gzip_is_asked_about_the_very_text(config: RunConfig, tmp_path: Path) -> None:
    shards, file, _ = prepared(config, tmp_path / "run")
    corpus, manifest = open_corpus(config, shards, file)
    tokenizer = Tokenizer.load(file)
    out = np.zeros(len(corpus.validation), np.int64)
    corpus.validation.read(0, out)
    end = tokenizer.special_tokens["<|endoftext|>"]
    text = tokenizer.decode_bytes([token for token in out.tolist() if token != end])
    assert len(text) == manifest.splits["validation"].bytes
    assert all(line in LINES for line in text.decode().replace("line ", "\nline ").split("\n")[1:])
    found = gzip_bits_per_byte(corpus.validation, tokenizer)
    assert found == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text))
