"""The sides of the inference benchmarks: one shape with random weights, run by each of the peers.

A side reads a prompt (`prefill`) and then takes one token after the other (`decode`); the tokens
are given, so nobody samples. Every side computes the logits of the last token of each call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.harness import Spread, in_own_process
from benchmarks.llama import transformers_llama
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.model.config import ModelConfig, preset
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import QuantizedModel
from firsthand.llm.quantization.schemes import Scheme, quantize_matrix
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes
from firsthand.resources import usable_cores

OURS, LLAMA, LLAMA_FLASH = "firsthand INT8", "llama.cpp Q8_0", "llama.cpp Q8_0, flash attention"
TORCH, TRANSFORMERS = "PyTorch dynamic INT8", "transformers float32"
MISSING = "needs llama.cpp: pip install llama-cpp-python gguf (it compiles for this processor)"

# The shape that the goals are for.
LARGE = "97.5M"
SHAPES: dict[str, ModelConfig] = {
    LARGE: ModelConfig(
        vocab_size=16384, context=1024, d_model=768, n_layers=12, n_heads=12, d_ff=2048
    ),
    "laptop-10m": preset("laptop-10m"),
}


class Side(Protocol):
    """A model that is ready to run."""

    def prefill(self, tokens: list[int]) -> None:
        """Start a new text with these."""
        ...

    def decode(self, token: int) -> None:
        """One more token of the text."""
        ...


def tokens_of(config: ModelConfig, count: int) -> list[int]:
    """So many random tokens, the same for all sides."""
    return [int(t) for t in np.random.default_rng(0).integers(0, config.vocab_size, count)]


def random_quantized(config: ModelConfig) -> QuantizedModel:
    """A model as it is initialized, in INT8 with a scale for each row."""
    state = Transformer(config, FAST).state_dict()
    scheme = Scheme()
    return QuantizedModel(
        config=config,
        settings=QuantizationSettings(),
        matrices={n: quantize_matrix(state[n].numpy(), scheme) for n in matrix_shapes(config)},
        vectors={n: state[n].numpy() for n in vector_shapes(config)},
    )


class Ours:
    """The CPU engine."""

    def __init__(self, config: ModelConfig) -> None:
        self.engine = CPUEngine(random_quantized(config), capacity=min(config.context, 1024))
        self.position = 0
        self.zero = np.zeros(1, np.int32)

    def prefill(self, tokens: list[int]) -> None:
        places = np.arange(len(tokens), dtype=np.int32)
        self.engine.forward(np.array(tokens, np.int32), 0 * places, places, places[-1:])
        self.position = len(tokens)

    def decode(self, token: int) -> None:
        place = np.array([self.position], np.int32)
        self.engine.forward(np.array([token], np.int32), self.zero, place, self.zero)
        self.position += 1


class Llama:
    """llama.cpp, by its C functions: no wrapper of theirs is timed."""

    def __init__(self, config: ModelConfig, folder: Path, *, flash: bool) -> None:
        import llama_cpp

        from firsthand.llm.quantization.gguf_export import save_gguf

        path = folder / "model.gguf"
        if not path.exists():
            save_gguf(Transformer(config, FAST), path, kind="q8_0")
        self.api = llama_cpp
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = min(config.context, 1024)
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = usable_cores()
        settings.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if flash
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not model or not self.context:
            raise SystemExit("llama.cpp did not take the model")

    def prefill(self, tokens: list[int]) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self._run(tokens)

    def decode(self, token: int) -> None:
        self._run([token])

    def _run(self, tokens: list[int]) -> None:
        ids = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit("llama.cpp could not decode")
        self.api.llama_synchronize(self.context)


def _no_log(level: int, text: bytes, data: Any) -> None:
    """Nothing."""


try:
    from llama_cpp import llama_log_callback

    _silent: Any = llama_log_callback(_no_log)
except ImportError:
    _silent = None


class Theirs:
    """transformers' Llama in float32, or with PyTorch's dynamic INT8 in its linear layers."""

    def __init__(self, config: ModelConfig, *, quantized: bool) -> None:
        model = transformers_llama(config, "sdpa").eval()
        if quantized:
            from torch.ao.quantization import quantize_dynamic

            quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
        self.model, self.cache = model, None

    def prefill(self, tokens: list[int]) -> None:
        self.cache = None
        self._run(tokens)

    def decode(self, token: int) -> None:
        self._run([token])

    @torch.inference_mode()
    def _run(self, tokens: list[int]) -> None:
        found = self.model(
            torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = found.past_key_values


def opened(side: str, config: ModelConfig, folder: Path) -> Side:
    """A side by its name; `folder` keeps files between processes."""
    makers: dict[str, Callable[[], Side]] = {
        OURS: lambda: Ours(config),
        LLAMA: lambda: Llama(config, folder, flash=False),
        LLAMA_FLASH: lambda: Llama(config, folder, flash=True),
        TORCH: lambda: Theirs(config, quantized=True),
        TRANSFORMERS: lambda: Theirs(config, quantized=False),
    }
    return makers[side]()


def sides(*, peers: bool) -> list[str]:
    """The sides that can run here.

    Args:
        peers: also those that are shown beside and that no goal is against.
    """
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf")):
        raise SystemExit(f"this benchmark {MISSING}")
    return [OURS, LLAMA, LLAMA_FLASH, *([TORCH, TRANSFORMERS] if peers else [])]


def decode_rates(side: Side, tokens: list[int], depth: int, count: int, runs: int) -> list[float]:
    """Tokens per second of `count` tokens behind `depth` others, several times."""
    rates = []
    for _ in range(runs):
        side.prefill(tokens[: max(1, depth)])
        began = time.perf_counter()
        for token in tokens[-count:]:
            side.decode(token)
        rates.append(count / (time.perf_counter() - began))
    return rates


def prefill_rates(side: Side, tokens: list[int], runs: int) -> list[float]:
    """Tokens per second of a prompt, several times."""
    rates = []
    side.prefill(tokens)
    for _ in range(runs):
        began = time.perf_counter()
        side.prefill(tokens)
        rates.append(len(tokens) / (time.perf_counter() - began))
    return rates


def in_turns(benchmark: str, names: list[str], rounds: int, *words: str) -> dict[str, Any]:
    """Every side in a process of its own, side after side, several times: lists joined by key."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(rounds):
        for name in names:
            record = in_own_process(benchmark, "--side", name, *words)
            for key, values in record.items():
                found[name].setdefault(key, []).extend(values)
    return found


def options_of(description: str | None, *, runs: int) -> argparse.Namespace:
    """What is typed behind a benchmark of the sides; `side` and `folder` in their own processes.

    Args:
        runs: measurements in each process by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=SHAPES, default=LARGE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=runs, help="measurements in each process")
    parser.add_argument("--no-peers", action="store_true", help="llama.cpp alone")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def turns(
    benchmark: str, options: argparse.Namespace
) -> Iterator[Callable[[list[str], int], dict[str, Any]]]:
    """`in_turns` of sides and rounds, with these options and a folder that all processes see."""
    with tempfile.TemporaryDirectory(prefix="firsthand-") as folder:
        words = ("--shape", options.shape, "--folder", folder, "--runs", str(options.runs))
        yield lambda names, rounds: in_turns(benchmark, names, rounds, *words)


def print_record(record: dict[str, list[float]]) -> None:
    """What a side's process says, as its last line."""
    print(json.dumps(record))


def shown(spread: Spread) -> str:
    """A rate and its spread for a table."""
    return f"{spread.median:,.0f} ({spread.low:,.0f} to {spread.high:,.0f})"
