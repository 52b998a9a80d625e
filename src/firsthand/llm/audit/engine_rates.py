"""How fast the CPU engine's kernels run here, each by itself, measured through the engine.

Engines of made-up shapes run a call with a piece of work and one with less of it, and the
difference is that work's: logits of one row or of many for the INT8 product, and more keys to see
for attention. So whatever the engine does about threads, portions and pages is in the rate.

| name | work counted | size |
|---|---|---|
| int8 row | operations of the product with one row of activations, 4 MiB of weights | width |
| int8 row stream | the same with a width of 768 | bytes of weights |
| int8 panel | operations of the product with many rows | width |
| int8 attention | operations of the queries of a prompt over the INT8 cache | width of a head |
| int8 attention row | the same of one query, about 2 MiB of cache | width of a head |
| int8 attention stream | the same with a width of 64 | bytes of cache |
| int8 quantization, int8 heads, int8 gate | elements of the small loops between | width |
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.compiling import Function, cached
from firsthand.llm.inference.cpu import attention as engine_attention
from firsthand.llm.inference.cpu.attention import turn
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.kernels.compiling import sources_of
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.int8_matmul.panels import quantize_row
from firsthand.llm.kernels.threads import LEAST_ELEMENTS, by_rows
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.schemes import QuantizedMatrix
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes

AnyArray = NDArray[Any]
# Work a second of one or two kernels; with their names and the size.
Measure = Callable[[], tuple[float, ...]]
Kind = tuple[tuple[str, ...], int, Measure]

WIDTHS, HEAD_WIDTHS, ELEMENT_WIDTHS = (128, 320, 768, 2048), (32, 64, 128), (256, 1024)
# Of a stream through a working set that no inner cache holds.
STREAM_WIDTH, STREAM_HEAD_WIDTH = 768, 64
STREAMS = tuple(1 << power for power in range(20, 28))
CACHES = tuple(1 << power for power in range(20, 26, 2))
ROW_BYTES, PANEL_BYTES, PANEL_ROWS = 1 << 22, 1 << 22, 256
# Rows of a call of a prompt, and all heads' features.
PROMPT, FEATURES = 256, 512
_RUNS, _CALLS = 5, 50
# Of a call of one layer: heads, attention, two outputs and the gate; the end.
_CALL_MEETINGS = 6
# The overhead that `CallProbe` measures, by its name among a device's overheads.
CALL = "a call of the engine"
_ONE = np.float32(1.0)


def compiled(function: Function) -> Function:
    """As `kernels.compiling.compiled`; it may call the CPU engine's loops too."""
    places = (__file__, engine_attention.__file__)
    files = [file for place in places for file in sources_of(Path(place))]
    return cached(
        function, files, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy"
    )


