"""The CPU engine: a quantized model as compiled integer arithmetic on all cores.

Decoding one token reads every weight once, so its speed is bounded by how fast memory gives bytes;
INT8 weights are a quarter of float32's, and the cache is INT8 for the same reason. What is left to
do is to keep the memory busy: the whole step is compiled code of one crew of threads, which meets
a few times a layer (`cpu.step`), reads each thread's rows in order and allocates nothing.
"""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.inference.cpu.atomics import APART
from firsthand.llm.inference.cpu.attention import ATTEND, TOGETHER, padded_head
from firsthand.llm.inference.cpu.calls import MOST_THREADS
from firsthand.llm.inference.cpu.crew import Crew
from firsthand.llm.inference.cpu.stages import ROW_PANEL, Cache, Shape, Work
from firsthand.llm.inference.cpu.weights import Weights, aligned, packed
from firsthand.llm.inference.engine import Rows
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.kernels.int8_matmul.panels import PANEL, PANEL_PRODUCTS, padded
from firsthand.llm.kernels.int8_matmul.tiles import SUMS
from firsthand.llm.kernels.int8_matmul.with_numpy import activation_levels
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.resources import usable_cores

MAX_ROWS = 512
# Steps timed for each number of threads.
_TRIALS = 5


class CPUEngine:
    """As `Engine`: Llama-shaped models with INT8 weights, one scale for each row.

    Args:
        quantized: the model.
        slots: texts held at once.
        capacity: tokens of each; 0 is the model's context.
        threads: 0 times a few steps on 1, 2, 4 ... of the cores that this process may use, and
            takes the fastest.
        max_rows: tokens of one call.
    Raises:
        InferenceError: a model that this engine cannot run, or a size below 1.
    """

    def __init__(
        self,
        quantized: QuantizedModel,
        *,
        slots: int = 1,
        capacity: int = 0,
        threads: int = 0,
        max_rows: int = MAX_ROWS,
    ) -> None:
        config = quantized.config
        capacity = capacity or config.context
        if min(slots, capacity, max_rows) < 1 or threads < 0:
            raise InferenceError(
                f"slots, capacity and rows are at least 1 and threads at least 0: {slots}, "
                f"{capacity}, {max_rows} and {threads}"
            )
        self.config, self.slots, self.capacity, self.max_rows = config, slots, capacity, max_rows
        cores = usable_cores()
        most = min(threads or cores, MOST_THREADS)
        self._cache = _cache(config, slots, capacity)
        self._work = _work(config, max_rows, slots, capacity, most)
        self._weights = packed(quantized, capacity)
        self._crew = Crew(most, _shape(config), self._weights, self._cache, self._work)
        self.threads = most if threads else self._fastest(most)

    def __enter__(self) -> CPUEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one token reads: all of them but a separate embedding."""
        read = set(Weights._fields) - {"embedding", "embedding_scales", "cos", "sin"}
        return sum(getattr(self._weights, name).nbytes for name in read)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all slots' keys, values and their scales."""
        return sum(array.nbytes for array in self._cache)

    @property
    def work_bytes(self) -> int:
        """Bytes of what a call reads and writes besides, logits among it."""
        return sum(array.nbytes for array in self._work if isinstance(array, np.ndarray))

    def forward(
        self, tokens: Rows, slots: Rows, positions: Rows, wanted: Rows
    ) -> NDArray[np.float32]:
        """As `Engine.forward`.

        Raises:
            InferenceError: too many rows, or a number out of its range.
        """
        rows, count = len(tokens), len(wanted)
        work = self._work
        if not 0 < rows <= self.max_rows:
            raise InferenceError(f"a call has 1 to {self.max_rows} rows; not {rows}")
        if count > len(work.wanted):
            raise InferenceError(f"a call gives the logits of {len(work.wanted)} rows; not {count}")
        if not rows == len(slots) == len(positions):
            raise InferenceError(
                f"{rows} tokens, {len(slots)} slots and {len(positions)} positions: a row has one "
                "of each"
            )
        self._require("token", tokens, self.config.vocab_size)
        self._require("slot", slots, self.slots)
        self._require("position", positions, self.capacity)
        work.tokens[:rows] = tokens
        work.slots[:rows] = slots
        work.positions[:rows] = positions
        if count:
            self._require("wanted row", wanted, rows)
            if count > 1 and np.any(np.diff(wanted) <= 0):
                raise InferenceError("the rows wanted are named in order, each once")
            work.wanted[:count] = wanted
        self._crew.run(self.threads, rows, count)
        return work.logits[:count]

    def close(self) -> None:
        """End the threads."""
        self._crew.close()

    def _require(self, what: str, numbers: Rows, bound: int) -> None:
        if len(numbers) == 1 and 0 <= numbers[0] < bound:
            # The step of decoding: NumPy's reductions take microseconds.
            return
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < bound:
            wrong = numbers[(numbers < 0) | (numbers >= bound)][0]
            raise InferenceError(f"{what} {wrong} is out of range: 0 to {bound - 1}")

    def _fastest(self, most: int) -> int:
        """The number of threads whose quickest step is the shortest."""
        counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
        nothing = np.zeros(1, np.int32)
        seconds = {}
        for threads in counts:
            self.threads = threads
            self.forward(nothing, nothing, nothing, nothing)
            tries = []
            for _ in range(_TRIALS):
                began = time.perf_counter()
                self.forward(nothing, nothing, nothing, nothing)
                tries.append(time.perf_counter() - began)
            seconds[threads] = min(tries)
        return min(seconds, key=lambda threads: seconds[threads])


