"""What a step keeps, and what a run says when there is no room for it."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import nn

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.config import TrainingSettings
from firsthand.llm.training.memory import (
    OutOfMemoryError,
    explained_memory,
    fitting_rows,
    free_bytes,
    is_out_of_memory,
    peak_bytes,
    row_bytes,
    saved_bytes,
)

CONFIG = ModelConfig(vocab_size=64, context=32, d_model=32, n_layers=4, n_heads=4)


@pytest.fixture
def model() -> Transformer:
    torch.set_num_threads(1)
    return Transformer(CONFIG, FAST)


def test_saved_bytes_are_counted_by_hand() -> None:
    layer = nn.Linear(8, 16, bias=False)
    x = torch.randn(5, 8)
    # The product keeps its input (5 x 8), the square its input (5 x 16); float32, no weights.
    assert saved_bytes(lambda: layer(x).square().sum()) == 4 * (5 * 8 + 5 * 16)


def test_a_row_costs_less_when_blocks_are_computed_again(model: Transformer) -> None:
    plain = row_bytes(model, "float32", 32)
    assert row_bytes(model, "float32", 16) < 0.8 * plain
    model.checkpoint_blocks = True
    lean = row_bytes(model, "float32", 32)
    # At least the input of each block, at most a third of everything.
    assert 4 * CONFIG.n_layers * 32 * CONFIG.d_model <= lean < plain / 3


def test_a_failed_allocation_becomes_advice_with_figures(model: Transformer) -> None:
    settings = TrainingSettings(batch_size=64)
    huge = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory: you tried"
    with (
        pytest.raises(OutOfMemoryError) as raised,
        explained_memory(model, settings, 32),
    ):
        raise RuntimeError(huge)
    row = row_bytes(model, "float32", 32)
    text = str(raised.value)
    for words in (
        "training.micro_batch=32",
        f"{32 * row / 1e6:,.0f} MB",
        f"64 rows of 32 tokens keep {64 * row / 1e6:,.0f} MB",
        "training.checkpoint_blocks=true",
        "bfloat16",
    ):
        assert words in text
    assert not model.checkpoint_blocks


def test_rows_that_fit_divide_the_batch() -> None:
    assert fitting_rows(64, 64, 10, 0) == 32
    assert fitting_rows(64, 64, 10, 1000) == 32
    assert fitting_rows(64, 64, 10, 200) == 8
    assert fitting_rows(60, 60, 10, 200) == 15
    assert fitting_rows(60, 7, 10, 0) == 3
    assert fitting_rows(64, 64, 10, 5) == 1
    assert fitting_rows(1, 1, 10, 0) == 1


def test_what_is_free_is_below_what_there_is() -> None:
    assert 0 <= free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_real_failed_allocation_is_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_other_errors_pass(model: Transformer) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        explained_memory(model, TrainingSettings(), 32),
    ):
        raise RuntimeError("shapes do not fit")


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(60_000_000)
    assert peak_bytes(torch.device("cpu")) >= min(before + 1, held.nbytes)
