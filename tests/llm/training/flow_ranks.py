"""Run by test_flow_on_ranks in a process of its own: one recorded step on forked ranks."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from forked import on_ranks
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.alarm import find_first_nonfinite
from firsthand.llm.training.config import Parallel
from firsthand.llm.training.distributed import Spread, World
from firsthand.llm.training.gradient_flow import FlowRecorder

CONFIG = ModelConfig(vocab_size=31, context=12, d_model=18, n_layers=2, n_heads=3, d_ff=22)
TOKENS = 36


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of two rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(CONFIG.vocab_size, (2, 9), generator=generator)
    return rows, rows.roll(-1, 1)


def total(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """The summed loss."""
    return model.loss(tokens, targets).total


def recorded(world: World, parallel: Parallel) -> dict[str, Any]:
    """Two batches, on one rank or two, and what was recorded; then an alarm on the last rank."""
    model = Transformer(CONFIG, FAST, seed=1)
    spread = Spread(model, world, parallel)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    recorder = FlowRecorder(model)
    with recorder.watching():
        for seed in range(2)[world.rank :: world.ranks]:
            (spread(total, *batch(seed)) * (world.ranks / TOKENS)).backward()
    recorder.before_update()
    optimizer.step()
    line = recorder.after_update(1, loss_divisor=world.ranks)
    factor = math.inf if world.rank == world.ranks - 1 else 1.0
    error = find_first_nonfinite(
        model, lambda: spread(total, *batch(world.rank)) * factor, step=2, world=world
    )
    return {"layers": line["layers"], "alarm": None if error is None else error.layer}


def main() -> None:
    """One rank, then two of each kind."""
    torch.set_num_threads(1)
    found = {
        "one": on_ranks(1, lambda world: recorded(world, "ddp")),
        "ddp": on_ranks(2, lambda world: recorded(world, "ddp")),
        "fsdp": on_ranks(2, lambda world: recorded(world, "fsdp")),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
