"""The Triton kernels compile for a Hopper GPU, which takes no GPU: only Triton's own tools."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
SHARED_MEMORY = 227 << 10


def compiled(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "triton_compiled.py"), *words],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def require(found: dict[str, Any], *, vectors: bool) -> None:
    for label, result in found.items():
        assert not isinstance(result, str), f"{label}: {result}"
        assert result["stack"] == 0, f"{label} spills"
        assert result["shared"] <= SHARED_MEMORY, label
        if label.startswith("attention"):
            assert result["wgmma"] is ("bf16" in label), label
        elif vectors:
            assert result["vectors"] > 0, f"{label} moves less than 16 bytes at a time"


def test_each_kernel_compiles_and_spills_nothing() -> None:
    found = compiled()
    require(found, vectors=True)
    assert {label.split("-")[0] for label in found} == {
        "adamw.update",
        "attention.backward_keys",
        "attention.backward_queries",
        "attention.forward",
        "cross_entropy.errors",
        "norms.backward",
        "norms.forward",
        "rope.turn",
        "swiglu.backward",
        "swiglu.forward",
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_tile_of_the_tables_compiles_and_spills_nothing() -> None:
    require(compiled("all"), vectors=False)
