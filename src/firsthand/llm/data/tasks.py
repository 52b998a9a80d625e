"""Generated tasks whose answers a program decides: for fine-tuning, rewards and evaluation.

Operands are held out by their hash and phrasings by name, so the four splits differ in exactly
what they test: "numbers" has known phrasings with operands never trained on, "phrasings" the
reverse, "both" neither known.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from firsthand.llm.data.problems import DataError
from firsthand.llm.data.records import ChatRecord, Message
from firsthand.llm.data.task_kinds import KINDS, LEVELS, Operands, TaskKind

TaskSplit = Literal["train", "numbers", "phrasings", "both"]
TASK_SPLITS: tuple[TaskSplit, ...] = ("train", "numbers", "phrasings", "both")

# One operand tuple in eight is never trained on.
_HELD_OUT_SHARE = 8
_MARK = "answer:"


@dataclass(frozen=True, slots=True)
class Task:
    """One task. The answer is not stored: `expected` computes it from the operands."""

    kind: str
    operands: Operands
    phrasing: str

    @property
    def prompt(self) -> str:
        """What is asked."""
        return self.phrasing.format_map(KINDS[self.kind].values(self.operands))

    @property
    def expected(self) -> str:
        """The right answer in its one written form."""
        return KINDS[self.kind].solve(self.operands)

    @property
    def split(self) -> TaskSplit:
        """The split that may hold this task, from the task alone."""
        new_phrasing = self.phrasing in KINDS[self.kind].held_out
        if is_held_out(self.kind, self.operands):
            return "both" if new_phrasing else "numbers"
        return "phrasings" if new_phrasing else "train"

    def chat(self) -> ChatRecord:
        """The task with its answer, for fine-tuning."""
        messages = (Message("user", self.prompt), Message("assistant", self.expected))
        return ChatRecord(messages, f"generated {self.kind}")

    def to_json(self) -> dict[str, object]:
        """With prompt and answer for readers that do not know the kinds."""
        return {
            "kind": self.kind,
            "operands": list(self.operands),
            "phrasing": self.phrasing,
            "prompt": self.prompt,
            "answer": self.expected,
        }

    @classmethod
    def from_json(cls, record: dict[str, object]) -> Task:
        """Read what to_json gave.

        Raises:
            DataError: an unknown kind or phrasing, or an answer that is not the computed one.
        """
        kind, operands, phrasing = (record.get(key) for key in ("kind", "operands", "phrasing"))
        if not isinstance(kind, str) or kind not in KINDS:
            raise DataError(f"no kind of task: {kind!r}; the kinds are {', '.join(KINDS)}")
        known = (*KINDS[kind].phrasings, *KINDS[kind].held_out)
        if not isinstance(phrasing, str) or phrasing not in known:
            raise DataError(f"no phrasing of '{kind}': {phrasing!r}")
        if not isinstance(operands, list):
            raise DataError(f"the operands of a task are a list, not {operands!r}")
        task = cls(kind, tuple(operands), phrasing)
        try:
            expected = task.expected
        except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"operands that '{kind}' cannot have: {operands!r}") from error
        if record.get("answer", expected) != expected:
            raise DataError(f"the answer {record['answer']!r} is stored, but {expected!r} is right")
        return task


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a completion is right; answer is what was taken for its answer, '' for none."""

    correct: bool
    answer: str
    reason: str


def is_held_out(kind: str, operands: Operands) -> bool:
    """Whether these operands are never trained on, whatever the phrasing."""
    text = json.dumps([kind, *operands])
    return hashlib.sha256(text.encode("utf-8")).digest()[0] % _HELD_OUT_SHARE == 0


def _draw_operands(kind: TaskKind, generator: random.Random, level: int, held: bool) -> Operands:
    # One in eight is held out, so a thousand draws fail once in 10^58 tries: then a kind is broken.
    for _ in range(1000):
        operands = kind.draw(generator, level)
        if is_held_out(kind.name, operands) == held:
            return operands
    raise DataError(f"'{kind.name}' at level {level} has no operands for this split")


def generate_tasks(
    count: int,
    *,
    seed: int,
    split: TaskSplit = "train",
    kinds: Sequence[str] = tuple(KINDS),
    levels: Sequence[int] = LEVELS,
) -> Iterator[Task]:
    """Random tasks, in equal shares of the kinds.

    The same arguments give the same tasks on every machine.

    Args:
        count: how many.
        split: which operands and phrasings may occur.
        levels: of difficulty, 1 to 3: longer numbers, lists and words.
    Raises:
        ValueError: an unknown kind, level or split, or a negative count.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"no kind of task: {unknown}; the kinds are {', '.join(KINDS)}")
    if not levels or any(level not in LEVELS for level in levels):
        raise ValueError(f"levels are {LEVELS}; got {tuple(levels)}")
    if split not in TASK_SPLITS or count < 0:
        raise ValueError(f"{count} tasks of the split {split!r}; the splits are {TASK_SPLITS}")
    return _generated(count, seed, split, kinds, levels)


def _generated(
    count: int, seed: int, split: TaskSplit, kinds: Sequence[str], levels: Sequence[int]
) -> Iterator[Task]:
    generator = random.Random(f"{seed} {split}")
    held = split in ("numbers", "both")
    for index in range(count):
        kind = KINDS[kinds[index % len(kinds)]]
        phrasings = kind.held_out if split in ("phrasings", "both") else kind.phrasings
        operands = _draw_operands(kind, generator, generator.choice(levels), held)
        yield Task(kind.name, operands, generator.choice(phrasings))


def answer_in(completion: str) -> str:
    """What a completion gives as its answer: one line, '' for none.

    The rest of the line after the last "Answer:", or else the last line that is not empty; without
    a full stop at its end. Only one answer is looked at, so listing many gains nothing.
    """
    at = completion.lower().rfind(_MARK)
    if at >= 0:
        lines = completion[at + len(_MARK) :].strip().splitlines()[:1]
    else:
        lines = completion.strip().splitlines()[-1:]
    return lines[0].strip().removesuffix(".").rstrip() if lines else ""


def verify(task: Task, completion: str) -> Verdict:
    """Decide a completion by computing the answer.

    Accepted are ways of writing the same value: a sign, quotation marks around a text, a list with
    or without brackets. Anything else on the answer's line makes it wrong.
    """
    answer = answer_in(completion)
    read = KINDS[task.kind].read
    given = read(answer)
    if given is None:
        return Verdict(False, answer, f"no answer of the kind '{task.kind}' was found")
    if given != read(task.expected):
        return Verdict(False, answer, f"expected {task.expected}")
    return Verdict(True, answer, "")
