"""Tokens per second of decoding on the CPU, one text at a time, beside llama.cpp's Q8_0.

The same shape with random weights on all cores. Each side runs in a process of its own, the sides
take turns, and medians count; llama.cpp counts with the better of its two attentions. The read
bandwidth is measured in the same rounds, by as many threads, on an array that no cache holds.
PyTorch's dynamic INT8 and transformers' float32 stand beside.

    python -m benchmarks.decode [--shape laptop-10m] [--rounds 5]
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Spread, report
from benchmarks.inference_sides import (
    LARGE,
    LLAMA,
    LLAMA_FLASH,
    OURS,
    SHAPES,
    decode_rates,
    opened,
    options_of,
    print_record,
    shown,
    sides,
    tokens_of,
    turns,
)
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.kernels.compiling import compiled
from firsthand.resources import usable_cores

BANDWIDTH = "read bandwidth"
DEPTHS = (0, 512)
TOKENS = 128
MIB = 2**20
# Sides beside are many times slower, and one round shows that.
FEW_TOKENS = 32


@compiled
def _sum(numbers: NDArray[np.int64]) -> int:
    total = np.int64(0)
    for i in range(len(numbers)):
        total += numbers[i]
    return total


def read_bandwidth(size: int = 512 * MIB, runs: int = 8) -> list[float]:
    """Bytes per second that all cores read together from memory, several times."""
    cores = usable_cores()
    shares = np.array_split(np.ones(size // 8, np.int64), cores)
    rates = []
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(_sum, shares))
        for _ in range(runs):
            began = time.perf_counter()
            list(pool.map(_sum, shares))
            rates.append(size / (time.perf_counter() - began))
    return rates


def run_side(name: str, shape: str, folder: Path, runs: int) -> dict[str, list[float]]:
    """One process of one side."""
    if name == BANDWIDTH:
        return {BANDWIDTH: read_bandwidth()}
    config = SHAPES[shape]
    side = opened(name, config, folder)
    main = name in (OURS, LLAMA, LLAMA_FLASH)
    count = TOKENS if main else FEW_TOKENS
    tokens = tokens_of(config, 1024)
    depths = [depth for depth in DEPTHS if depth + count <= config.context]
    # The first tokens, with cold caches and a slow clock, do not count.
    decode_rates(side, tokens, 0, count, 1)
    found = {f"d{d}": decode_rates(side, tokens, d, count, runs if main else 1) for d in depths}
    if name == OURS:
        engine: CPUEngine = side.engine  # type: ignore[attr-defined]
        found |= {"bytes": [float(engine.weight_bytes)], "threads": [float(engine.threads)]}
    return found


def main() -> None:
    options = options_of(__doc__, runs=3)
    if options.side:
        record = run_side(options.side, options.shape, options.folder, options.runs)
        print_record(record)
        return
    names = [*sides(peers=False), BANDWIDTH]
    with turns("decode", options) as measured:
        found = measured(names, options.rounds)
        if not options.no_peers:
            beside = [name for name in sides(peers=True) if name not in names]
            found |= measured(beside, 1)
    _report(options.shape, found)


def _report(shape: str, found: dict[str, Any]) -> None:
    bandwidth = Spread(tuple(found.pop(BANDWIDTH)[BANDWIDTH]))
    ours = found[OURS]
    keys = [key for key in ours if key.startswith("d")]
    prefix = "" if shape == LARGE else f"{shape}_"
    results: dict[str, Any] = {}
    for key in keys:
        theirs = max(Spread(tuple(found[name][key])).median for name in (LLAMA, LLAMA_FLASH))
        rate = Spread(tuple(ours[key])).median
        results |= {f"{prefix}{key}_ratio": rate / theirs, f"{prefix}{key}_tokens_per_s": rate}
    read = ours["bytes"][0] * results[f"{prefix}d0_tokens_per_s"]
    results[f"{prefix}bandwidth_share"] = read / bandwidth.median
    results |= {
        f"{prefix}read_bandwidth": bandwidth.median,
        f"{prefix}weight_bytes": ours["bytes"][0],
        f"{prefix}threads": ours["threads"][0],
    }
    rows = [
        [name, *(shown(Spread(tuple(values[key]))) if key in values else "" for key in keys)]
        for name, values in found.items()
    ]
    columns = [shape, *(f"tokens/s at depth {key[1:]}" for key in keys)]
    note = (
        f"Weights of one token: {ours['bytes'][0] / 1e6:.1f} MB; read at "
        f"{read / 1e9:.1f} GB/s; memory gives {bandwidth.median / 1e9:.1f} "
        f"({bandwidth.low / 1e9:.1f} to {bandwidth.high / 1e9:.1f})."
    )
    report("decode" if shape == LARGE else f"decode-{shape}", columns, rows, results, note=note)


if __name__ == "__main__":
    main()
