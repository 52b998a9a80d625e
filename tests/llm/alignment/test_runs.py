"""Alignment runs: what stands in the folder, resuming, adapters, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.alignment import runs
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.lora import LoraSettings, fold_lora, lora_layers
from firsthand.llm.alignment.runs import resume_alignment, start_alignment
from firsthand.llm.alignment.settings import AlignmentSettings, TaskSettings
from firsthand.llm.data.problems import SourceError
from firsthand.llm.model.hugging_face import load_hugging_face, save_llama
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.hugging_face import write_hugging_face
from firsthand.llm.training.checkpoints import load_latest, save_checkpoint
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import Nobody
from firsthand.llm.training.loop import Training
from firsthand.llm.training.metrics import read_metrics
from firsthand.llm.training.pretraining import resume_run
from firsthand.llm.training.runs import Run, create_run, open_run
from firsthand.llm.training.trained import load_trained

TASKS = TaskSettings(
    kinds=("sorting", "counting"), count=40, evaluated=3, evaluated_last=4, max_new_tokens=6
)
PLAIN = AlignmentSettings(tasks=TASKS)
LORA = AlignmentSettings(tasks=TASKS, lora=LoraSettings(rank=2))
SHORT = (
    "training.steps=6",
    "training.batch_size=4",
    "training.micro_batch=2",
    "training.save_every=2",
    "training.evaluate_every=3",
    "training.sample_every=0",
    "training.device=cpu",
    "optimizer.muon_learning_rate=0.05",
)
TIMES = {"seconds", "tokens_per_second", "memory_bytes"}


class StopAfter(Nobody):
    """Ends a run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.heard: list[str] = []

    def stop_asked(self) -> bool:
        self.left -= 1
        return self.left == 0

    def said(self, text: str) -> None:
        self.heard.append(text)


def start(folder: Path, base: Path, settings: AlignmentSettings = PLAIN, **changes: Any) -> Run:
    overrides = [*SHORT, *changes.pop("overrides", ())]
    return start_alignment(folder, base, "sft", settings, overrides, FAST, **changes)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_trained(folder, FAST).model.state_dict()


def metrics(run: Run) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(run.metrics)
        if line["kind"] != "event"
    ]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, base_run: Path) -> dict[str, Run]:
    place = tmp_path_factory.mktemp("unbroken")
    return {
        "plain": start(place / "plain", base_run),
        "lora": start(place / "lora", base_run, LORA),
    }


def test_the_folder_is_a_run_with_its_base(unbroken: dict[str, Run], base_run: Path) -> None:
    run = unbroken["plain"]
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.toml", "run.json", "base.safetensors", "tokenizer.json"}
    assert names >= {"metrics.jsonl", "samples.jsonl", "report.html", "model", "checkpoints"}
    record = run.record()["alignment"]
    assert (record["method"], record["base"]) == ("sft", str(base_run.resolve()))
    assert record["settings"]["tasks"]["kinds"] == ["sorting", "counting"]
    assert run.config.model == open_run(base_run).config.model
    assert run.config.seed == open_run(base_run).config.seed
    assert not equal(weights(run.folder), weights(base_run))


