"""Run by test_distributed in a process of its own: trains on forked ranks, prints what came out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import on_ranks

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import (
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.distributed import World
from firsthand.llm.training.journal import Nobody, RunJournal
from firsthand.llm.training.loop import train
from firsthand.llm.training.next_token import Corpus, NextToken
from firsthand.llm.training.runs import create_run, open_run

STEPS = 8


class Watcher(Nobody):
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}

    def line(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.losses[f"{record['kind']} {record['step']}"] = record["loss"]


def config(**training: Any) -> RunConfig:
    """A small run; every matrix divides unevenly by two or three ranks."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=37, context=12, d_model=18, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=22
        ),
        optimizer=OptimizerSettings(kind="muon", learning_rate=0.01),
        schedule=ScheduleSettings(kind="constant", warmup=0),
        training=TrainingSettings(
            steps=STEPS,
            batch_size=12,
            save_every=4,
            evaluate_every=4,
            flow_every=3,
            evaluate_batches=2,
            average=0.9,
            threads=1,
            **training,
        ),
    )


def corpus() -> Corpus:
    """Text in which a token mostly decides the next; documents end at 0."""
    generator = np.random.default_rng(5)
    tokens = np.cumsum(generator.integers(1, 4, 3000)) % 37
    cut = TokenStream([tokens[:2500].astype(np.uint16)], 0)
    held_out = TokenStream([tokens[2500:].astype(np.uint16)], 0)
    return Corpus(train=cut, validation=held_out, byte_lengths=np.ones(37, np.int64))


def run_rank(folder: Path, settings: RunConfig, world: World) -> dict[str, float]:
    """Train or go on, as one of the ranks."""
    if world.is_first and not (folder / "config.toml").exists():
        create_run(folder, settings)
    world.wait()
    run = replace(open_run(folder), config=settings)
    watcher = Watcher()
    journal = RunJournal(run, world, watcher, {"data": "same"})
    model = Transformer(settings.model, FAST, seed=settings.seed)
    training = assemble(settings, model, NextToken(corpus(), settings, world), world, journal)
    journal.restore(training)
    train(training)
    journal.close()
    return watcher.losses


def losses(ranks: int, folder: Path, settings: RunConfig) -> dict[str, float]:
    """Of a run on so many ranks."""
    found: dict[str, float] = on_ranks(ranks, lambda world: run_rank(folder, settings, world))
    return found


def main(place: Path) -> None:
    """Every scenario, each in a folder of its own."""
    torch.set_num_threads(1)
    found = {
        "one": losses(1, place / "one", config()),
        "micro": losses(1, place / "micro", config(micro_batch=3)),
        "ddp": losses(2, place / "ddp", config(parallel="ddp", micro_batch=2)),
        "fsdp": losses(2, place / "fsdp", config(parallel="fsdp")),
        "fsdp micro": losses(3, place / "fsdp3", config(parallel="fsdp", micro_batch=2)),
    }

    def longer(settings: RunConfig) -> RunConfig:
        return replace(settings, training=replace(settings.training, steps=2 * STEPS))

    found["long"] = losses(1, place / "long", longer(config()))
    ddp, fsdp = longer(config(parallel="ddp")), longer(config(parallel="fsdp"))
    found["fsdp 2 to 1"] = losses(1, place / "fsdp", longer(config()))
    found["fsdp 3 to 2"] = losses(2, place / "fsdp3", fsdp)
    found["one to fsdp 2"] = losses(2, place / "one", fsdp)
    found["ddp 2 to 3"] = losses(3, place / "ddp", ddp)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
