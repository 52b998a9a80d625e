"""`firsthand build|train|evaluate|generate|report|kernels`, as typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]

SMALL = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.d_ff=48",
    "model.context=32",
    "model.vocab_size=300",
    "training.batch_size=8",
    "training.steps=12",
    "training.evaluate_every=6",
    "training.save_every=4",
    "training.sample_every=6",
    "training.sample_tokens=12",
    "training.flow_every=5",
    "data.validation_share=0.3",
)
TEXTS = 'data.source=["texts"]'
FILES = {"config.toml", "run.json", "tokenizer.json", "metrics.jsonl", "samples.jsonl", "data"}


def settings(*more: str) -> list[str]:
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def place(texts: Path, prepare: Callable[..., None]) -> Path:
    """Text, and one run that `build` made of it."""
    prepare(texts, "build", "-o", "run", "--until", "train", *settings(TEXTS))
    return texts


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_build_leaves_a_whole_run(place: Path) -> None:
    run = place / "run"
    assert {path.name for path in run.iterdir()} >= {*FILES, "report.html", "model", "checkpoints"}
    record = json.loads((run / "run.json").read_text())
    assert record["parts"]["attention"].startswith("firsthand.llm.kernels.attention")
    assert record["gzip_bits_per_byte"] > 0
    steps = [line["step"] for line in lines(run / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == list(range(1, 13))
    kinds = {line["kind"] for line in lines(run / "metrics.jsonl")}
    assert kinds == {"train", "validation", "flow"}
    assert {line["step"] for line in lines(run / "samples.jsonl")} == {6, 12}
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012"]


def test_its_parameters_figures_and_a_text_are_shown(firsthand: Command, place: Path) -> None:
    words = ("build", "-o", "shown", "--until", "train", *settings(TEXTS))
    code, out, _ = firsthand(*words, folder=place)
    assert code == 0
    for words in (
        "parameters",
        "feed forward",
        "validation loss",
        "gzip -9",
        "It writes",
        "report",
    ):
        assert words in out
    assert "\x1b" not in out


def test_evaluate_measures_the_run_and_other_text(firsthand: Command, place: Path) -> None:
    code, out, err = firsthand("evaluate", "run", "--overlap", "0", "--json", folder=place)
    assert code == 0, err
    found = json.loads(out)
    final = [line for line in lines(place / "run/metrics.jsonl") if line["kind"] == "validation"]
    assert found["loss"] == pytest.approx(final[-1]["loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(final[-1]["bits_per_byte"], rel=1e-6)
    code, out, err = firsthand("evaluate", "run", "texts/3.txt", folder=place)
    assert code == 0, err
    assert f"{(place / 'texts/3.txt').stat().st_size:,}" in out
    # The folder in Hugging Face's format is the same model.
    code, out, err = firsthand("evaluate", "run/model", "texts/3.txt", "--json", folder=place)
    there = json.loads(out)["loss"]
    code, out, err = firsthand("evaluate", "run", "texts/3.txt", "--json", folder=place)
    assert json.loads(out)["loss"] == pytest.approx(there, rel=1e-5)


def test_generate_writes_the_same_for_a_seed(firsthand: Command, place: Path) -> None:
    words = ("generate", "run", "3 plus", "--tokens", "9", "--seed", "4")
    code, first, err = firsthand(*words, folder=place)
    assert code == 0
    assert first.startswith("3 plus")
    assert "tokens/s" in err
    assert firsthand(*words, folder=place)[1] == first
    assert firsthand(*words[:-1], "5", folder=place)[1] != first
    greedy = ("generate", "run", "3", "--temperature", "0", "--samples", "2", "--tokens", "5")
    texts = firsthand(*greedy, folder=place)[1].split("\n3")
    assert texts[0].removeprefix("3").strip() == texts[1].strip()


def test_a_finished_run_can_be_made_longer_and_reported_again(
    firsthand: Command, place: Path
) -> None:
    shutil.copytree(place / "run", place / "longer")
    (place / "longer/report.html").unlink()
    code, out, err = firsthand("train", "--resume", "longer", folder=place)
    assert code == 0, err
    assert "has all its 12 steps" in out
    code, out, err = firsthand("train", "--resume", "longer", "--steps", "15", folder=place)
    assert code == 0, err
    assert "step 15: validation" in out
    before, after = lines(place / "run/metrics.jsonl"), lines(place / "longer/metrics.jsonl")
    assert after[: len(before)] == before
    code, out, _ = firsthand("report", "longer", folder=place)
    assert code == 0
    assert "longer/report.html" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--preset", "nanno"), "'nano'"),
        (("train", "--set", "model.n_layerz=3"), "model.n_layers"),
        (("train", "--set", "model.n_heads=3"), "does not divide"),
        (
            ("train", "--set", "training.batch_size=6", "-s", "training.micro_batch=4"),
            "micro_batch",
        ),
        (("train", "--set", "training.device=cuda:9", "-o", "gpu"), "cuda:9"),
        (("train", "--set", 'data.source=["nowhere"]', "-o", "none"), "nowhere"),
        (("train", "-o", "run"), "firsthand train --resume run"),
        (("train", "-o", "texts"), "not empty"),
        (("train", "--resume", "nowhere"), "nowhere"),
        (("train", "--resume", "texts"), "not a run"),
        (("train", "--resume", "run", "--set", "seed=3"), "--steps"),
        (("train", "--steps", "4"), "--resume"),
        (("evaluate", "nowhere"), "nowhere"),
        (("evaluate", "run", "--overlap", "32"), "overlap"),
        (("evaluate", "run", "--step", "5"), "step 5"),
        (("generate", "run", "--temperature", "-1"), "temperature"),
        (("generate", "run", "x " * 200), "context"),
        (("generate", "run", "--samples", "0"), "sample"),
        (("report", "texts"), "not a run"),
        (("kernels", "bench", "atention"), "attention"),
        (("kernels", "bench", "softmax", "--size", "rows"), "name=number"),
        (("kernels", "bench", "softmax", "--size", "seq=4"), "rows"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_sentence(
    firsthand: Command, place: Path, words: tuple[str, ...], said: str
) -> None:  # type: ignore[no-untyped-def]
    code, _, err = firsthand(*words, folder=place)
    assert code == 1, err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_ladder_is_timed_beside_the_ceilings(firsthand: Command, place: Path) -> None:
    words = ("kernels", "bench", "softmax", "--runs", "1", "--size", "rows=64")
    code, out, err = firsthand(*words, folder=place)
    assert code == 0, err
    for column in ("Ceilings", "rows 64", "MB moved", "GFLOP/s", "numpy"):
        assert column in out
    code, out, err = firsthand(*words, "--json", folder=place)
    assert json.loads(out)["rows"][0]["rung"] == "numpy"
