"""Several texts at once: rows of unequal length in one cache, padded on the left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from firsthand.llm.generation.choosing import choose
from firsthand.llm.generation.results import Piece
from firsthand.llm.generation.rows import Row
from firsthand.llm.model.transformer import Transformer


@runtime_checkable
class Shrinking(Protocol):
    """A cache that can drop rows; with one that cannot, finished rows are computed and ignored."""

    def keep(self, rows: Sequence[int]) -> None: ...


@runtime_checkable
class Spreading(Protocol):
    """A cache that can copy rows; with one that cannot, equal prompts are read once for each."""

    def spread(self, rows: Sequence[int]) -> None: ...


class Batch:
    """Texts that are decoded together; a finished one leaves the work.

    Every row ends at the newest slot of the cache, so that one step appends to all rows at once,
    and begins where its own start is. Only the visibility of keys and absolute positions differ
    from row to row; `Transformer.hidden` takes care of both. Several samples of one prompt read it
    once.

    Args:
        model: on any device, in its own precision.
        rows: at least one.
        vocabulary: tokens that may come; the model may have rows beyond it.
    """

    def __init__(self, model: Transformer, rows: Sequence[Row], vocabulary: int) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._rows: list[Row | None] = list(rows)
        self._device = model.embedding.weight.device
        self._seen: Tensor | None = None
        self._starts: list[int] = []
        self._start_tensor: Tensor | None = None
        self._prefill_seconds = self._decode_seconds = 0.0

    def pieces(self) -> Iterator[Piece]:
        """The tokens of all rows as they come; in each step by row."""
        # The mode is entered in each step and not around the loop: at a `yield` it would leak
        # into the code of whoever reads the pieces.
        began = time.perf_counter()
        logits = self._prefill()
        self._prefill_seconds = time.perf_counter() - began
        while True:
            began = time.perf_counter()
            fresh = self._choose(logits, began)
            going = self._drop_finished()
            self._decode_seconds += time.perf_counter() - began
            yield from fresh
            if not going:
                return
            began = time.perf_counter()
            logits = self._step()
            self._decode_seconds += time.perf_counter() - began

    @torch.inference_mode()
    def _prefill(self) -> Tensor:
        rows = [row for row in self._rows if row is not None]
        longest = max(len(row.prompt) for row in rows)
        capacity = longest + max(row.limit for row in rows)
        numbers: dict[tuple[int, ...], int] = {}
        places = [numbers.setdefault(row.prompt, len(numbers)) for row in rows]
        prompts = list(numbers)
        self._cache = self._model.new_cache(len(prompts), capacity)
        if len(prompts) < len(rows) and not isinstance(self._cache, Spreading):
            prompts, places = [row.prompt for row in rows], list(range(len(rows)))
            self._cache = self._model.new_cache(len(rows), capacity)
        self._starts = [longest - len(prompt) for prompt in prompts]
        padded = [(0,) * start + p for start, p in zip(self._starts, prompts, strict=True)]
        if any(row.sampling.repetition_penalty != 1 for row in rows):
            self._seen = torch.zeros(
                len(rows), self._vocabulary, dtype=torch.bool, device=self._device
            )
            for number, row in enumerate(rows):
                self._seen[number, list(set(row.prompt))] = True
        self._place_starts()
        logits = self._logits(torch.tensor(padded, device=self._device))
        if len(prompts) == len(rows):
            return logits
        if isinstance(self._cache, Spreading):
            self._cache.spread(places)
        self._starts = [self._starts[place] for place in places]
        self._place_starts()
        return logits[places]

    @torch.inference_mode()
    def _step(self) -> Tensor:
        tokens = [0 if row is None else row.last for row in self._rows]
        newest = torch.tensor(tokens, device=self._device)[:, None]
        if self._seen is not None:
            self._seen.scatter_(1, newest, True)
        return self._logits(newest)

    def _logits(self, tokens: Tensor) -> Tensor:
        model = self._model
        hidden = model.hidden(tokens, cache=self._cache, starts=self._start_tensor)
        logits = model.parts.vocabulary_logits(hidden[:, -1], model.output_weight)
        logits = logits[:, : self._vocabulary]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.inference_mode()
    def _choose(self, logits: Tensor, began: float) -> list[Piece]:
        places = [place for place, row in enumerate(self._rows) if row is not None]
        rows = [row for row in self._rows if row is not None]
        seen = self._seen
        if len(rows) < len(self._rows):
            logits = logits[places]
            seen = None if seen is None else seen[places]
        choices = choose(
            self._model.parts,
            logits,
            [row.sampling for row in rows],
            [row.uniform() for row in rows],
            seen,
        )
        spent = self._decode_seconds + time.perf_counter() - began
        pieces = []
        for row, choice in zip(rows, choices, strict=True):
            row.prefill_seconds, row.decode_seconds = self._prefill_seconds, spent
            pieces.append(row.add(choice))
        for place, piece in zip(places, pieces, strict=True):
            if piece.result is not None:
                self._rows[place] = None
        return pieces

    @torch.inference_mode()
    def _drop_finished(self) -> bool:
        """Close the gaps with rows from the end, so that few are moved; whether any row is left."""
        going = [place for place, row in enumerate(self._rows) if row is not None]
        if len(going) == len(self._rows) or not going:
            return bool(going)
        if not isinstance(self._cache, Shrinking):
            # The start of a running row keeps the finished one's length within the context.
            for place, row in enumerate(self._rows):
                if row is None:
                    self._starts[place] = self._starts[going[0]]
            self._place_starts()
            return True
        count = len(going)
        last = [place for place in going if place >= count]
        order = [place if self._rows[place] is not None else last.pop() for place in range(count)]
        self._cache.keep(order)
        self._rows = [self._rows[place] for place in order]
        self._starts = [self._starts[place] for place in order]
        if self._seen is not None:
            self._seen = self._seen[order]
        self._place_starts()
        return True

    def _place_starts(self) -> None:
        padded = any(self._starts)
        self._start_tensor = torch.tensor(self._starts, device=self._device) if padded else None
