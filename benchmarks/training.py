"""Training steps of `laptop-10m` on the CPU, beside transformers' Llama of the same shape.

Both do the same work: the same tokens, loss, backward pass and AdamW, in float32. Theirs is the
model as its class makes it, with `torch.optim.AdamW` as it is by default, with both of its
attentions: "eager", its plain one, which the two main ratios are against, and "sdpa".

Each side runs in a process of its own, the sides take turns, and medians count. Memory is the peak
of the resident set less what the process held before the model was made; compiled loops that a side
loads or compiles are part of it. Time is wall time; the processors' time per token stands beside
it, since it suffers less from what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.harness import Spread, in_own_process, report
from benchmarks.llama import transformers_llama
from firsthand.llm.model.config import ModelConfig, preset
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.optimizer import Optimizer

OURS, PEERS = "firsthand", ("eager", "sdpa")
COMPILED = "-compiled"
MIB = 2**20
Step = Callable[[], float]


@dataclass(frozen=True)
class Setting:
    """What both sides train on.

    Attributes:
        batch: rows of `laptop-10m`'s context.
        steps: that are measured, after `warmup`, in each process.
        threads: of PyTorch.
    """

    batch: int
    warmup: int
    steps: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """One process of one side: a number for each step, and its memory.

    Attributes:
        seconds: wall time.
        processor_seconds: of all threads.
        peak_bytes: resident, less before the model.
        losses: nats per token, which show that both sides learn the same.
    """

    seconds: list[float]
    processor_seconds: list[float]
    peak_bytes: int
    losses: list[float]


def random_tokens(config: ModelConfig, batch: int) -> torch.Tensor:
    """(batch, context + 1): inputs and, one further, targets."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, config.context + 1)
    return torch.randint(config.vocab_size, shape, generator=generator)


def our_step(config: ModelConfig, tokens: torch.Tensor, compiled: bool) -> Step:
    """One update by this project's model and optimizer."""
    model = Transformer(config, FAST)
    # The values that PyTorch's AdamW has by default.
    settings = OptimizerSettings(
        learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01
    )
    optimizer = Optimizer(model, settings, FAST)
    loss_of = torch.compile(model.loss) if compiled else model.loss

    def step() -> float:
        loss = loss_of(tokens[:, :-1], tokens[:, 1:]).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_gradients()
        return loss.item()

    return step


def llama_step(config: ModelConfig, tokens: torch.Tensor, attention: str, compiled: bool) -> Step:
    """One update by transformers' Llama and PyTorch's AdamW."""
    model = transformers_llama(config, attention, use_cache=False)
    optimizer = torch.optim.AdamW(model.parameters())
    forward = torch.compile(model) if compiled else model
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        loss = forward(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def measure(side: str, setting: Setting) -> Measured:
    """Run one side in this process, which has made no model before.

    Raises:
        OSError: no /proc, from which the memory is read.
    """
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    config = preset("laptop-10m")
    tokens = random_tokens(config, setting.batch)
    attention, compiled = side.removesuffix(COMPILED), side.endswith(COMPILED)
    if attention != OURS:
        # Its import is not the model's memory.
        import transformers.models.llama.modeling_llama  # noqa: F401
    before = resident_bytes("VmRSS")
    reset_peak()
    if attention == OURS:
        step = our_step(config, tokens, compiled)
    else:
        step = llama_step(config, tokens, attention, compiled)
    losses = [step() for _ in range(setting.warmup)]
    seconds, processor_seconds = [], []
    for _ in range(setting.steps):
        start, processor_start = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    return Measured(seconds, processor_seconds, resident_bytes("VmHWM") - before, losses)


def resident_bytes(field: str) -> int:
    """Of this process: "VmRSS" now, "VmHWM" at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """Forget the peak of the imports, where the kernel lets a process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def measured_apart(side: str, setting: Setting) -> Measured:
    """`measure` in a process of its own."""
    words = [f"--{name}={value}" for name, value in asdict(setting).items()]
    return Measured(**in_own_process("training", f"--side={side}", *words))


def ratios(found: dict[str, list[Measured]], setting: Setting) -> dict[str, float]:
    """The results by key: throughput ours / theirs, peak memory ours / theirs."""
    results: dict[str, float] = {}
    ours = found[OURS]
    for peer, theirs in found.items():
        prefix = "" if peer == "eager" else f"{peer}_".replace("-", "_")
        if peer == OURS:
            prefix = "ours_"
        else:
            results[f"{prefix}throughput_ratio"] = _seconds(theirs) / _seconds(ours)
            results[f"{prefix}memory_ratio"] = _peak(ours) / _peak(theirs)
            results[f"{prefix}processor_time_ratio"] = _processor(theirs) / _processor(ours)
        label = {"eager": "eager_"}.get(peer, prefix)
        context = preset("laptop-10m").context
        results[f"{label}tokens_per_second"] = setting.batch * context / _seconds(theirs)
        results[f"{label}peak_bytes"] = _peak(theirs)
    return results


def _seconds(runs: list[Measured]) -> float:
    return statistics.median(value for run in runs for value in run.seconds)


def _processor(runs: list[Measured]) -> float:
    return statistics.median(value for run in runs for value in run.processor_seconds)


def _peak(runs: list[Measured]) -> float:
    return statistics.median(run.peak_bytes for run in runs)


def table(found: dict[str, list[Measured]], setting: Setting) -> list[list[str]]:
    """A row for each side: medians, and the least and the most in brackets."""
    tokens = setting.batch * preset("laptop-10m").context
    rows = []
    for side, runs in found.items():
        speed = Spread(tuple(tokens / value for run in runs for value in run.seconds))
        work = Spread(tuple(value for run in runs for value in run.processor_seconds))
        peak = Spread(tuple(run.peak_bytes / MIB for run in runs))
        rows.append(
            [
                side,
                f"{speed.median:,.0f} ({speed.low:,.0f} to {speed.high:,.0f})",
                f"{work.median:.2f} ({work.low:.2f} to {work.high:.2f})",
                f"{peak.median:,.0f} ({peak.low:,.0f} to {peak.high:,.0f})",
                f"{runs[-1].losses[0]:.3f} to {runs[-1].losses[-1]:.3f}",
            ]
        )
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=4, help="measured, in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--no-store", action="store_true")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all sides in turns, or one of them for the process that asked."""
    given = _arguments()
    setting = Setting(given.batch, given.warmup, given.steps, given.threads)
    if given.side:
        print(json.dumps(asdict(measure(given.side, setting))))
        return
    sides = [OURS, *PEERS]
    if given.compiled:
        sides += [side + COMPILED for side in sides]
    found: dict[str, list[Measured]] = {side: [] for side in sides}
    # Compiled once and cached, so that no measured process pays for it.
    measured_apart(OURS, Setting(1, 0, 1, given.threads))
    for number in range(given.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            found[side].append(measured_apart(side, setting))
    columns = ("side", "tokens/s", "processor s/step", "peak MiB over start", "loss")
    note = f"{given.batch} rows of 512 tokens, {given.threads} threads; (least to most)"
    report(
        "training",
        columns,
        table(found, setting),
        ratios(found, setting),
        note=note,
        store=not given.no_store,
    )


if __name__ == "__main__":
    main()
