"""Predicted against measured time on this machine's CPU: a token, a prompt, a training step.

Each round measures the machine's limits in a process of its own, and then, in others, what is
predicted from them alone: decoding and prefill of the CPU engine with random weights, and whole
updates (micro-batches, clipping, optimizer) in float32. Medians over the rounds are compared; the
error is predicted / measured - 1, and the worst of each kind counts.

    python -m benchmarks.latency [--rounds 3] [--seconds 25]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Spread, in_own_process, report
from firsthand.llm.audit.ceilings import MachineCeilings, measure_machine_ceilings
from firsthand.llm.audit.latency import predicted_decode, predicted_prefill, predicted_step
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.presets import run_config

LIMITS = "limits"
SHAPES = ("97.5M", "laptop-10m")
# Of laptop-10m two micro-batches of 8 rows: an update of its 64 would only repeat them.
STEPS: dict[str, tuple[str, ...]] = {"nano": (), "laptop-10m": ("training.batch_size=16",)}
PROMPT, DEPTHS, TOKENS = 512, (0, 512), 32
KINDS = ("decode", "prefill", "step")
Seconds = dict[str, list[float]]


def engine_seconds(shape: str, runs: int) -> Seconds:
    """Of a token at each depth and of a prompt, several times."""
    from benchmarks import inference_sides as sides

    config = sides.SHAPES[shape]
    engine, tokens = sides.Ours(config), sides.tokens_of(config, config.context)
    found: Seconds = {}
    engine.prefill(tokens[:PROMPT])
    found[f"prefill {shape} {PROMPT}"] = [
        _timed(lambda: engine.prefill(tokens[:PROMPT])) for _ in range(runs)
    ]
    for depth in DEPTHS:
        behind = min(depth, config.context - TOKENS)
        key, rates = f"decode {shape} {behind}", []
        for _ in range(runs + 1):
            engine.prefill(tokens[: max(1, behind)])
            rates.append(_timed(lambda: [engine.decode(t) for t in tokens[:TOKENS]]) / TOKENS)
        found[key] = rates[1:]
    engine.engine.close()
    return found


def step_config(name: str) -> RunConfig:
    """The run whose updates are measured."""
    return run_config(name, STEPS[name])


def step_seconds(name: str, runs: int) -> Seconds:
    """Of an update, several times."""
    import torch

    from firsthand.llm.model.transformer import Transformer
    from firsthand.llm.parts import FAST
    from firsthand.llm.training.optimizers.optimizer import Optimizer
    from firsthand.resources import usable_cores

    torch.set_num_threads(usable_cores())
    config = step_config(name)
    settings = config.training
    model = Transformer(config.model, FAST)
    optimizer = Optimizer(model, config.optimizer, FAST)
    rows = settings.micro_batch or settings.batch_size
    shape = (rows, config.sequence_length + 1)
    tokens = torch.randint(config.model.vocab_size, shape, generator=torch.Generator())

    def step() -> None:
        for _ in range(settings.batch_size // rows):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            (loss.total / (settings.batch_size * config.sequence_length)).backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        FAST.clip_gradients(found, config.optimizer.clip)
        optimizer.step()
        optimizer.zero_gradients()

    for _ in range(2):
        step()
    return {f"step {name}": [_timed(step) for _ in range(runs)]}


def predicted_seconds(limits: MachineCeilings) -> dict[str, float]:
    """Of everything that is measured, from the machine's limits alone."""
    from benchmarks.inference_sides import SHAPES as CONFIGS

    cpu, found = limits.cpu, {}
    for shape in SHAPES:
        config = CONFIGS[shape]
        found[f"prefill {shape} {PROMPT}"] = predicted_prefill(config, cpu, length=PROMPT).seconds
        for depth in DEPTHS:
            # The middle of the tokens that are measured.
            behind = min(depth, config.context - TOKENS)
            middle = max(1, behind) + TOKENS // 2
            found[f"decode {shape} {behind}"] = predicted_decode(config, cpu, depth=middle).seconds
    for name in STEPS:
        found[f"step {name}"] = predicted_step(step_config(name), cpu).seconds
    return found


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="of each thing in a round")
    parser.add_argument("--seconds", type=float, default=25, help="for the limits in a round")
    parser.add_argument("--side", default="")
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    # As the program itself has it, for all that PyTorch runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if options.side == LIMITS:
        print(json.dumps(measure_machine_ceilings(seconds=options.seconds).to_json()))
    elif options.side == "engine":
        print(json.dumps(engine_seconds(options.name, options.runs)))
    elif options.side == "step":
        print(json.dumps(step_seconds(options.name, options.runs)))
    else:
        _report(*_measured(options))


def _measured(options: argparse.Namespace) -> tuple[Seconds, Seconds]:
    """Predicted and measured seconds by name."""
    predicted: Seconds = {}
    measured: Seconds = {}
    words = ["--runs", str(options.runs), "--seconds", str(options.seconds)]
    for _ in range(options.rounds):
        record: Any = in_own_process("latency", "--side", LIMITS, *words)
        for key, seconds in predicted_seconds(MachineCeilings.from_json(record)).items():
            predicted.setdefault(key, []).append(seconds)
        for side, names in (("engine", SHAPES), ("step", tuple(STEPS))):
            for name in names:
                found = in_own_process("latency", "--side", side, "--name", name, *words)
                for key, values in found.items():
                    measured.setdefault(key, []).extend(values)
    return predicted, measured


def _report(predicted: Seconds, measured: Seconds) -> None:
    errors = {
        key: statistics.median(predicted[key]) / statistics.median(measured[key]) - 1
        for key in measured
    }
    results: dict[str, Any] = {
        f"{kind}_error": max(abs(errors[key]) for key in errors if key.startswith(kind))
        for kind in KINDS
    }
    results["errors"] = errors
    results["predicted_s"] = {key: statistics.median(values) for key, values in predicted.items()}
    results["measured_s"] = {key: statistics.median(values) for key, values in measured.items()}
    rows = [
        [key, _shown(predicted[key]), _shown(measured[key]), f"{errors[key]:+.1%}"]
        for key in sorted(measured)
    ]
    report("latency", ["", "predicted, ms", "measured, ms", "error"], rows, results)


def _shown(values: list[float]) -> str:
    spread = Spread(tuple(1e3 * value for value in values))
    return f"{spread.median:,.2f} ({spread.low:,.2f} to {spread.high:,.2f})"


if __name__ == "__main__":
    main()
