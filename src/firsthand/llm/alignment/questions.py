"""The questions of a run that learns from rewards, and those that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firsthand.llm.alignment.chat_data import held_out_questions
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.held_out import HeldOut
from firsthand.llm.alignment.rewards import Question, read_questions, task_questions
from firsthand.llm.alignment.settings import AlignmentSettings
from firsthand.llm.data.permutation import Permutation
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.distributed import World

# Tells the draw of what is held out from the order of what is learnt from.
_HELD_OUT_DRAW = 7
_HELD_OUT_SHARE = 0.05


def policy_questions(
    settings: AlignmentSettings, tokenizer: Tokenizer, seed: int, world: World
) -> tuple[list[Question], HeldOut]:
    """Those of the settings' files, a draw of them held out, or generated tasks without any.

    Raises:
        SourceError: a line that is no conversation; names file and line.
        AlignmentError: a record without a verifiable answer, or too few records.
    """
    tasks = settings.tasks
    if not settings.files:
        drawn = generate_tasks(
            tasks.count, seed=seed, split="train", kinds=tasks.kinds, levels=tasks.levels
        )
        return task_questions(drawn), held_out_tasks(settings, tokenizer, seed, world)
    questions = read_questions([Path(file) for file in settings.files])
    held = max(1, round(_HELD_OUT_SHARE * len(questions)))
    if held >= len(questions):
        raise AlignmentError(f"{len(questions)} questions leave none to learn from: give more")
    order = Permutation(len(questions), seed, _HELD_OUT_DRAW)(np.arange(len(questions))).tolist()
    kept, asked = [questions[i] for i in order[held:]], [questions[i] for i in order[:held]]
    return kept, HeldOut({"held_out": asked}, tokenizer, tasks, world)


def held_out_tasks(
    settings: AlignmentSettings, tokenizer: Tokenizer, seed: int, world: World
) -> HeldOut:
    """Generated tasks that no method learns from."""
    tasks = settings.tasks
    asked = held_out_questions(tasks, tasks.evaluated_last, seed)
    return HeldOut(asked, tokenizer, tasks, world)
