"""The folder of a run: created whole, opened with clear errors, trained in by one process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from firsthand.llm.data.manifest import Manifest
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import build, to_record
from firsthand.llm.training import runs
from firsthand.llm.training.checkpoints import CheckpointError
from firsthand.llm.training.config import (
    DataSettings,
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.runs import (
    FREE_SETTINGS,
    changed_settings,
    create_run,
    data_identity,
    lock_run,
    open_run,
    require_same_config,
    require_same_data,
)

torch.set_num_threads(1)

MODEL = ModelConfig(vocab_size=300, context=32, d_model=16, n_layers=1, n_heads=2, d_ff=24)
CONFIG = RunConfig(
    model=MODEL,
    name="nano",
    seed=3,
    data=DataSettings(source=("a b.txt", 'c"d.txt')),
    optimizer=OptimizerSettings(kind="muon", learning_rate=1e-3),
    training=TrainingSettings(steps=40, prompts=("", "def ")),
)


class Killed(BaseException):
    """Not an Exception: like a kill, nothing may tidy up after it."""


def test_a_new_run_opens_as_it_was_created(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    run = create_run(folder, CONFIG, parts={"attention": "reference"})
    opened = open_run(folder)
    assert opened == run
    assert opened.config == CONFIG
    record = opened.record()
    assert record["parts"] == {"attention": "reference"}
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "firsthand", "numpy"} <= set(record["versions"])
    assert record["created"].endswith("+00:00")
    assert run.checkpoints.is_dir()
    inside = (run.tokenizer, run.metrics, run.samples, run.report, run.model, run.checkpoints)
    assert len({path for path in inside if path.parent == folder}) == len(inside)


def test_the_record_grows_and_keeps_what_it_had(tmp_path: Path) -> None:
    run = create_run(tmp_path / "r", CONFIG)
    created = run.record()["created"]
    run.update_record(data={"tokens": 5}, note="ä")
    run.update_record(data={"tokens": 6})
    record = open_run(run.folder).record()
    assert (record["data"], record["note"], record["created"]) == ({"tokens": 6}, "ä", created)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(TrainingError, match=r"run\.json: damaged, this is not JSON"):
        run.record()
    (run.folder / "run.json").unlink()
    with pytest.raises(TrainingError, match=r"run\.json: cannot be read: No such file"):
        run.record()


def fill(folder: Path) -> None:
    create_run(folder, CONFIG)


def scribble(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")


def old_checkpoints(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (fill, r"there is a run already; go on with it by `firsthand train --resume .*/r`"),
        (scribble, "not empty; name another folder with --out"),
        (old_checkpoints, "not empty"),
        (lambda folder: folder.write_text(""), "this is a file"),
    ],
)
def test_a_folder_in_use_is_left_as_it_is(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "r"
    prepare(folder)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(TrainingError, match=message):
        create_run(folder, replace(CONFIG, seed=9))
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_an_empty_folder_becomes_a_run(tmp_path: Path) -> None:
    assert create_run(tmp_path, CONFIG).folder == tmp_path


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no such run"),
        (lambda folder: folder.write_text(""), "there is no such run"),
        (Path.mkdir, r"not a run, it has no config\.toml"),
        (scribble, r"not a run, it has no config\.toml"),
    ],
)
def test_what_is_no_run_is_not_opened(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "r"
    prepare(folder)
    with pytest.raises(TrainingError, match=message):
        open_run(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "utf-8"),
        (b"[model]\nvocab_size = = 5\n", r"config\.toml: .*line 2"),
        (b"seed = 1\n", "missing: model"),
        (b"sead = 1\n[model]\nvocab_size = 5\n", "the nearest is 'seed'"),
        (b"[model]\nvocab_size = 5\nd_model = 7\nn_heads = 2\n", "d_model 7 does not divide"),
    ],
)
def test_a_config_that_cannot_be_used_names_the_file(
    tmp_path: Path, text: bytes, message: str
) -> None:
    run = create_run(tmp_path / "r", CONFIG)
    (run.folder / "config.toml").write_bytes(text)
    with pytest.raises(TrainingError, match=message) as caught:
        open_run(run.folder)
    assert str(run.folder / "config.toml") in str(caught.value)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_during_creation_leaves_a_run_or_a_folder_to_create_again(
    tmp_path: Path, after: bool
) -> None:
    opened = set()
    for at in range(1, 60):
        folder, count = tmp_path / str(at), 0

        def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == at and not after:  # noqa: B023
                    raise Killed
                result = call(*arguments, **options)
                if count == at:  # noqa: B023
                    raise Killed
                return result

            return counted

        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "fsync", "replace", "mkdir"):
                patch.setattr(os, name, wrapped(getattr(os, name)))
            with contextlib.suppress(Killed):
                create_run(folder, CONFIG)
        ended = count < at
        try:
            assert open_run(folder).config == CONFIG
            assert open_run(folder).record()["created"]
            opened.add(True)
        except TrainingError as error:
            assert str(error).startswith(str(folder))  # noqa: PT017
            assert not (folder / "config.toml").exists()
            opened.add(False)
            create_run(folder, CONFIG)
            assert open_run(folder).config == CONFIG
        if ended:
            break
    assert ended
    assert at > 10
    assert opened == {True, False}


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"run\.json: cannot write: .*No space left"):
        create_run(tmp_path / "r", CONFIG)
    monkeypatch.undo()
    assert create_run(tmp_path / "r", CONFIG).config == CONFIG
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be made"):
        create_run(tmp_path / "file" / "r", CONFIG)


# ---------------------------------------------------------------------- the lock


def test_one_process_trains_in_a_folder_and_a_kill_lets_go(tmp_path: Path) -> None:
    run = create_run(tmp_path / "r", CONFIG)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        with lock_run(run.folder):
            os.write(writer, b".")
            signal.pause()
    os.read(reader, 1)
    try:
        with (
            pytest.raises(TrainingError, match=f"process {child} trains in it"),
            lock_run(run.folder),
        ):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
    with lock_run(run.folder):
        assert int((run.folder / ".lock").read_text()) == os.getpid()
    with lock_run(run.folder):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_run(tmp_path):
        raise KeyError
    with lock_run(tmp_path), pytest.raises(TrainingError, match="trains in it"), lock_run(tmp_path):
        pass
    with pytest.raises(TrainingError, match="cannot be opened"), lock_run(tmp_path / "none"):
        pass


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(runs.fcntl, "flock", none)
    with lock_run(tmp_path):
        pass


# ---------------------------------------------------------------------- what a resume compares


def leaves(kind: Any, prefix: str = "") -> set[str]:
    nested = {"model": ModelConfig, "data": DataSettings, "optimizer": OptimizerSettings}
    nested |= {"schedule": ScheduleSettings, "training": TrainingSettings}
    names: set[str] = set()
    for field in fields(kind):
        inner = nested.get(field.name) if not prefix else None
        names |= leaves(inner, f"{field.name}.") if inner else {prefix + field.name}
    return names


def test_the_free_settings_exist_and_decide_no_step() -> None:
    assert leaves(RunConfig) >= FREE_SETTINGS
    decide = leaves(RunConfig) - FREE_SETTINGS
    assert {name for name in decide if name.startswith("model.")} == leaves(ModelConfig, "model.")
    assert {
        "seed",
        "data.documents",
        "schedule.warmup",
        "optimizer.clip",
        "training.sequence_length",
        "training.batch_size",
        "training.precision",
        "training.average",
    } <= decide


def test_settings_that_only_change_the_record_may_change(tmp_path: Path) -> None:
    free = replace(
        CONFIG,
        name="other",
        data=replace(CONFIG.data, source=("elsewhere",), folder="data"),
        training=replace(CONFIG.training, log_every=7, save_every=3, keep=9, micro_batch=4),
    )
    assert changed_settings(to_record(CONFIG), free) == []
    require_same_config(to_record(CONFIG), free, tmp_path)


def test_another_config_is_refused_with_old_and_new_values(tmp_path: Path) -> None:
    other = replace(
        CONFIG,
        model=replace(MODEL, d_ff=48),
        optimizer=replace(CONFIG.optimizer, learning_rate=3e-4),
    )
    with pytest.raises(CheckpointError) as caught:
        require_same_config(to_record(CONFIG), other, tmp_path / "step-00000007")
    assert str(caught.value) == (
        f"{tmp_path / 'step-00000007'}: of another config: model.d_ff was 24, is 48; "
        "optimizer.learning_rate was 0.001, is 0.0003"
    )


def test_a_setting_that_the_saved_config_lacks_had_its_default(tmp_path: Path) -> None:
    saved = to_record(CONFIG)
    del saved["optimizer"]["clip"]
    require_same_config(saved, CONFIG, tmp_path)
    other = replace(CONFIG, optimizer=replace(CONFIG.optimizer, clip=0.5))
    assert changed_settings(saved, other) == ["optimizer.clip was 1.0, is 0.5"]
    saved["optimizer"]["trick"] = 1
    with pytest.raises(CheckpointError, match=r"cannot be read: .*'optimizer\.trick'"):
        require_same_config(saved, CONFIG, tmp_path)


def manifest(text: str = "a" * 64, tokenizer: str = "b" * 64, tokens: int = 1000) -> Manifest:
    split = {"tokens": tokens, "documents": 2, "bytes": 4000, "text_hash": text, "shards": []}
    return build_manifest(split, tokenizer)


def build_manifest(split: dict[str, Any], tokenizer: str) -> Manifest:
    return Manifest.model_validate(
        {
            "source": {"kind": "files"},
            "tokenizer": {
                "file": "tokenizer.json",
                "hash": tokenizer,
                "vocabulary_size": 300,
                "end_of_text": 0,
            },
            "token_bytes": 2,
            "settings": {
                "validation_share": 0.1,
                "split_seed": 0,
                "shard_tokens": 100,
                "drop_duplicates": True,
                "on_problem": "fatal",
            },
            "counts": {},
            "problems": [],
            "notes": [],
            "splits": {"train": split, "validation": {**split, "text_hash": "c" * 64}},
        }
    )


def test_other_text_or_another_tokenizer_is_refused(tmp_path: Path) -> None:
    saved = data_identity(manifest())
    require_same_data(saved, data_identity(manifest()), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"tokenizer bbbbbbbbbbbb, the data is encoded with dddddd"
    ):
        require_same_data(saved, data_identity(manifest(tokenizer="d" * 64)), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"train was 1,000 tokens of text aaaaaaaaaaaa, is 1,000 tokens of text e+$",
    ):
        require_same_data(saved, data_identity(manifest(text="e" * 64)), tmp_path)
    one = {**saved, "splits": {"train": saved["splits"]["train"]}}
    with pytest.raises(CheckpointError, match=r"validation was absent, is 1,000 tokens"):
        require_same_data(one, saved, tmp_path)


def test_a_config_goes_through_its_record() -> None:
    assert build(RunConfig, to_record(CONFIG)) == CONFIG
