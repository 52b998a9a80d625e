"""`firsthand align`, as typed: each method, its settings, and what is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer.chat import CHAT_TOKENS
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.training.config import DataSettings, RunConfig, TrainingSettings
from firsthand.llm.training.pretraining import start_run

Command = Callable[..., tuple[int, str, str]]
SMALL = (
    "training.steps=2",
    "training.batch_size=4",
    "training.threads=1",
    'tasks.kinds=["arithmetic"]',
    "tasks.count=12",
    "tasks.evaluated=2",
    "tasks.evaluated_last=3",
    "tasks.max_new_tokens=5",
    "grpo.prompts=2",
    "grpo.group=2",
    "grpo.minibatch=4",
    "ppo.rollout_batch=4",
    "ppo.samples=2",
    "ppo.minibatch=4",
)


def words(*more: str) -> list[str]:
    """The settings as options."""
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(folder: Path, special: tuple[str, ...]) -> Path:
    """A run of one step over bytes and these special tokens."""
    text = folder / "texts"
    text.mkdir(parents=True)
    for name in "abcdef":
        (text / f"{name}.txt").write_text(f"{name} 1 + 2 = 3\n" * 40, encoding="utf-8")
    tokenizer = Tokenizer([], special_tokens=["<|endoftext|>", *special])
    tokenizer.save(folder / "tokenizer.json")
    config = RunConfig(
        model=ModelConfig(
            vocab_size=tokenizer.vocabulary_size,
            context=96,
            d_model=16,
            n_layers=1,
            n_heads=2,
            d_ff=24,
        ),
        data=DataSettings(
            source=(str(text),), tokenizer=str(folder / "tokenizer.json"), validation_share=0.3
        ),
        training=TrainingSettings(steps=1, batch_size=2, flow_every=0, device="cpu"),
    )
    start_run(folder / "nano", replace(config, seed=1), FAST)
    return folder / "nano"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("base"), CHAT_TOKENS)


@pytest.mark.parametrize("method", ["dpo", "reward", "grpo", "ppo"])
def test_each_method_makes_a_run_that_can_go_on(
    firsthand: Command, base: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    code, said, error = firsthand(
        "align", str(base), "--method", method, "--out", str(out), *words()
    )
    assert code == 0, error
    assert f"The report: {out / 'report.html'}" in said
    assert (out / "report.html").exists()
    assert ("firsthand chat" in said) == (method != "reward")
    record = json.loads((out / "run.json").read_text())["alignment"]
    assert record["method"] == method
    assert Path(record["base"]) == base.resolve()
    code, said, error = firsthand("align", "--resume", str(out), "--steps", "3")
    assert code == 0, error
    assert "Going on after step 2." in said


def test_adapters_alone(firsthand: Command, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, error = firsthand(
        "align", str(base), "-m", "dpo", "--lora", "2", "-o", str(out), *words()
    )
    assert code == 0, error
    assert json.loads((out / "run.json").read_text())["alignment"]["settings"]["lora"]["rank"] == 2
    code, _, error = firsthand("generate", str(out), "1 + 2", "--tokens", "3", "--seed", "0")
    assert code == 0, error


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["{base}"], "--method is missing; choose one of sft, reward, dpo, ppo, grpo"),
        (["{base}", "-m", "dop"], "there is no method 'dop'; the nearest is 'dpo'"),
        (["-m", "dpo"], "Name the model to go on from"),
        (["--resume", "{base}", "-m", "dpo"], "leave out --method"),
        (["--resume", "{base}"], "not an alignment run"),
        (["{base}", "-m", "dpo", "--set", "dpo.bta=1"], "the nearest is 'dpo.beta'"),
        (["{base}", "-m", "dpo", "--set", "dpo.beta=0"], "beta is above 0"),
        (["{base}", "-m", "grpo", "--set", "grpo.group=1"], "group is at least 2"),
        (["{base}", "-m", "ppo", "--set", "ppo.temperature=0"], "temperature is above 0"),
        (["nowhere", "-m", "dpo"], "there is no such run"),
        (["{base}", "-m", "dpo", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_is_refused(
    firsthand: Command, base: Path, tmp_path: Path, typed: list[str], said: str
) -> None:
    code, out, error = firsthand(
        "align", *(word.replace("{base}", str(base)) for word in typed), *out_of(typed, tmp_path)
    )
    assert code == 1
    assert said in error.replace("\n", " ")
    assert "Traceback" not in out + error


def out_of(typed: list[str], folder: Path) -> list[str]:
    """A folder of the run, where one may be named."""
    return [] if "--resume" in typed else ["--out", str(folder / "run")]


def test_a_tokenizer_without_chat_tokens(firsthand: Command, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", ())
    code, _, error = firsthand("align", str(plain), "-m", "dpo", "-o", str(tmp_path / "r"))
    assert code == 1
    assert "lacks the special tokens" in error


def test_a_bad_record_names_file_and_line(firsthand: Command, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "1 + 1", "chosen": "2", "rejected": "3"}
    lines = [good] * 3 + [{**good, "chosen": " "}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, error = firsthand(
        "align", str(base), "-m", "dpo", "-d", str(path), "-o", str(tmp_path / "r"), *words()
    )
    assert code == 1
    assert "pairs.jsonl, line 4" in error
    assert "empty" in error
