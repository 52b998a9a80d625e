"""Which rung runs where: without a GPU and without the interpreter, nothing of Triton."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.parts import FAST, _by_device

PLAIN = """
import sys, torch
from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.kernels.attention.with_triton import attention
from firsthand.llm.kernels.norms.with_triton import rms_norm
from firsthand.llm.parts import FAST

x, q = torch.ones(2, 8, requires_grad=True), torch.ones(1, 2, 4, 16)
for part in (rms_norm, FAST.rms_norm):
    part(x, torch.ones(8), 1e-5).sum().backward()
for part in (attention, FAST.attention):
    part(q, q, q)
rung = LADDERS["attention"].rung("triton")
assert not torch.cuda.is_available()
assert not triton_support.takes(q)
assert (rung.runs_here, rung.device()) == (False, "")
assert "triton" in rung.needs.lower() and "GPU" in rung.needs
assert rung not in LADDERS["attention"].runnable
assert "triton" not in sys.modules
"""


def test_a_cpu_never_imports_triton() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_device_of_the_first_argument_decides() -> None:
    def on_cpu(*_: Any, **__: Any) -> str:
        """Its name is the part's."""
        return "cpu"

    part = _by_device(on_cpu, lambda *_, **named: f"gpu {named}")
    assert part.__name__ == "on_cpu"
    assert part(torch.ones(2), 3) == "cpu"
    assert part([torch.ones(2)], step=1) == "cpu"
    assert part([]) == "cpu"
    with FakeTensorMode():
        there = torch.empty(2, device="cuda")
    assert part(there, 3) == "gpu {}"
    assert part([there], step=1) == "gpu {'step': 1}"


@pytest.mark.parametrize("name", ["rms_norm", "attention", "swiglu"])
def test_tensors_without_memory_on_a_gpu_take_pytorch(name: str) -> None:
    """Fake tensors have a CUDA device and no numbers; sharded ones are no plain tensors either."""
    with FakeTensorMode():
        x, weight = torch.empty(6, 8, device="cuda"), torch.empty(8, device="cuda")
        q = torch.empty(1, 2, 6, 16, device="cuda")
        arguments: dict[str, tuple[Any, ...]] = {
            "rms_norm": (x, weight, 1e-5),
            "attention": (q, q, q, None),
            "swiglu": (x,),
        }
        shapes = {"rms_norm": (6, 8), "attention": (1, 2, 6, 16), "swiglu": (6, 4)}
        result = getattr(FAST, name)(*arguments[name])
    assert result.device.type == "cuda"
    assert tuple(result.shape) == shapes[name]


def test_without_triton_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (triton_support.installed, triton_support.interpreting):
        asked.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_support, "find_spec", lambda _: None)
    try:
        assert not triton_support.interpreting()
        assert triton_support.device() == ""
        assert not triton_support.takes(torch.ones(2))
    finally:
        monkeypatch.undo()
        for asked in (triton_support.installed, triton_support.interpreting):
            asked.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_interpreter_is_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for value, expected in (("1", "cpu"), ("true", "cpu"), ("0", ""), ("", "")):
            monkeypatch.setenv("TRITON_INTERPRET", value)
            triton_support.interpreting.cache_clear()
            if expected or not torch.cuda.is_available():
                assert triton_support.device() == expected
    finally:
        monkeypatch.undo()
        triton_support.interpreting.cache_clear()


def test_bytes_of_the_attention_rung_grow_with_the_blocks() -> None:
    ladder = LADDERS["attention"]
    rung, shape = ladder.rung("triton"), {**ladder.shape, "queries": 1024, "keys": 1024}
    longer = {**shape, "queries": 2048, "keys": 2048}
    for backward in (False, True):
        once = rung.bytes_moved.of(shape, backward=backward)
        assert 2 * once < rung.bytes_moved.of(longer, backward=backward) < 4 * once
