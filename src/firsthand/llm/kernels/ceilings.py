"""What this machine can do at most: copy bandwidth and matrix-product rate, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MIB = 2**20


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one machine.

    Attributes:
        bandwidth: bytes read and written in a second by a copy, or by a change in place, that no
            cache holds; whichever is more. A copy to elsewhere often reads its target first.
        flop_rate: float32 FLOPs in a second of a large matrix product.
        threads: PyTorch's threads at the time.
    """

    bandwidth: float
    flop_rate: float
    threads: int


def measure_ceilings(
    *, copy_bytes: int = 256 * MIB, side: int = 1024, runs: int = 5, device: str = "cpu"
) -> Ceilings:
    """Measure both ceilings with PyTorch's present number of threads.

    Args:
        copy_bytes: size of the array that is copied; well above the last-level cache.
        side: rows and columns of the square matrices.
        runs: of each measurement; the fastest counts, since a ceiling is what is possible.
        device: "cpu" or "cuda".
    Raises:
        ValueError: a size or number of runs below 1.
    """
    if min(copy_bytes // 4, side, runs) < 1:
        raise ValueError(f"copy_bytes {copy_bytes}, side {side} and runs {runs} are too small")
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_seconds = min(seconds_of(lambda: target.copy_(source), runs, device))
    in_place_seconds = min(seconds_of(lambda: source.mul_(1.0), runs, device))
    left, right, product = (torch.full((side, side), 0.5, device=device) for _ in range(3))
    product_seconds = min(seconds_of(lambda: torch.mm(left, right, out=product), runs, device))
    return Ceilings(
        bandwidth=2 * source.nbytes / min(copy_seconds, in_place_seconds),
        flop_rate=2 * side**3 / product_seconds,
        threads=torch.get_num_threads(),
    )


def seconds_of(call: Callable[[], object], runs: int, device: str = "cpu") -> list[float]:
    """Of each of so many calls in a row, after one that is not counted; a GPU finishes each."""
    call()
    times = []
    for _ in range(runs):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - start)
    return times


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
