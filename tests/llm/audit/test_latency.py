"""Predicted times: sums of work over rates, and what each rate is for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from firsthand.llm.audit import engine_rates, kernel_rates
from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.engine_rates import CALL, CallProbe
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.kernel_rates import KernelProbe, attention_flops, muon_flops
from firsthand.llm.audit.latency import (
    LAYER_OPERATIONS,
    OTHER_OPERATIONS,
    predicted_decode,
    predicted_prefill,
    predicted_step,
)
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.work import (
    engine_meetings,
    engine_work,
    micro_batch_work,
    training_work,
)
from firsthand.llm.inference.cpu.calls import ARRIVALS
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.opening import rounded
from firsthand.llm.model.config import ModelConfig, preset
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.schemes import Scheme, quantize_matrix
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes
from firsthand.llm.training.optimizers.newton_schulz import JORDAN, gram_orthogonalize
from firsthand.llm.training.presets import run_config

SMALL = ModelConfig(
    vocab_size=96, context=160, d_model=48, n_layers=3, n_heads=6, n_kv_heads=2, d_ff=80
)


def with_rates(cpu: DeviceCeilings, rate: float = 10e9) -> DeviceCeilings:
    """The same with one rate for every kernel."""
    names = [name for kinds in KINDS for name in kinds]
    return replace(cpu, kernel_rates=dict.fromkeys(names, ((64, rate), (4096, rate))))


KINDS = [kind[0] for kind in [*kernel_rates._training_kinds(), *engine_rates.engine_kinds(1)]]


def counted_flops() -> FlopCounterMode:
    """PyTorch's count, with the products in place that it leaves out."""

    def product(total: list[int], left: list[int], right: list[int], **others: Any) -> int:
        return 2 * math.prod(left) * right[-1]

    in_place = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def kernel_flops(config: ModelConfig, rows: int, length: int) -> float:
    """FLOPs of all pieces of a micro-batch."""
    return sum(piece.flops for piece in micro_batch_work(config, rows, length))


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 0}, {"feed_forward": "gelu"}, {"d_ff": 96}])
def test_the_flops_of_a_micro_batch_are_those_that_pytorch_counts(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    rows, length = 2, 160
    model = Transformer(config, FAST)
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    with counted_flops() as counter:
        model.loss(tokens, tokens).total.backward()
    assert kernel_flops(config, rows, length) == counter.get_total_flops()


def test_checkpointing_adds_one_forward_pass_of_the_blocks() -> None:
    model = Transformer(SMALL, FAST)
    model.checkpoint_blocks = True
    tokens = torch.zeros(2, 160, dtype=torch.int64)
    with counted_flops() as counter:
        model.loss(tokens, tokens).total.backward()
    work = micro_batch_work(SMALL, 2, 160, checkpointed=True)
    assert sum(piece.flops for piece in work) == counter.get_total_flops()


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (24, 80), (80, 24)])
def test_the_flops_of_muon_are_those_that_pytorch_counts(rows: int, columns: int) -> None:
    short, long = sorted((rows, columns))
    with counted_flops() as counter:
        gram_orthogonalize(torch.randn(1, short, long), [JORDAN] * 5)
    assert muon_flops(rows, columns, 5) == counter.get_total_flops()


def test_muon_in_blocks_takes_less() -> None:
    assert muon_flops(96, 96, 5, 24) == 4 * muon_flops(24, 96, 5) < muon_flops(96, 96, 5)


def test_a_step_of_several_micro_batches_repeats_all_but_the_update() -> None:
    one = run_config("nano", ["training.batch_size=4", "training.micro_batch=4"])
    four = run_config("nano", ["training.batch_size=16", "training.micro_batch=4"])
    flops = {}
    for name, config in (("one", one), ("four", four)):
        parts: Counter[str] = Counter()
        for piece in training_work(config):
            parts[piece.part] += int(piece.flops)
        flops[name] = parts
    assert flops["four"]["attention"] == 4 * flops["one"]["attention"]
    assert flops["four"]["Muon"] == flops["one"]["Muon"]
    assert flops["four"]["gradients"] > flops["one"]["gradients"] == 0


