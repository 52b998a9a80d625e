"""A run that is killed at any moment and resumed ends with the bits of one that was not.

This file is also the program that trains: run by itself it imports PyTorch once and forks a child
for every life of a run, so that a life costs milliseconds and ends in a true SIGKILL.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from firsthand.llm.data.problems import DataError
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import to_record, to_toml
from firsthand.llm.parts import FAST
from firsthand.llm.training import checkpoints
from firsthand.llm.training.checkpoints import list_checkpoints, load_latest
from firsthand.llm.training.config import (
    DataSettings,
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.corpus import prepare_corpus
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import Nobody
from firsthand.llm.training.metrics import read_metrics
from firsthand.llm.training.optimizers.optimizer import Optimizer
from firsthand.llm.training.presets import config_from
from firsthand.llm.training.pretraining import resume_run, start_run
from firsthand.llm.training.runs import create_run, lock_run, open_run

torch.set_num_threads(1)

TIMES = {"seconds", "tokens_per_second", "memory_bytes"}
PLAIN = RunConfig(
    model=ModelConfig(vocab_size=280, context=16, d_model=16, n_layers=1, n_heads=2, d_ff=24),
    seed=5,
    data=DataSettings(unit="line", validation_share=0.1),
    training=TrainingSettings(
        steps=60,
        batch_size=4,
        micro_batch=2,
        save_every=7,
        evaluate_every=20,
        evaluate_batches=2,
        sample_every=15,
        flow_every=10,
        sample_tokens=6,
        average=0.9,
        device="cpu",
        threads=1,
    ),
)
MUON = replace(
    PLAIN,
    seed=6,
    data=replace(PLAIN.data, documents=True),
    optimizer=OptimizerSettings(kind="muon", clip=0.5),
    schedule=ScheduleSettings(kind="wsd", warmup=5),
    training=replace(PLAIN.training, average=0.0, checkpoint_blocks=True, keep=1),
)
CONFIGS = {"adamw": PLAIN, "muon": MUON}
DIED = -signal.SIGKILL


# ---------------------------------------------------------------------- the program that trains


def live(request: dict[str, Any]) -> None:
    """One life of a run, in a child of its own."""
    folder, config = Path(request["folder"]), config_from(request["config"])
    if request.get("prepare"):
        prepare_corpus(config, folder, folder / "tokenizer.json", lambda *_: None)
        return
    die(request.get("kind", ""), request.get("at", 0))
    if (folder / "config.toml").exists():
        resume_run(folder, FAST)
    else:
        start_run(folder, config, FAST)


def die(kind: str, at: int) -> None:
    """Arrange for the at-th event of a kind to be the last thing this process does."""

    def then(owner: Any, name: str, last: Callable[..., Any]) -> None:
        call = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            counts[0] += 1
            if counts[0] == at:
                last(*arguments, **options)
            return call(*arguments, **options)

        setattr(owner, name, counted)

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_line(descriptor: int, data: Any) -> None:
        write(descriptor, data[: len(data) // 2])
        kill()

    def half_a_file(tensors: Any, filename: Path, **_: Any) -> None:
        filename.write_bytes(b"\x40\0\0\0\0\0\0\0{")
        kill()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    counts, write = [0], os.write
    if kind == "update":
        then(Optimizer, "step", kill)
    elif kind == "line":
        then(os, "write", half_a_line)
    elif kind == "save":
        then(checkpoints, "save_file", half_a_file)
        for name in ("fsync", "rename", "chmod", "rmdir", "unlink"):
            then(os, name, kill)
    elif kind == "full":
        then(checkpoints, "save_file", full)


def serve() -> None:
    """Fork a child for each request, a line of JSON, and answer with how it ended."""
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 0
            try:
                os.close(reader)
                live(request)
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
                status = 1
            os._exit(status)
        os.close(writer)
        clock = threading.Timer(request["seconds"], os.kill, (child, signal.SIGKILL))
        if request["seconds"]:
            clock.start()
        with open(reader, "rb") as errors:
            text = errors.read().decode()
        _, status = os.waitpid(child, 0)
        clock.cancel()
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "error": text}), flush=True)


# ---------------------------------------------------------------------- the tests' side


class Server:
    """The program above, and a folder for what it makes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def life(self, folder: Path, config: RunConfig, **request: Any) -> tuple[int, str]:
        """The exit code of one life, negative for a signal, and its traceback."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        message = {"folder": str(folder), "config": to_record(config), "seconds": 0.0, **request}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["error"]

    def whole_life(self, folder: Path, config: RunConfig) -> None:
        code, error = self.life(folder, config)
        assert code == 0, error


def words(seed: int) -> str:
    rng, known = random.Random(seed), ["alpha", "beta", "gamma", "delta", "the", "of"]
    return "\n".join(" ".join(rng.choice(known) for _ in range(9)) for _ in range(300))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("resume")
    server = Server(base)
    try:
        tokenizer = ""
        for name in ("text", "other"):
            (base / f"{name}.txt").write_text(words(len(name)))
            (base / name).mkdir()
            data = replace(PLAIN.data, source=(str(base / f"{name}.txt"),), tokenizer=tokenizer)
            code, error = server.life(base / name, replace(PLAIN, data=data), prepare=True)
            assert code == 0, error
            tokenizer = str(base / "text" / "tokenizer.json")
        yield server
    finally:
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


def on(server: Server, name: str) -> RunConfig:
    config = CONFIGS[name]
    return replace(config, data=replace(config.data, folder=str(server.base / "text")))


@pytest.fixture(scope="module")
def unbroken(server: Server) -> dict[str, Path]:
    """A run of each config that nothing happened to."""
    folders = {name: server.base / f"unbroken-{name}" for name in CONFIGS}
    for name, folder in folders.items():
        server.whole_life(folder, on(server, name))
    return folders


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def result(folder: Path) -> dict[str, Any]:
    """All that a finished run is judged by: bytes of weights and optimizer, traces, samples."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    files = [*last.glob("*.safetensors"), *(folder / "model").iterdir(), folder / "samples.jsonl"]
    state = load_latest(folder / "checkpoints").checkpoint.state  # type: ignore[union-attr]
    return {
        "step": last.name,
        "files": {path.name + path.parent.name: path.read_bytes() for path in files},
        "metrics": [without_times(record) for record in read_metrics(folder / "metrics.jsonl")],
        "state": {k: v for k, v in state.items() if k not in {*TIMES, "metrics_bytes"}},
    }


