"""How long a token, a prompt and a training step take, predicted from the machine's limits.

A step is a list of pieces of work (`work`). A piece takes its work over its kernel's rate where
that was measured on this machine, and never less than its bytes over the bandwidth of the working
set that it belongs to. Where no rate is known it takes the longer of FLOPs over the matrix peak and
bytes over the bandwidth: the roofline (Williams, Waterman & Patterson 2009), a lower bound, which
the prediction then says it is. What costs the same whatever the work (a meeting of threads, a call,
an operation's dispatch) is added. No constant is fitted to a step: all rates come from
`DeviceCeilings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from firsthand.llm.audit.engine_rates import CALL
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.work import (
    Piece,
    engine_meetings,
    engine_work,
    forward_work,
    training_work,
)
from firsthand.llm.inference.cpu_engine import MAX_ROWS
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.training.config import RunConfig

# Operations that PyTorch dispatches for a token without a gradient, views among them: in a layer of
# the default kind, and around the layers.
LAYER_OPERATIONS, OTHER_OPERATIONS = 67, 16
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Prediction:
    """Seconds, and what they are made of.

    Attributes:
        seconds: of the whole.
        parts: seconds by kind of work; they add up to the whole.
        bound: no rate of a kernel was measured, so the roofline's lower bound stands in for it.
    """

    seconds: float
    parts: dict[str, float]
    bound: bool = False


def predicted_decode(
    config: ModelConfig,
    ceilings: DeviceCeilings,
    *,
    depth: int,
    dtype: str = "int8",
    threads: int = 0,
) -> Prediction:
    """The time of one token with logits behind `depth` others.

    Args:
        dtype: "int8" is the CPU engine, "float32" and "bfloat16" PyTorch's model on the device.
        threads: that the engine uses; 0 is all that the ceilings were measured with. Fewer get
            their share of the rates, which is too little where one thread alone fills the memory's
            bandwidth.
    Raises:
        AuditError: a depth that the context does not hold, or a dtype that the device has not.
    """
    return _predicted_call(config, ceilings, 1, depth, dtype, threads)


def predicted_prefill(
    config: ModelConfig,
    ceilings: DeviceCeilings,
    *,
    length: int,
    dtype: str = "int8",
    threads: int = 0,
) -> Prediction:
    """The time of a prompt with the logits of its last token; arguments and errors as decoding."""
    if length < 1:
        raise AuditError(f"a prompt has at least one token; not {length}")
    calls = [MAX_ROWS] * (length // MAX_ROWS) if dtype == "int8" else []
    rest = length - sum(calls)
    calls += [rest] if rest else []
    parts: dict[str, float] = {}
    past, bound = 0, False
    for number, rows in enumerate(calls):
        last = number == len(calls) - 1
        found = _predicted_call(config, ceilings, rows, past, dtype, threads, logits=int(last))
        past, bound = past + rows, bound or found.bound
        for part, seconds in found.parts.items():
            parts[part] = parts.get(part, 0.0) + seconds
    return Prediction(sum(parts.values()), parts, bound)


def predicted_step(config: RunConfig, ceilings: DeviceCeilings) -> Prediction:
    """The time of one update: all its micro-batches, the clipping and the optimizer.

    Raises:
        AuditError: the device has no products of the run's precision.
    """
    settings = config.training
    dtype = "bfloat16" if settings.precision == "float16" else settings.precision
    return _predicted(training_work(config), ceilings, dtype, None)


def _predicted_call(
    config: ModelConfig,
    ceilings: DeviceCeilings,
    rows: int,
    past: int,
    dtype: str,
    threads: int,
    logits: int = 1,
) -> Prediction:
    if past < 0 or past + rows > config.context:
        raise AuditError(
            f"{past} tokens and {rows} more are not within the context of {config.context}"
        )
    if threads < 0:
        raise AuditError(f"threads are at least 1, or 0 for all; not {threads}")
    if dtype == "int8":
        if ceilings.device != "cpu":
            raise AuditError("INT8 runs on the CPU engine alone; there is no INT8 on a GPU")
        used = min(threads or ceilings.threads, ceilings.threads)
        slower = ceilings.threads / used
        pieces = engine_work(config, rows=rows, past=past, threads=used, logits=logits)
        meetings = engine_meetings(config, rows=rows, logits=logits)
        fixed = {
            "meetings": meetings * ceilings.region_seconds,
            "call": ceilings.overheads.get(CALL, 0.0),
        }
    elif dtype in _BYTES:
        pieces = forward_work(
            config, rows=rows, past=past, weight_bytes=_BYTES[dtype], logits=logits
        )
        slower = 1.0
        operations = config.n_layers * LAYER_OPERATIONS + OTHER_OPERATIONS
        fixed = {"dispatch": operations * ceilings.launch_seconds}
    else:
        raise AuditError(f"the dtype is int8, float32 or bfloat16; not {dtype!r}")
    working_set = sum(int(piece.bytes) for piece in pieces)
    return _predicted(pieces, ceilings, dtype, working_set, fixed, slower)


def _predicted(
    pieces: Iterable[Piece],
    ceilings: DeviceCeilings,
    dtype: str,
    working_set: int | None,
    fixed: dict[str, float] | None = None,
    slower: float = 1.0,
) -> Prediction:
    """Pieces one after the other.

    Args:
        dtype: of the products. The kernels' rates are those of float32, and of the engine's INT8.
        working_set: bytes that pass before the first of them are read again; None where each piece
            streams through its own.
        fixed: seconds that are added, by part.
        slower: how many times longer a piece takes by its kernel's rate.
    """
    if dtype not in ceilings.flop_rates:
        known = ", ".join(ceilings.flop_rates) or "nothing"
        raise AuditError(f"{ceilings.name} was measured with {known}; not with {dtype}")
    parts: dict[str, float] = {}
    bound = False
    for piece in pieces:
        reach = int(piece.bytes) if working_set is None else working_set
        seconds = _by_rates(piece, ceilings, reach) if dtype in ("float32", "int8") else None
        if seconds is not None:
            seconds *= slower
        else:
            bound = bound or bool(piece.rate) or dtype == "bfloat16"
            moved = piece.bytes / ceilings.read_bandwidth(max(1, reach))
            seconds = max(piece.flops / ceilings.flop_rates[dtype] * piece.fills, moved)
        parts[piece.part] = parts.get(piece.part, 0.0) + seconds
    for part, seconds in (fixed or {}).items():
        parts[part] = parts.get(part, 0.0) + seconds
    return Prediction(sum(parts.values()), parts, bound)


def _by_rates(piece: Piece, ceilings: DeviceCeilings, reach: int) -> float | None:
    """Seconds by the kernel's own rates; None where one of them was not measured."""
    rate = ceilings.kernel_rate(piece.rate, piece.size)
    if rate is None:
        return None
    seconds = piece.work / rate * piece.fills
    if not piece.stream:
        return seconds
    stream = ceilings.kernel_rate(piece.stream, reach)
    near = ceilings.kernel_rate(piece.rate, piece.stream_size)
    if stream is None or near is None:
        return None
    slower = max(1 / stream + 1 / rate - 1 / near, min(1 / stream, 1 / rate))
    return piece.work * piece.fills * slower
