"""The weights of a block, and the parts that use them."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Activation, Angles, Cache, Parts
from firsthand.llm.model.recomputed import activated_product


@dataclass(frozen=True)
class Surroundings:
    """What all layers share in one forward pass.

    Attributes:
        angles: cos and sin of the new tokens' positions, or None without RoPE.
        bias: on the scores, or None for plain causal attention.
        cache: keys and values of earlier tokens, or None.
    """

    angles: Angles | None = None
    bias: Tensor | None = None
    cache: Cache | None = None


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, `width` wide."""

    def __init__(self, config: ModelConfig, parts: Parts, width: int, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        biased = kind == "layer" and config.bias
        self.bias = nn.Parameter(torch.zeros(width)) if biased else None
        self.eps = config.norm_eps
        self.parts = parts
        self.is_rms = kind == "rms"

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """x, normed."""
        if self.is_rms:
            return self.parts.rms_norm(x, self.weight, self.eps)
        return self.parts.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Queries, keys and values from one product; positions; attention; the output product.

    Attributes:
        qkv: rows of queries, then keys, then values: `config.qkv_rows`.
        output: back to the residual stream.
    """

    def __init__(self, config: ModelConfig, parts: Parts, layer: int) -> None:
        super().__init__()
        self.config, self.parts, self.layer = config, parts, layer
        self.rows = config.qkv_rows
        self.qkv = nn.Linear(config.d_model, sum(self.rows), bias=config.bias)
        self.output = nn.Linear(self.rows[0], config.d_model, bias=config.bias)
        width = config.head_width
        self.query_norm = Norm(config, parts, width, "rms") if config.qk_norm else None
        self.key_norm = Norm(config, parts, width, "rms") if config.qk_norm else None
        half = config.rope_pairing == "half"
        self.rotate = parts.rotate_half if half else parts.rotate_interleaved

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], around: Surroundings
    ) -> Float[Tensor, "batch seq d_model"]:
        """What this sublayer adds to the stream."""
        q, k, v = self.heads(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if around.angles is not None:
            q, k = self.rotate(q, *around.angles), self.rotate(k, *around.angles)
        if around.cache is not None:
            k, v = around.cache.append(self.layer, k, v)
        mixed: Tensor = self.output(
            self.parts.merge_heads(self.parts.attention(q, k, v, around.bias))
        )
        return mixed

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, seq, width), keys and values (batch, kv_heads, seq, width)."""
        q, k, v = self.qkv(x).split(self.rows, dim=-1)
        shared, split = self.config.kv_heads, self.parts.split_heads
        return split(q, self.config.n_heads), split(k, shared), split(v, shared)


class FeedForward(nn.Module):
    """A product to the hidden width, an activation, a product back.

    Attributes:
        up: for SwiGLU the rows of the gate and then those of the value.
        down: back to the residual stream.
    """

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        super().__init__()
        gated = config.feed_forward == "swiglu"
        rows = config.hidden_width * (2 if gated else 1)
        self.up = nn.Linear(config.d_model, rows, bias=config.bias)
        self.down = nn.Linear(config.hidden_width, config.d_model, bias=config.bias)
        self.activation = _activation(config, parts)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        """What this sublayer adds to the stream."""
        return activated_product(self.up(x), self.activation, self.down)


class Block(nn.Module):
    """Attention and feed-forward with their norms, joined to the stream as the config says."""

    def __init__(self, config: ModelConfig, parts: Parts, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config, parts, config.d_model, config.norm)
        self.attention = Attention(config, parts, layer)
        self.feed_forward_norm = Norm(config, parts, config.d_model, config.norm)
        self.feed_forward = FeedForward(config, parts)
        self.wiring = parts.pre_norm if config.norm_placement == "pre" else parts.post_norm

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], around: Surroundings
    ) -> Float[Tensor, "batch seq d_model"]:
        """The stream after this block."""
        attend: Callable[[Tensor], Tensor] = lambda h: self.attention(h, around)  # noqa: E731
        return self.wiring(
            x, self.attention_norm, attend, self.feed_forward_norm, self.feed_forward
        )


def _activation(config: ModelConfig, parts: Parts) -> Activation:
    kinds = {"swiglu": parts.swiglu, "gelu": parts.gelu, "relu2": parts.relu_squared}
    return kinds[config.feed_forward]
