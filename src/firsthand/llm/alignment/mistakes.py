"""Preference pairs from a model's own mistakes, which teach it more than those of a program.

A spoilt answer that the model would never give is soon told apart and then teaches nothing. So the
model answers the tasks itself, and of its answers the first wrong one is rejected: pairs from the
policy that is trained, as in Rafailov et al. 2023, section 4, and Guo et al. 2024, "Direct
Language Model Alignment from Online AI Feedback".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.rewards import task_question
from firsthand.llm.alignment.rollouts import roll_out
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.problems import DiskError
from firsthand.llm.data.records import Message, PreferenceRecord, read_preferences
from firsthand.llm.data.tasks import Task
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate

# Answers that are decoded together.
ROWS = 128


def sampled_preferences(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    attempts: int,
    max_new_tokens: int,
    seed: int,
) -> list[PreferenceRecord]:
    """The right answer before a wrong one of the model's, for each task where it gave one.

    Args:
        model: answers at temperature 1.
        attempts: answers to each task.
        max_new_tokens: an answer that is cut off there is wrong.
        seed: of the answers.
    Raises:
        AlignmentError: a task that leaves no room in the context.
    """
    template, context = ChatTemplate(tokenizer), model.config.context
    # Prompts of like length together, so that little is padding.
    prompts = [task_question(task).ids(template, context) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda number: len(prompts[number]))
    found: dict[int, PreferenceRecord] = {}
    step = max(1, ROWS // attempts)
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        rollouts = roll_out(
            model,
            [prompts[number] for number in chosen],
            tokenizer,
            end=template.end,
            samples=attempts,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            seed=seed,
            first_stream=start * attempts,
        )
        ended = rollouts.ended.tolist()
        for row, text in enumerate(rollouts.texts):
            number = chosen[row // attempts]
            task = tasks[number]
            if number in found or not text.strip() or text == task.expected:
                continue
            if not (ended[row] and task_question(task).judge(text).exact):
                found[number] = PreferenceRecord(
                    prompt=(Message("user", task.prompt),),
                    chosen=(Message("assistant", task.expected),),
                    rejected=(Message("assistant", text),),
                    place=f"answer to generated {task.kind} {number}",
                )
    return [found[number] for number in sorted(found)]


def stored_preferences(path: Path) -> list[PreferenceRecord]:
    """The records that `store_preferences` wrote.

    Raises:
        SourceError: it cannot be read; names file and line.
    """
    return list(read_preferences(path))


def store_preferences(path: Path, records: Sequence[PreferenceRecord]) -> None:
    """Write records as JSON lines, whole or not at all: they can be read by people, too.

    Raises:
        AlignmentError: there is none, or the disk refuses.
    """
    if not records:
        raise AlignmentError(
            f"{path.name}: the model made no mistake that could be learnt from; more or harder "
            'tasks, or dpo.rejected="made"'
        )
    lines = [
        json.dumps(
            {
                "prompt": [message.to_json() for message in record.prompt],
                "chosen": [message.to_json() for message in record.chosen],
                "rejected": [message.to_json() for message in record.rejected],
            },
            ensure_ascii=False,
        )
        for record in records
    ]
    try:
        write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))
    except DiskError as error:
        raise AlignmentError(str(error)) from error
