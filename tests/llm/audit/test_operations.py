"""FLOPs against PyTorch's counter on real passes, bytes by hand, and the sides of the roofline."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.operations import (
    Operation,
    backward_operations,
    forward_operations,
    optimizer_operation,
    seen_pairs,
    side,
    totals,
)
from firsthand.llm.audit.records import Bandwidths, DeviceCeilings
from firsthand.llm.kernels.attention.with_numba import BLOCK
from firsthand.llm.model.config import PRESETS, ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.optimizer import Optimizer

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "context": 320,
    "d_model": 24,
    "n_layers": 2,
    "n_heads": 4,
    "d_ff": 40,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"n_kv_heads": 2, "d_head": 10},
    "untied GELU with biases": {"tied": False, "feed_forward": "gelu", "bias": True},
    "ReLU² after norms behind": {"feed_forward": "relu2", "norm_placement": "post"},
    "ALiBi": {"positions": "alibi", "norm": "layer"},
    "window": {"window": 9, "qk_norm": True},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def flops_of(operations: list[Operation]) -> float:
    return totals(each for each in operations if each.is_product)[0]


def counted(run: Any) -> float:
    """By PyTorch's counter, which has to be told of products that are added in place."""

    def added(_: Any, a_shape: Any, b_shape: Any, out_shape: Any = None, **__: Any) -> int:
        *batch, rows, inner = a_shape
        return int(2 * math.prod(batch) * rows * inner * b_shape[-1])

    mapping = {torch.ops.aten.addmm_: added, torch.ops.aten.baddbmm_: added}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return float(counter.get_total_flops())


def tokens(rows: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_step_has_the_products_that_are_counted(
    variant: dict[str, Any], checkpointed: bool
) -> None:
    config = ModelConfig(**BASE | variant)
    model = Transformer(config, FAST)
    model.checkpoint_blocks = checkpointed
    rows, length = 3, 2 * BLOCK + 17
    ids = tokens(rows, length, config.vocab_size)
    real = counted(lambda: torch.autograd.backward(model.loss(ids, ids).total))
    forward = forward_operations(
        config, rows=rows, length=length, logits=rows * length, attention_block=BLOCK
    )
    backward = backward_operations(config, rows=rows, length=length, checkpoint_blocks=checkpointed)
    assert flops_of(forward) + flops_of(backward) == real


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_prefill_and_decoding_have_the_products_that_are_counted(variant: dict[str, Any]) -> None:
    """By the reference, which computes all pairs of a prompt; a step of decoding has no others."""
    config = ModelConfig(**BASE | variant)
    model, rows, length = Transformer(config, REFERENCE).eval(), 2, 13
    cache = model.new_cache(rows)
    ids = tokens(rows, length + 1, config.vocab_size)
    with torch.no_grad():
        prompt = counted(lambda: model(ids[:, :length], cache=cache))
        step = counted(lambda: model(ids[:, length:], cache=cache))
    expected = forward_operations(
        config, rows=rows, length=length, logits=rows * length, attention_block=length
    )
    assert flops_of(expected) == prompt
    one = forward_operations(config, rows=rows, length=1, past=length)
    if not config.window:  # the reference keeps what a window hides, and multiplies by 0
        assert flops_of(one) == step


@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(kind="muon"),
        OptimizerSettings(kind="muon", muon_iterations=3, muon_block=8),
        OptimizerSettings(kind="muon", muon_iterations=1),
    ],
    ids=["default", "blocks", "one iteration"],
)
@pytest.mark.parametrize("variant", [{}, {"n_kv_heads": 1, "feed_forward": "gelu"}])
def test_muon_has_the_products_that_are_counted(
    settings: OptimizerSettings, variant: dict[str, Any]
) -> None:
    config = ModelConfig(**BASE | variant)
    model = Transformer(config, FAST)
    optimizer = Optimizer(model, settings, FAST)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    operation = optimizer_operation(config, settings)
    elements = totals([operation])[0] - counted(optimizer.step)
    parameters = sum(p.numel() for p in model.parameters())
    # What is left is arithmetic by element, some of it AdamW's and some Muon's.
    assert 11 * parameters <= elements <= 14 * parameters


