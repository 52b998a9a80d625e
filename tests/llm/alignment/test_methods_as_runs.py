"""Each method as a run in a folder: begun, cut off, resumed bit for bit, read by all else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.pair_data import pair_batch, pair_data, whole_texts
from firsthand.llm.alignment.reward_model import sequence_rewards
from firsthand.llm.alignment.reward_task import load_reward_model
from firsthand.llm.alignment.runs import resume_alignment, start_alignment
from firsthand.llm.alignment.settings import read_settings
from firsthand.llm.data.problems import SourceError
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.training.checkpoints import list_checkpoints, load_checkpoint
from firsthand.llm.training.journal import Nobody
from firsthand.llm.training.metrics import read_metrics
from firsthand.llm.training.pretraining import start_run
from firsthand.llm.training.trained import load_trained

METHODS = ("dpo", "reward", "grpo", "ppo")
SETTINGS: dict[str, Any] = {
    "tasks": {
        "kinds": ["arithmetic"],
        "count": 24,
        "evaluated": 3,
        "evaluated_last": 4,
        "max_new_tokens": 6,
    },
    "dpo": {"reference_batch": 5},
    "grpo": {
        "prompts": 2,
        "group": 4,
        "minibatch": 4,
        "max_new_tokens": 5,
        "epochs": 2,
        # All answers of an untrained base are wrong: the penalty alone moves it.
        "kl_coefficient": 0.02,
    },
    "ppo": {
        "rollout_batch": 8,
        "samples": 1,
        "minibatch": 4,
        "max_new_tokens": 5,
        "kl": "adaptive",
    },
}
OVERRIDES = (
    "training.steps=5",
    "training.batch_size=4",
    "training.micro_batch=2",
    "training.evaluate_every=4",
    "training.sample_every=0",
    "training.save_every=0",
    "training.threads=1",
    'training.device="cpu"',
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, small) -> Path:
    """A run of two steps over bytes and chat tokens."""
    folder = tmp_path_factory.mktemp("base")
    text = folder / "texts"
    text.mkdir()
    for name in "abcdef":
        (text / f"{name}.txt").write_text(f"{name} 1 + 2 = 3\n" * 40, encoding="utf-8")
    small.tokenizer.save(folder / "tokenizer.json")
    config = small.config(steps=2, batch_size=2)
    data = replace(
        config.data,
        source=(str(text),),
        tokenizer=str(folder / "tokenizer.json"),
        validation_share=0.3,
    )
    start_run(folder / "run", replace(config, data=data), FAST)
    return folder / "run"


class Stop(Nobody):
    """Asks for an end after a step."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def line(self, record: dict[str, Any]) -> None:
        """Count."""
        self.seen = record["step"] if record["kind"] == "train" else self.seen

    def stop_asked(self) -> bool:
        """After the step."""
        return self.seen >= self.after


