"""Rewards that a program decides: is the answer right, and does it have the form of one?

A question comes with its judge. Generated tasks compute the answer; records with a final number,
such as those of GSM8K (Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"), have
it behind "####" in the last line of their solution.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.data.records import ChatRecord, Message, read_chats
from firsthand.llm.data.task_kinds import KINDS
from firsthand.llm.data.tasks import Task, answer_in, verify
from firsthand.llm.tokenizer.chat import ChatTemplate

_FINAL = "####"
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a program says of a completion.

    Attributes:
        exact: the answer is right.
        formed: the completion has an answer of the kind that was asked for, and nothing else
            where it stands.
    """

    exact: bool
    formed: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and who decides.

    Attributes:
        messages: of the conversation; the assistant speaks next.
        judge: decides a completion.
        place: file and line, or what generated it.
    """

    messages: tuple[Message, ...]
    judge: Callable[[str], Judgement]
    place: str

    def ids(self, template: ChatTemplate, context: int) -> tuple[int, ...]:
        """The prompt, up to the <|assistant|> that asks for the answer.

        Raises:
            AlignmentError: it leaves no room in the context.
        """
        plain = [message.to_json() for message in self.messages]
        ids = template.render(plain, ask=True).ids.tolist()
        if len(ids) >= context:
            raise AlignmentError(
                f"{self.place}: the prompt has {len(ids)} tokens; the context of {context} holds "
                "no answer behind it"
            )
        return tuple(ids)


def task_question(task: Task) -> Question:
    """A generated task as a question."""

    def judge(completion: str) -> Judgement:
        formed = KINDS[task.kind].read(answer_in(completion)) is not None
        return Judgement(exact=verify(task, completion).correct, formed=formed)

    return Question((Message("user", task.prompt),), judge, f"generated {task.kind}")


def record_question(record: ChatRecord) -> Question:
    """A record whose last answer ends with "#### NUMBER" as a question.

    Raises:
        AlignmentError: there is no such number; names file and line.
    """
    expected = final_number(record.messages[-1].content)
    if expected is None:
        raise AlignmentError(
            f'{record.place}: no verifiable answer, it does not end with "{_FINAL} NUMBER"'
        )

    def judge(completion: str) -> Judgement:
        given = final_number(completion)
        return Judgement(exact=given == expected, formed=given is not None)

    return Question(record.messages[:-1], judge, record.place)


def read_questions(files: Sequence[Path]) -> list[Question]:
    """The questions of JSON lines.

    Raises:
        SourceError: a line that is no conversation; names file and line.
        AlignmentError: as `record_question`.
    """
    return [record_question(record) for file in files for record in read_chats(file)]


def task_questions(tasks: Iterable[Task]) -> list[Question]:
    """Generated tasks as questions."""
    return [task_question(task) for task in tasks]


def final_number(text: str) -> float | None:
    """The number behind the last "####", None where there is none or something else as well."""
    _, mark, after = text.rpartition(_FINAL)
    lines = after.strip().splitlines()
    if not mark or len(lines) != 1:
        return None
    given = lines[0].strip().removesuffix(".")
    if not _NUMBER.fullmatch(given):
        return None
    return float(given.replace(",", "").replace("$", ""))


def reward_of(judgement: Judgement, ended: bool, format_reward: float) -> float:
    """1 for a right answer, and `format_reward` for one that is well formed and ended.

    Args:
        ended: the model gave its end token; a text that was cut off has not answered.
    """
    exact = float(judgement.exact and ended)
    return exact + format_reward * float(judgement.formed and ended)