def test_the_base_is_measured_before_the_first_step(unbroken: dict[str, Run]) -> None:
    run = unbroken["plain"]
    found = [line for line in metrics(run) if line["kind"] == "validation"]
    assert [line["step"] for line in found] == [0, 3, 6]
    assert found[-1]["loss"] < found[0]["loss"]
    for line in found:
        splits = [line[f"accuracy_{name}"] for name in ("numbers", "phrasings", "both")]
        assert line["accuracy"] == pytest.approx(sum(splits) / 3)
    assert "accuracy on held-out questions" in run.report.read_text()
    samples = [json.loads(line) for line in run.samples.read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {0, 6}


@pytest.mark.parametrize("kind", ["plain", "lora"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_stopped_and_resumed_every_bit_is_the_same(
    tmp_path: Path, base_run: Path, unbroken: dict[str, Run], kind: str, steps: int
) -> None:
    settings = PLAIN if kind == "plain" else LORA
    run = start(tmp_path / "run", base_run, settings, watcher=StopAfter(steps))
    assert max(line["step"] for line in metrics(run)) == steps
    resume_alignment(run.folder, FAST)
    assert equal(weights(run.folder), weights(unbroken[kind].folder))
    assert metrics(run) == metrics(unbroken[kind])


def test_the_micro_batch_changes_rounding_alone(
    tmp_path: Path, base_run: Path, unbroken: dict[str, Run]
) -> None:
    run = start(tmp_path / "run", base_run, overrides=["training.micro_batch=1"])
    for one, other in zip(metrics(run), metrics(unbroken["plain"]), strict=True):
        if one["kind"] == "train":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert one["tokens"] == other["tokens"]


def test_a_lost_base_does_not_matter(tmp_path: Path, base_run: Path) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base_run, moved)
    run = start(tmp_path / "run", moved, watcher=StopAfter(3))
    shutil.rmtree(moved)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    resume_alignment(run.folder, FAST)
    assert load_trained(run.folder, FAST).step == 6


def test_cut_off_before_the_base_was_copied_it_is_copied_then(
    tmp_path: Path,
    base_run: Path,
    unbroken: dict[str, Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_keep_base", cut)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "run", base_run)
    assert not (tmp_path / "run" / "base.safetensors").exists()
    resume_alignment(tmp_path / "run", FAST)
    assert equal(weights(tmp_path / "run"), weights(unbroken["plain"].folder))


def test_more_steps(tmp_path: Path, base_run: Path) -> None:
    run = start(tmp_path / "run", base_run, overrides=["training.steps=2"])
    watcher = StopAfter(0)
    resume_alignment(run.folder, FAST, watcher=watcher, steps=4)
    assert "Going on after step 2." in watcher.heard
    assert load_trained(run.folder, FAST).step == 4


def test_adapters_are_merged_where_the_run_is_read(
    unbroken: dict[str, Run], base_run: Path
) -> None:
    run = unbroken["lora"]
    latest = load_latest(run.checkpoints).checkpoint
    assert latest is not None
    saved = latest.tensors["model"]
    base = weights(base_run)
    for name, tensor in base.items():
        assert torch.equal(saved[name], tensor), name  # frozen
    model = load_trained(base_run, FAST).model
    runs.add_lora(model, LoraSettings(rank=2), 0)
    model.load_state_dict(saved)
    assert lora_layers(model)
    fold_lora(model)
    assert equal(dict(model.state_dict()), weights(run.folder))
    moved = [name for name, tensor in weights(run.folder).items() if not tensor.equal(base[name])]
    assert all(
        name.endswith(("qkv.weight", "output.weight", "up.weight", "down.weight")) for name in moved
    )
    assert len(moved) == 2 * 4


def test_what_is_exported_is_what_is_read(unbroken: dict[str, Run]) -> None:
    for run in unbroken.values():
        exported = load_hugging_face(run.model, FAST)
        assert equal(dict(exported.state_dict()), weights(run.folder))
        config = json.loads((run.model / "config.json").read_text())
        assert config["eos_token_id"] == Tokenizer.load(run.tokenizer).special_tokens["<|end|>"]


def test_an_aligned_run_is_a_base(tmp_path: Path, unbroken: dict[str, Run]) -> None:
    run = start(tmp_path / "run", unbroken["lora"].folder, overrides=["training.steps=1"])
    kept = runs.load_file(run.folder / "base.safetensors")
    assert equal(kept, weights(unbroken["lora"].folder))


def test_a_head_is_left_out_where_the_run_is_read(
    tmp_path: Path, base_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs.assemble

    def with_head(config: Any, model: Transformer, *others: Any) -> Training:
        model.add_module("extra_head", torch.nn.Linear(16, 1))
        return whole(config, model, *others)

    monkeypatch.setattr(runs, "assemble", with_head)
    run = start(tmp_path / "run", base_run, overrides=["optimizer.kind=adamw"])
    assert "extra_head.weight" not in weights(run.folder)


def test_rows_beyond_the_tokenizer_are_cut(
    tmp_path: Path, small: Any, chat_tokenizer: Tokenizer
) -> None:
    model = small.model(vocab_size=chat_tokenizer.vocabulary_size + 6)
    save_llama(model, tmp_path / "base", {})
    write_hugging_face(chat_tokenizer, tmp_path / "base" / "tokenizer.json")
    cut = runs.load_base(tmp_path / "base", FAST).model
    assert cut.config.vocab_size == chat_tokenizer.vocabulary_size
    tokens = torch.arange(50)[None]
    logits = model(tokens)[..., : chat_tokenizer.vocabulary_size]
    assert torch.allclose(cut(tokens), logits, atol=1e-6)


def test_a_base_without_chat_tokens_is_refused(tmp_path: Path, small: Any) -> None:
    plain = Tokenizer([], special_tokens=["<|endoftext|>"])
    save_llama(small.model(), tmp_path / "base", {})
    write_hugging_face(plain, tmp_path / "base" / "tokenizer.json")
    with pytest.raises(
        AlignmentError, match=r"base: the tokenizer lacks the special tokens <\|sys"
    ):
        start(tmp_path / "run", tmp_path / "base")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(
    tmp_path: Path, small: Any, chat_tokenizer: Tokenizer
) -> None:
    save_llama(small.model(vocab_size=200), tmp_path / "base", {})
    write_hugging_face(chat_tokenizer, tmp_path / "base" / "tokenizer.json")
    with pytest.raises(AlignmentError, match="has 262 tokens and the model 200"):
        runs.load_base(tmp_path / "base", FAST)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_layers=3", "the model and its text are those of the base"),
        ("training.parallel=fsdp", 'is "ddp" for alignment'),
        ("training.stepz=3", "the nearest is 'training.steps'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, base_run: Path, override: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        start(tmp_path / "run", base_run, overrides=[override])
    assert not (tmp_path / "run").exists()


def test_an_unknown_method_is_refused(tmp_path: Path, base_run: Path) -> None:
    with pytest.raises(SettingsError, match="there is no method 'grpoo'; the nearest is 'grpo'"):
        start_alignment(tmp_path / "run", base_run, "grpoo", PLAIN, (), FAST)


def test_a_damaged_base_is_named(tmp_path: Path, base_run: Path) -> None:
    run = start(tmp_path / "run", base_run, watcher=StopAfter(1))
    path = run.folder / "base.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AlignmentError, match=r"base\.safetensors: damaged"):
        resume_alignment(run.folder, FAST)


def test_other_data_is_refused_on_resuming(tmp_path: Path, base_run: Path) -> None:
    run = start(tmp_path / "run", base_run, watcher=StopAfter(2))
    record = run.record()["alignment"]
    record["settings"]["tasks"]["count"] = 39
    run.update_record(alignment=record)
    with pytest.raises(AlignmentError, match="of other conversations"):
        resume_alignment(run.folder, FAST)


def test_each_kind_of_run_is_resumed_by_its_own(
    tmp_path: Path, base_run: Path, unbroken: dict[str, Run]
) -> None:
    with pytest.raises(AlignmentError, match="not an alignment run"):
        resume_alignment(base_run, FAST)
    with pytest.raises(TrainingError, match="an alignment run"):
        resume_run(unbroken["plain"].folder, FAST)


def test_rows_are_as_long_as_the_context_allows_or_as_files_may_need(
    tmp_path: Path, base_run: Path
) -> None:
    short = ["training.steps=1"]
    assert start(tmp_path / "tasks", base_run, overrides=short).config.sequence_length == 96
    records = [{"prompt": f"{k}", "completion": "x" * 80} for k in range(30)]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    settings = AlignmentSettings(tasks=TASKS, files=(str(path),))
    run = start(tmp_path / "files", base_run, settings, overrides=short)
    assert run.config.training.sequence_length == 0


def test_what_could_not_begin_leaves_no_folder(tmp_path: Path, base_run: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n')
    settings = AlignmentSettings(tasks=TASKS, files=(str(path),))
    with pytest.raises(SourceError, match=r"records\.jsonl, line 1"):
        start(tmp_path / "run", base_run, settings)
    assert not (tmp_path / "run").exists()


def test_other_runs_are_read_to_the_last_tensor(
    tmp_path: Path, small: Any, chat_tokenizer: Tokenizer
) -> None:
    run = create_run(tmp_path / "run", small.config())
    chat_tokenizer.save(run.tokenizer)
    saved = {**small.model().state_dict(), "extra_head.weight": torch.zeros(3)}
    save_checkpoint(run.checkpoints, 1, {"model": saved}, {"average_updates": 0})
    with pytest.raises(TrainingError, match=r"of another model: an unknown extra_head\.weight"):
        load_trained(run.folder, FAST)


def test_averaged_adapters_are_merged(tmp_path: Path, base_run: Path) -> None:
    run = start(tmp_path / "run", base_run, LORA, overrides=["training.average=0.5"])
    latest = load_latest(run.checkpoints).checkpoint
    assert latest is not None
    model = load_trained(base_run, FAST).model
    runs.add_lora(model, LoraSettings(rank=2), 0)
    model.load_state_dict(latest.tensors["average"])
    fold_lora(model)
    assert equal(dict(model.state_dict()), weights(run.folder))
    resume_alignment(run.folder, FAST, steps=7)
