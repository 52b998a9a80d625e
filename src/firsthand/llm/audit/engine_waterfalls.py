"""The waterfalls of a model: INT8 on the CPU engine, float32 and bfloat16 on PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.latency import Prediction, predicted_decode, predicted_prefill
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.waterfall import Waterfall, waterfall, with_prediction
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.engine import Engine
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.tokenizer import Tokenizer

CALL, BETWEEN = "call", "between operations"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STREAM, _HALF = "stream", "half of the stream"
# Of a stage, the parts of `latency.predicted_decode` that it consists of.
_ENGINE_PARTS: dict[str, tuple[str, ...]] = {
    "norms and grids": ("norms and grids",),
    "queries, keys, values": ("queries, keys, values", "rotation and cache"),
    "attention": ("attention",),
    "attention's output": ("attention's output", _HALF),
    "gate and up": ("gate and up", "gate's activation"),
    "down": ("down", _HALF),
    "logits": ("logits",),
    "meetings": ("meetings",),
    CALL: ("call",),
}
_TORCH_PARTS: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        "queries, keys, values",
        "attention",
        "attention's output",
        "gate and up",
        "down",
        "logits",
    )
}


def int8_waterfall(
    quantized: QuantizedModel,
    tokenizer: Tokenizer,
    ceilings: DeviceCeilings | None = None,
    *,
    seconds: float = 2.0,
    threads: int = 0,
) -> Waterfall:
    """INT8 on the CPU engine.

    Args:
        ceilings: of the CPU, for predictions; None makes none.
        seconds: to measure for, about.
        threads: 0 is as many as are fastest.
    Raises:
        InferenceError: a model that the engine cannot run.
        AuditError: a context that is too short.
    """
    from firsthand.llm.audit import engine_stages  # compiled: seconds where nothing is cached

    with CPUEngine(quantized, threads=threads) as engine:

        def staged(token: int, positions: Sequence[int]) -> dict[str, list[float]]:
            # The first token finds threads that were just started.
            found = engine_stages.stage_seconds(engine, token, positions[0], len(positions) + 1)
            return dict(zip(engine_stages.STAGES, found[1:].T.tolist(), strict=True))

        measured = waterfall(
            engine,
            staged,
            tokenizer,
            facts=("CPU engine", "int8", "cpu", engine.threads),
            seconds=seconds,
            stages=engine_stages.STAGES,
            within=CALL,
        )
    return predicted(measured, quantized, ceilings)


def torch_waterfall(
    model: Transformer,
    tokenizer: Tokenizer,
    ceilings: DeviceCeilings | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    seconds: float = 2.0,
) -> Waterfall:
    """A model on PyTorch, on a copy of it unless it is of that type on that device already.

    Args:
        ceilings: of the device, for predictions; None makes none.
        dtype: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        seconds: to measure for, about.
    Raises:
        AuditError: an unknown type, or a context that is too short.
    """
    from firsthand.llm.audit.torch_stages import STAGES, timed_model
    from firsthand.llm.inference.torch_engine import TorchEngine

    if dtype not in DTYPES:
        raise AuditError(f"on PyTorch a model is in {' or '.join(DTYPES)}; not in {dtype!r}")
    weight = model.embedding.weight
    if weight.dtype != DTYPES[dtype] or weight.device.type != device:
        model = copy.deepcopy(model).to(device=device, dtype=DTYPES[dtype])
    timed, watch = timed_model(model)
    engine, other = TorchEngine(model), TorchEngine(timed)

    def staged(token: int, positions: Sequence[int]) -> dict[str, list[float]]:
        _catch_up(other, token, positions[0])
        watch.take()
        found: dict[str, list[float]] = {name: [] for name in STAGES}
        for position in positions:
            _one(other, token, position)
            for name, value in watch.take().items():
                found[name].append(value)
        return found

    try:
        measured = waterfall(
            engine,
            staged,
            tokenizer,
            facts=("PyTorch", dtype, device, torch.get_num_threads() if device == "cpu" else 1),
            seconds=seconds,
            stages=STAGES,
            within=BETWEEN,
        )
    finally:
        engine.close()
        other.close()
    # A model has no stage that it never entered.
    shown = tuple(each for each in measured.token if each.seconds or each.name not in STAGES)
    return predicted(replace(measured, token=shown), model, ceilings)


def predicted(
    measured: Waterfall, model: Transformer | QuantizedModel, ceilings: DeviceCeilings | None
) -> Waterfall:
    """The same with the predictions for the engine's share; as it was where there are none."""
    dtype = measured.dtype
    if ceilings is None or dtype not in ceilings.flop_rates:
        return measured
    config = model.config
    threads = measured.threads if dtype == "int8" else 0
    token = predicted_decode(config, ceilings, depth=measured.depth, dtype=dtype, threads=threads)
    first = predicted_prefill(
        config, ceilings, length=measured.prompt, dtype=dtype, threads=threads
    )
    names = _ENGINE_PARTS if dtype == "int8" else _TORCH_PARTS
    parts = {**token.parts, _HALF: token.parts.get(_STREAM, 0.0) / 2}
    return with_prediction(measured, Prediction(token.seconds, parts, token.bound), first, names)


def _catch_up(engine: Engine, token: int, position: int) -> None:
    """The engine beside the measured one reads as many tokens; which ones does not matter."""
    nothing = np.zeros(0, np.int32)
    for start in range(0, position, engine.max_rows):
        places = np.arange(start, min(position, start + engine.max_rows), dtype=np.int32)
        engine.forward(np.full_like(places, token), np.zeros_like(places), places, nothing)


def _one(engine: Engine, token: int, position: int) -> None:
    nothing = np.zeros(1, np.int32)
    engine.forward(np.array([token], np.int32), nothing, np.array([position], np.int32), nothing)
