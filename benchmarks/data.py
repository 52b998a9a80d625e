"""Preparation and loading: `python -m benchmarks.data`.

Preparation is of the embedded corpus, end to end, with a tokenizer of 10,000 tokens trained before
the clock starts. Loading is of what was prepared, epoch after epoch, rows of 1,024 tokens.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.harness import Spread, report, several
from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.data.loading import Loader, TokenStream, open_split
from firsthand.llm.data.preparation import END_OF_TEXT, prepare
from firsthand.llm.tokenizer import Tokenizer, train
from firsthand.resources import usable_cores

VOCABULARY = 10_000
SEQUENCE_LENGTH = 1024
BATCH_SIZE = 32
LOADED_TOKENS = 40_000_000
RUNS = 5


def prepare_seconds(
    corpus: EmbeddedCorpus, tokenizer: Tokenizer, folder: Path, processes: int | None
) -> float:
    """Seconds from the documents to a whole folder, which is made anew."""
    begin = time.perf_counter()
    prepare(corpus, tokenizer, folder, processes=processes, restart=True)
    return time.perf_counter() - begin


def peak_megabytes(
    corpus: EmbeddedCorpus, tokenizer: Tokenizer, folder: Path, processes: int
) -> float:
    """The greatest memory of a fresh process that prepares, with all that it starts, in MB."""
    peak, done = 0, threading.Event()
    child = multiprocessing.get_context("spawn").Process(
        target=prepare_seconds, args=(corpus, tokenizer, folder, processes)
    )
    child.start()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            try:
                family = psutil.Process(child.pid)
                members = [family, *family.children(recursive=True)]
                # Pages that several processes share are counted by their share.
                peak = max(peak, sum(member.memory_full_info().pss for member in members))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    child.join()
    done.set()
    watcher.join()
    if child.exitcode:
        raise RuntimeError(f"preparation ended with {child.exitcode}")
    return peak / 1e6


def loading_rate(stream: TokenStream, *, documents: bool) -> float:
    """Millions of real tokens a second."""
    loader = Loader(
        stream, sequence_length=SEQUENCE_LENGTH, batch_size=BATCH_SIZE, documents=documents
    )
    tokens, begin = 0, time.perf_counter()
    while tokens < LOADED_TOKENS:
        tokens += loader.next_batch().real_tokens
    return tokens / (time.perf_counter() - begin) / 1e6


def row(name: str, spread: Spread, unit: str, goal: str) -> tuple[str, str, str, str]:
    """One line of the table."""
    text = f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"
    return name, text, unit, goal


def main() -> None:
    """Measure, print the table, store the record."""
    corpus = EmbeddedCorpus()
    tokenizer = train(corpus.texts(), VOCABULARY, special_tokens=[END_OF_TEXT])
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "prepared")
        # Before the clock: the compiled code goes to its cache.
        prepare_seconds(corpus, tokenizer, folder, 1)
        one = several(lambda: prepare_seconds(corpus, tokenizer, folder, 1), RUNS)
        all_cores = several(lambda: prepare_seconds(corpus, tokenizer, folder, cores), RUNS)
        usual = several(lambda: prepare_seconds(corpus, tokenizer, folder, None), RUNS)
        memory = peak_megabytes(corpus, tokenizer, folder, cores)
        stream = open_split(folder, "train")
        plain = several(lambda: loading_rate(stream, documents=False), RUNS)
        numbered = several(lambda: loading_rate(stream, documents=True), RUNS)
        tokens = len(stream)
    megabytes = (corpus.total_bytes() or 0) / 1e6
    rows = [
        row("prepare, 1 process", one, "s", ""),
        row(f"prepare, {cores} processes", all_cores, "s", "below 6"),
        row("prepare, as by default", usual, "s", "below 6"),
        (f"memory, {cores} processes", f"{memory:.0f}", "MB", "below 500"),
        row("load", plain, "M tokens/s", "50 or more"),
        row("load with document numbers", numbered, "M tokens/s", ""),
    ]
    report(
        "data",
        ["what", "median (range)", "unit", "goal"],
        rows,
        {
            "corpus_megabytes": megabytes,
            "train_tokens": tokens,
            "prepare_seconds": usual.median,
            "prepare_seconds_1_process": one.median,
            "prepare_seconds_all_cores": all_cores.median,
            "prepare_peak_megabytes": memory,
            "loader_million_tokens_per_second": plain.median,
            "loader_with_documents_million_tokens_per_second": numbered.median,
        },
        note=f"{megabytes:.1f} MB of text, {RUNS} runs each",
    )


if __name__ == "__main__":
    main()