@pytest.mark.parametrize(("rows", "wanted"), [(1, 0), (1, 1), (8, 0), (8, 1), (8, 3), (8, 8)])
def test_the_meetings_are_those_of_the_engine(rows: int, wanted: int) -> None:
    """Each thread counts its arrivals."""
    places = np.arange(rows, dtype=np.int32)
    nothing = np.zeros(rows, np.int32)
    with CPUEngine(rounded(Transformer(SMALL, FAST)), slots=8, threads=2) as engine:
        engine.forward(nothing, nothing, places, places[rows - wanted :])
        numbers = engine._crew._numbers
        before = numbers[ARRIVALS]
        engine.forward(nothing, nothing, places, places[rows - wanted :])
        met = (numbers[ARRIVALS] - before) / 2
    assert engine_meetings(SMALL, rows=rows, logits=wanted) == met


def test_the_bytes_of_a_token_are_the_engines_weights() -> None:
    state = Transformer(SMALL, FAST).state_dict()
    quantized = QuantizedModel(
        config=SMALL,
        settings=QuantizationSettings(),
        matrices={n: quantize_matrix(state[n].numpy(), Scheme()) for n in matrix_shapes(SMALL)},
        vectors={n: state[n].numpy() for n in vector_shapes(SMALL)},
    )
    with CPUEngine(quantized, threads=1) as engine:
        pieces = engine_work(SMALL, rows=1, past=0, threads=1)
        products = sum(piece.bytes for piece in pieces if piece.rate == "int8 row")
        norms = 4 * SMALL.d_model * (2 * SMALL.n_layers + 1)
        assert products + norms == engine.weight_bytes


def test_the_time_is_the_work_over_the_rates_and_what_it_always_costs(
    ceilings: MachineCeilings,
) -> None:
    config = preset("laptop-10m")
    cpu = replace(with_rates(ceilings.cpu), overheads={CALL: 1e-3}, region_seconds=1e-4)
    found = predicted_decode(config, cpu, depth=7)
    pieces = engine_work(config, rows=1, past=7, threads=cpu.threads)
    streamed = {p.part: p.bytes for p in pieces if not p.rate}
    work = sum(p.work * p.fills for p in pieces if p.rate) / 10e9
    rest = found.seconds - work - 1e-3 - engine_meetings(config, rows=1) * 1e-4
    assert 0 <= rest <= sum(streamed.values()) / ceilings.cpu.read_bandwidth(2**30)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert not found.bound


@given(depth=st.integers(0, 500), factor=st.floats(1.5, 20))
@settings(max_examples=30, deadline=None)
def test_a_faster_machine_and_a_shorter_text_never_take_longer(depth: int, factor: float) -> None:
    from tests.llm.audit.conftest import cpu_ceilings

    config = preset("laptop-10m")
    slow, fast = with_rates(cpu_ceilings(), 5e9), with_rates(cpu_ceilings(), 5e9 * factor)
    found = predicted_decode(config, slow, depth=depth).seconds
    assert predicted_decode(config, fast, depth=depth).seconds < found
    assert predicted_decode(config, slow, depth=depth + 1).seconds > found
    prompt = predicted_prefill(config, slow, length=depth + 1).seconds
    assert predicted_prefill(config, slow, length=depth + 2).seconds > prompt


def test_a_stream_that_no_cache_holds_takes_the_time_of_memory(ceilings: MachineCeilings) -> None:
    rates = with_rates(ceilings.cpu, 100e9).kernel_rates
    slow = {"int8 row stream": ((2**20, 100e9), (2**23, 100e9), (2**24, 1e9))}
    near, far = (
        predicted_decode(
            config, replace(ceilings.cpu, kernel_rates={**rates, **slow}), depth=0
        ).parts["logits"]
        for config in (preset("nano"), replace(preset("laptop-10m"), vocab_size=58_880))
    )
    wide = 2.0 * 320 * 58_880
    assert near == pytest.approx(2 * 128 * 2048 / 100e9)
    assert far == pytest.approx(wide / 1e9)


def test_fewer_threads_get_their_share_of_the_rates(ceilings: MachineCeilings) -> None:
    config, cpu = preset("laptop-10m"), with_rates(ceilings.cpu)
    one, all_ = (
        predicted_decode(config, cpu, depth=9, threads=threads).parts["gate's activation"]
        for threads in (1, 0)
    )
    assert one == pytest.approx(4 * all_)


def test_without_rates_the_roofline_stands_in_and_says_so(ceilings: MachineCeilings) -> None:
    config = run_config("nano")
    bound = predicted_step(config, ceilings.cpu)
    flops = sum(piece.flops for piece in training_work(config))
    assert bound.bound
    assert bound.seconds >= flops / ceilings.cpu.flop_rates["float32"]
    assert not predicted_step(config, with_rates(ceilings.cpu)).bound


