"""`firsthand kernels traffic`, as typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from firsthand.app.cli.kernels import kernels_app
from firsthand.course.errors import FirsthandError


def traffic(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firsthand", "kernels", "traffic", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


SMALL = ("--size", "queries=64", "--size", "keys=64", "--size", "batch=1", "--tile", "32")


def test_a_table_of_rungs() -> None:
    shown = traffic("attention", "--cache", "256K", *SMALL)
    assert shown.returncode == 0, shown.stderr
    for rung in ("numpy", "numpy-tiled", "torch-sdpa", "numba", "triton (bf16)"):
        assert rung in shown.stdout
    assert "256 KiB, lines of 64 bytes, 16 ways" in shown.stdout
    assert "32xseen" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_a_record() -> None:
    words = ("matmul", "--cache", "16K", "--tile", "16x16x32", "--size", "m=32", "--json")
    shown = CliRunner().invoke(kernels_app, ["traffic", *words])
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout)
    assert record["shape"]["m"] == 32
    rows = {(row["rung"], row["tile"]): row for row in record["rows"]}
    tiled = rows["tiled", "16x16x32"]
    assert tiled["modelled"]["read"] >= 4 * 32 * 336
    assert tiled["bound"] <= sum(tiled["simulated"].values())
    quick = json.loads(CliRunner().invoke(kernels_app, ["traffic", *words, "--no-simulate"]).stdout)
    assert all(row["simulated"] is None for row in quick["rows"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("softmax",), "attention or matmul"),
        (("--cache", "3x"), "512K or 32M|262144, 256K or 1M"),
        (("--cache", "100"), "multiple of"),
        (("--tile", "16x16x16"), "is written as 64"),
        (("matmul", "--tile", "0"), "is written as 64 or 64x64x16"),
        (("--size", "m=4"), "no size m"),
        (("--size", "heads=3", "--cache", "1M"), "evenly"),
        (("matmul", "--size", "m=200000", "--size", "n=200000", "--cache", "1M"), "too much"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(kernels_app, ["traffic", *words])
    assert isinstance(result.exception, FirsthandError)
    assert re.search(message, str(result.exception))
    assert "\n" not in str(result.exception)
