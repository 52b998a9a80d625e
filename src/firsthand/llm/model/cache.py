"""Keys and values of the tokens so far, in memory that is allocated once.

A full cache holds position p in slot p. A ring holds it in slot p mod capacity, so that a
sliding window never moves or joins arrays; attention does not care about the order of keys.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (layers, batch, kv_heads, capacity, width)
        if min(shape) < 1 or window > capacity:
            raise ValueError(f"a cache of the shape {shape} for a window of {window} cannot be")
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.window = window
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
        """Bytes of both arrays, used or not."""
        return self.keys.nbytes + self.values.nbytes

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
        for store, fresh in ((self.keys[layer], keys), (self.values[layer], values)):
            store[:, :, first : first + until_end] = fresh[:, :, :until_end]
            if until_end < new:
                store[:, :, : new - until_end] = fresh[:, :, until_end:]
        used = min(self.length + new, self.capacity)
        return self.keys[layer, :, :, :used], self.values[layer, :, :, :used]

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
