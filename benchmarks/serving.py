"""One client and eight at once against a real server: tokens per second and time to first token.

    python -m benchmarks.serving

The model has the shape of a preset and random weights: what it says means nothing and costs what
it would cost. `firsthand serve` runs in a process of its own; clients stream completions over HTTP,
with random prompts, so that no slot has read any of them before, and the settings of the API's
defaults. The phases with one client and with several take turns, and medians count. Clients and
server share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import Spread, report
from firsthand.llm.inference.opening import rounded
from firsthand.llm.model.config import ModelConfig, preset
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import save_quantized
from firsthand.llm.tokenizer.tokenizer import Tokenizer

NAME = "model"
ASCII = 128


@dataclass(frozen=True)
class Setting:
    """What each client asks for.

    Attributes:
        prompt: tokens of each prompt.
        tokens: generated for each.
        requests: of a client, one after the other.
        clients: at once, in the phase with several.
    """

    prompt: int
    tokens: int
    requests: int
    clients: int


@dataclass(frozen=True)
class Phase:
    """What some clients at once saw.

    Attributes:
        rate: generated tokens of all clients over wall seconds.
        first: seconds from each request to its first text.
        between: mean seconds from a token to the next, of each request.
    """

    rate: float
    first: list[float]
    between: list[float]


def paired_tokenizer(size: int) -> Tokenizer:
    """A tokenizer of any size in no time: bytes, and pairs of ASCII characters."""
    pairs = ((left, right) for left in range(ASCII) for right in range(ASCII))
    count = size - 257
    if not 0 <= count <= ASCII * ASCII:
        raise SystemExit(f"this benchmark makes tokenizers of 257 to 16641 tokens; not {size}")
    byte_ids = list(range(256))
    merges = [pair for _, pair in zip(range(count), pairs, strict=False)]
    return Tokenizer(merges, byte_ids=byte_ids, special_tokens=["<|endoftext|>"])


def save_model(folder: Path, config: ModelConfig) -> None:
    """A quantized model of random weights."""
    tokenizer = paired_tokenizer(config.vocab_size)
    save_quantized(folder, rounded(Transformer(config, FAST)), tokenizer)


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[int]:
    """`firsthand serve` in a process of its own; the port."""
    command = [sys.executable, "-m", "firsthand", "serve", str(folder), "--port", "0", *words]
    process = subprocess.Popen([*command, "--name", NAME], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(2)]
        found = re.search(r":(\d+)/v1", said[1])
        if found is None:
            raise SystemExit(f"the server did not start: {''.join(said)}")
        print(said[0].strip(), file=sys.stderr)
        yield int(found[1])
    finally:
        process.terminate()
        process.communicate()


async def stream(port: int, prompt: list[int], tokens: int) -> tuple[float, float, int]:
    """Seconds to the first text and to the end, and the tokens that were generated."""
    body = {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = json.dumps(body).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    )
    first, generated = 0.0, 0
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - began
        if b'"choices":[]' in line:
            generated = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    if not generated:
        raise SystemExit("a request was not answered: see the server's output")
    return first, time.perf_counter() - began, generated


async def phase(port: int, clients: int, setting: Setting, config: ModelConfig) -> Phase:
    """Some clients at once, each with its requests one after the other."""
    first: list[float] = []
    between: list[float] = []
    total = 0

    async def client() -> None:
        nonlocal total
        for _ in range(setting.requests):
            prompt = [random.randrange(config.vocab_size - 1) for _ in range(setting.prompt)]
            began, ended, generated = await stream(port, prompt, setting.tokens)
            first.append(began)
            if generated > 1:
                between.append((ended - began) / (generated - 1))
            total += generated

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Phase(total / (time.perf_counter() - began), first, between)


def measure(port: int, setting: Setting, config: ModelConfig, runs: int) -> dict[int, list[Phase]]:
    """Phases by the number of clients; the first of each is for warming up."""
    found: dict[int, list[Phase]] = {1: [], setting.clients: []}
    short = replace(setting, requests=1, tokens=min(16, setting.tokens))
    for clients in found:
        asyncio.run(phase(port, clients, short, config))
    for _ in range(runs):
        for clients, phases in found.items():
            phases.append(asyncio.run(phase(port, clients, setting, config)))
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="full-100m")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="generated for each request")
    parser.add_argument("--requests", type=int, default=2, help="of each client in a phase")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-store", action="store_true")
    chosen = parser.parse_args()
    setting = Setting(chosen.prompt, chosen.tokens, chosen.requests, chosen.clients)
    config = preset(chosen.preset)
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="firsthand-") as temporary:
        folder = Path(temporary, "int8")
        save_model(folder, config)
        words = ("--slots", str(setting.clients), "--engine", chosen.engine)
        with serving(folder, *words, "--threads", str(chosen.threads)) as port:
            found = measure(port, setting, config, chosen.runs)
    rates = {clients: Spread(tuple(p.rate for p in phases)) for clients, phases in found.items()}
    ratios = [
        many.rate / one.rate for one, many in zip(found[1], found[setting.clients], strict=True)
    ]
    results = {"throughput_ratio": statistics.median(ratios)}
    rows = []
    for clients, phases in found.items():
        first = Spread(tuple(1e3 * seconds for p in phases for seconds in p.first))
        between = Spread(tuple(1e3 * seconds for p in phases for seconds in p.between))
        rate = rates[clients]
        name = f"clients_{clients}"
        results |= {
            f"{name}_tokens_per_second": rate.median,
            f"{name}_first_token_p50_ms": first.percentile(0.5),
            f"{name}_first_token_p95_ms": first.percentile(0.95),
            f"{name}_between_tokens_p50_ms": between.percentile(0.5),
        }
        rows.append(
            (
                str(clients),
                f"{rate.median:.0f} ({rate.low:.0f} to {rate.high:.0f})",
                f"{first.percentile(0.5):.0f}",
                f"{first.percentile(0.95):.0f}",
                f"{between.percentile(0.5):.1f}",
            )
        )
    report(
        "serving",
        ("clients", "tokens/s of all", "first token p50, ms", "p95, ms", "between tokens, ms"),
        rows,
        results,
        note=f"{setting.clients} clients at once: {results['throughput_ratio']:.2f} times the "
        f"tokens per second of one ({min(ratios):.2f} to {max(ratios):.2f}); prompts of "
        f"{setting.prompt} tokens, {setting.tokens} generated.",
        store=not chosen.no_store,
    )


if __name__ == "__main__":
    main()
