"""The Triton rungs in Triton's interpreter, in a child: it is asked for before the import."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firsthand.llm.kernels.attention.ladder import inputs, oracle

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

HERE = Path(__file__).parent
# How far a result may be from the oracle's, in units of the type's epsilon times the largest one.
# A result is rounded once (half a unit); p and ds of attention were rounded before, and float32
# sums as many numbers as a row has.
NEAR = {"float32": 16.0, "float16": 3.0, "bfloat16": 3.0}
NAMES = [
    *(f"attention-{name}" for name in (
        "65x65-2/1-32-float32", "17x20-4/1-48-float32", "63x130-1/1-64-float32",
        "2x33-2/2-16-float32", "33x33-4/2-80-float16", "130x130-1/1-128-float16",
        "65x66-2/1-64-bfloat16", "64x64-1/1-128-bfloat16", "1x5-1/1-80-bfloat16",
        "strided-float32", "strided-bfloat16", "tiles-float32", "large-float32",
    )),
    *(f"{operation}-{shape}-{dtype}"
      for operation, shape in (
        ("rms_norm", "9x40"), ("rms_norm", "70x320"), ("rms_norm", "3x1"),
        ("rope_half", "2x3x37x12"), ("rope_interleaved", "2x3x37x12"), ("swiglu", "3x1100"),
        ("cross_entropy", "13x8x5003"), ("cross_entropy", "5x3x1"),
      )
      for dtype in NEAR),
    *(f"{operation}-strided-float32"
      for operation in ("rms_norm", "rope_half", "rope_interleaved", "swiglu")),
    *(f"adamw-{dtype}" for dtype in NEAR),
]  # fmt: skip


def in_interpreter(script: str) -> Any:
    """What a script of this folder prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, str(HERE / script)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


PROMISES = [
    "every_ladder_of_training_has_a_rung",
    "attention_is_blind_to_the_future",
    "attention_has_the_same_gradients_each_time",
    "attention_merges_heads_as_a_view",
    "attention_keeps_no_scores",
    "attention_leaves_the_rest_to_pytorch",
    "long_rows_take_the_tile_that_was_fastest",
    "autocast_decides_the_type",
    "norms_and_angles_of_another_type",
    "any_chunk_gives_the_same_loss",
    "a_target_outside_of_the_vocabulary_is_nan",
    "a_loss_is_differentiated_once",
    "autocast_in_the_loss",
    "an_update_with_no_tensor_and_with_mixed_types",
    "compiled_code_takes_pytorch",
    "what_the_rungs_take",
]


@pytest.fixture(scope="module")
def promises() -> dict[str, Any]:
    return dict(in_interpreter("triton_promises.py"))


@pytest.mark.parametrize("name", PROMISES)
def test_promise(promises: dict[str, Any], name: str) -> None:
    assert promises[name] is None, promises[name]


def test_every_promise_is_looked_at(promises: dict[str, Any]) -> None:
    assert set(promises) == set(PROMISES)


@pytest.fixture(scope="module")
def distances() -> dict[str, Any]:
    return dict(in_interpreter("triton_cases.py"))


@pytest.mark.parametrize("name", NAMES)
def test_against_the_oracle(distances: dict[str, Any], name: str) -> None:
    found = distances[name]
    assert not isinstance(found, str), found
    assert max(found) < NEAR[name.rsplit("-", 1)[1]], found


def test_every_case_is_looked_at(distances: dict[str, Any]) -> None:
    assert set(distances) == set(NAMES)


TURN = [0, 2, 1, 3]
WRONG: dict[str, Callable[[Any, Any, Any, Any], list[Any]]] = {
    "no 1/√d": lambda q, k, v, g: oracle(q * q.shape[-1] ** 0.5, k, v, g),
    "base e for base 2": lambda q, k, v, g: oracle(q * np.log(2), k, v, g),
    "one key too many": lambda q, k, v, g: oracle(q[:, :, :-1], k, v, g[:, :, :-1]),
    "one key too few": lambda q, k, v, g: oracle(q, k[:, :, :-1], v[:, :, :-1], g),
    "key heads in turn": lambda q, k, v, g: [
        result[:, TURN] for result in oracle(q[:, TURN], k, v, g[:, TURN])[:2]
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_the_bounds_refuse_a_wrong_kernel(name: str) -> None:
    """What a kernel with this mistake would give as output and dq is far outside of them."""
    generator = np.random.default_rng(7)
    shape = {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 33, "keys": 35, "width": 80}
    drawn = inputs(shape, generator)
    cotangent = generator.standard_normal(drawn["q"].shape)
    right = oracle(**drawn, cotangent=cotangent)[:2]
    wrong = WRONG[name](*drawn.values(), cotangent)[:2]
    for broken, true in zip(wrong, right, strict=True):
        rows = broken.shape[2]
        away = np.abs(broken - true[:, :, :rows]).max() / max(1.0, np.abs(true).max())
        assert away > 2 * NEAR["bfloat16"] * np.finfo(np.float16).eps * 8
