"""What a method has to bring, and the methods by name.

A method is a short file with its objective. The run around it (its folder, the base model,
adapters, checkpoints, the report) is one for all: `alignment.runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from firsthand.llm.alignment.settings import AlignmentSettings
from firsthand.llm.model.settings import Record, SettingsError, nearest, read_toml
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.runs import Run
from firsthand.llm.training.task import Task

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method makes the data and the objective of a run from.

    Attributes:
        run: its folder, for what is computed once and stored.
        model: on the world's device, still a copy of the base: a reference is a copy of it made
            now. Where adapters are asked for they are in it, and change nothing yet; all other
            parameters are frozen then. The method may add modules of its own, such as a head: they
            are trained and saved with the rest, and left out of what `load_trained` gives. A
            resumed checkpoint is copied into the model afterwards.
        tokenizer: has the chat tokens.
        settings: of the run; a method reads its own table and the shared ones.
        world: the ranks.
    """

    run: Run
    model: Transformer
    tokenizer: Tokenizer
    settings: AlignmentSettings
    world: World

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.run.config


# Raises AlignmentError where data or settings cannot be used.
Method: TypeAlias = Callable[[Setup], Task]

# Read when a method is asked for: the modules import what this one declares.
_PLACES = {
    "sft": "sft:sft_task",
    "reward": "reward_task:reward_task",
    "dpo": "dpo_task:dpo_task",
    "ppo": "ppo_task:ppo_task",
    "grpo": "grpo_task:grpo_task",
}
METHODS = tuple(_PLACES)


def find_method(name: str) -> Method:
    """What makes the task of that method's runs.

    Raises:
        SettingsError: there is none; names the nearest.
    """
    if name not in _PLACES:
        close = nearest(name, METHODS)
        hint = f"the nearest is {close!r}" if close else f"valid: {', '.join(METHODS)}"
        raise SettingsError(f"there is no method {name!r}; {hint}")
    module, _, attribute = _PLACES[name].partition(":")
    method: Method = getattr(import_module(f"firsthand.llm.alignment.{module}"), attribute)
    return method


def method_tables(name: str) -> Record:
    """The run's tables that a method begins with: [optimizer], [schedule] and [training].

    Raises:
        SettingsError: the file cannot be read.
    """
    path = PRESETS / f"{name}.toml"
    return read_toml(path) if path.is_file() else {}