def same(folder: Path, other: Path) -> None:
    ours, theirs = result(folder), result(other)
    for name, value in theirs.items():
        assert ours[name] == value, name


def test_the_unbroken_runs_hold_what_is_compared(unbroken: dict[str, Path]) -> None:
    for name, folder in unbroken.items():
        found = result(folder)
        assert found["step"] == "step-00000060"
        kinds = [record["kind"] for record in found["metrics"]]
        assert (kinds.count("train"), kinds.count("validation"), kinds.count("flow")) == (60, 3, 6)
        assert {key for key in found["files"] if key.startswith(("model", "opt"))}
        assert found["files"][f"samples.jsonl{folder.name}"].count(b"\n") == 4, name


def test_the_same_config_again_gives_the_same_bits_and_another_seed_does_not(
    server: Server, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    unbroken_result = result(unbroken["adamw"])
    server.whole_life(tmp_path / "unbroken-adamw", on(server, "adamw"))
    same(tmp_path / "unbroken-adamw", unbroken["adamw"])
    server.whole_life(tmp_path / "b", replace(on(server, "adamw"), seed=9))
    assert result(tmp_path / "b")["metrics"] != unbroken_result["metrics"]


def test_a_part_that_draws_from_a_global_generator_draws_the_same_again(
    server: Server, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    server.whole_life(tmp_path / "again", on(server, "adamw"))
    states = [
        load_latest(folder / "checkpoints").checkpoint.state["random"]  # type: ignore[union-attr]
        for folder in (tmp_path / "again", unbroken["adamw"])
    ]
    assert states[0] == states[1]


def killed_runs(server: Server, unbroken: dict[str, Path], base: Path, kills: int) -> None:
    """Runs of both configs, killed until there were so many kills, each compared at its end."""
    rng, done, runs = random.Random(kills), 0, 0
    while done < kills:
        name = list(CONFIGS)[runs % 2]
        folder = base / str(runs) / unbroken[name].name
        while True:
            kind, most = rng.choice([("update", 20), ("line", 30), ("save", 45), ("time", 0)])
            request: dict[str, Any] = {"kind": kind, "at": rng.randint(1, most)} if most else {}
            request |= {"seconds": rng.uniform(0.02, 1.5)} if kind == "time" else {}
            code, error = server.life(folder, on(server, name), **(request if done < kills else {}))
            assert code in (0, DIED), error
            if code == 0:
                break
            done += 1
        same(folder, unbroken[name])
        shutil.rmtree(folder)
        runs += 1


def test_twenty_kills_at_random_moments_change_no_bit(
    server: Server, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    killed_runs(server, unbroken, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_kills_change_no_bit(
    server: Server, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    killed_runs(server, unbroken, tmp_path, 200)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    server: Server, unbroken: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / unbroken["adamw"].name
    code, error = server.life(folder, on(server, "adamw"), kind="full", at=5)
    assert code == 1
    assert "CheckpointError" in error
    assert "step-00000014: cannot be written: No space left on device" in error
    assert "make room and resume" in error
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000007"]
    server.whole_life(folder, on(server, "adamw"))
    same(folder, unbroken["adamw"])


# ---------------------------------------------------------------------- what cannot be resumed


class Listener(Nobody):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def said(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def finished(unbroken: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the unbroken run."""
    return Path(shutil.copytree(unbroken["adamw"], tmp_path / unbroken["adamw"].name))


def flip_last(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_damaged_newest_checkpoint_is_told_and_made_again(
    unbroken: dict[str, Path], finished: Path
) -> None:
    flip_last(finished / "checkpoints" / "step-00000060" / "model.safetensors")
    watcher = Listener()
    resume_run(finished, FAST, watcher=watcher)
    assert "model.safetensors: damaged" in watcher.heard[0]
    assert "older checkpoint" in watcher.heard[0]
    assert any("after step 56" in text for text in watcher.heard)
    same(finished, unbroken["adamw"])


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(finished: Path) -> None:
    for path in list_checkpoints(finished / "checkpoints"):
        flip_last(path / "optimizer.safetensors")
    before = bytes_of(finished)
    with pytest.raises(TrainingError, match="no checkpoint is whole"):
        resume_run(finished, FAST)
    assert bytes_of(finished) == before


def edited(folder: Path, config: RunConfig) -> None:
    (folder / "config.toml").write_text(to_toml(config))


def test_another_config_other_data_and_another_tokenizer_are_refused(
    server: Server, finished: Path
) -> None:
    config = open_run(finished).config
    wider = replace(config, model=replace(config.model, d_ff=32))
    elsewhere = replace(config, data=replace(config.data, folder=str(server.base / "other")))
    for changed, message in (
        (wider, r"step-00000060: of another config: model\.d_ff was 24, is 32"),
        (replace(config, seed=8), "seed was 5, is 8"),
        (elsewhere, r"step-00000060: the data is not what it was trained on: train was"),
    ):
        edited(finished, changed)
        before = bytes_of(finished)
        with pytest.raises(TrainingError, match=message):
            resume_run(finished, FAST)
        assert bytes_of(finished) == before
    edited(finished, config)
    text = json.loads((finished / "tokenizer.json").read_text())
    (finished / "tokenizer.json").write_text(json.dumps(text)[:-40])
    with pytest.raises(Exception, match=r"tokenizer\.json"):
        resume_run(finished, FAST)


def test_a_run_that_goes_on_elsewhere_or_is_none_is_refused(finished: Path, tmp_path: Path) -> None:
    with lock_run(finished), pytest.raises(TrainingError, match=f"process {os.getpid()} trains"):
        resume_run(finished, FAST)
    with pytest.raises(TrainingError, match="there is no such run"):
        resume_run(tmp_path / "none", FAST)
    with pytest.raises(TrainingError, match="go on with it by `firsthand train --resume"):
        start_run(finished, PLAIN, FAST)


def test_data_that_vanished_is_named(server: Server, tmp_path: Path) -> None:
    gone = replace(PLAIN, data=replace(PLAIN.data, folder=str(tmp_path / "gone")))
    create_run(tmp_path / "r", gone)
    shutil.copy(server.base / "text" / "tokenizer.json", tmp_path / "r" / "tokenizer.json")
    with pytest.raises(DataError, match="gone"):
        resume_run(tmp_path / "r", FAST)


def test_free_settings_may_change_in_the_middle(unbroken: dict[str, Path], finished: Path) -> None:
    """What is recorded changes; the weights do not."""
    for path in list_checkpoints(finished / "checkpoints")[1:]:
        shutil.rmtree(path)
    config = open_run(finished).config
    settings = replace(config.training, evaluate_every=0, sample_every=1, save_every=2, log_every=3)
    edited(finished, replace(config, training=settings))
    resume_run(finished, FAST)
    ours, theirs = result(finished), result(unbroken["adamw"])
    names = [name for name in theirs["files"] if not name.startswith("samples")]
    assert len(names) > 3
    assert all(ours["files"][name] == theirs["files"][name] for name in names)


def test_a_longer_run_goes_on_and_says_so(finished: Path) -> None:
    watcher = Listener()
    resume_run(finished, FAST, watcher=watcher, steps=64)
    assert open_run(finished).config.training.steps == 64
    assert list_checkpoints(finished / "checkpoints")[-1].name == "step-00000064"
    assert any("64 steps; until here it had 60" in text for text in watcher.heard)
    records = read_metrics(finished / "metrics.jsonl")
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == list(range(1, 65))


if __name__ == "__main__":
    serve()
