"""`firsthand machine`, as typed. Nothing is measured here: what was measured is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from firsthand.app.cli import machine as command
from firsthand.course.errors import FirsthandError
from firsthand.llm.audit.ceilings import Bandwidths, DeviceCeilings, MachineCeilings
from firsthand.llm.audit.processor import GraphicsCard, Level, read_processor

KIB, MIB, GIB = 2**10, 2**20, 2**30
Run = Callable[..., Result]


def limits(device: str, name: str, threads: int) -> DeviceCeilings:
    """Plausible limits of a device."""
    return DeviceCeilings(
        device=device,
        name=name,
        bandwidths=tuple(
            Bandwidths(size, rate, rate / 2, rate, 0.1)
            for size, rate in ((32 * KIB, 400e9), (256 * KIB, 200e9), (GIB, 30e9))
        ),
        flop_rates={"float32": 2e11, "bfloat16": 1e11, "int8": 4e11},
        int8_kernel_rate=3e11,
        region_seconds=1e-6,
        launch_seconds=2e-6,
        memory=8 * GIB,
        threads=threads,
        int8_by="PyTorch",
        overheads={"an operation of PyTorch": 2e-6},
    )


@pytest.fixture
def here() -> MachineCeilings:
    """This machine, with limits that nobody measured."""
    this = read_processor()
    return MachineCeilings(
        processor=this,
        cpu=limits("cpu", this.model, this.cores),
        gpu=None,
        measured_at="2026-01-02T03:04:05+00:00",
        seconds=41.0,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the record lies."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FIRSTHAND_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def run(home: Path, here: MachineCeilings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command; measuring gives `here` with another date."""
    anew = replace(here, measured_at="2027-01-01T00:00:00+00:00")
    monkeypatch.setattr(command, "measured", lambda seconds: anew)
    app = typer.Typer()
    app.command()(command.machine)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_the_first_time_it_measures_and_keeps_it(run: Run, home: Path) -> None:
    shown = run()
    assert shown.exit_code == 0, shown.output
    assert "Measured on 2027-01-01 00:00:00 UTC" in shown.stdout
    assert "Measured before" not in shown.stdout
    assert MachineCeilings.load(home / "machine.json").measured_at.startswith("2027")


def test_what_was_measured_before_is_shown_with_its_date(
    run: Run, home: Path, here: MachineCeilings
) -> None:
    here.save(home / "machine.json")
    shown = run()
    assert "Measured on 2026-01-02 03:04:05 UTC, in 41 s." in shown.stdout
    assert "firsthand machine --again" in shown.stdout
    for text in (here.processor.model, "GB/s", "float32", "L1", "DRAM", "FLOP/byte", "2 us"):
        assert text in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_again(run: Run, home: Path, here: MachineCeilings) -> None:
    here.save(home / "machine.json")
    assert "2027-01-01" in run("--again").stdout
    assert "2027-01-01" in run().stdout


def test_a_record_of_another_machine_does_not_count(
    run: Run, home: Path, here: MachineCeilings
) -> None:
    other = replace(here, processor=replace(here.processor, model="another"))
    other.save(home / "machine.json")
    shown = run()
    assert "2027-01-01" in shown.stdout
    assert "another machine" in shown.stderr


def test_a_corrupt_record_is_said_and_replaced(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "machine.json").write_text("{")
    shown = run()
    assert shown.exit_code == 0
    assert "does not count" in shown.stderr
    assert MachineCeilings.load(home / "machine.json").measured_at.startswith("2027")


def test_a_folder_that_cannot_be_written_is_said(run: Run, home: Path) -> None:
    home.write_text("a file where a folder should be")
    shown = run()
    assert shown.exit_code == 0
    assert "It is not kept" in shown.stderr
    assert "2027-01-01" in shown.stdout


def test_json_and_a_page(run: Run, home: Path, here: MachineCeilings, tmp_path: Path) -> None:
    here.save(home / "machine.json")
    page = tmp_path / "machine.html"
    shown = run("--json", "--html", str(page))
    assert MachineCeilings.from_json(json.loads(shown.stdout)) == here
    assert "<svg" in page.read_text(encoding="utf-8")
    assert f"Written: {page}" in " ".join(run("--html", str(page)).stdout.split())


def test_a_page_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    shown = run("--html", str(tmp_path / "nowhere" / "machine.html"))
    assert isinstance(shown.exception, FirsthandError)
    assert "cannot write" in str(shown.exception)


@pytest.mark.parametrize("seconds", ["-1", "601"])
def test_a_time_out_of_range(run: Run, seconds: str) -> None:
    shown = run("--seconds", seconds)
    assert isinstance(shown.exception, FirsthandError)
    assert "0 to 600" in str(shown.exception)


def test_everything_that_can_be_said_fits_80_columns(
    here: MachineCeilings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    card = GraphicsCard(
        "A Graphics Card With A Long Name 9000 Ti", 16 * GIB, "12.0", 84, (Level("L2", 64 * MIB),)
    )
    processor = replace(
        here.processor,
        machine_cores=128,
        quota=1.5,
        machine_memory=2**40,
        caches=tuple(Level(f"L{n}", 2 ** (12 + 4 * n), n) for n in (1, 2, 3)),
        gpu=card,
    )
    full = replace(
        here,
        processor=processor,
        gpu=limits("cuda", card.name, 1),
        notes=("The largest working set is smaller than it should be, " * 3,),
    )
    command.show(full)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "GPU: A Graphics Card" in shown
    assert shown.count("FLOP/byte") == 2
    assert "Note: The largest" in shown


def test_in_a_process_of_its_own_without_a_terminal(home: Path, here: MachineCeilings) -> None:
    here.save(home / "machine.json")
    shown = subprocess.run(
        [sys.executable, "-m", "firsthand", "machine"],
        env={**os.environ, "FIRSTHAND_HOME": str(home), "LC_ALL": "C", "PYTHONUTF8": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    assert shown.stdout.isascii()
    assert "Measured on 2026-01-02" in shown.stdout
