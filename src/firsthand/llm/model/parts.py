"""The record of parts that a transformer is made of: the type alone.

A transformer takes every part from the record it is given and reaches for none by itself, so a
learner's part can stand in for any of them: `dataclasses.replace(REFERENCE, attention=mine)`.
The type stands here because the transformer needs it; the values are bound in
`firsthand.llm.parts`, above every folder that they come from, so that no import goes round. A
later stage (optimizer, sampling ...) adds a field here and its value there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from firsthand.llm.model.block import Sublayer

Angles = tuple[Tensor, Tensor]
Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]
Activation = Callable[[Tensor], Tensor]
Wiring = Callable[[Tensor, Sublayer, Sublayer, Sublayer, Sublayer], Tensor]


class Cache(Protocol):
    """What attention and the transformer need of a cache; `model.cache.KVCache` documents it."""

    length: int
    window: int

    @property
    def piece(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...

    def positions(self, new: int = 0) -> Tensor: ...

    def advance(self, new: int) -> None: ...


class CacheFactory(Protocol):
    """How a cache is made."""

    def __call__(
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
    ) -> Cache: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Every part, named as the function or class that the learner writes.

    Attributes:
        embed: tokens (batch, seq), weight (vocab, d_model) -> (batch, seq, d_model).
        vocabulary_logits: hidden (..., d_model), weight (vocab, d_model) -> (..., vocab).
        cross_entropy: hidden (tokens, d_model), weight (vocab, d_model), targets (tokens,) -> the
            sum of the losses in nats over the targets that are not negative, a scalar.
        rms_norm: x (..., d), weight (d,), eps -> (..., d).
        layer_norm: x (..., d), weight (d,), bias (d,) or None, eps -> (..., d).
        rotary_angles: positions (seq,), width, base -> cos and sin, (seq, width / 2) each.
        rotate_half, rotate_interleaved: x (batch, heads, seq, width), cos, sin -> as x.
        sinusoidal_positions: positions (seq,), width, base -> (seq, width).
        alibi_slopes: heads -> (heads,).
        visibility_bias: query positions, key positions, window, slopes or None -> (heads or 1,
            queries, keys).
        split_heads: x (batch, seq, heads · width), heads -> (batch, heads, seq, width).
        merge_heads: its inverse.
        attention: q (batch, heads, queries, width), k and v (batch, kv_heads, keys, width), bias
            or None (causal) -> as q.
        swiglu: (..., 2 d_ff) -> (..., d_ff).
        gelu, relu_squared: (..., d_ff) -> (..., d_ff).
        pre_norm, post_norm: x, attention norm, attention, feed-forward norm, feed-forward -> x.
        kv_cache: the sizes -> a cache.
        initial_deviation: fan-in, the sublayers whose outputs the stream sums (0 for a matrix
            that does not write to it) -> the deviation of a matrix's first weights.
    """

    embed: Callable[[Tensor, Tensor], Tensor]
    vocabulary_logits: Callable[[Tensor, Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    rotary_angles: Callable[[Tensor, int, float], Angles]
    rotate_half: Rotation
    rotate_interleaved: Rotation
    sinusoidal_positions: Callable[[Tensor, int, float], Tensor]
    alibi_slopes: Callable[[int], Tensor]
    visibility_bias: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    split_heads: Callable[[Tensor, int], Tensor]
    merge_heads: Callable[[Tensor], Tensor]
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    swiglu: Activation
    gelu: Activation
    relu_squared: Activation
    pre_norm: Wiring
    post_norm: Wiring
    kv_cache: CacheFactory
    initial_deviation: Callable[[int, int], float]

    def origins(self) -> dict[str, str]:
        """The module and name of each part's code: whose code runs where."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: f"{part.__module__}.{getattr(part, '__qualname__', type(part).__name__)}"
            for name, part in parts.items()
        }
