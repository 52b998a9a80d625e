"""Tokens per second of reading a prompt of 512 tokens on the CPU, beside llama.cpp's Q8_0.

Sides, processes and medians as in `benchmarks.decode`.

    python -m benchmarks.prefill [--shape laptop-10m] [--rounds 5]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.harness import Spread, report
from benchmarks.inference_sides import (
    LARGE,
    LLAMA,
    LLAMA_FLASH,
    OURS,
    SHAPES,
    in_turns,
    opened,
    prefill_rates,
    print_record,
    shown,
    sides,
    tokens_of,
)

PROMPT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default=LARGE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=4, help="measurements in each process")
    parser.add_argument("--no-peers", action="store_true", help="llama.cpp alone")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = SHAPES[options.shape]
    if options.side:
        side = opened(options.side, config, options.folder)
        print_record({"prefill": prefill_rates(side, tokens_of(config, PROMPT), options.runs)})
        return
    with tempfile.TemporaryDirectory(prefix="firsthand-") as folder:
        words = ("--shape", options.shape, "--folder", folder, "--runs", str(options.runs))
        names = sides(peers=not options.no_peers)
        found = in_turns("prefill", names, options.rounds, *words)
    rates = {name: Spread(tuple(values["prefill"])) for name, values in found.items()}
    theirs = max(rates[LLAMA].median, rates[LLAMA_FLASH].median)
    large = options.shape == LARGE
    prefix = "" if large else f"{options.shape}_"
    results = {
        f"{prefix}ratio": rates[OURS].median / theirs,
        f"{prefix}tokens_per_s": rates[OURS].median,
    }
    rows = [[name, shown(spread)] for name, spread in rates.items()]
    columns = [options.shape, f"tokens/s, {PROMPT} tokens"]
    report("prefill" if large else f"prefill-{options.shape}", columns, rows, results)


if __name__ == "__main__":
    main()
