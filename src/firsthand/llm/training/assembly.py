"""From a config, a model and a task to everything that the loop needs."""

from __future__ import annotations

from functools import partial

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.averaging import Average
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import Spread, World
from firsthand.llm.training.loop import Journal, Training
from firsthand.llm.training.optimizers.optimizer import Optimizer
from firsthand.llm.training.schedules import learning_rate_scale
from firsthand.llm.training.task import Task


def assemble(
    config: RunConfig, model: Transformer, task: Task, world: World, journal: Journal
) -> Training:
    """A training at step 0.

    Args:
        config: of the run; its model and data tables are not read.
        model: on the world's device, with equal weights on every rank.
        task: its data and objective.
        world: the ranks.
        journal: where it is written down.
    """
    settings, parts = config.training, model.parts
    model.checkpoint_blocks = settings.checkpoint_blocks
    # FSDP puts shards in the place of the parameters, so it comes before what holds these.
    spread = Spread(model, world, settings.parallel)
    if settings.compile:
        for block in model.blocks:
            block.compile()
    schedule = partial(
        learning_rate_scale, steps=settings.steps, settings=config.schedule, parts=parts
    )
    return Training(
        model=model,
        spread=spread,
        task=task,
        optimizer=Optimizer(model, config.optimizer, parts),
        schedule=schedule,
        settings=settings,
        clip=config.optimizer.clip,
        world=world,
        journal=journal,
        average=Average(model, settings.average, parts) if settings.average else None,
    )