def test_bytes_of_a_product_are_counted_by_hand() -> None:
    config = ModelConfig(**BASE)
    operations = {
        each.name: each
        for each in forward_operations(
            config, rows=2, length=5, weight_bytes=1, activation_bytes=4, cache_bytes=2
        )
    }
    up = operations["feed-forward up"]
    assert (up.count, up.flops) == (2, 2 * 10 * 80 * 24)
    assert (up.read, up.written) == (80 * 24 + 4 * 10 * 24, 4 * 10 * 80)
    assert up.intensity == up.flops / (up.read + up.written)
    logits = operations["logits"]
    assert (logits.read, logits.written) == (61 * 24 + 4 * 2 * 24, 4 * 2 * 61)
    assert operations["cache"].written == 2 * 10 * 2 * 24
    # 15 pairs of a query and a key it sees, in each text and head; products with k and with v.
    attention = operations["attention"]
    assert attention.flops == 2 * 4 * 15 * 6 * 4
    assert (attention.read, attention.written) == (4 * 10 * 24 + 2 * 10 * 48, 4 * 10 * 24)


def test_a_step_of_decoding_reads_every_weight_once() -> None:
    config = PRESETS["laptop-10m"]
    operations = forward_operations(config, rows=1, length=1, past=100)
    matrices = sum(
        rows * columns for rows, columns in ((960, 320), (320, 320), (1728, 320), (320, 864))
    )
    read = sum(each.count * each.read for each in operations if each.is_product)
    cached = 6 * 2 * 101 * 320
    inputs = 6 * (3 * 320 + 864 + 320) + 320
    assert read == 4 * (6 * matrices + 8192 * 320 + cached + inputs)


def test_adamw_moves_seven_numbers_a_parameter() -> None:
    config = ModelConfig(**BASE)
    parameters = sum(p.numel() for p in Transformer(config, FAST).parameters())
    operation = optimizer_operation(config, "adamw")
    assert (operation.read, operation.written) == (16 * parameters, 12 * parameters)


def test_pairs_are_the_triangle_in_blocks() -> None:
    config = ModelConfig(**BASE)
    assert seen_pairs(config, 5) == 15
    assert seen_pairs(config, 5, past=3) == 15 + 15
    assert seen_pairs(config, 5, block=5) == 25
    # The last two see five keys, the two before three, the first itself.
    assert seen_pairs(config, 5, block=2) == 2 * 5 + 2 * 3 + 1
    assert seen_pairs(config, 1, past=9) == 10
    windowed = ModelConfig(**BASE | {"window": 4})
    assert seen_pairs(windowed, 1, past=9) == 4
    assert seen_pairs(windowed, 5) == 25


def test_a_long_prompt_is_bound_by_arithmetic_and_a_token_by_memory() -> None:
    ceilings = DeviceCeilings(
        device="cpu",
        name="a device",
        bandwidths=(Bandwidths(1 << 16, 1e11, 1e11, 1e11), Bandwidths(1 << 28, 2e10, 1e10, 2e10)),
        flop_rates={"float32": 1e11},
        int8_kernel_rate=0.0,
        region_seconds=0.0,
        launch_seconds=0.0,
        memory=1 << 33,
        threads=1,
    )
    config = PRESETS["laptop-10m"]
    one, many = (
        {each.name: each for each in forward_operations(config, rows=1, length=length)}
        for length in (1, 512)
    )
    for name in ("feed-forward up", "queries, keys, values"):
        assert side(one[name], ceilings) == "memory"
        assert side(many[name], ceilings) == "compute"
    assert side(many["norms"], ceilings) == "memory"
    with pytest.raises(AuditError, match="not in bfloat16"):
        side(one["logits"], ceilings, "bfloat16")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"length": 0},
        {"past": -1},
        {"attention_block": 0},
        {"logits": 11},
        {"weight_bytes": 0.0},
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        forward_operations(ModelConfig(**BASE), **{"rows": 2, "length": 5, **wrong})


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(AuditError, match="'sgd'"):
        optimizer_operation(ModelConfig(**BASE), "sgd")  # type: ignore[arg-type]
