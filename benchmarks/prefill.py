"""Tokens per second of reading a prompt of 512 tokens on the CPU, beside llama.cpp's Q8_0.

Sides, processes and medians as in `benchmarks.decode`.

    python -m benchmarks.prefill [--shape laptop-10m] [--rounds 5]
"""

from __future__ import annotations

from benchmarks.harness import Spread, report
from benchmarks.inference_sides import (
    LARGE,
    LLAMA,
    LLAMA_FLASH,
    OURS,
    SHAPES,
    opened,
    options_of,
    prefill_rates,
    print_record,
    shown,
    sides,
    tokens_of,
    turns,
)

PROMPT = 512


def main() -> None:
    options = options_of(__doc__, runs=4)
    config = SHAPES[options.shape]
    if options.side:
        side = opened(options.side, config, options.folder)
        print_record({"prefill": prefill_rates(side, tokens_of(config, PROMPT), options.runs)})
        return
    with turns("prefill", options) as measured:
        found = measured(sides(peers=not options.no_peers), options.rounds)
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
