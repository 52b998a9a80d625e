"""Models, questions and runs small enough that a whole round takes milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.alignment.rewards import Question, task_questions
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import to_record
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.checkpoints import save_checkpoint
from firsthand.llm.training.config import (
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.distributed import World
from firsthand.llm.training.journal import NoJournal
from firsthand.llm.training.loop import Training
from firsthand.llm.training.runs import create_run
from firsthand.llm.training.task import Task

torch.set_num_threads(1)

TOKENIZER = Tokenizer([], special_tokens=["<|endoftext|>", *CHAT_TOKENS])
TEMPLATE = ChatTemplate(TOKENIZER)
ALONE = World(0, 1, torch.device("cpu"))
CONTEXT = 96


class Small:
    """What the tests of this folder share; test files do not import each other."""

    tokenizer, template, alone, context = TOKENIZER, TEMPLATE, ALONE, CONTEXT

    @staticmethod
    def model(seed: int = 3, **changes: Any) -> Transformer:
        """Two blocks of width 16 over bytes and chat tokens, with noise that makes texts differ."""
        shape = {
            "context": CONTEXT,
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 2,
            "d_ff": 24,
            **changes,
        }
        config = ModelConfig(**{"vocab_size": TOKENIZER.vocabulary_size, **shape})
        model = Transformer(config, FAST, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    @staticmethod
    def config(steps: int = 4, **training: Any) -> RunConfig:
        """A run of a few steps at a constant rate."""
        return RunConfig(
            model=Small.model().config,
            seed=5,
            optimizer=OptimizerSettings(learning_rate=3e-3, weight_decay=0.0),
            schedule=ScheduleSettings(kind="constant", warmup=0),
            training=TrainingSettings(
                **{
                    "steps": steps,
                    "batch_size": 4,
                    "evaluate_every": 0,
                    "save_every": 0,
                    "flow_every": 0,
                    "device": "cpu",
                    **training,
                }
            ),
        )

    @staticmethod
    def questions(count: int = 12) -> list[Question]:
        """Sums of small numbers."""
        return task_questions(generate_tasks(count, seed=1, kinds=["arithmetic"], levels=[1]))

    @staticmethod
    def assembled(task: Task, model: Transformer, config: RunConfig) -> tuple[Training, NoJournal]:
        """What the loop needs, without a folder."""
        journal = NoJournal()
        return assemble(config, model, task, ALONE, journal), journal

    @staticmethod
    def bits(model: Transformer) -> list[Tensor]:
        """The weights as they are now."""
        return [tensor.clone() for tensor in model.state_dict().values()]

    @staticmethod
    def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
        """Whether every number is the same."""
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="session")
def small() -> type[Small]:
    """The helpers."""
    return Small


@pytest.fixture(scope="session")
def chat_tokenizer() -> Tokenizer:
    """256 bytes, no merge, the token between documents and those of a chat."""
    return TOKENIZER


@pytest.fixture(scope="session")
def base_run(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Tokenizer) -> Path:
    """A run with one checkpoint, of a model with a context of 96 tokens; nobody may change it."""
    folder: Path = tmp_path_factory.mktemp("bases") / "base"
    model = Small.model(seed=11)
    config = Small.config(steps=3)
    run = create_run(folder, config, parts=FAST.origins())
    chat_tokenizer.save(run.tokenizer)
    state = {"config": to_record(config), "average_updates": 0}
    save_checkpoint(run.checkpoints, 3, {"model": model.state_dict()}, state)
    return folder
