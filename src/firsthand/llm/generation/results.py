"""What generation gives back: a record for each text, its pieces while it grows, its choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["end", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The next token of one row.

    Attributes:
        token: its id.
        logprob: ln of its probability under the model, before any filter; None unless recorded.
        sampled_logprob: under the distribution that it was drawn from.
        top: the most probable tokens under the model and their logarithms, in order.
    """

    token: int
    logprob: float | None = None
    sampled_logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One finished text.

    Attributes:
        prompt: the ids that the model read, after any truncation.
        ids: the new tokens, the one that ended the text included.
        text: of the new tokens, without an end token and without the stop string; "" where there
            is no tokenizer.
        reason: "end" the model gave an end token, "stop" a stop string came, "length" the limit
            or the context was reached.
        logprobs: for each id ln of its probability under the model itself (temperature 1, no
            filter), as OpenAI's API gives it; () unless recorded.
        sampled_logprobs: under the distribution it was drawn from, all filters applied: what
            importance ratios need.
        top_logprobs: for each place the most probable tokens under the model, and their
            logarithms.
        prefill_seconds: from the prompt to the first logits, for the whole batch.
        decode_seconds: from there to the last token of this text, in the generator's own code.
        drafted, accepted: tokens that a draft model proposed and the model took over.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    reason: Reason
    logprobs: tuple[float, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_second(self) -> float:
        """New tokens over decode seconds, the first not counted: the prefill gave its logits."""
        return (len(self.ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def acceptance_rate(self) -> float:
        """The share of the drafted tokens that were accepted; 0 without a draft model."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One new token of one text.

    Attributes:
        row: the number of the text in the request.
        token: its id.
        text: what can be shown now: whole characters that no stop string can take back.
        logprob, sampled_logprob, top: as in `Generation`, of this token; None and () unless
            recorded.
        result: the whole record, in the last piece of each text.
    """

    row: int
    token: int
    text: str
    logprob: float | None = None
    sampled_logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    result: Generation | None = None
