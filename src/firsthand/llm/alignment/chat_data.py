"""Conversations of a run as packed rows: which are learnt from, in which order, from where on.

Rows are packed anew in each epoch, in an order that depends on the seed and the epoch alone, so a
position in it is all the state there is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.rewards import (
    Question,
    final_number,
    record_question,
    task_questions,
)
from firsthand.llm.alignment.settings import AlignmentSettings, SftSettings, TaskSettings
from firsthand.llm.data.packing import Example, PackedBatch, TooLong, best_fit, packed_batch
from firsthand.llm.data.permutation import Permutation
from firsthand.llm.data.records import ChatRecord, read_chats
from firsthand.llm.data.tasks import TASK_SPLITS, TaskSplit, generate_tasks
from firsthand.llm.tokenizer import TokenizerError
from firsthand.llm.tokenizer.chat import TRAINED_ROLE, ChatTemplate

# Examples that are fitted together: enough for full rows, few enough that packing, which takes the
# longest first, stirs the order of an epoch only a little.
WINDOW = 512
# Tell the draws of what is held out and of the rows from the order of the examples.
_HELD_OUT_DRAW, _ROW_DRAW = 7, 1
# Questions of each split that validation's loss is over; more add digits that nobody needs.
_VALIDATION_TASKS = 300
# Of the conversations of generated tasks, where several turns are asked for.
_SINGLE_SHARE = 0.75


@dataclass(frozen=True)
class ChatData:
    """Conversations to learn from, and what the model is measured on.

    Attributes:
        train: tokenized; the assistant's tokens are trained on.
        validation: tokenized, for the loss.
        questions: by split, with a judge each; empty where nothing decides an answer.
    """

    train: list[Example]
    validation: list[Example]
    questions: dict[str, list[Question]]

    def __post_init__(self) -> None:
        for name, examples in (("training", self.train), ("validation", self.validation)):
            if not examples:
                raise AlignmentError(f"the {name} split has no conversation: give more records")

    @property
    def identity(self) -> str:
        """A hash of all ids that are learnt from, in order, and of what is trained on."""
        digest = hashlib.sha256()
        for example in self.train:
            ids = np.asarray(example.ids, "<i8")
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.tobytes())
            digest.update(np.packbits(np.asarray(example.trained, np.bool_)).tobytes())
        return digest.hexdigest()


def chat_data(
    settings: AlignmentSettings, template: ChatTemplate, *, length: int, seed: int
) -> ChatData:
    """The conversations that the settings name: of files, or of generated tasks without any.

    Generated tasks are held out by their numbers and phrasings, conversations of files by a draw.
    Those of files are questions too where each answer ends with "#### NUMBER".

    Args:
        length: positions of a row.
        seed: of the draws.
    Raises:
        SourceError: a line that is no conversation; names file and line.
        AlignmentError: an empty answer, a prompt longer than a row, a conversation longer than a
            row where that is an error, or nothing left; names file and line.
    """
    too_long = settings.sft.too_long
    if not settings.files:
        return _task_data(settings.tasks, template, length, seed, settings.sft)
    records = [record for file in settings.files for record in read_chats(Path(file))]
    kept = list(_encoded(records, template, length, too_long))
    held = round(settings.sft.validation_share * len(kept))
    if not 1 <= held < len(kept):
        raise AlignmentError(
            f"{len(kept)} conversations cannot be split with {settings.sft.validation_share:.0%} "
            "held out: give more records or another sft.validation_share"
        )
    order = Permutation(len(kept), seed, _HELD_OUT_DRAW)(np.arange(len(kept))).tolist()
    of_files = {record.place: record for record in records}
    held_out = [of_files[kept[i].place] for i in order[:held]]
    judged = all(final_number(r.messages[-1].content) is not None for r in held_out)
    questions = {"held_out": [record_question(r) for r in held_out]} if judged else {}
    return ChatData([kept[i] for i in order[held:]], [kept[i] for i in order[:held]], questions)


def encoded_chat(
    record: ChatRecord, template: ChatTemplate, length: int, too_long: TooLong = "error"
) -> Example | None:
    """The ids of a conversation, or None where it is too long and may be dropped.

    Args:
        length: positions of a row; an example of n tokens takes n - 1.
        too_long: "error", "drop", or "cut" at the end.
    Raises:
        AlignmentError: an empty answer of the assistant, a first prompt that fills the row, or as
            `too_long`; names file and line.
    """
    for number, message in enumerate(record.messages):
        if message.role == TRAINED_ROLE and not message.content.strip():
            raise AlignmentError(f"{record.place}: the answer in message {number} is empty")
    try:
        rendered = template.render([message.to_json() for message in record.messages])
    except TokenizerError as error:
        raise AlignmentError(f"{record.place}: {error}") from None
    tokens, trained = len(rendered.ids), rendered.trained
    example = Example(rendered.ids, trained, record.place)
    if tokens <= length + 1:
        return example
    if too_long == "drop":
        return None
    prompt = int(np.argmax(trained))
    if prompt > length:
        raise AlignmentError(
            f"{record.place}: the prompt has {prompt} tokens; a row of {length} holds no answer "
            "behind it"
        )
    if too_long == "error":
        raise AlignmentError(
            f"{record.place}: the conversation has {tokens} tokens, {length + 1} fit into a row; "
            'sft.too_long="drop" or "cut" goes on without what does not fit'
        )
    return Example(rendered.ids[: length + 1], trained[: length + 1], record.place)


def held_out_questions(tasks: TaskSettings, count: int, seed: int) -> dict[str, list[Question]]:
    """Generated tasks that are never trained on, by split; the same for the same seed."""
    return {
        split: task_questions(
            generate_tasks(count, seed=seed, split=split, kinds=tasks.kinds, levels=tasks.levels)
        )
        for split in TASK_SPLITS
        if split != "train"
    }


def _task_data(
    tasks: TaskSettings, template: ChatTemplate, length: int, seed: int, sft: SftSettings
) -> ChatData:
    def generated(split: TaskSplit, count: int) -> list[ChatRecord]:
        kinds, levels = tasks.kinds, tasks.levels
        drawn = generate_tasks(count, seed=seed, split=split, kinds=kinds, levels=levels)
        return [task.chat() for task in drawn]

    records = generated("train", tasks.count)
    train = list(_talks(records, template, length, seed, sft))
    held_out = generated("numbers", _VALIDATION_TASKS)
    return ChatData(
        train,
        list(_encoded(held_out, template, length, sft.too_long)),
        held_out_questions(tasks, tasks.evaluated_last, seed),
    )


def _talks(
    records: Sequence[ChatRecord],
    template: ChatTemplate,
    length: int,
    seed: int,
    sft: SftSettings,
) -> Iterator[Example]:
    """Each task as a conversation, or some as the turns of one, where they fit into a row."""
    generator = random.Random(f"turns {seed}")
    start = 0
    while start < len(records):
        single = sft.turns == 1 or generator.random() < _SINGLE_SHARE
        group = records[start : start + (1 if single else generator.randint(2, sft.turns))]
        start += len(group)
        messages = tuple(message for record in group for message in record.messages)
        joined = encoded_chat(ChatRecord(messages, group[0].place), template, length, "drop")
        yield from _encoded(group, template, length, sft.too_long) if joined is None else (joined,)


def _encoded(
    records: Iterable[ChatRecord], template: ChatTemplate, length: int, too_long: TooLong
) -> Iterator[Example]:
    for record in records:
        example = encoded_chat(record, template, length, too_long)
        if example is not None:
            yield example


class PackedChats:
    """Batches of packed conversations for one rank, epoch after epoch.

    All ranks make the same number of steps; each takes its part of the same rows.

    Args:
        examples: to learn from, at least one.
        identity: of the examples, checked on resuming.
        length: positions of a row.
        rows: of one rank's batch.
        padding: the id of unused inputs.
        seed: of the order.
        rank, ranks: which of how many this is.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        identity: str,
        *,
        length: int,
        rows: int,
        padding: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if not examples:
            raise AlignmentError("there is no conversation to learn from")
        if length < 1 or rows < 1 or not 0 <= rank < ranks:
            raise ValueError(f"{rows} rows of {length} positions for rank {rank} of {ranks}")
        self._examples, self._identity = examples, identity
        self._length, self._rows, self._padding = length, rows, padding
        self._seed, self._rank, self._ranks = seed, rank, ranks
        self._epoch = self._position = 0
        self._packed: tuple[int, list[list[int]]] | None = None

    def next_batch(self) -> PackedBatch:
        """The next rows; behind the last of an epoch come those of the next."""
        taken: list[list[int]] = []
        while len(taken) < self._rows * self._ranks:
            rows = self._epoch_rows()
            fresh = rows[self._position : self._position + self._rows * self._ranks - len(taken)]
            taken += fresh
            self._position += len(fresh)
            if self._position == len(rows):
                self._epoch, self._position = self._epoch + 1, 0
        first = self._rank * self._rows
        own = [[self._examples[i] for i in row] for row in taken[first : first + self._rows]]
        return packed_batch(own, self._length, self._padding)

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, and in what."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._seed,
            "length": self._length,
            "data": self._identity,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state, also with another batch size or number of ranks.

        Raises:
            AlignmentError: it is of other conversations, another length or seed.
        """
        now = self.state()
        for name in ("data", "length", "seed"):
            if state.get(name) != now[name]:
                what = "other conversations" if name == "data" else f"{name} {state.get(name)}"
                have = "" if name == "data" else f"; now it is {now[name]}"
                raise AlignmentError(f"the checkpoint is of {what}{have}")
        epoch, position = state["epoch"], state["position"]
        self._epoch = epoch
        if epoch < 0 or not 0 <= position < len(self._epoch_rows()):
            raise AlignmentError(f"there is no row {position} in epoch {epoch}")
        self._position = position

    def _epoch_rows(self) -> list[list[int]]:
        """The rows of the epoch as numbers of examples, in the order they are given out."""
        if self._packed is None or self._packed[0] != self._epoch:
            count = len(self._examples)
            order = Permutation(count, self._seed, self._epoch)(np.arange(count)).tolist()
            rows: list[list[int]] = []
            for start in range(0, count, WINDOW):
                window = order[start : start + WINDOW]
                lengths = [len(self._examples[i].ids) - 1 for i in window]
                fits = best_fit(lengths, self._length)
                # Best fit gives the row of the longest example first: stir them again.
                stirred = Permutation(len(fits), self._seed, self._epoch, start, _ROW_DRAW)
                rows += [[window[i] for i in fits[k]] for k in stirred(np.arange(len(fits)))]
            self._packed = (self._epoch, rows)
        return self._packed[1]
