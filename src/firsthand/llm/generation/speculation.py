"""Speculative decoding: a small model proposes tokens, the large one judges them in one pass.

Sources: Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative
Decoding", section 2 and algorithm 1; Chen et al. 2023, "Accelerating Large Language Model Decoding
with Speculative Sampling", algorithm 2.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from firsthand.llm.generation.choosing import filtered, recorded, require_finite
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.filters import draw
from firsthand.llm.generation.results import Choice, Piece
from firsthand.llm.generation.rows import Row
from firsthand.llm.model.parts import Cache
from firsthand.llm.model.transformer import Transformer


def accept_drafted(
    target: Float[Tensor, "drafted_plus_1 vocab"],
    draft: Float[Tensor, "drafted vocab"],
    drafted: Sequence[int],
    uniforms: Sequence[float],
) -> tuple[int, int]:
    """How many of the drafted tokens are taken over, and the token that follows them.

    Token x is accepted with the probability min(1, p(x) / q(x)). The first one refused is replaced
    by a draw from max(0, p - q), scaled to sum to 1, which is just what the accepted ones lack of
    p: the texts are distributed as if the target had drawn them alone. If all are accepted, the
    target's last distribution gives one more token.

    Args:
        target: p after each prefix, of the model that decides.
        draft: q, of the model that has drawn `drafted`.
        drafted: ids, in order.
        uniforms: numbers in [0, 1), one more than ids.
    """
    last = torch.tensor(uniforms[-1:], dtype=torch.float64, device=target.device)
    for place, (token, uniform) in enumerate(zip(drafted, uniforms, strict=False)):
        p, q = target[place], draft[place]
        if uniform * q[token].item() < p[token].item():
            continue
        rest = (p - q).clamp_(min=0)
        # Where p = q up to rounding nothing is left over, and p itself is right.
        return place, int(draw((rest if rest.sum() > 0 else p)[None], last))
    return len(drafted), int(draw(target[-1:], last))


class Rewinding(Protocol):
    """A cache that can forget its newest tokens."""

    def rewind(self, length: int) -> None: ...


class Reader:
    """One model with its cache: what it has read of a text, and logits after more of it."""

    def __init__(self, model: Transformer, capacity: int, vocabulary: int) -> None:
        self.model = model
        # A ring has overwritten what a rewind would need: with so large a piece there is none.
        self.cache: Cache = model.new_cache(1, capacity, piece=capacity)
        if not hasattr(self.cache, "rewind"):
            raise GenerationError("speculative decoding needs a cache with `rewind`")
        self._vocabulary = vocabulary
        self._device = model.embedding.weight.device

    def logits(self, text: Sequence[int], last: int) -> Float[Tensor, "last vocab"]:
        """The logits after each of the last tokens of the text; reads what it has not read yet."""
        new = torch.tensor([text[self.cache.length :]], device=self._device)
        hidden = self.model.hidden(new, cache=self.cache)[0, -last:]
        logits = self.model.parts.vocabulary_logits(hidden, self.model.output_weight)
        logits = logits[:, : self._vocabulary]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forget(self, length: int) -> None:
        """Keep at most so many tokens."""
        cast(Rewinding, self.cache).rewind(min(length, self.cache.length))


class Speculation:
    """One text, decoded with a draft model.

    Args:
        model, draft: with the same vocabulary.
        row: the text.
        vocabulary: tokens that may come.
        draft_tokens: proposed at a time.
    Raises:
        GenerationError: another vocabulary, or a cache that cannot go back.
    """

    def __init__(
        self,
        model: Transformer,
        draft: Transformer,
        row: Row,
        vocabulary: int,
        draft_tokens: int,
    ) -> None:
        if model.config.vocab_size != draft.config.vocab_size:
            raise GenerationError(
                f"the draft model has {draft.config.vocab_size} tokens and the model "
                f"{model.config.vocab_size}: they need one vocabulary"
            )
        if draft_tokens < 1:
            raise GenerationError(f"draft_tokens is at least 1; not {draft_tokens}")
        self._row, self._draft_tokens = row, draft_tokens
        capacity = len(row.prompt) + row.limit
        self._target = Reader(model, capacity, vocabulary)
        self._context = draft.config.context
        self._draft = Reader(draft, min(capacity, self._context), vocabulary)
        self._text = list(row.prompt)

    def pieces(self) -> Iterator[Piece]:
        """The tokens as they come."""
        row = self._row
        began = time.perf_counter()
        with torch.inference_mode():
            self._target.logits(self._text, 1)
            self._target.forget(len(self._text) - 1)
        row.prefill_seconds = time.perf_counter() - began
        while True:
            began = time.perf_counter()
            choices = self._round()
            row.decode_seconds += time.perf_counter() - began
            for choice in choices:
                piece = row.add(choice)
                yield piece
                if piece.result is not None:
                    return

    @torch.inference_mode()
    def _round(self) -> list[Choice]:
        """Some drafted tokens and one of the target's own: at least one, at most all and one."""
        row, text, parts = self._row, self._text, self._target.model.parts
        start = len(text)
        count = max(0, min(self._draft_tokens, row.left - 1, self._context - start))
        draft = []
        for _ in range(count):
            logits = self._left(self._draft.logits(text, 1), text)
            draft.append(torch.softmax(logits, dim=-1))
            uniform = torch.tensor([row.uniform()], dtype=torch.float64, device=logits.device)
            text.append(int(parts.draw(draft[-1], uniform)))
        logits = self._target.logits(text, count + 1)
        require_finite(logits.amax(dim=-1))
        left = torch.cat(
            [self._left(logits[i : i + 1], text[: start + i]) for i in range(count + 1)]
        )
        target = torch.softmax(left, dim=-1)
        accepted, token = parts.accept_drafted(
            target,
            torch.cat(draft) if draft else target[:0],
            text[start:],
            [row.uniform() for _ in range(count + 1)],
        )
        row.drafted, row.accepted = row.drafted + count, row.accepted + accepted
        text[start + accepted :] = [token]
        self._target.forget(len(text) - 1)
        self._draft.forget(len(text) - 1)
        tokens = text[start:]
        if not row.sampling.records:
            return [Choice(token=token) for token in tokens]
        ids = torch.tensor(tokens, device=logits.device)
        samplings = [row.sampling] * len(tokens)
        return recorded(logits[: len(tokens)], left[: len(tokens)], ids, samplings)

    def _left(self, logits: Tensor, text: Sequence[int]) -> Tensor:
        """The logits that a token after this text is drawn from."""
        sampling, seen = self._row.sampling, None
        if sampling.repetition_penalty != 1:
            seen = torch.zeros_like(logits, dtype=torch.bool)
            seen[0, list(set(text))] = True
        return filtered(self._target.model.parts, logits, sampling, seen)
