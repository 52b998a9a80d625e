"""`firsthand finetune` and `firsthand build` through it, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]

MODEL = (
    'data.source=["texts"]',
    "data.validation_share=0.3",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.d_ff=24",
    "model.context=128",
    "model.vocab_size=300",
    "training.batch_size=2",
    "training.steps=2",
    "training.sample_tokens=4",
)
SHORT = (
    "tasks.count=20",
    "tasks.evaluated=2",
    "tasks.evaluated_last=2",
    "tasks.max_new_tokens=4",
    'tasks.kinds=["counting"]',
    "training.batch_size=2",
    "training.steps=3",
    "training.save_every=1",
)


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def place(texts: Path, prepare: Callable[..., None]) -> Path:
    """A folder with a text, a trained run in runs/nano and a fine-tuned one beside it."""
    prepare(texts, "train", "--preset", "nano", *overrides(*MODEL))
    prepare(texts, "finetune", "runs/nano", *overrides(*SHORT))
    return texts


def test_the_run_stands_beside_its_base(place: Path) -> None:
    run = place / "runs" / "nano-sft"
    record = json.loads((run / "run.json").read_text())["alignment"]
    assert record["method"] == "sft"
    assert record["settings"]["tasks"]["count"] == 20
    assert (run / "report.html").exists()


def test_before_and_after_are_shown(firsthand: Command, place: Path) -> None:
    words = ("finetune", "runs/nano", "-o", "shown", *overrides(*SHORT))
    code, out, err = firsthand(*words, folder=place)
    assert code == 0, err
    for text in ("held out", "before", "after", "accuracy", "%", "firsthand chat shown"):
        assert text in out


@pytest.mark.parametrize("command", ["finetune", "train"])
def test_it_is_made_longer(firsthand: Command, place: Path, command: str) -> None:
    code, _, err = firsthand(
        "finetune", "runs/nano", "-o", f"longer-{command}", *overrides(*SHORT), folder=place
    )
    assert code == 0, err
    code, out, err = firsthand(
        command, "--resume", f"longer-{command}", "--steps", "5", folder=place
    )
    assert code == 0, err
    assert "Going on after step 3." in out
    lines = (place / f"longer-{command}" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5]


def test_adapters_of_a_file_of_records(firsthand: Command, place: Path) -> None:
    records = [{"question": f"{k} + 2?", "answer": f"#### {k + 2}"} for k in range(30)]
    (place / "sums.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ("finetune", "runs/nano", "-o", "sums", "--data", "sums.jsonl", "--lora", "2")
    code, _, err = firsthand(*words, *overrides(*SHORT), folder=place)
    assert code == 0, err
    record = json.loads((place / "sums" / "run.json").read_text())["alignment"]["settings"]
    assert record["lora"]["rank"] == 2
    assert record["files"] == [str((place / "sums.jsonl").resolve())]
    # The file is found from anywhere.
    (place / "elsewhere").mkdir()
    code, _, err = firsthand(
        "finetune", "--resume", "../sums", "--steps", "4", folder=place / "elsewhere"
    )
    assert code == 0, err


def test_the_result_writes_talks_and_is_measured(firsthand: Command, place: Path) -> None:
    for words in (
        ("generate", "runs/nano-sft", "12", "--tokens", "3"),
        ("evaluate", "runs/nano-sft", "--json"),
    ):
        code, out, err = firsthand(*words, folder=place)
        assert code == 0, err
        assert out.strip()


def test_build_goes_through_it(
    firsthand: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firsthand.app.cli import finetuning

    whole = finetuning.start_aligned
    monkeypatch.setattr(finetuning, "start_aligned", lambda *a, **k: whole(*a, settings=SHORT, **k))
    code, out, err = firsthand("build", "-o", "built", *overrides(*MODEL), folder=place)
    assert code == 0, err
    assert "s in all" in out.splitlines()[-1]
    for method, base in (("sft", "built"), ("dpo", "built-sft")):
        record = json.loads((place / f"built-{method}" / "run.json").read_text())["alignment"]
        assert (record["method"], Path(record["base"]).name) == (method, base)
        assert (place / f"built-{method}" / "report.html").exists()


def test_build_ends_where_it_is_told(
    firsthand: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firsthand.app.cli import finetuning

    whole = finetuning.start_aligned
    monkeypatch.setattr(finetuning, "start_aligned", lambda *a, **k: whole(*a, settings=SHORT, **k))
    words = ("build", "-o", "half", "--until", "sft", *overrides(*MODEL))
    code, _, err = firsthand(*words, folder=place)
    assert code == 0, err
    assert (place / "half-sft").exists()
    assert not (place / "half-dpo").exists()


def test_build_says_at_once_that_there_is_no_room(firsthand: Command, place: Path) -> None:
    code, _, err = firsthand("build", "-o", "runs/nano", *overrides(*MODEL), folder=place)
    assert code == 1
    assert "runs/nano-sft: not empty" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("finetune",), "Name the model to go on from"),
        (("finetune", "nowhere"), "nowhere: there is no such run"),
        (("finetune", "runs/nano"), "runs/nano-sft: there is a run already"),
        (("finetune", "runs/nano", "-o", "x", "--steps", "3"), "--steps goes with --resume"),
        (("finetune", "runs/nano", "--resume", "runs/nano-sft"), "--resume takes base"),
        (("finetune", "--resume", "runs/nano"), "not an alignment run"),
        (("finetune", "runs/nano", "-o", "x", "-d", "none.jsonl"), "none.jsonl"),
        (("finetune", "runs/nano", "-o", "x", "--lora", "99"), "rank 99 is above"),
        (("finetune", "runs/nano", "-o", "x", "-s", "tasks.kinds=[]"), "at least one is named"),
        (("finetune", "runs/nano", "-o", "x", "-s", "tasks.levels=[4]"), "levels are of (1, 2, 3)"),
        (("finetune", "runs/nano", "-o", "x", "-s", "task.count=3"), "there is no setting 'task'"),
        (("build", "--until", "ppo"), "--until is one of train, sft, dpo"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    firsthand: Command, place: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = firsthand(*words, folder=place)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not (place / "x").exists()