def _shape(config: ModelConfig) -> Shape:
    mixed = config.n_heads * config.head_width
    return Shape(
        config.n_layers,
        config.n_heads,
        config.kv_heads,
        config.head_width,
        np.float32(config.norm_eps),
        np.float32(config.head_width**-0.5),
        *(
            np.float32(activation_levels(width))
            for width in (config.d_model, mixed, config.hidden_width)
        ),
    )


def _cache(config: ModelConfig, slots: int, capacity: int) -> Cache:
    scales = (config.n_layers, slots, config.kv_heads, capacity)
    integers = (*scales, padded_head(config.head_width))
    return Cache(
        aligned(integers, np.int8),
        aligned(scales, np.float32),
        aligned(integers, np.int8),
        aligned(scales, np.float32),
    )


def _work(config: ModelConfig, rows: int, wanted: int, capacity: int, threads: int) -> Work:
    mixed, head = config.n_heads * config.head_width, padded_head(config.head_width)
    widest = max(PANEL, ROW_PANEL, config.head_width)
    block = (threads, rows, widest)

    def integers(width: int) -> NDArray[np.int16]:
        return aligned((rows + threads, padded(width)), np.int16)

    return Work(
        tokens=np.zeros(rows, np.int32),
        slots=np.zeros(rows, np.int32),
        positions=np.zeros(rows, np.int32),
        wanted=np.zeros(wanted, np.int32),
        logits=aligned((wanted, config.vocab_size), np.float32),
        stream=aligned((rows, config.d_model), np.float32),
        queries=aligned((config.n_heads, rows, head), np.float32),
        mixed=aligned((rows, mixed), np.float32),
        hidden=aligned((rows, config.hidden_width), np.float32),
        model_integers=integers(config.d_model),
        mix_integers=integers(mixed),
        hidden_integers=integers(config.hidden_width),
        scales=aligned((rows + threads,), np.float32),
        normed=aligned((threads, config.d_model), np.float32),
        block=aligned(block, np.float32),
        other_block=aligned(block, np.float32),
        scores=aligned((threads, TOGETHER, capacity), np.float32),
        outputs=aligned((threads, TOGETHER, head), np.float32),
        sums=aligned((threads, widest, SUMS), np.int32),
        counters=np.zeros(3 * threads * APART, np.int64),
        panel_products=PANEL_PRODUCTS.address(),
        attend=ATTEND.address(),
    )
