"""A conversation with a model, turn by turn, that never outgrows the context."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.results import Piece
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.decoding import stream
from firsthand.llm.inference.scheduler import Scheduler
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate


class Conversation:
    """Turns and answers. A model without chat tokens goes on with the text as it stands.

    Args:
        scheduler: with a tokenizer and no texts of its own.
        sampling: of every answer; turn i is on stream i of its seed.
        system: what the model is told first; with chat tokens alone.

    Attributes:
        templated: whether the model knows turns.
        dropped: turns, or tokens of a model without chat tokens, that the last answer did not see
            because the context was full.
    """

    def __init__(self, scheduler: Scheduler, sampling: Sampling, *, system: str = "") -> None:
        tokenizer = scheduler.tokenizer
        if tokenizer is None:
            raise GenerationError("a conversation needs a tokenizer")
        self.templated = set(CHAT_TOKENS) <= set(tokenizer.special_tokens)
        self.dropped = 0
        self._scheduler, self._tokenizer, self._sampling = scheduler, tokenizer, sampling
        self._template = ChatTemplate(tokenizer) if self.templated else None
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        self._ids: list[int] = []
        self._count = 0

    def reset(self) -> None:
        """Forget all turns but the system's."""
        self._turns, self._ids, self.dropped, self._count = [], [], 0, 0

    def say(self, text: str) -> Generator[Piece, None, None]:
        """The answer as it comes. What was given until the reader stopped is part of the talk.

        Raises:
            GenerationError: this turn alone is longer than the context, or the model's logits are
                not finite; the turn does not count then.
            TokenizerError: a text that UTF-8 cannot carry.
        """
        return self._answer(text) if self._template else self._continuation(text)

    @property
    def _room(self) -> int:
        """The tokens of a prompt beside which an answer has its full length, or half a context."""
        context = self._scheduler.context
        return max(1, context - self._sampling.max_new_tokens, context // 2)

    def _answer(self, text: str) -> Generator[Piece, None, None]:
        assert self._template is not None
        turns = [*self._turns, {"role": "user", "content": text}]
        prompt = self._rendered(turns)
        self.dropped = 0
        while len(prompt) > self._room and len(turns) > 1:
            # A question goes with its answer.
            gone = 2 if turns[1]["role"] == "assistant" else 1
            turns, self.dropped = turns[gone:], self.dropped + gone
            prompt = self._rendered(turns)
        end = {self._template.end, *self._scheduler.end_tokens}
        pieces = self._stream(prompt, end)
        return self._kept(pieces, turns)

    def _kept(
        self, pieces: Iterator[Piece], turns: list[dict[str, str]]
    ) -> Generator[Piece, None, None]:
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece.text)
                yield piece
        finally:
            if said:
                self._turns = [*turns, {"role": "assistant", "content": "".join(said)}]

    def _continuation(self, text: str) -> Generator[Piece, None, None]:
        fresh = self._tokenizer.encode(text)
        if len(fresh) >= self._scheduler.context:
            raise self._too_long(len(fresh))
        ids = [*self._ids, *fresh]
        self.dropped = max(0, len(ids) - max(self._room, len(fresh)))
        ids = ids[self.dropped :]
        pieces = self._stream(ids, self._scheduler.end_tokens)
        return self._written(pieces, ids)

    def _written(self, pieces: Iterator[Piece], ids: list[int]) -> Generator[Piece, None, None]:
        for piece in pieces:
            ended = piece.token in self._scheduler.end_tokens
            ids = ids if ended else [*ids, piece.token]
            self._ids = ids
            yield piece

    def _rendered(self, turns: list[dict[str, str]]) -> list[int]:
        assert self._template is not None
        ids: list[int] = self._template.render([*self._system, *turns], ask=True).ids.tolist()
        return ids

    def _stream(self, prompt: list[int], end: set[int] | frozenset[int]) -> Iterator[Piece]:
        if len(prompt) >= self._scheduler.context:
            raise self._too_long(len(prompt))
        # The same talk gives the same answers again, and the same question twice need not.
        number, self._count = self._count, self._count + 1
        return stream(
            self._scheduler, [prompt], self._sampling, end_tokens=end, first_stream=number
        )

    def _too_long(self, tokens: int) -> GenerationError:
        return GenerationError(
            f"the turn has {tokens} tokens, and the context holds {self._scheduler.context} with "
            "the answer: say it in fewer words"
        )
