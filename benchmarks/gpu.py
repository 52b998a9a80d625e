"""The goals on a GPU, in one call of at most eight minutes: training beside nanoGPT, attention.

    python -m benchmarks.gpu --nanogpt DIR

Without a GPU it says so and ends well. `--dry` runs every measurement at toy sizes on the CPU and
stores nothing: it shows that the program works, not how fast anything is.

- `train_ratio`, `train_memory_ratio`: tokens a second and peak memory of `full-100m` in bfloat16,
  ours over nanoGPT's compiled model of the same shape, each in a process of its own.
- `train_peak_share`: the FLOPs of our step (6 a parameter and token, and attention's) over its time
  and over the measured rate of a large bfloat16 product.
- `flash_fwd_bwd_ratio`: PyTorch's SDPA over our Triton kernels, forward and backward, the worst
  case. A dry run uses Triton's interpreter, and leaves them out without Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import in_own_process, report
from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.model.config import ModelConfig, parameter_counts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.distributed import Spread, World
from firsthand.llm.training.optimizers.optimizer import Optimizer
from firsthand.llm.training.precision import autocast
from firsthand.llm.training.presets import run_config

SIDES = ("firsthand", "nanogpt")
ATTENTION_LENGTHS, ATTENTION_WIDTHS = (1024, 2048, 4096, 8192), (64, 128)
# Queries of all rows and heads together, so that each length does enough work.
ATTENTION_TOKENS = 1 << 17


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: "cuda", or "cpu" for a dry run.
        rows: of the model's context in a step.
        warmup, steps: of each side; compiling is part of the warmup.
        side: of the square matrices whose product is the peak.
    """

    device: str
    rows: int
    warmup: int
    steps: int
    side: int


FULL = Scale(device="cuda", rows=32, warmup=6, steps=20, side=8192)
DRY = Scale(device="cpu", rows=2, warmup=1, steps=2, side=128)


@dataclass(frozen=True)
class Measured:
    """One side: seconds of each step, the peak of allocated bytes, the last loss."""

    seconds: list[float]
    peak_bytes: int
    loss: float


def shape(scale: Scale) -> ModelConfig:
    """`full-100m`, or a toy of the same kind."""
    config = run_config("full-100m").model
    if scale.device == "cuda":
        return config
    return replace(
        config, vocab_size=256, context=32, d_model=32, n_layers=2, n_heads=2, d_head=0, d_ff=64
    )


def step_flops(config: ModelConfig, tokens: int) -> float:
    """Of a training step: products with all weights, and causal attention's two."""
    weights = sum(n for name, n in parameter_counts(config).items() if name != "positions")
    attention = 2 * config.n_layers * config.context * config.n_heads * config.head_width
    return tokens * (6.0 * weights + 3.0 * attention)


