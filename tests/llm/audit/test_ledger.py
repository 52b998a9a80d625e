"""The ledger against PyTorch's record of real updates, and against a real engine's arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from firsthand.llm.audit.allocations import measured_peak
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.ledger import StepSettings, inference_ledger, training_ledger
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.opening import rounded
from firsthand.llm.model.config import PRESETS, ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.config import OptimizerSettings, RunConfig, TrainingSettings

# The goal; what is measured here is within a thousandth.
BOUND = 0.02
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "context": 320,
    "d_model": 48,
    "n_layers": 3,
    "n_heads": 4,
    "d_ff": 80,
}
# Fields of the model, then of the training.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {"batch_size": 4, "sequence_length": 200}),
    "interleaved": ({"rope_pairing": "interleaved"}, {"batch_size": 3, "sequence_length": 33}),
    "grouped": ({"n_kv_heads": 2}, {"batch_size": 2, "sequence_length": 300}),
    "one key head, checkpointed": (
        {"n_kv_heads": 1},
        {"batch_size": 4, "sequence_length": 150, "checkpoint_blocks": True},
    ),
    "untied, accumulated": (
        {"tied": False},
        {"batch_size": 8, "micro_batch": 2, "sequence_length": 64},
    ),
    "LayerNorm, biases, GELU, learned": (
        {"norm": "layer", "bias": True, "feed_forward": "gelu", "positions": "learned"},
        {"batch_size": 4, "sequence_length": 100},
    ),
    "norms behind, ReLU², sinusoids, checkpointed": (
        {"norm_placement": "post", "feed_forward": "relu2", "positions": "sinusoidal"},
        {"batch_size": 4, "sequence_length": 100, "checkpoint_blocks": True},
    ),
    "head norms, neighbours, averaged": (
        {"qk_norm": True, "neighbours": 2},
        {"batch_size": 2, "sequence_length": 140, "average": 0.99},
    ),
    "ALiBi": ({"positions": "alibi"}, {"batch_size": 3, "sequence_length": 90}),
    "window, grouped": (
        {"window": 30, "n_kv_heads": 2},
        {"batch_size": 1, "sequence_length": 160, "flow_every": 1},
    ),
    "no positions, one row": ({"positions": "none"}, {"batch_size": 1, "sequence_length": 256}),
    "wide heads": ({"d_head": 24}, {"batch_size": 2, "sequence_length": 70}),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_config(
    model: dict[str, Any] | ModelConfig, training: dict[str, Any], **optimizer: Any
) -> RunConfig:
    return RunConfig(
        model=ModelConfig(**TINY | model) if isinstance(model, dict) else model,
        optimizer=OptimizerSettings(**optimizer),
        training=TrainingSettings(**{"flow_every": 0, **training}),
    )


def require_prediction(config: RunConfig, bound: float = BOUND) -> None:
    measured = measured_peak(config, FAST)
    predicted = training_ledger(config.model, StepSettings.of(config)).total
    assert abs(predicted / measured - 1) < bound, f"{predicted} predicted, {measured} measured"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_peak_of_an_update_is_predicted(
    case: tuple[dict[str, Any], dict[str, Any]], precision: str
) -> None:
    model, training = case
    require_prediction(run_config(model, {**training, "precision": precision}))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "muon"},
        {"kind": "muon", "muon_block": 16, "muon_iterations": 3},
        {"kind": "muon", "muon_iterations": 1},
    ],
    ids=["default", "blocks", "one iteration"],
)
@pytest.mark.parametrize("shape", [{}, {"n_layers": 2, "d_ff": 400, "vocab_size": 29}])
def test_where_the_optimizer_is_the_peak(shape: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """A few tokens keep little, and Muon's stacks are what counts."""
    config = run_config(shape, {"batch_size": 1, "sequence_length": 8}, **optimizer)
    require_prediction(config)
    if "muon_block" not in optimizer:
        assert training_ledger(config.model, StepSettings.of(config)).moment == "optimizer"


@pytest.mark.parametrize(
    ("training", "kind"),
    [
        ({"batch_size": 2, "sequence_length": 256}, "adamw"),
        ({"batch_size": 4, "sequence_length": 128, "checkpoint_blocks": True}, "muon"),
        ({"batch_size": 1, "sequence_length": 32}, "muon"),
    ],
)
def test_nano_is_predicted_to_a_thousandth(training: dict[str, Any], kind: str) -> None:
    require_prediction(run_config(PRESETS["nano"], training, kind=kind), 0.001)


