"""PyTorch's record against memory known by hand, and against a watch over operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from firsthand.llm.audit.allocations import dispatched_peak, measured_peak, recorded_peak
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.config import RunConfig, TrainingSettings

CONFIG = ModelConfig(vocab_size=64, context=64, d_model=32, n_layers=2, n_heads=2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_known_program() -> None:
    def run() -> Tensor:
        a = torch.zeros(1000)
        b = a + 1.0
        del a
        c = b.view(10, 100) @ torch.ones(100, 20)
        return c + 1.0

    # b, the ones and c together; a and b are less, and so are b, c and c + 1.
    expected = 4 * (1000 + 2000 + 200)
    assert recorded_peak(run) == expected
    assert dispatched_peak(run) == expected


def test_both_see_the_same_in_a_forward_pass() -> None:
    model = Transformer(CONFIG, FAST)
    ids = torch.randint(64, (4, 48))

    def run() -> Tensor:
        return model.loss(ids, ids).total

    run()
    recorded, dispatched = recorded_peak(run), dispatched_peak(run)
    assert abs(recorded - dispatched) < 0.001 * recorded


def test_only_the_record_sees_gradients_added_in_place() -> None:
    """Which is why the record counts: Python, as the watch's witness, keeps the first alive."""
    x = torch.ones(1000, requires_grad=True)

    def run() -> None:
        y = x.clone()
        torch.autograd.backward((y * 2.0).sum() + (y * 3.0).sum())
        x.grad = None

    # y and two gradients; the watch adds their sum. A few scalars live beside them.
    assert recorded_peak(run) // 4000 == 3
    assert dispatched_peak(run) // 4000 == 4


def test_the_second_update_is_measured_too() -> None:
    config = RunConfig(
        model=CONFIG,
        training=TrainingSettings(batch_size=4, sequence_length=48, flow_every=0, steps=1),
    )
    peak = measured_peak(config, FAST)
    weights = sum(p.nbytes for p in Transformer(CONFIG, FAST).parameters())
    assert peak > 5 * weights
    wider = replace(config, training=replace(config.training, batch_size=8))
    assert measured_peak(wider, FAST) > peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    config = RunConfig(model=CONFIG, training=TrainingSettings(batch_size=1))
    with pytest.raises(AuditError, match="no GPU"):
        measured_peak(config, FAST, device="cuda")
