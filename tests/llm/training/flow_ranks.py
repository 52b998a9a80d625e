"""Run by test_flow_on_ranks in a process of its own: one recorded step on forked ranks."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.alarm import find_first_nonfinite
from firsthand.llm.training.config import Parallel
from firsthand.llm.training.distributed import Spread, World, joined_world
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


def on_ranks(ranks: int, file: Path, parallel: Parallel) -> Any:
    """What the first rank recorded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 1
        try:
            with joined_world("cpu") as world:
                found = recorded(world, parallel)
                if world.is_first:
                    file.write_text(json.dumps(found))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit(f"a rank of {ranks} failed")
    return json.loads(file.read_text())


def main(file: Path) -> None:
    """One rank, then two of each kind."""
    torch.set_num_threads(1)
    found = {
        "one": on_ranks(1, file, "ddp"),
        "ddp": on_ranks(2, file, "ddp"),
        "fsdp": on_ranks(2, file, "fsdp"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
