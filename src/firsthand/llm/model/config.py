"""The shape of a model: one frozen record, three presets, and its parameters by component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from firsthand.llm.model.settings import (
    Record,
    SettingsError,
    build,
    nearest,
    require_at_least,
    require_choices,
    to_record,
)

Positions = Literal["rope", "learned", "sinusoidal", "alibi", "none"]
Pairing = Literal["half", "interleaved"]
NormKind = Literal["rms", "layer"]
NormPlacement = Literal["pre", "post"]
FeedForwardKind = Literal["swiglu", "gelu", "relu2"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every choice that decides the shape and the function of a model; 0 means automatic or off.

    Attributes:
        vocab_size: rows of the embedding.
        context: the longest sequence in tokens, for training and generation.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads of each attention.
        n_kv_heads: key and value heads: 0 is n_heads (multi-head), 1 is MQA, between is GQA.
        d_head: width of a head; 0 is d_model / n_heads.
        d_ff: hidden width of the feed-forward; 0 is 8/3 d_model rounded up to 32 for SwiGLU, so
            that its three matrices hold as much as two of 4 d_model, and 4 d_model for the rest.
        feed_forward: "swiglu", "gelu" (tanh form) or "relu2".
        norm: "rms" or "layer".
        norm_placement: "pre" norms the input of each sublayer, "post" its sum with the stream.
        norm_eps: added to the mean square before the root.
        positions: "rope", "learned", "sinusoidal", "alibi" or "none".
        rope_base: the base of RoPE's and the sinusoids' geometric series of wavelengths.
        rope_pairing: which two features RoPE turns together: "half" i and i + d_head/2 (Hugging
            Face), "interleaved" 2i and 2i + 1 (Su et al. 2021). The presets interleave: a pair
            of neighbours is a complex number, and PyTorch turns it in one product.
        window: a query sees this many latest keys, itself included; 0 is all.
        qk_norm: RMSNorm of queries and keys in each head, before RoPE.
        neighbours: the embedding of a token takes in those of so many tokens before it, feature
            by feature with learned weights that start at 0 (see `model.neighbours`).
        tied: the output projection is the embedding.
        bias: a bias in each linear layer, and in LayerNorm.
        init_std: deviation of the weight matrices; 0 is 1 / √fan_in.
        embedding_std: deviation of the embeddings.
        zero_init_projections: the last matrix of each sublayer, and an untied output, start at
            zero.
    """

    vocab_size: int
    context: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_kv_heads: int = 0
    d_head: int = 0
    d_ff: int = 0
    feed_forward: FeedForwardKind = "swiglu"
    norm: NormKind = "rms"
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    positions: Positions = "rope"
    rope_base: float = 10_000.0
    rope_pairing: Pairing = "half"
    window: int = 0
    qk_norm: bool = False
    neighbours: int = 0
    tied: bool = True
    bias: bool = False
    init_std: float = 0.0
    embedding_std: float = 0.02
    zero_init_projections: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, "vocab_size", "context", "d_model", "n_layers", "n_heads")
        zero_is_off = ("n_kv_heads", "d_head", "d_ff", "window", "neighbours")
        require_at_least(self, 0, *zero_is_off, "init_std", "embedding_std")
        if self.norm_eps <= 0 or self.rope_base <= 1:
            raise SettingsError(
                f"norm_eps is above 0 and rope_base above 1; not {self.norm_eps} and "
                f"{self.rope_base}"
            )
        if self.d_head == 0 and self.d_model % self.n_heads:
            raise SettingsError(
                f"d_model {self.d_model} does not divide by n_heads {self.n_heads}; "
                f"{_nearest_multiple(self.d_model, self.n_heads)} would, or set d_head"
            )
        if self.n_heads % self.kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise SettingsError(
                f"n_heads {self.n_heads} does not divide by n_kv_heads {self.n_kv_heads}; "
                f"{', '.join(map(str, divisors))} would"
            )
        if self.positions == "rope" and self.head_width % 2:
            raise SettingsError(f"RoPE turns pairs: the head width {self.head_width} is odd")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise SettingsError(f"sinusoids come in pairs: d_model {self.d_model} is odd")

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the automatic value filled in."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Features of one head, with the automatic value filled in."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def hidden_width(self) -> int:
        """Hidden features of the feed-forward, with the automatic value filled in."""
        if self.d_ff:
            return self.d_ff
        return (
            -(-8 * self.d_model // 96) * 32 if self.feed_forward == "swiglu" else 4 * self.d_model
        )

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values in the fused projection."""
        shared = self.kv_heads * self.head_width
        return self.n_heads * self.head_width, shared, shared

    def to_record(self) -> Record:
        """The fields by name; `model_config` is its inverse."""
        return to_record(self)


def _nearest_multiple(number: int, divisor: int) -> int:
    return max(divisor, round(number / divisor) * divisor)


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        vocab_size=2048,
        context=256,
        d_model=128,
        n_layers=4,
        n_heads=4,
        d_ff=352,
        rope_pairing="interleaved",
    ),
    "laptop-10m": ModelConfig(
        vocab_size=8192,
        context=512,
        d_model=320,
        n_layers=6,
        n_heads=5,
        d_ff=864,
        rope_pairing="interleaved",
    ),
    "full-100m": ModelConfig(
        vocab_size=16384,
        context=1024,
        d_model=768,
        n_layers=12,
        n_heads=12,
        d_ff=2048,
        rope_pairing="interleaved",
    ),
    "speedrun": ModelConfig(
        vocab_size=65,
        context=64,
        d_model=128,
        n_layers=4,
        n_heads=4,
        feed_forward="relu2",
        rope_pairing="interleaved",
        qk_norm=True,
        neighbours=3,
        tied=False,
        embedding_std=1.0,
        zero_init_projections=True,
    ),
}


def preset(name: str) -> ModelConfig:
    """A preset by its name.

    Raises:
        SettingsError: no such preset; names the nearest.
    """
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        hint = f"the nearest is {close!r}" if close else f"valid: {', '.join(PRESETS)}"
        raise SettingsError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]


def model_config(record: Mapping[str, Any], path: str = "model") -> ModelConfig:
    """The config of a `[model]` table; its key `preset` gives the values it does not name.

    Raises:
        SettingsError: as `settings.build`, or a shape that cannot be.
    """
    values = dict(record)
    base = values.pop("preset", None)
    if base is not None:
        values = {**preset(str(base)).to_record(), **values}
    return build(ModelConfig, values, path)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by component, in the order of the forward pass; a tied output counts 0."""
    d, layers = config.d_model, config.n_layers
    q, k, v = config.qkv_rows
    matrices = 3 if config.feed_forward == "swiglu" else 2
    inner = config.hidden_width
    norm = d * (2 if config.norm == "layer" and config.bias else 1)
    norms = norm * (2 * layers + (config.norm_placement == "pre"))
    if config.qk_norm:
        norms += 2 * layers * config.head_width
    attention = d * (q + k + v) + q * d
    feed_forward = matrices * d * inner
    if config.bias:
        attention += q + k + v + d
        feed_forward += (matrices - 1) * inner + d
    return {
        "embedding": config.vocab_size * d,
        "positions": config.context * d if config.positions == "learned" else 0,
        "neighbours": config.neighbours * d,
        "attention": layers * attention,
        "feed_forward": layers * feed_forward,
        "norms": norms,
        "output": 0 if config.tied else config.vocab_size * d,
    }


def resized(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """The same model for a tokenizer of another size."""
    return replace(config, vocab_size=vocab_size)
