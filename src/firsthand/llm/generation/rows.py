"""The state of one text while it grows."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from dataclasses import replace

from firsthand.llm.generation.results import Choice, Generation, Piece, Reason
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.generation.stopping import TextStream
from firsthand.llm.tokenizer.tokenizer import Tokenizer


class Row:
    """A prompt, its settings, its random numbers and its tokens so far.

    Args:
        number: of the text in the request.
        prompt: at least one id.
        sampling: its settings.
        stream: of the seed: texts of one seed differ by it.
        tokenizer: None gives no text.
        end_tokens: ids that end the text.
        context: most tokens of prompt and text together.
    """

    def __init__(
        self,
        *,
        number: int,
        prompt: tuple[int, ...],
        sampling: Sampling,
        stream: int,
        tokenizer: Tokenizer | None,
        end_tokens: Collection[int],
        context: int,
    ) -> None:
        self.number, self.prompt, self.sampling = number, prompt, sampling
        self.limit = min(sampling.max_new_tokens, context - len(prompt))
        self.choices: list[Choice] = []
        self.drafted = self.accepted = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self._end_tokens = end_tokens
        decoder = None if tokenizer is None else tokenizer.stream_decoder()
        self._text = TextStream(decoder, sampling.stop)
        seed: object = os.urandom(16).hex() if sampling.seed < 0 else sampling.seed
        self._random = random.Random(f"{seed} {stream}")

    @property
    def last(self) -> int:
        """The newest token."""
        return self.choices[-1].token if self.choices else self.prompt[-1]

    @property
    def length(self) -> int:
        """Tokens of prompt and text."""
        return len(self.prompt) + len(self.choices)

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        return self.limit - len(self.choices)

    def uniform(self) -> float:
        """The next number in [0, 1) of this text; a greedy text needs none."""
        return self._random.random() if self.sampling.temperature else 0.0

    def add(self, choice: Choice) -> Piece:
        """Take the next token; the piece has a result when the text is finished by it."""
        self.choices.append(choice)
        reason: Reason | None = None
        shown = ""
        if choice.token in self._end_tokens:
            reason = "end"
        else:
            shown = self._text.push(choice.token)
            if self._text.stopped:
                reason = "stop"
            elif self.left == 0:
                reason = "length"
        if reason is not None:
            shown += self._text.finish()
        piece = Piece(
            row=self.number,
            token=choice.token,
            text=shown,
            logprob=choice.logprob,
            sampled_logprob=choice.sampled_logprob,
            top=choice.top,
        )
        return piece if reason is None else replace(piece, result=self._result(reason))

    def _result(self, reason: Reason) -> Generation:
        choices = self.choices
        recorded = self.sampling.records
        return Generation(
            prompt=self.prompt,
            ids=tuple(choice.token for choice in choices),
            text=self._text.text,
            reason=reason,
            logprobs=tuple(c.logprob for c in choices if c.logprob is not None),
            sampled_logprobs=tuple(
                c.sampled_logprob for c in choices if c.sampled_logprob is not None
            ),
            top_logprobs=tuple(c.top for c in choices) if recorded else (),
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            drafted=self.drafted,
            accepted=self.accepted,
        )
