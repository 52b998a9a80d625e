"""Keys and values of the tokens so far, in memory that is allocated once.

A full cache holds position p in slot p. A ring holds it in slot p mod capacity, so that a
sliding window never moves or joins arrays; attention does not care about the order of keys.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

PIECE = 64


class KVCache:
    """Keys and values of all layers, (layers, batch, kv_heads, capacity, width) each.

    Every layer appends the same tokens; then `advance` is called once.

    Args:
        layers, batch, kv_heads, width: of the model and of the rows generated together.
        capacity: slots; for a full cache the longest text, at most.
        window: 0 is a full cache; above 0 a ring for a window of so many tokens. While n tokens
            are appended at once, the first of them still sees window - 1 older ones: a ring takes
            at most `piece` = capacity - window + 1 tokens at a time.
        neighbours: the tokens themselves are kept too, and `recall` gives back so many.
        dtype, device: of the arrays.
    Raises:
        ValueError: a size below 1, or a ring smaller than its window.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        width: int,
        window: int = 0,
        neighbours: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (layers, batch, kv_heads, capacity, width)
        if min(shape) < 1 or window > capacity:
            raise ValueError(f"a cache of the shape {shape} for a window of {window} cannot be")
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.window, self.neighbours = window, neighbours
        slots = max(capacity, neighbours) if neighbours else 0
        self.tokens = torch.zeros(batch, slots, dtype=torch.int64, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Slots."""
        return self.keys.shape[3]

    @property
    def piece(self) -> int:
        """The most tokens that can be appended at once when the cache is not empty."""
        return self.capacity - self.window + 1 if self.window else self.capacity - self.length

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, used or not."""
        return self.keys.nbytes + self.values.nbytes + self.tokens.nbytes

    def append(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_heads new width"],
        values: Float[Tensor, "batch kv_heads new width"],
    ) -> tuple[
        Float[Tensor, "batch kv_heads seen width"], Float[Tensor, "batch kv_heads seen width"]
    ]:
        """Write one layer's new keys and values; return views of all that it now holds.

        Raises:
            ValueError: more tokens than fit.
        """
        new = keys.shape[2]
        if new > self.piece:
            raise ValueError(
                f"{new} tokens do not fit: the cache holds {self.length} and has "
                f"{self.capacity} slots"
                + (f" for a window of {self.window}" if self.window else "")
            )
        first = self.length % self.capacity
        until_end = min(new, self.capacity - first)
        used = min(self.length + new, self.capacity)
        held = self.keys[layer], self.values[layer]
        for store, fresh in zip(held, (keys, values), strict=True):
            # `narrow` costs half of a slice, and a step of generation takes two for each layer.
            store.narrow(2, first, until_end).copy_(fresh.narrow(2, 0, until_end))
            if until_end < new:
                store.narrow(2, 0, new - until_end).copy_(
                    fresh.narrow(2, until_end, new - until_end)
                )
        return held[0].narrow(2, 0, used), held[1].narrow(2, 0, used)

    def recall(self, tokens: Int[Tensor, "batch new"]) -> Int[Tensor, "batch neighbours_and_new"]:
        """Keep the new tokens; return the last `neighbours` before them, and them.

        Before the beginning of the text stands any token.
        """
        slots = self.tokens.shape[1]
        new = tokens.shape[1]
        before = torch.arange(self.length - self.neighbours, self.length, device=tokens.device)
        recalled = torch.cat([self.tokens[:, before % slots], tokens], dim=1)
        kept = torch.arange(self.length, self.length + new, device=tokens.device)[-slots:]
        self.tokens[:, kept % slots] = tokens[:, -slots:]
        return recalled

    def positions(self, new: int = 0) -> Int[Tensor, " seen"]:
        """The position in each used slot once `new` more tokens are appended."""
        length = self.length + new
        slots = torch.arange(min(length, self.capacity), device=self.keys.device)
        return length - 1 - (length - 1 - slots) % self.capacity

    def advance(self, new: int) -> None:
        """Count `new` tokens that every layer has appended."""
        self.length += new

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; a ring has overwritten older ones and cannot.

        Raises:
            ValueError: a ring, or a length that the cache has not reached.
        """
        if self.window or not 0 <= length <= self.length:
            raise ValueError(f"cannot go back to {length} from {self.length} tokens")
        self.length = length

    def spread(self, rows: Sequence[int]) -> None:
        """Go on with copies of these rows, in this order; one may stand in many places."""
        used = min(self.length, self.capacity)
        shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
        for name in ("keys", "values"):
            held: Tensor = getattr(self, name)
            copies = held.new_zeros(shape)
            copies[:, :, :, :used] = held[:, list(rows), :, :used]
            setattr(self, name, copies)
        self.tokens = self.tokens[list(rows)]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; only rows that change place are copied.

        Raises:
            ValueError: no row, or more rows than there are.
        """
        if not 0 < len(rows) <= self.keys.shape[1]:
            raise ValueError(f"cannot keep {len(rows)} of {self.keys.shape[1]} rows")
        moved = [place for place, row in enumerate(rows) if place != row]
        used = min(self.length, self.capacity)
        for store in (self.keys, self.values):
            if moved:
                store[:, moved, :, :used] = store[:, [rows[place] for place in moved], :, :used]
        if moved:
            self.tokens[moved] = self.tokens[[rows[place] for place in moved]]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.tokens = self.tokens[: len(rows)]
