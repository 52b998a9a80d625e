"""The table of a ladder: time, bytes, FLOPs and the share of the machine's ceiling by rung."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from firsthand.llm.kernels.ceilings import Ceilings, measure_ceilings, seconds_of
from firsthand.llm.kernels.ladder import Ladder, Rung, Shape


@dataclass(frozen=True)
class Row:
    """One rung at one shape.

    Attributes:
        ladder, rung: their names.
        backward: whether the gradients were computed too.
        seconds: the median of the runs.
        fastest, slowest: the spread, seconds.
        bytes_moved: by this rung's own passes over memory.
        flops: of the operation.
        ceiling_share: the least time the machine's ceilings allow for the operation (each input
            read once, each result written once) over `seconds`. Above 1 when the data fit in a
            cache that is faster than the measured bandwidth, and for an update in place: the copy
            that measures the bandwidth has to fetch each line before it writes it.
    """

    ladder: str
    rung: str
    backward: bool
    seconds: float
    fastest: float
    slowest: float
    bytes_moved: int
    flops: int
    ceiling_share: float

    @property
    def bandwidth(self) -> float:
        """Bytes moved in a second."""
        return self.bytes_moved / self.seconds

    @property
    def flop_rate(self) -> float:
        """FLOPs in a second."""
        return self.flops / self.seconds


def time_ladder(
    ladder: Ladder,
    ceilings: Ceilings,
    *,
    shape: Shape | None = None,
    backward: bool = True,
    runs: int = 5,
    seed: int = 0,
) -> list[Row]:
    """Time each rung that runs here in float32 on the same random inputs, plain first.

    Args:
        ladder: what to time.
        ceilings: of this machine, with the same number of threads; a rung on a GPU is compared with
            the GPU's own, which are measured on its first use.
        shape: sizes by name; None is the ladder's own.
        backward: whether gradients are computed too, where the operation has them.
        runs: measurements of each rung, at least 1, after one that is not counted.
        seed: of the inputs.
    Raises:
        ValueError: no run, or sizes that are not the ladder's.
    """
    sizes = {**ladder.shape, **(shape or {})}
    if runs < 1 or set(sizes) != set(ladder.shape):
        raise ValueError(f"{runs} runs of {ladder.name} with the sizes {sizes}")
    backward = backward and bool(ladder.differentiable)
    generator = np.random.default_rng(seed)
    inputs = ladder.inputs(sizes, generator)
    cotangent = generator.standard_normal(np.shape(_output(ladder, inputs)))
    rows = []
    for rung in ladder.runnable:
        device = rung.device()
        call = _call(ladder, rung, inputs, cotangent if backward else None)
        times = seconds_of(call, runs, device)
        limits = ceilings if device == "cpu" else _gpu_ceilings()
        rows.append(_row(ladder, rung, sizes, backward, times, limits))
    return rows


@cache
def _gpu_ceilings() -> Ceilings:
    return measure_ceilings(device="cuda", side=4096)


def _output(ladder: Ladder, inputs: dict[str, Any]) -> Any:
    rung = ladder.runnable[-1]
    return ladder.run(rung, rung.prepare(inputs))[0]


def _call(ladder: Ladder, rung: Rung, inputs: Any, cotangent: Any) -> Callable[[], object]:
    prepared = rung.prepare(inputs)
    if cotangent is None:
        return lambda: _without_graph(ladder, rung, prepared)
    given = rung.prepare({"cotangent": np.asarray(cotangent)})["cotangent"]
    return lambda: ladder.run(rung, prepared, given)


def _without_graph(ladder: Ladder, rung: Rung, prepared: Any) -> object:
    with torch.no_grad():
        return ladder.run(rung, prepared)


def _row(
    ladder: Ladder,
    rung: Rung,
    shape: Shape,
    backward: bool,
    times: list[float],
    ceilings: Ceilings,
) -> Row:
    seconds = statistics.median(times)
    flops = ladder.flops.of(shape, backward=backward)
    least_bytes = ladder.bytes_moved.of(shape, backward=backward)
    least_seconds = max(flops / ceilings.flop_rate, least_bytes / ceilings.bandwidth)
    return Row(
        ladder=ladder.name,
        rung=rung.name,
        backward=backward,
        seconds=seconds,
        fastest=min(times),
        slowest=max(times),
        bytes_moved=rung.bytes_moved.of(shape, backward=backward),
        flops=flops,
        ceiling_share=least_seconds / seconds,
    )
