"""How much memory preparing takes when the corpus is far greater than it: minutes long."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.data.manifest import read_manifest
from firsthand.llm.tokenizer import train

GENERATED_BYTES = 2_000_000_000
LIMIT = 500_000_000

SCRIPT = f"""
from pathlib import Path
from firsthand.llm.data.embedded import EmbeddedCorpus
from firsthand.llm.data.preparation import prepare
from firsthand.llm.data.sources import Texts
from firsthand.llm.tokenizer import Tokenizer

def texts():
    # Whole modules and documents of a line, all different, and one of 20 MB.
    base = list(EmbeddedCorpus(size=4_000_000).texts())
    total, number = 0, 0
    yield "a line of a long document\\n" * 800_000
    while total < {GENERATED_BYTES}:
        for text in base:
            number += 1
            long, short = f"# {{number}}\\n{{text}}", f"line {{number}} of many"
            total += len(long) + len(short)
            yield long
            yield short

if __name__ == "__main__":
    tokenizer = Tokenizer.load("tokenizer.json")
    prepare(Texts("generated", texts), tokenizer, Path("out"), processes=2)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_gigabytes_pass_through_little_memory(tmp_path: Path) -> None:
    sample = EmbeddedCorpus(size=1_000_000).texts()
    tokenizer = train(sample, 4000, special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer.json")
    # The compiled code goes to its cache here: compiling takes some 100 MB of its own, once.
    tokenizer.encode_documents(["word " * 10_000])
    script = tmp_path / "large.py"
    script.write_text(SCRIPT)
    peak, done = 0, threading.Event()

    def watch(root: int) -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                family = psutil.Process(root)
                members = [family, *family.children(recursive=True)]
                peak = max(peak, sum(member.memory_full_info().pss for member in members))
            except psutil.Error:
                continue

    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path) as running:
        watcher = threading.Thread(target=watch, args=(running.pid,))
        watcher.start()
        running.wait()
        done.set()
        watcher.join()
    assert running.returncode == 0
    manifest = read_manifest(tmp_path / "out")
    assert sum(entry.bytes for entry in manifest.splits.values()) >= GENERATED_BYTES
    assert 0 < peak < LIMIT