def test_a_long_prompt_is_read_in_the_engines_calls(ceilings: MachineCeilings) -> None:
    config = replace(preset("full-100m"))
    cpu = with_rates(ceilings.cpu)
    whole = predicted_prefill(config, cpu, length=1024)
    assert whole.parts["meetings"] == pytest.approx(
        cpu.region_seconds
        * (engine_meetings(config, rows=512, logits=0) + engine_meetings(config, rows=512))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_reads_every_weight_once_a_token(ceilings: MachineCeilings, dtype: str) -> None:
    config = preset("full-100m")
    found = predicted_decode(config, ceilings.cpu, depth=0, dtype=dtype)
    size = {"float32": 4, "bfloat16": 2}[dtype]
    least = 97.5e6 * size / ceilings.cpu.read_bandwidth(2**30)
    assert least < found.seconds < 1.2 * least + found.parts["dispatch"]


def test_the_dispatched_operations_are_those_of_the_model() -> None:
    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for layers in (1, 2):
        config = replace(preset("nano"), n_layers=layers)
        model = Transformer(config, FAST)
        with torch.no_grad():
            cache = model.new_cache(1)
            model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
            with Count() as counter:
                model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        counts.append(counter.calls)
    assert counts == [OTHER_OPERATIONS + LAYER_OPERATIONS, OTHER_OPERATIONS + 2 * LAYER_OPERATIONS]


def test_what_cannot_be_predicted_is_said(
    ceilings: MachineCeilings, ceilings_with_gpu: MachineCeilings
) -> None:
    config, cpu = preset("nano"), ceilings.cpu
    with pytest.raises(AuditError, match="not within the context of 256"):
        predicted_decode(config, cpu, depth=256)
    with pytest.raises(AuditError, match="at least one token"):
        predicted_prefill(config, cpu, length=0)
    with pytest.raises(AuditError, match="int8, float32 or bfloat16; not 'int4'"):
        predicted_decode(config, cpu, depth=0, dtype="int4")
    assert ceilings_with_gpu.gpu is not None
    with pytest.raises(AuditError, match="CPU engine alone"):
        predicted_decode(config, ceilings_with_gpu.gpu, depth=0)
    only = replace(cpu, flop_rates={"float32": 1e9})
    with pytest.raises(AuditError, match="was measured with float32"):
        predicted_decode(config, only, depth=0, dtype="bfloat16")
    with pytest.raises(AuditError, match="threads"):
        predicted_decode(config, cpu, depth=0, threads=-1)


@pytest.mark.parametrize(("rows", "length"), [(1, 128), (2, 129), (1, 257)])
def test_the_flops_of_attention_are_its_blocks(rows: int, length: int) -> None:
    q, k, v = (torch.randn(rows, 2, length, 8, requires_grad=True) for _ in range(3))
    with counted_flops() as counter:
        FAST.attention(q, k, v)
    assert attention_flops(rows, 2, length, 8) == counter.get_total_flops()


def test_every_kernel_has_a_rate_above_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """With standard shapes made small, for it is the loops that are looked at."""
    small = {
        kernel_rates: {
            "TOKENS": 256, "LENGTH": 128, "VOCABULARY": 64, "CHUNKED_TOKENS": 32,
            "WIDTHS": (32, 64), "ELEMENTS": (1 << 16,), "SIDES": (8, 16), "STACKED": 1 << 10,
        },
        engine_rates: {
            "WIDTHS": (64,), "STREAMS": (1 << 16, 1 << 18), "CACHES": (1 << 16,),
            "ROW_BYTES": 1 << 16, "PANEL_BYTES": 1 << 14, "PANEL_ROWS": 9, "PROMPT": 16,
            "FEATURES": 128,
        },
    }  # fmt: skip
    for module, values in small.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    probe = KernelProbe(1)
    for step in probe.steps():
        step()
    rates = probe.result()
    assert {name for kinds in KINDS for name in kinds} == set(rates)
    for points in rates.values():
        sizes = [size for size, _ in points]
        assert sizes == sorted(set(sizes))
        assert all(rate > 0 for _, rate in points)


def test_a_call_takes_longer_than_nothing_and_less_its_meetings() -> None:
    probe = CallProbe(1)
    probe.steps()[0]()
    assert probe.result(0.0) > 0.0
    assert probe.result(1e9) == 0.0
