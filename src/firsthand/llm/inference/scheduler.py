"""Continuous batching: texts come and go at any step, each in a slot of the engine while it runs.

A step is one call of the engine. It has the newest token of every text that is being decoded, and
in the rows left over pieces of the prompts that wait to be read, first come first served: a long
prompt is read in several steps and keeps nobody waiting. A text that ends leaves its slot at once.

Sources: Yu et al. 2022, "Orca", section 3.1 (a batch is made anew at every step); Agrawal et al.
2023, "SARATHI", section 4 (pieces of prompts beside decoding).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.prompts import Prompt, Truncate, end_of_text, prompt_ids
from firsthand.llm.generation.results import Piece
from firsthand.llm.generation.rows import Row
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.choosing import Seen, choose
from firsthand.llm.inference.engine import Engine
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.tokenizer.tokenizer import Tokenizer

# Rows of prompts in a step that others wait for: a few times what a step of decoding costs.
ROWS_BESIDE = 64


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A text that came to no end.

    Attributes:
        row: its number, as in `Piece`.
        error: of the model's logits, or of the engine.
    """

    row: int
    error: Exception


Event: TypeAlias = Piece | Failure


class Text:
    """A text on its way: waiting, being read, or being written.

    Attributes:
        row: its prompt, settings and tokens.
        slot: of the engine; -1 while it waits.
        read: tokens whose keys and values the slot has.
        seen: the tokens so far, for a repetition penalty.
    """

    def __init__(self, row: Row, vocabulary: int) -> None:
        self.row, self.slot, self.read, self.began = row, -1, 0, 0.0
        self.seen: Seen | None = None
        if row.sampling.repetition_penalty != 1:
            self.seen = np.zeros(vocabulary, np.bool_)
            self.seen[list(row.prompt)] = True

    @property
    def unread(self) -> int:
        """Tokens that the engine has yet to read before it can give the next one."""
        return self.row.length - self.read

    def take(self, count: int) -> Sequence[int]:
        """The next tokens for the engine; they count as read."""
        start, self.read = self.read, self.read + count
        if start >= len(self.row.prompt):
            return (self.row.last,)
        return self.row.prompt[start : self.read]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the slot has read."""
        return (*self.row.prompt, *(c.token for c in self.row.choices))[: self.read]


class Scheduler:
    """The texts of one engine. Not for several threads at once, but for `prepare`.

    What a text says depends on its prompt, settings, seed and stream alone, up to the rounding of
    an engine whose sums depend on how many rows are in a call.

    Args:
        engine: runs the model.
        tokenizer: for texts and stop strings; None works on ids alone.
        end_tokens: ids that end a text; None is the tokenizer's end-of-text token, if any.
        rows_beside: rows of prompts in a step that also decodes.
    Raises:
        InferenceError: a tokenizer that does not fit the model, or an engine that cannot take a
            row of each slot in one call.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: Collection[int] | None = None,
        rows_beside: int = ROWS_BESIDE,
    ) -> None:
        self.vocabulary = engine.config.vocab_size
        if tokenizer is not None:
            if tokenizer.vocabulary_size > self.vocabulary:
                raise InferenceError(
                    f"the tokenizer has {tokenizer.vocabulary_size} tokens and the model "
                    f"{self.vocabulary}: they do not belong together"
                )
            # A model may have more rows, to a round number; they are no tokens.
            self.vocabulary = tokenizer.vocabulary_size
        if engine.max_rows < engine.slots:
            raise InferenceError(
                f"an engine of {engine.slots} slots takes only {engine.max_rows} rows in a call"
            )
        if end_tokens is None:
            end = end_of_text(tokenizer)
            end_tokens = () if end is None else (end,)
        self.engine, self.tokenizer = engine, tokenizer
        self.end_tokens = frozenset(end_tokens)
        self.context = min(engine.capacity, engine.config.context)
        self._rows_beside = max(1, rows_beside)
        self._numbers = itertools.count()
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        # Free slots, the longest unused one first, and what each slot has read.
        self._free = list(range(engine.slots))
        self._held: list[tuple[int, ...]] = [()] * engine.slots

    @property
    def waiting(self) -> int:
        """Texts that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Texts that have a slot."""
        return len(self._running)

    def prepare(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stream: int = 0,
        end_tokens: Collection[int] | None = None,
        truncate: Truncate = "error",
    ) -> Text:
        """A text for `add`, checked; any thread may call this.

        Args:
            prompt: a text, or ids below the vocabulary.
            stream: tells texts of one seed apart.
            end_tokens: None is the scheduler's.
            truncate: as `generation.decoding.stream`.
        Raises:
            GenerationError: a prompt that no text can start from, or stop strings without a
                tokenizer.
        """
        if sampling.stop and self.tokenizer is None:
            raise GenerationError("stop strings need a tokenizer")
        ids = prompt_ids(
            prompt,
            self.tokenizer,
            vocabulary=self.vocabulary,
            context=self.context,
            max_new_tokens=sampling.max_new_tokens,
            truncate=truncate,
        )
        row = Row(
            number=next(self._numbers),
            prompt=ids,
            sampling=sampling,
            stream=stream,
            tokenizer=self.tokenizer,
            end_tokens=self.end_tokens if end_tokens is None else frozenset(end_tokens),
            context=self.context,
        )
        return Text(row, self.vocabulary)

    def add(self, text: Text) -> int:
        """Let a text wait for its turn; its number, which its events have as `row`."""
        self._waiting.append(text)
        return text.row.number

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stream: int = 0,
        end_tokens: Collection[int] | None = None,
        truncate: Truncate = "error",
    ) -> int:
        """`prepare` and `add` in one."""
        return self.add(
            self.prepare(prompt, sampling, stream=stream, end_tokens=end_tokens, truncate=truncate)
        )

    def cancel(self, number: int) -> bool:
        """Forget a text, waiting or running; False when there is none of this number."""
        for text in self._waiting:
            if text.row.number == number:
                self._waiting.remove(text)
                return True
        for text in self._running:
            if text.row.number == number:
                self._leave(text)
                return True
        return False

    def step(self) -> list[Event]:
        """One call of the engine; the new tokens by text, and what failed. [] when idle."""
        self._admit()
        if not self._running:
            return []
        batch = self._batch()
        tokens = [token for _, part in batch for token in part]
        slots = [text.slot for text, part in batch for _ in part]
        ends = list(itertools.accumulate(len(part) for _, part in batch))
        positions = [
            position for text, part in batch for position in range(text.read - len(part), text.read)
        ]
        ready = [(text, end - 1) for (text, _), end in zip(batch, ends, strict=True)]
        ready = [(text, row) for text, row in ready if not text.unread]
        try:
            logits = self.engine.forward(
                np.array(tokens, np.int32),
                np.array(slots, np.int32),
                np.array(positions, np.int32),
                np.array([row for _, row in ready], np.int32),
            )
        except Exception as error:  # whatever it is, the other texts live on
            return [self._fail(text, error) for text, _ in batch]
        except BaseException:  # Ctrl-C: nobody knows what was written
            for text, _ in batch:
                text.read = 0
            raise
        return [self._next(text, row) for (text, _), row in zip(ready, logits, strict=True)]

    def _admit(self) -> None:
        """Give free slots to those who wait the longest."""
        while self._waiting and self._free:
            text = self._waiting.popleft()
            text.slot, text.read = self._best_slot(text.row.prompt)
            self._free.remove(text.slot)
            text.began = time.perf_counter()
            self._running.append(text)

    def _best_slot(self, prompt: tuple[int, ...]) -> tuple[int, int]:
        """The free slot that has read most of this prompt already, and how much of it."""
        if self.engine.config.window:  # a ring has overwritten the beginning
            return self._free[0], 0
        shared = [_shared(self._held[slot], prompt) for slot in self._free]
        most = max(shared)
        # The last token is read again: its logits are what the text starts from.
        return self._free[shared.index(most)], min(most, len(prompt) - 1)

    def _batch(self) -> list[tuple[Text, Sequence[int]]]:
        """Who goes into the next call with which tokens: decoding first, then prompts in order."""
        decoding = [text for text in self._running if text.row.choices]
        room = self.engine.max_rows - len(decoding)
        if decoding:
            room = min(room, self._rows_beside)
        batch = [(text, text.take(1)) for text in decoding]
        for text in self._running:
            if room and not text.row.choices:
                count = min(room, text.unread)
                batch.append((text, text.take(count)))
                room -= count
        return batch

    def _next(self, text: Text, logits: NDArray[np.float32]) -> Event:
        row = text.row
        try:
            choice = choose(logits[: self.vocabulary], row.sampling, row.uniform(), text.seen)
        except GenerationError as error:
            return self._fail(text, error)
        if text.seen is not None:
            text.seen[choice.token] = True
        spent = time.perf_counter() - text.began
        if not row.choices:
            row.prefill_seconds = spent
        row.decode_seconds = spent - row.prefill_seconds
        piece = row.add(choice)
        if piece.result is not None:
            self._leave(text)
        return piece

    def _leave(self, text: Text) -> None:
        self._held[text.slot] = text.tokens
        self._running.remove(text)
        self._free.append(text.slot)

    def _fail(self, text: Text, error: Exception) -> Failure:
        self._leave(text)
        self._held[text.slot] = ()
        return Failure(row=text.row.number, error=error)


def _shared(held: tuple[int, ...], prompt: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    for place, (old, new) in enumerate(zip(held, prompt, strict=False)):
        if old != new:
            return place
    return min(len(held), len(prompt))
