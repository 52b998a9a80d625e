"""Training against Hugging Face's `tokenizers` and encoding against `tiktoken`, side by side.

The corpus is the standard library's own source and documentation, 31.5 MB. The peers are measured
in turn with ours, run for run, so that a busy machine slows both; merges and ids must be equal.

    python -m benchmarks.tokenizer            the measurement
    python -m benchmarks.tokenizer --quick    2 MB, one run each: does it work at all?
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the peers are imported: their threads are counted, ours are given by number.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import tokenizers

from benchmarks.harness import Spread, report
from firsthand.llm.tokenizer import Tokenizer, train
from firsthand.llm.tokenizer.byte_alphabet import to_printable
from firsthand.llm.tokenizer.tiktoken_export import to_tiktoken
from firsthand.resources import usable_cores

CORPUS_BYTES = 31_500_000
VOCABULARY = 10_000
SUFFIXES = (".py", ".txt", ".rst")
FIRST_CALL = """
import time
start = time.perf_counter()
from firsthand.llm.tokenizer import Tokenizer, train
train(["a first text to train on, a second text"], 260)
Tokenizer([]).encode_array("x " * 4000)
print(time.perf_counter() - start)
"""


def corpus(size: int) -> list[str]:
    """Files of the standard library in sorted order, until there are `size` bytes."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: list[str] = []
    total = 0
    for path in sorted(root.rglob("*")):
        if path.suffix not in SUFFIXES or "site-packages" in path.parts or not path.is_file():
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        texts.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return texts


def train_peer(texts: list[str]) -> tokenizers.Tokenizer:
    """`tokenizers` with the settings that ours has: GPT-2's pattern, no least frequency."""
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    peer.train_from_iterator(texts, trainer)
    return peer


def alternately(
    runs: int, measures: dict[str, Callable[[], Any]], clock: Callable[[], float]
) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Seconds of each by this clock, taken in turn, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    last: dict[str, Any] = {}
    for _ in range(runs):
        for name, measure in measures.items():
            start = clock()
            last[name] = measure()
            seconds[name].append(clock() - start)
    return {name: Spread(tuple(values)) for name, values in seconds.items()}, last


def ratio(peer: Spread, ours: Spread) -> Spread:
    """Peer's time / ours, run by run: both of a run were measured in the same seconds."""
    return Spread(tuple(a / b for a, b in zip(peer.values, ours.values, strict=True)))


def first_call_seconds(folder: Path | None) -> float:
    """A new process to its first trained and encoded text; an empty folder makes it compile."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(folder)} if folder else {})
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def require_equal_merges(ours: Tokenizer, peer: tokenizers.Tokenizer) -> None:
    """Both vocabularies, token by token in the order of their ids."""
    expected = sorted(peer.get_vocab().items(), key=lambda item: item[1])
    found = [to_printable(token) for token in ours.tokens().values()]
    if [token for token, _ in expected] != found:
        raise SystemExit("the merges differ: there is nothing to compare")


def row(name: str, spread: Spread, unit: str, digits: int = 2) -> tuple[str, str, str, str]:
    """A line of the table."""
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    return name, f"{spread.median:.{digits}f} {unit}", f"{low} - {high}", str(len(spread.values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 MB, one run, nothing stored")
    quick = parser.parse_args().quick
    texts = corpus(2_000_000 if quick else CORPUS_BYTES)
    size = sum(len(text.encode()) for text in texts)
    cores = usable_cores()
    # Compiling is measured apart, and must not be part of the first run.
    Tokenizer([]).encode_array("x " * 4000)
    train(texts[:3], 300, workers=cores)

    training, trained = alternately(
        1 if quick else 3,
        {
            "peer": lambda: train_peer(texts),
            "ours": lambda: train(texts, VOCABULARY, minimum_frequency=0, workers=cores),
        },
        time.perf_counter,
    )
    ours: Tokenizer = trained["ours"]
    require_equal_merges(ours, trained["peer"])

    # A new tokenizer for each run: the pieces that ours remembers must not come from an earlier
    # one. tiktoken is asked for lists or for arrays, whichever is faster. Both encode on the one
    # thread whose time is taken, so other programs on the machine hardly count.
    encoding = to_tiktoken(ours)
    runs = 1 if quick else 5
    warm, *new = (Tokenizer(ours.merges) for _ in range(runs + 1))
    for tokenizer in new:
        tokenizer.encode_array("x" * 4000)
    warm.encode_documents(texts)
    encoded_in, encoded = alternately(
        runs,
        {
            "list": lambda: [encoding.encode_ordinary(text) for text in texts],
            "array": lambda: [encoding.encode_to_numpy(text) for text in texts],
            "ours": lambda: new.pop().encode_documents(texts)[0],
            "warm": lambda: warm.encode_documents(texts)[0],
        },
        time.thread_time,
    )
    expected = np.array([i for ids in encoded["list"] for i in ids], np.uint32)
    if not np.array_equal(expected, encoded["ours"]) or not np.array_equal(
        expected, encoded["warm"]
    ):
        raise SystemExit("the ids differ: there is nothing to compare")
    faster = min(("list", "array"), key=lambda name: encoded_in[name].median)
    speed = {
        name: Spread(tuple(size / 1e6 / second for second in spread.values))
        for name, spread in encoded_in.items()
    }

    train_ratio = ratio(training["peer"], training["ours"])
    encode_ratio = ratio(encoded_in[faster], encoded_in["ours"])
    warm_ratio = ratio(encoded_in[faster], encoded_in["warm"])
    loaded = first_call_seconds(None)
    with tempfile.TemporaryDirectory() as folder:
        compiled = first_call_seconds(Path(folder))
    results = {
        "train_ratio": round(train_ratio.median, 2),
        "encode_ratio": round(encode_ratio.median, 2),
        "encode_warm_ratio": round(warm_ratio.median, 2),
        "train_seconds": round(training["ours"].median, 3),
        "encode_mb_per_s": round(speed["ours"].median, 1),
        "first_call_cached_s": round(loaded, 2),
        "first_call_compiling_s": round(compiled, 2),
    }
    rows = [
        row("train, tokenizers", training["peer"], "s"),
        row(f"train, ours, {cores} workers", training["ours"], "s"),
        row("  ratio", train_ratio, "x"),
        row("encode, tiktoken, lists", speed["list"], "MB/s"),
        row("encode, tiktoken, arrays", speed["array"], "MB/s"),
        row("encode, ours, new tokenizer", speed["ours"], "MB/s"),
        row("  ratio", encode_ratio, "x"),
        row("encode, ours, pieces known", speed["warm"], "MB/s"),
        row("  ratio", warm_ratio, "x"),
        row("first call, loading what is compiled", Spread((loaded,)), "s"),
        row("first call, compiling", Spread((compiled,)), "s"),
    ]
    report(
        "tokenizer",
        ("", "median", "spread", "runs"),
        rows,
        results,
        note=f"{size / 1e6:.1f} MB, {len(texts)} files, {VOCABULARY} tokens, one thread encodes.",
        store=not quick,
    )


if __name__ == "__main__":
    main()
