"""Preference pairs: one question, an answer that is wanted and one that is not.

They come from records of people's preferences, or from the generated tasks, where a program knows
what is right: the right answer is chosen, and rejected is a wrong or badly formed one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.data.packing import Example
from firsthand.llm.data.records import Message, PreferenceRecord, read_preferences
from firsthand.llm.data.tasks import Task, verify
from firsthand.llm.tokenizer.chat import ChatTemplate

WhenTooLong = Literal["error", "drop"]

# A wrong answer is found within a few tries; a kind for which none is has no wrong answers.
_TRIES = 200
_BADLY_FORMED = (
    "{answer} or {other}",
    "I think that it is {answer}",
    "{answer} {answer}",
    "{answer}, but also {other}",
    "{answer} {other} {answer}",
)
_BADLY_FORMED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tokenized conversations that begin alike; trained marks the tokens after the prompt.

    Attributes:
        chosen, rejected: prompt and answer; their targets are the answer's tokens.
        place: file and line, or what generated it.
    """

    chosen: Example
    rejected: Example
    place: str

    @property
    def length(self) -> int:
        """Positions of the longer one: its last token is only a target."""
        return max(len(self.chosen.ids), len(self.rejected.ids)) - 1


def encoded_pair(
    record: PreferenceRecord, template: ChatTemplate, context: int, too_long: WhenTooLong = "error"
) -> Pair | None:
    """The pair of a record, or None where it is too long and may be dropped.

    Args:
        record: with a prompt before both answers.
        template: of the tokenizer.
        context: most positions of prompt and answer.
        too_long: "error", or "drop".
    Raises:
        AlignmentError: an empty answer, chosen equal to rejected (also once tokenized), or a
            prompt or an answer longer than the context; names file and line.
    """
    for name, messages in (("chosen", record.chosen), ("rejected", record.rejected)):
        if not messages or not messages[-1].content.strip():
            raise AlignmentError(f"{record.place}: the answer in '{name}' is empty")
    before = len(template.render(_plain(record.prompt)).ids)
    # The model reads the <|assistant|> behind the prompt, too, before it has to say anything.
    if before + 1 > context:
        if too_long == "drop":
            return None
        raise AlignmentError(
            f"{record.place}: the prompt has {before} tokens; the context of {context} holds no "
            "answer behind it"
        )
    chosen, rejected = (
        _after(before, template, record.prompt + answer, record.place)
        for answer in (record.chosen, record.rejected)
    )
    if list(chosen.ids) == list(rejected.ids):
        raise AlignmentError(f"{record.place}: 'chosen' and 'rejected' are equal")
    pair = Pair(chosen, rejected, record.place)
    if pair.length > context:
        if too_long == "drop":
            return None
        raise AlignmentError(
            f"{record.place}: prompt and answer take {pair.length} positions; the context has "
            f"{context}"
        )
    return pair


def encoded_pairs(
    records: Iterable[PreferenceRecord],
    template: ChatTemplate,
    context: int,
    too_long: WhenTooLong = "error",
) -> list[Pair]:
    """All pairs of the records. Arguments and errors: as `encoded_pair`.

    Raises:
        AlignmentError: as there, or no pair is left.
    """
    pairs = []
    for record in records:
        pair = encoded_pair(record, template, context, too_long)
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise AlignmentError(f"no preference pair fits into the context of {context}")
    return pairs


def read_pairs(
    files: Sequence[Path], template: ChatTemplate, context: int, too_long: WhenTooLong = "error"
) -> list[Pair]:
    """The pairs of JSON lines in the forms that `data.records` reads.

    Raises:
        SourceError: a line that is no preference; names file and line.
        AlignmentError: as `encoded_pairs`.
    """
    records = (record for file in files for record in read_preferences(file))
    return encoded_pairs(records, template, context, too_long)


def wrong_answer(task: Task, generator: random.Random) -> str:
    """A near miss: the right answer with a character or an item changed, or badly formed.

    What comes back differs from the right answer and the task's verifier refuses it.

    Raises:
        AlignmentError: no such text is found.
    """
    right = task.expected
    for _ in range(_TRIES):
        other = _missed(right, generator)
        if generator.random() < _BADLY_FORMED_SHARE:
            form = generator.choice(_BADLY_FORMED)
            text = form.format(answer=right, other=other)
        else:
            text = other
        if text.strip() and not verify(task, text).correct:
            return text
    raise AlignmentError(f"no wrong answer to {task.prompt!r} was found")


def task_preferences(tasks: Iterable[Task], seed: int) -> Iterator[PreferenceRecord]:
    """A preference for each task: the right answer before a wrong or badly formed one.

    The same tasks and seed give the same records on every machine.
    """
    generator = random.Random(f"wrong answers {seed}")
    for number, task in enumerate(tasks):
        yield PreferenceRecord(
            prompt=(Message("user", task.prompt),),
            chosen=(Message("assistant", task.expected),),
            rejected=(Message("assistant", wrong_answer(task, generator)),),
            place=f"generated {task.kind} {number}",
        )


def _plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [message.to_json() for message in messages]


def _after(
    before: int, template: ChatTemplate, messages: tuple[Message, ...], place: str
) -> Example:
    """A conversation in which nothing of the prompt is trained on, not even earlier answers."""
    rendered = template.render(_plain(messages))
    trained = rendered.trained.copy()
    trained[:before] = False
    return Example(rendered.ids, trained, place)


def _missed(right: str, generator: random.Random) -> str:
    """The text with one thing changed; may come out right by chance."""
    items = right.split(", ")
    if len(items) > 1 and generator.random() < 0.6:
        first, second = sorted(generator.sample(range(len(items)), 2))
        items[first], items[second] = items[second], items[first]
        return ", ".join(items)
    place = generator.randrange(len(right))
    before, character, after = right[:place], right[place], right[place + 1 :]
    change = generator.choice(("replace", "replace", "drop", "double", "swap"))
    if change == "drop":
        return before + after
    if change == "double":
        return before + character * 2 + after
    if change == "swap" and after:
        return before + after[0] + character + after[1:]
    return before + _alike(character, generator) + after


def _alike(character: str, generator: random.Random) -> str:
    """Another character of the same class."""
    for first, last in (("0", "9"), ("a", "z"), ("A", "Z")):
        if first <= character <= last:
            others = [chr(c) for c in range(ord(first), ord(last) + 1) if chr(c) != character]
            return generator.choice(others)
    return character