def our_step(config: ModelConfig, tokens: torch.Tensor, compiled: bool) -> Callable[[], Any]:
    """As the loop does it, with the preset's optimizer."""
    device = tokens.device
    run = run_config("full-100m")
    model = Transformer(config, FAST).to(device)
    spread = Spread(model, World(0, 1, device), "ddp")
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizer = Optimizer(model, replace(run.optimizer, kind="adamw"), FAST)

    def loss_of(model: Transformer) -> torch.Tensor:
        return model.loss(tokens[:, :-1], tokens[:, 1:]).mean

    def step() -> torch.Tensor:
        with autocast("bfloat16", device):
            loss = spread(loss_of)
        loss.backward()
        FAST.clip_gradients([p.grad for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_gradients()
        return loss.detach()

    return step


def nanogpt_step(
    folder: Path, config: ModelConfig, tokens: torch.Tensor, compiled: bool
) -> Callable[[], Any]:
    """nanoGPT's model and optimizer, as its train.py uses them in bfloat16."""
    source = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    sys.modules["nanogpt_model"] = module
    source.loader.exec_module(module)
    device = tokens.device
    model = module.GPT(
        module.GPTConfig(
            block_size=config.context,
            vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=0.0,
            bias=False,
        )
    ).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    forward = torch.compile(model) if compiled else model
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            _, loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()  # type: ignore[no-any-return]

    return step


def measure(side: str, scale: Scale, nanogpt: Path | None) -> Measured:
    """Run one side in this process."""
    config = shape(scale)
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator().manual_seed(0)
    rows = (scale.rows, config.context + 1)
    tokens = torch.randint(config.vocab_size, rows, generator=generator).to(scale.device)
    compiled = scale.device == "cuda"
    if side == "firsthand":
        step = our_step(config, tokens, compiled)
    else:
        assert nanogpt is not None
        step = nanogpt_step(nanogpt, config, tokens, compiled)
    for _ in range(scale.warmup):
        loss = step()
    synchronize(scale)
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(scale.steps):
        begin = time.perf_counter()
        loss = step()
        synchronize(scale)
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0
    return Measured(seconds, peak, float(loss))


def synchronize(scale: Scale) -> None:
    """Wait for the GPU."""
    if scale.device == "cuda":
        torch.cuda.synchronize()


def product_rate(scale: Scale) -> float:
    """bfloat16 FLOPs a second of a large matrix product."""
    a = torch.randn(scale.side, scale.side, device=scale.device, dtype=torch.bfloat16)
    times = []
    for _ in range(12):
        synchronize(scale)
        begin = time.perf_counter()
        a @ a
        synchronize(scale)
        times.append(time.perf_counter() - begin)
    return float(2 * scale.side**3 / min(times))


def attention_ratios(scale: Scale) -> dict[str, float]:
    """SDPA's time over our kernels', forward and backward, by width and length."""
    rungs = {rung.name: rung for rung in LADDERS["attention"].runnable}
    if "triton" not in rungs:
        return {}
    ratios = {}
    dry = scale.device == "cpu"
    for width in (16,) if dry else ATTENTION_WIDTHS:
        for length in (32,) if dry else ATTENTION_LENGTHS:
            heads = 2 if dry else 2048 // width
            batch = 1 if dry else max(1, ATTENTION_TOKENS // 8 // length)
            size = (batch, heads, length, width)
            q, k, v, cotangent = (
                torch.randn(size, device=scale.device, dtype=torch.bfloat16) for _ in range(4)
            )
            times = {
                name: _attention_seconds(rungs[name].forward, (q, k, v), cotangent, scale)
                for name in ("torch-sdpa", "triton")
            }
            ratios[f"{width}x{length}"] = times["torch-sdpa"] / times["triton"]
    return ratios


def _attention_seconds(
    forward: Callable[..., torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    cotangent: torch.Tensor,
    scale: Scale,
) -> float:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    times = []
    for _ in range(4 if scale.device == "cpu" else 20):
        synchronize(scale)
        begin = time.perf_counter()
        torch.autograd.grad(forward(*leaves), leaves, cotangent)
        synchronize(scale)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def measured_apart(side: str, dry: bool, nanogpt: Path | None) -> Measured:
    """One side in a process of its own, with a GPU that holds nothing else of ours."""
    words = ["--dry"] if dry else []
    words += ["--nanogpt", str(nanogpt)] if nanogpt else []
    return Measured(**in_own_process("gpu", "--side", side, *words))


def compare(scale: Scale, dry: bool, nanogpt: Path | None) -> None:
    """Measure all, print the table, store the record."""
    config = shape(scale)
    sides = SIDES if nanogpt is not None else SIDES[:1]
    found = {side: measured_apart(side, dry, nanogpt) for side in sides}
    peak = product_rate(scale)
    tokens = scale.rows * config.context
    rates = {side: tokens / statistics.median(m.seconds) for side, m in found.items()}
    share = step_flops(config, tokens) / statistics.median(found["firsthand"].seconds) / peak
    rows = [
        [
            side,
            " to ".join(f"{tokens / s:,.0f}" for s in (max(m.seconds), min(m.seconds))),
            f"{rates[side]:,.0f}",
            f"{m.peak_bytes / 1e9:.2f}",
            f"{m.loss:.3f}",
        ]
        for side, m in found.items()
    ]
    results: dict[str, Any] = {
        "tokens_per_second": rates["firsthand"],
        "train_peak_share": share,
        "peak_tflops": peak / 1e12,
    }
    if "nanogpt" in found:
        results["train_ratio"] = rates["firsthand"] / rates["nanogpt"]
        theirs = found["nanogpt"].peak_bytes
        results["train_memory_ratio"] = found["firsthand"].peak_bytes / theirs if theirs else None
    ratios = attention_ratios(scale)
    if ratios:
        results["flash_fwd_bwd_ratio"] = min(ratios.values())
        results["flash_ratios"] = ratios
    note = f"{scale.rows} rows of {config.context} tokens; peak share {share:.1%}"
    missing = [] if nanogpt else ["nanoGPT's side (--nanogpt DIR)"]
    missing += [] if ratios else [f"our attention, which {triton_support.NEEDS}"]
    if missing:
        note += f"; not measured: {', '.join(missing)}"
    columns = ["side", "tokens/s", "median", "peak GB", "loss"]
    report("gpu", columns, rows, results, note=note, store=not dry)


def main() -> None:
    """See the module."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    words.add_argument("--dry", action="store_true", help="toy sizes on the CPU, nothing stored")
    words.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = words.parse_args()
    if not given.dry and not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured.")
        return
    if given.dry:
        # Asked for before the first tensor asks for Triton.
        os.environ["TRITON_INTERPRET"] = "1"
    scale = DRY if given.dry else FULL
    if given.side:
        print(json.dumps(asdict(measure(given.side, scale, given.nanogpt))))
        return
    compare(scale, given.dry, given.nanogpt)


if __name__ == "__main__":
    main()
