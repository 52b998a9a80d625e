"""`firsthand layout` and `firsthand gallery`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from firsthand.app.cli import tracing
from firsthand.course.errors import FirsthandError

SMALL = (
    "--set", "model.n_layers=2", "--set", "model.d_model=32", "--set", "model.d_ff=48",
    "--set", "model.vocab_size=61", "--length", "24",
)  # fmt: skip

app = typer.Typer()
app.command()(tracing.layout)
app.command()(tracing.gallery)


def test_a_table_of_copies_and_casts() -> None:
    words = ["layout", "nano", *SMALL, "--precision", "bfloat16", "--top", "2"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "2 rows of 24 tokens, bfloat16, cpu" in " ".join(shown.stdout.split())
    assert "fp32 -> bf16" in shown.stdout
    assert "more:" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 96


def test_single_precision_has_no_casts() -> None:
    shown = CliRunner().invoke(app, ["layout", "nano", *SMALL])
    assert shown.exit_code == 0, shown.output
    assert "Casts: none." in shown.stdout


def test_a_record_of_the_plain_parts() -> None:
    words = ["layout", "nano", *SMALL, "--rows", "3", "--plain", "--json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout)
    assert record["facts"]["rows"] == 3
    assert "compiled" not in record["shares"]
    assert record["bytes"] == sum(g["read"] + g["written"] for g in record["groups"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("layout", "nanno"), "nearest is 'nano'"),
        (("layout", "--precision", "bfloat8"), "nearest is bfloat16"),
        (("layout", "--rows", "-2"), "0 or more"),
        (("layout", "nano", "--length", "9999"), "1 to 256 tokens"),
        (("gallery", "no-maks"), "nearest is 'no-mask'"),
        (("gallery", "no-mask", "--steps", "1"), "at least 6 steps"),
        (("gallery", "no-mask", "--run", "runs/a"), "goes alone"),
        (("gallery", "--run", "no-such-folder"), "no-such-folder"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], message: str) -> None:
    shown = CliRunner().invoke(app, list(words))
    assert shown.exit_code != 0
    assert isinstance(shown.exception, FirsthandError)
    assert message in str(shown.exception)


def test_one_exhibit_with_its_page(tmp_path: Path) -> None:
    page = tmp_path / "gallery.html"
    words = ["gallery", "zero-init", "--steps", "6", "--html", str(page)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "All first weights zero" in shown.stdout
    assert "the signature holds, and no other does" in " ".join(shown.stdout.split())
    assert "<svg" in page.read_text(encoding="utf-8")


def test_a_record_of_an_exhibit() -> None:
    words = ["gallery", "mask-one-early", "--steps", "6", "--json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    (record,) = json.loads(shown.stdout)
    assert record["diagnosed"] == ["mask-one-early"]
    assert record["loss"]["broken"] == []
