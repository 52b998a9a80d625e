"""`firsthand fit`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from firsthand.app.cli import fitting
from firsthand.course.errors import FirsthandError
from firsthand.llm.training.presets import run_config
from tests.llm.audit.conftest import machine_ceilings

SMALL = (
    "--set", "model.n_layers=2", "--set", "model.d_model=32", "--set", "model.d_ff=48",
    "--set", "model.vocab_size=61",
)  # fmt: skip

app = typer.Typer()
app.command()(fitting.fit)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No record of this machine but those that a test puts there."""
    monkeypatch.setenv("FIRSTHAND_HOME", str(tmp_path / "home"))
    return tmp_path


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 96
    return " ".join(done.stdout.split())


def failure(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert isinstance(done.exception, FirsthandError), done.output
    return str(done.exception)


def test_a_plan_for_a_gpu_that_is_elsewhere() -> None:
    text = shown("--preset", "full-100m", "--vram", "16GB")
    for part in ("97.5M parameters", "1024 tokens", "activations", "reserve", "micro_batch = "):
        assert part in text
    assert "no such GPU has been measured" in text
    assert "hours for each TFLOP/s" in text
    assert "too much" in text


def test_the_plan_is_written_and_train_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "plan.toml"
    text = shown(*SMALL, "--ram", "4GB", "--tokens", "100000", "--out", str(path))
    assert "firsthand train --preset" in text
    config = run_config(str(path))
    assert config.model.n_layers == 2
    assert config.training.device == "cpu"
    assert config.training.steps == -(-100000 // config.tokens_per_step)
    assert path.read_text().startswith("# Planned by firsthand fit: 2.0")
    assert "exists; name another file" in failure(*SMALL, "--ram", "4GB", "--out", str(path))


def test_another_machines_record_gives_the_time(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    machine_ceilings(gpu=True).save(path)
    text = shown(*SMALL, "--vram", "4GB", "--ceilings", str(path))
    assert "on Example GPU" in text
    assert "At most" in text
    assert "roofline's bound" in text
    record = json.loads(
        CliRunner().invoke(app, [*SMALL, "--vram", "4GB", "--ceilings", str(path), "--json"]).stdout
    )
    assert record["tokens_per_second"] > 0
    assert record["hours"] == pytest.approx(record["tokens"] / record["tokens_per_second"] / 3600)
    assert record["total"] == record["ledger"]["total"] + record["reserve"] <= record["budget"]


def test_a_machine_that_was_never_measured_is_told_how() -> None:
    assert "this machine has not been measured: firsthand machine" in shown(*SMALL, "--cpu")


def test_a_longer_row_makes_the_context_longer() -> None:
    text = shown(*SMALL, "--ram", "4GB", "--length", "700")
    assert "rows of 700 tokens" in text


def test_what_set_names_stays() -> None:
    words = (*SMALL, "--ram", "4GB", "--set", "training.micro_batch=2", "--json")
    record = json.loads(CliRunner().invoke(app, list(words)).stdout)
    assert record["choices"]["micro_batch"] == "2"
    assert record["choices"]["accumulation"] == "4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "full-100m", "--vram", "1GB"), "The model alone is bigger"),
        (("--preset", "full-100m", "--vram", "2GB"), "smallest budget that would do is"),
        (("--vram", "16"), "memory is written as 16GB"),
        (("--vram", "8GB", "--ram", "8GB"), "name one of them"),
        (("--vram", "8GB", "--cpu"), "name one of them"),
        (("--ram", "8GB", "--length", "-1"), "--length is at least 1"),
        (("--ram", "8GB", "--tokens", "-1"), "at least 1, or 0"),
        (("--ram", "8GB", "--preset", "nanno"), "nearest is 'nano'"),
        (("--ram", "8GB", "--set", "training.stepz=1"), "nearest is 'training.steps'"),
        (("--ram", "8GB", "--tokens", "5", "--set", "training.steps=1"), "leave out"),
        (("--ram", "8GB", "--out", "plan.json"), ".toml file"),
        (("--ram", "8GB", "--ceilings", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: tuple[str, ...], message: str) -> None:
    assert message in failure(*words)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text("{}")
    found: Any = failure("--ram", "8GB", "--ceilings", str(path))
    assert str(path) in found
    assert "version" in found
