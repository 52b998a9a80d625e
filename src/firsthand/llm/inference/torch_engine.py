"""The engine for every model that PyTorch runs: a cache for each slot, a slot after the other.

It is what the CPU engine is compared with, and what runs a model that the CPU engine cannot.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firsthand.llm.inference.engine import Rows
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.model.transformer import Transformer

MAX_ROWS = 256


class TorchEngine:
    """`inference.engine.Engine` on PyTorch.

    Args:
        model: on any device, in its own precision; put into evaluation mode.
        slots: texts held at once.
        capacity: tokens that a slot holds; 0 is the model's context, which is also the most.
        max_rows: rows of one call.
    Raises:
        InferenceError: a size that cannot be.
    """

    def __init__(
        self, model: Transformer, *, slots: int = 1, capacity: int = 0, max_rows: int = MAX_ROWS
    ) -> None:
        context = model.config.context
        if slots < 1 or max_rows < 1:
            raise InferenceError(f"slots and rows are at least 1; not {slots} and {max_rows}")
        if not 0 <= capacity <= context:
            raise InferenceError(
                f"a slot holds at most the model's context of {context} tokens; not {capacity}"
            )
        self.config, self.slots, self.max_rows = model.config, slots, max_rows
        self.capacity = capacity or context
        self._model = model.eval()
        self._caches = [self._new_cache() for _ in range(slots)]

    @torch.inference_mode()
    def forward(
        self, tokens: Rows, slots: Rows, positions: Rows, wanted: Rows
    ) -> NDArray[np.float32]:
        """As `Engine.forward`.

        Raises:
            InferenceError: rows that the contract does not allow.
        """
        self._require(tokens, slots, positions, wanted)
        model = self._model
        edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(tokens)]
        ids = torch.tensor(tokens, dtype=torch.int64, device=model.embedding.weight.device)
        streams = []
        for first, last in pairwise(edges):
            cache = self._cache_at(int(slots[first]), int(positions[first]))
            streams.append(model.hidden(ids[None, first:last], cache=cache)[0])
        hidden = torch.cat(streams)[torch.tensor(wanted, dtype=torch.int64, device=ids.device)]
        logits = model.parts.vocabulary_logits(hidden, model.output_weight)
        found: NDArray[np.float32] = logits.to(torch.float32).cpu().numpy()
        return found

    def close(self) -> None:
        """Give the caches back."""
        self._caches = []

    def _new_cache(self) -> Any:
        # In inference mode, as all that is written to it later.
        with torch.inference_mode():
            return self._model.new_cache(1, self.capacity)

    def _cache_at(self, slot: int, position: int) -> Any:
        """The slot's cache when it holds so many tokens."""
        cache = self._caches[slot]
        if cache.length == position:
            return cache
        # A ring has overwritten what lies behind its window and cannot go back.
        if position < cache.length and not cache.window and hasattr(cache, "rewind"):
            cache.rewind(position)
        elif position == 0:
            cache = self._caches[slot] = self._new_cache()
        else:
            raise InferenceError(
                f"slot {slot} holds {cache.length} tokens and cannot go on at {position}"
            )
        return cache

    def _require(self, tokens: Rows, slots: Rows, positions: Rows, wanted: Rows) -> None:
        rows = len(tokens)
        if not 1 <= rows <= self.max_rows or not rows == len(slots) == len(positions):
            raise InferenceError(
                f"a call takes 1 to {self.max_rows} rows; not {rows} tokens, {len(slots)} slots "
                f"and {len(positions)} positions"
            )
        limits = (
            ("token", tokens, self.config.vocab_size),
            ("slot", slots, self.slots),
            ("position", positions, self.capacity),
            ("wanted row", wanted, rows),
        )
        for name, numbers, limit in limits:
            if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
                worst = numbers.max() if numbers.min() >= 0 else numbers.min()
                raise InferenceError(f"{name} {worst} is not between 0 and {limit - 1}")
        same = np.diff(slots) == 0
        changes = slots[1:][~same]
        if len({int(slots[0]), *changes.tolist()}) != len(changes) + 1:
            raise InferenceError("the rows of a slot do not follow each other")
        if (np.diff(positions)[same] != 1).any():
            raise InferenceError("the positions of a slot's rows do not follow each other")
