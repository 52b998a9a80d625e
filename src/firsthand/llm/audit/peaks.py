"""FLOPs a second of large matrix products: the most arithmetic that a program here gets.

float32 and bfloat16 are PyTorch's. INT8 is PyTorch's own integer product (int8 x int8 -> int32,
`torch._int_mm`) or the project's panels (int16 activations of 12 bits x int8 weights), whichever is
faster here; the panels run as in a prefill of 512 tokens by a model of 97.5M parameters.
The side of the square matrices doubles until one product takes a while, and the best run counts.
Runs are short, for where other programs run too, a long one is never undisturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.audit.threads import AnyArray, barrier, clock, compiled, run_together
from firsthand.llm.kernels.ceilings import seconds_of
from firsthand.llm.kernels.int8_matmul.panels import PANEL, padded, panel_products
from firsthand.llm.kernels.int8_matmul.tiles import SUMS
from firsthand.llm.kernels.int8_matmul.with_numpy import activation_levels

DTYPES = ("float32", "bfloat16", "int8")
BY_TORCH, BY_PANELS = "PyTorch", "the project's panels"

# By width the share of the operations in a block of the shape that the benchmarks use, and the
# tokens of a prefill. How many weight rows there are does not matter: a panel takes its time.
PREFILL_WIDTHS = {768: 7 / 9, 2048: 2 / 9}
PREFILL_TOKENS = 512
# Sides of the square matrices; the first product that takes this long is the largest one.
_FIRST_SIDE = {"cpu": 128, "cuda": 1024}
_LAST_SIDE = {"cpu": 4096, "cuda": 16384}
_ENOUGH_SECONDS = {"cpu": 0.015, "cuda": 0.015}
_BATCH = 3
# The largest sides, which are measured again and again.
_KEPT = 2


class ProductProbe:
    """PyTorch's square products on a device, by dtype.

    Args:
        device: "cpu" or "cuda".
        threads: of PyTorch, on a CPU.
    """

    def __init__(self, device: str, threads: int = 1) -> None:
        self._device, self._threads = device, threads
        self._kept: dict[str, list[tuple[int, Callable[[], Tensor]]]] = {}
        self._best: dict[str, float] = {}

    def steps(self) -> list[Callable[[], None]]:
        """A step for each dtype; the first time it looks for the sides to measure."""
        return [partial(self._measure, dtype) for dtype in DTYPES]

    def result(self) -> dict[str, float]:
        """FLOPs a second by dtype; what this device has no product for is missing."""
        return dict(self._best)

    def _measure(self, dtype: str) -> None:
        with torch_threads(self._threads) if self._device == "cpu" else nullcontext():
            if dtype not in self._kept:
                self._kept[dtype] = self._sides(dtype)
            for side, product in self._kept[dtype]:
                self._take(dtype, side, min(seconds_of(product, _BATCH, self._device)))

    def _sides(self, dtype: str) -> list[tuple[int, Callable[[], Tensor]]]:
        """The largest sides: from a small one up to that whose product takes a while."""
        side, kept = _FIRST_SIDE[self._device], []
        while side <= _LAST_SIDE[self._device]:
            try:
                product = _product(dtype, self._device, side)
                fastest = min(seconds_of(product, _BATCH, self._device))
            except (RuntimeError, NotImplementedError):
                # No such product on this device, or no memory for this side.
                break
            self._take(dtype, side, fastest)
            kept.append((side, product))
            if fastest >= _ENOUGH_SECONDS[self._device]:
                break
            side *= 2
        return kept[-_KEPT:]

    def _take(self, dtype: str, side: int, seconds: float) -> None:
        self._best[dtype] = max(self._best.get(dtype, 0.0), 2 * side**3 / seconds)


def _product(dtype: str, device: str, side: int) -> Callable[[], Tensor]:
    if dtype == "int8":
        left = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device)
        right = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device).T
        return lambda: torch._int_mm(left, right)
    kind = getattr(torch, dtype)
    left, right, out = (torch.randn(side, side, device=device).to(kind) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


class PanelProbe:
    """The project's INT8 product with the widths of a prefill.

    Each thread has a panel of its own, and all begin together.

    Args:
        threads: at least 1.
        tokens: rows of activations.
    """

    def __init__(self, threads: int, tokens: int = PREFILL_TOKENS) -> None:
        self._threads, self._tokens = threads, tokens
        self._best = dict.fromkeys(PREFILL_WIDTHS, math.inf)
        self._arrays = {width: _panel_arrays(threads, tokens, width) for width in PREFILL_WIDTHS}

    def steps(self) -> list[Callable[[], None]]:
        """A step for each width."""
        return [partial(self._measure, width) for width in PREFILL_WIDTHS]

    def result(self) -> float:
        """Operations a second: a mean of times by their shares, for each product takes its own."""
        operations = 2 * self._tokens * self._threads * PANEL
        return operations / sum(
            share * self._best[width] / width for width, share in PREFILL_WIDTHS.items()
        )

    def _measure(self, width: int) -> None:
        given = self._arrays[width]
        times = run_together(_panels, self._threads, _BATCH, 1, lambda thread: given)
        self._best[width] = min(self._best[width], *times)


def _panel_arrays(threads: int, tokens: int, width: int) -> tuple[AnyArray, ...]:
    generator, rows = np.random.default_rng(0), threads * PANEL
    levels = activation_levels(width)
    x = generator.integers(-levels, levels + 1, (tokens, padded(width)), dtype=np.int16)
    w = generator.integers(-127, 128, (rows, padded(width)), dtype=np.int8)
    x_scales, w_scales = (np.full(count, 1e-3, np.float32) for count in (tokens, rows))
    sums = np.zeros((threads, PANEL, SUMS), np.int32)
    return x, x_scales, w, w_scales, sums, np.zeros((tokens, rows), np.float32)


@compiled
def _panels(
    thread: int,
    threads: int,
    numbers: AnyArray,
    times: AnyArray,
    passes: int,
    x: AnyArray,
    x_scales: AnyArray,
    w: AnyArray,
    w_scales: AnyArray,
    sums: AnyArray,
    out: AnyArray,
) -> None:
    met, start = 0, thread * PANEL
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        began = clock()
        for _ in range(passes):
            panel_products(
                x, x_scales, 0, len(x), w, w_scales, start, start + PANEL, sums[thread], out, start
            )
        met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = clock() - began


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """PyTorch with so many threads; with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
