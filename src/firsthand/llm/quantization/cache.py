"""Keys and values in 8 bits, each vector of a head with a scale of its own.

Beside the weights, keys and values are what a step of decoding reads from memory, and at a long
context they are most of it: 2 · layers · kv_heads · (width + 4) bytes a token instead of
2 · layers · kv_heads · 4 · width.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from firsthand.llm.kernels.int8_matmul.with_torch import quantize_rows
from firsthand.llm.model.cache import KVCache

LEVELS = 127


def rounded(
    x: Float[Tensor, "*rows width"],
) -> tuple[Int8[Tensor, "*rows width"], Float[Tensor, "*rows one"]]:
    """Each vector on a grid of its own: x ≈ integers · scale, scale = max|x| / 127."""
    integers, scales = quantize_rows(x.reshape(-1, x.shape[-1]), LEVELS)
    return integers.to(torch.int8).view(x.shape), scales.view(*x.shape[:-1], 1)


class QuantizedCache(KVCache):
    """`model.cache.KVCache`, which documents the rest, with int8 values and float32 scales.

    Args:
        dtype: of what `append` returns.
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
        super().__init__(
            layers=layers,
            batch=batch,
            kv_heads=kv_heads,
            capacity=capacity,
            width=width,
            window=window,
            neighbours=neighbours,
            dtype=torch.int8,
            device=device,
        )
        # The same slots, one number wide.
        self.scales = KVCache(
            layers=layers,
            batch=batch,
            kv_heads=kv_heads,
            capacity=capacity,
            width=1,
            window=window,
            device=device,
        )
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and tokens, used or not."""
        return super().nbytes + self.scales.nbytes

    def append(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_heads new width"],
        values: Float[Tensor, "batch kv_heads new width"],
    ) -> tuple[
        Float[Tensor, "batch kv_heads seen width"], Float[Tensor, "batch kv_heads seen width"]
    ]:
        """Round and keep one layer's new keys and values; return all that it now holds, as floats.

        Raises:
            ValueError: more tokens than fit.
        """
        key_integers, key_scales = rounded(keys)
        value_integers, value_scales = rounded(values)
        seen_keys, seen_values = super().append(layer, key_integers, value_integers)
        of_keys, of_values = self.scales.append(layer, key_scales, value_scales)
        return (seen_keys * of_keys).to(self.dtype), (seen_values * of_values).to(self.dtype)

    def advance(self, new: int) -> None:
        """As `KVCache.advance`."""
        super().advance(new)
        self.scales.advance(new)

    def rewind(self, length: int) -> None:
        """As `KVCache.rewind`."""
        super().rewind(length)
        self.scales.rewind(length)

    def spread(self, rows: Sequence[int]) -> None:
        """As `KVCache.spread`."""
        super().spread(rows)
        self.scales.spread(rows)

    def keep(self, rows: Sequence[int]) -> None:
        """As `KVCache.keep`."""
        super().keep(rows)
        self.scales.keep(rows)


class Rounding:
    """What attention asks of a cache, for a pass without one: the numbers a cache would return."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, rounded as `QuantizedCache` rounds them; nothing is kept."""
        return _as_read(keys), _as_read(values)


def _as_read(x: Tensor) -> Tensor:
    integers, scales = rounded(x)
    return (integers * scales).to(x.dtype)
