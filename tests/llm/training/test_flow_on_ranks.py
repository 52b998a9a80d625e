"""Several ranks record the figures that one process does, and raise the same alarm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the ranks are forked")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    script = Path(__file__).parent / "flow_ranks.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_figures_are_those_of_one_process(found: dict[str, Any], parallel: str) -> None:
    """Of weights and gradients over all ranks; of activations those of the first batch."""
    wanted, got = found["one"]["layers"], found[parallel]["layers"]
    assert got.keys() == wanted.keys()
    assert {"embedding", "blocks.0", "blocks.1", "final_norm"} <= wanted.keys()
    for layer, figures in wanted.items():
        assert got[layer] == pytest.approx(figures, rel=1e-3), layer


@pytest.mark.parametrize("parallel", ["one", "ddp", "fsdp"])
def test_an_alarm_on_one_rank_reaches_all(found: dict[str, Any], parallel: str) -> None:
    assert found[parallel]["alarm"] == "the loss"