def weights(folder: Path) -> dict[str, Any]:
    """Of the newest checkpoint, all groups."""
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1]).tensors


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics without clocks and memory."""
    free = {"tokens_per_second", "memory_bytes", "seconds"}
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in free} for line in found]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_has_the_same_bits(
    base: Path, tmp_path: Path, method: str, lora: bool
) -> None:
    settings = read_settings({**SETTINGS, **({"lora": {"rank": 2}} if lora else {})})
    whole = start_alignment(tmp_path / "whole", base, method, settings, OVERRIDES, FAST)
    start_alignment(
        tmp_path / "cut", base, method, settings, OVERRIDES, FAST, watcher=Stop(after=3)
    )
    assert list_checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "step-00000003"
    resume_alignment(tmp_path / "cut", FAST)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    for group in one:
        assert one[group].keys() == two[group].keys()
        assert all(torch.equal(one[group][name], two[group][name]) for name in one[group])
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    # Something was learnt, and what is left is a model like every other.
    first = load_trained(base, FAST).model.state_dict()
    last = load_trained(whole.folder, FAST).model.state_dict()
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_a_reference_is_computed_once(base: Path, tmp_path: Path, monkeypatch) -> None:
    settings = read_settings(SETTINGS)
    run = start_alignment(tmp_path / "r", base, "dpo", settings, OVERRIDES, FAST, watcher=Stop(2))
    stored = (run.folder / "reference.safetensors").read_bytes()

    def never(*arguments: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("firsthand.llm.alignment.reference.sequence_logprobs", never)
    resume_alignment(run.folder, FAST)
    assert (run.folder / "reference.safetensors").read_bytes() == stored


@pytest.mark.parametrize("method", METHODS)
def test_a_longer_run_goes_on(base: Path, tmp_path: Path, method: str) -> None:
    settings = read_settings(SETTINGS)
    run = start_alignment(tmp_path / "r", base, method, settings, OVERRIDES, FAST)
    resume_alignment(run.folder, FAST, steps=7)
    assert lines(run.folder)[-1]["step"] == 7


def test_divergence_leaves_the_last_good_checkpoint(base: Path, tmp_path: Path) -> None:
    settings = read_settings({**SETTINGS, "grpo": {**SETTINGS["grpo"], "stop_kl": 0.2}})
    steep = ("training.steps=40", "training.save_every=1", "optimizer.learning_rate=0.2")
    with pytest.raises(AlignmentError, match="KL divergence to the reference"):
        start_alignment(tmp_path / "r", base, "grpo", settings, [*OVERRIDES, *steep], FAST)
    steps = [int(path.name[5:]) for path in list_checkpoints(tmp_path / "r" / "checkpoints")]
    logged = [line for line in lines(tmp_path / "r") if line["kind"] == "train"]
    for line in logged:
        # The KL of a line is that of the weights before its step, which the one before saved.
        if line["step"] - 1 in steps:
            assert line["kl"] <= 0.2
    assert not steps or max(steps) < 40


def test_pairs_of_a_file_and_lines_that_cannot_be_used(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    good = [{"prompt": f"{n} + 1", "chosen": f"{n + 1}", "rejected": "no"} for n in range(20)]

    def written(*records: dict[str, str]) -> Any:
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        return read_settings({**SETTINGS, "files": [str(path)]})

    run = start_alignment(tmp_path / "r", base, "dpo", written(*good), OVERRIDES, FAST)
    assert lines(run.folder)[-1]["kind"] == "validation"
    bad = [
        ({"prompt": "a", "chosen": "", "rejected": "b"}, SourceError, "line 21.*empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, SourceError, "line 21.*equal"),
        ({"prompt": "a" * 99, "chosen": "b", "rejected": "c"}, AlignmentError, "line 21.*prompt"),
    ]
    for number, (record, kind, said) in enumerate(bad):
        with pytest.raises(kind, match=said):
            start_alignment(
                tmp_path / f"b{number}", base, "dpo", written(*good, record), OVERRIDES, FAST
            )


def test_a_clip_that_divides_nothing_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="prompts x group, 8, does not divide by minibatch 3"):
        read_settings({"grpo": {"prompts": 2, "group": 4, "minibatch": 3}})


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_rewards_of_a_reward_model(base: Path, tmp_path: Path, lora: bool) -> None:
    more = {"lora": {"rank": 2}} if lora else {}
    judge = start_alignment(
        tmp_path / "judge", base, "reward", read_settings({**SETTINGS, **more}), OVERRIDES, FAST
    )
    model, tokenizer = load_reward_model(judge.folder, FAST)
    data = pair_data(
        read_settings(SETTINGS), ChatTemplate(tokenizer), context=95, seed=5, validation_share=0.1
    )
    last = lines(judge.folder)[-1]
    with torch.no_grad():
        batch = pair_batch(data.validation, torch.device("cpu"), padding=0)
        found = sequence_rewards(model, *whole_texts(batch.inputs, batch.targets, 0))
    # The run's own last measurement, made from the weights that were saved.
    assert float(found[: batch.pairs].mean()) == pytest.approx(last["chosen_reward"], abs=1e-5)
    assert float(found[batch.pairs :].mean()) == pytest.approx(last["rejected_reward"], abs=1e-5)
    for method in ("grpo", "ppo"):
        settings = read_settings({**SETTINGS, "reward_model": str(judge.folder)})
        run = start_alignment(tmp_path / method, base, method, settings, OVERRIDES, FAST)
        first = next(line for line in lines(run.folder) if line["kind"] == "train")
        assert first["reward"] not in (0.0, 0.1, 1.1)


def test_what_is_no_reward_model(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="not a reward model"):
        start_alignment(
            tmp_path / "r",
            base,
            "grpo",
            read_settings({**SETTINGS, "reward_model": str(base)}),
            OVERRIDES,
            FAST,
        )