def test_the_categories_are_what_they_are_called() -> None:
    config = PRESETS["full-100m"]
    parameters = 4 * sum(p.numel() for p in Transformer(PRESETS["nano"], FAST).parameters())
    nano = training_ledger(PRESETS["nano"], StepSettings(micro_batch=1, length=8))
    assert nano.weights == parameters
    assert nano.optimizer == 2 * parameters
    plain = training_ledger(config, StepSettings(micro_batch=4, length=512))
    assert plain.total == sum(plain.categories().values()) == plain.to_json()["total"]
    assert len(plain.activations) == 12
    # In bytes for each token and block: two norms, the queries, keys, values and output, the
    # stream twice, the hidden features before their activation; a number for each row and head.
    tokens, d, hidden = 4 * 512, 768, 2048
    assert plain.activations[0] == 4 * tokens * (8 * d + 2 * hidden + 2 + 12)
    lean = training_ledger(config, StepSettings(micro_batch=4, length=512, checkpoint_blocks=True))
    assert sum(lean.activations) < 0.3 * sum(plain.activations)
    half = training_ledger(config, StepSettings(micro_batch=4, length=512, precision="bfloat16"))
    assert plain.casts == 0
    # Of each matrix in the blocks, kept for the backward pass.
    assert half.casts == 2 * 12 * (4 * d * d + 3 * d * hidden) + 2 * 16384 * d
    averaged = training_ledger(config, StepSettings(micro_batch=4, length=512, average=True))
    assert averaged.total - plain.total == averaged.average == plain.weights


def test_a_gpu_rounds_up_and_has_the_batch_in_its_memory() -> None:
    config = PRESETS["nano"]
    on_cpu, on_gpu = (
        training_ledger(config, StepSettings(micro_batch=2, length=128, device=device))
        for device in ("cpu", "cuda")
    )
    assert (on_cpu.batch, on_gpu.batch) == (0, 2 * 8 * 2 * 128)
    assert on_cpu.outside >= 2 * 8 * 2 * 128
    assert on_gpu.outside == 0
    assert all(value % 512 == 0 for value in on_gpu.categories().values())
    assert on_gpu.weights >= on_cpu.weights


def test_compile_is_the_same_step() -> None:
    settings = StepSettings(micro_batch=2, length=128)
    config = PRESETS["nano"]
    compiled = training_ledger(config, replace(settings, compile=True))
    assert compiled == training_ledger(config, settings)


@given(
    rows=st.integers(1, 6),
    length=st.integers(1, 200),
    precision=st.sampled_from(["float32", "bfloat16"]),
    checkpointed=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
    window=st.sampled_from([0, 40]),
)
@examples(max_examples=25, deadline=None)
def test_more_rows_take_more(
    rows: int, length: int, precision: Any, checkpointed: bool, device: Any, window: int
) -> None:
    config = ModelConfig(**TINY | {"window": window})
    few, more = (
        training_ledger(
            config,
            StepSettings(
                micro_batch=count,
                length=length,
                precision=precision,
                checkpoint_blocks=checkpointed,
                device=device,
            ),
        )
        for count in (rows, rows + 1)
    )
    assert few.total <= more.total
    assert min(few.categories().values()) >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch": 0},
        {"length": 0},
        {"accumulation": 0},
        {"muon_block": -1},
        {"precision": "int8"},
        {"optimizer": "sgd"},
        {"device": "tpu"},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match=next(iter(wrong))):
        StepSettings(**{"micro_batch": 1, "length": 8, **wrong})


def test_rows_longer_than_the_context_are_refused() -> None:
    with pytest.raises(AuditError, match="longer than the context of 256"):
        training_ledger(PRESETS["nano"], StepSettings(micro_batch=1, length=257))


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        ({}, {"slots": 1, "capacity": 0, "max_rows": 64, "threads": 1}),
        (
            {"tied": False, "n_kv_heads": 2, "d_head": 10},
            {"slots": 3, "capacity": 50, "max_rows": 16, "threads": 2},
        ),
    ],
)
def test_an_engine_holds_what_is_predicted(model: dict[str, Any], engine: dict[str, Any]) -> None:
    config = ModelConfig(**TINY | model)
    ledger = inference_ledger(config, **engine)
    with CPUEngine(rounded(Transformer(config, FAST)), **engine) as real:
        # A tied model's output is its embedding.
        weights = {array.ctypes.data: array.nbytes for array in real._weights}
        cache = sum(array.nbytes for array in real._cache)
        work = sum(part.nbytes for part in real._work if isinstance(part, np.ndarray))
    assert ledger.weights == sum(weights.values())
    assert ledger.cache == cache == real.cache_bytes
    assert ledger.workspace + ledger.logits == work == real.work_bytes
    assert ledger.total == sum(weights.values()) + cache + work


@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_holds_what_is_predicted(dtype: Any, window: int) -> None:
    config = ModelConfig(**TINY | {"window": window})
    model = Transformer(config, FAST).to(getattr(torch, dtype))
    ledger = inference_ledger(config, slots=2, capacity=100, dtype=dtype)
    assert ledger.weights == sum(p.nbytes for p in model.parameters())
    assert ledger.cache == 2 * model.new_cache(1, 100).nbytes


def test_an_engine_that_cannot_be_is_refused() -> None:
    wrongs: list[dict[str, Any]] = [{"slots": 0}, {"threads": 0}, {"max_rows": 0}, {"dtype": "x"}]
    for wrong in wrongs:
        with pytest.raises(AuditError):
            inference_ledger(PRESETS["nano"], **wrong)