class CallProbe:
    """Seconds of a call of the CPU engine that has next to nothing to do.

    A step of a model with one small layer, which includes six meetings of its threads.

    Args:
        threads: of the engine.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._best = math.inf

    def steps(self) -> list[Callable[[], None]]:
        """One step."""
        return [self._measure]

    def result(self, region_seconds: float) -> float:
        """The seconds, less the meetings."""
        return max(0.0, self._best - _CALL_MEETINGS * region_seconds)

    def _measure(self) -> None:
        config = _shape(vocab_size=64, d_model=64, n_heads=1, d_head=64, context=8)
        with CPUEngine(_made_up(config), threads=self._threads) as engine:
            for _ in range(_CALLS):
                self._best = min(self._best, seconds_of(lambda: _call(engine, 1, 1, 1)))


def engine_kinds(threads: int) -> Iterator[Kind]:
    """Each kernel and size, as `kernel_rates.KernelProbe` measures it."""
    for width in WIDTHS:
        yield ("int8 row",), width, _product(threads, width, ROW_BYTES, 1)
        yield ("int8 panel",), width, _product(threads, width, PANEL_BYTES, PANEL_ROWS)
    for size in STREAMS:
        yield ("int8 row stream",), size, _product(threads, STREAM_WIDTH, size, 1)
    for width in HEAD_WIDTHS:
        yield ("int8 attention",), width, _prompt_attention(threads, width)
        yield ("int8 attention row",), width, _row_attention(threads, width, 1 << 21)
        yield ("int8 heads",), width, _elements(_heads, threads, width)
    for size in CACHES:
        yield ("int8 attention stream",), size, _row_attention(threads, STREAM_HEAD_WIDTH, size)
    for width in ELEMENT_WIDTHS:
        yield ("int8 quantization",), width, _elements(_quantize, threads, width)
        yield ("int8 gate",), width, _elements(_gate, threads, width)


def _product(threads: int, width: int, size: int, rows: int) -> Measure:
    """Logits of so many rows: with them less without them, of many less those of one."""

    def measure() -> tuple[float, ...]:
        vocabulary, small = max(64, size // width), 16
        config = _shape(
            vocab_size=vocabulary, d_model=width, n_heads=1, d_head=small, d_ff=small, context=8
        )
        least = int(rows > 1)
        with CPUEngine(_made_up(config), threads=threads, slots=rows, max_rows=rows) as engine:
            seconds = _difference(
                lambda: _call(engine, rows, rows, 0), lambda: _call(engine, rows, least, 0)
            )
        # Rows whose logits are not wanted also end before the products behind the heads.
        outputs = vocabulary + 4 * small
        return (2.0 * (rows - least) * outputs * width / seconds,)

    return measure


def _prompt_attention(threads: int, width: int) -> Measure:
    """The second half of a prompt less its first: every query sees as many keys more."""

    def measure() -> tuple[float, ...]:
        heads = FEATURES // width
        layers = 2
        # One more, for without logits the last one ends with its keys and values.
        config = _shape(
            vocab_size=64, d_model=64, n_heads=heads, d_head=width, context=2 * PROMPT,
            n_layers=layers + 1,
        )  # fmt: skip
        with CPUEngine(_made_up(config), threads=threads, max_rows=PROMPT) as engine:
            seconds = _difference(
                lambda: _in_order(engine, PROMPT, PROMPT), lambda: _in_order(engine, PROMPT, 0)
            )
        return (4.0 * layers * FEATURES * PROMPT * PROMPT / seconds,)

    return measure


def _row_attention(threads: int, width: int, size: int) -> Measure:
    """A token behind many others less the second token."""

    def measure() -> tuple[float, ...]:
        length, heads = 2 * PROMPT, FEATURES // width
        layers = max(1, size // (2 * heads * length * (width + 4)))
        config = _shape(
            vocab_size=64, d_model=64, n_heads=heads, d_head=width, context=length,
            n_layers=layers + 1,
        )  # fmt: skip
        with CPUEngine(_made_up(config), threads=threads, max_rows=PROMPT) as engine:
            for start in (0, PROMPT):
                _in_order(engine, PROMPT, start)
            seconds = _difference(
                lambda: _call(engine, 1, 0, length - 1), lambda: _call(engine, 1, 0, 1)
            )
        return (4.0 * layers * FEATURES * (length - 2) / seconds,)

    return measure


def _elements(kernel: Any, threads: int, width: int) -> Measure:
    def measure() -> tuple[float, ...]:
        rows, again = 32, 1 + (1 << 17) // (32 * width)
        x = np.random.default_rng(0).standard_normal((threads, rows, width)).astype(np.float32)
        integers = np.zeros((threads, rows, width), np.int16)
        call = lambda: by_rows(kernel, threads, threads * LEAST_ELEMENTS, x, integers, again)  # noqa: E731
        return (threads * again * rows * width / seconds_of(call),)

    return measure


def _shape(**sizes: int) -> ModelConfig:
    return ModelConfig(**{"n_layers": 1, "d_ff": 64, **sizes})  # type: ignore[arg-type]


def _made_up(config: ModelConfig) -> QuantizedModel:
    """Weights that cost no time to make; products do not depend on them."""
    matrices = {
        name: QuantizedMatrix(
            values=np.ones(shape, np.int8),
            scales=np.full((shape[0], 1), 1e-3, np.float32),
            zeros=None,
            group_size=shape[1],
        )
        for name, shape in matrix_shapes(config).items()
    }
    vectors = {name: np.ones(shape, np.float32) for name, shape in vector_shapes(config).items()}
    return QuantizedModel(
        config=config, settings=QuantizationSettings(), matrices=matrices, vectors=vectors
    )


def _call(engine: CPUEngine, rows: int, wanted: int, position: int) -> None:
    """Rows of different texts at one position."""
    slots = np.arange(rows, dtype=np.int32)
    places = np.full(rows, position, np.int32)
    engine.forward(np.zeros(rows, np.int32), slots, places, slots[:wanted])


def _in_order(engine: CPUEngine, rows: int, start: int) -> None:
    """Rows of one text."""
    nothing = np.zeros(rows, np.int32)
    engine.forward(nothing, nothing, np.arange(start, start + rows, dtype=np.int32), nothing[:0])


def _difference(more: Callable[[], None], less: Callable[[], None]) -> float:
    """Seconds that one call takes longer, at least a hundredth of it: medians, in turns."""
    times: list[tuple[float, float]] = []
    for _ in range(_RUNS + 1):
        times.append((_once(more), _once(less)))
    long, short = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return float(max(long - short, long / 100))


def seconds_of(call: Callable[[], object]) -> float:
    """The median of a few calls after one that is not counted."""
    call()
    return statistics.median(_once(call) for _ in range(_RUNS))


def _once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@compiled
def _quantize(first: int, last: int, x: AnyArray, integers: AnyArray, again: int) -> None:
    """RMSNorm and the grid of a row, as before a product."""
    width = x.shape[2]
    for thread in range(first, last):
        for _ in range(again):
            for row in range(x.shape[1]):
                squares = np.float32(0.0)
                for i in range(width):
                    squares += x[thread, row, i] * x[thread, row, i]
                factor = _ONE / np.sqrt(squares / np.float32(width) + np.float32(1e-5))
                for i in range(width):
                    x[thread, row, i] = x[thread, row, i] * factor * _ONE
                quantize_row(x[thread, row], np.float32(1000.0), integers[thread, row])


@compiled
def _gate(first: int, last: int, x: AnyArray, integers: AnyArray, again: int) -> None:
    half = x.shape[2] // 2
    for thread in range(first, last):
        for _ in range(again * 2):
            for row in range(x.shape[1]):
                for i in range(half):
                    z = x[thread, row, i]
                    x[thread, row, half + i] = z / (_ONE + exp32(-z)) * z


@compiled
def _heads(first: int, last: int, x: AnyArray, integers: AnyArray, again: int) -> None:
    """RoPE by some angle, and the grid of a head's features."""
    half = x.shape[2] // 2
    for thread in range(first, last):
        for _ in range(again):
            for row in range(x.shape[1]):
                turn(x[thread, row], x[thread, 0, :half], x[thread, 0, half:])
                quantize_row(x[thread, row], np.float32(127.0), integers[thread, row])
