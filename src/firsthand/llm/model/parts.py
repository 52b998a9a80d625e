"""The record of parts that a transformer is made of: the type alone.

A transformer takes every part from the record it is given and reaches for none by itself, so a
learner's part can stand in for any of them: `dataclasses.replace(REFERENCE, attention=mine)`.
The type stands here because the transformer needs it; the values are bound in
`firsthand.llm.parts`, above every folder that they come from, so that no import goes round. A
later stage (optimizer, sampling ...) adds a field here and its value there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

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

    def recall(self, tokens: Tensor) -> Tensor: ...


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
        neighbours: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Cache: ...


class AdamW(Protocol):
    """One update of lists of tensors; `kernels.adamw.with_torch` documents the numbers."""

    def __call__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        firsts: Sequence[Tensor],
        seconds: Sequence[Tensor],
        *,
        step: int,
        learning_rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
    ) -> None: ...


class PairLoss(Protocol):
    """The loss of preference pairs; `alignment.dpo.dpo_loss` documents it."""

    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        reference_chosen: Tensor,
        reference_rejected: Tensor,
        beta: float,
        label_smoothing: float,
        /,
    ) -> Tensor: ...


class Estimate(Protocol):
    """Advantages and returns of tokens; `alignment.advantages.gae` documents it."""

    def __call__(
        self, rewards: Tensor, values: Tensor, mask: Tensor, /, *, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]: ...


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
        mix_neighbours: rows (batch, neighbours + seq, d_model), weight (neighbours, d_model), which
            neighbours are of the same text (batch, seq, neighbours) or None -> (batch, seq,
            d_model).
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
        penalize_repetition: logits (rows, vocab), seen (rows, vocab), penalty -> as logits.
        scale_by_temperature: logits (rows, vocab), temperature -> as logits.
        keep_top_k, keep_top_p, keep_min_p: logits (rows, vocab), the bound -> as logits, -inf for
            the tokens that are out.
        draw: probabilities (rows, vocab), uniforms (rows,) -> tokens (rows,).
        accept_drafted: target probabilities (drafted + 1, vocab), the draft's (drafted, vocab),
            drafted tokens, drafted + 1 uniforms -> how many are accepted, the token after them.
        adamw: parameters, gradients, first and second moments (lists of one length) and the
            numbers of `AdamW` by name -> None; all but the gradients change in place.
        orthogonalize: (stack, rows, cols), a triple of coefficients for each iteration -> as the
            stack, its singular values near 1.
        cosine_schedule: step, steps, warmup, final -> the factor on the learning rate.
        wsd_schedule: step, steps, warmup, decay, final, "linear" or "sqrt" -> as above.
        clip_gradients: gradients, largest norm (0 only measures) -> their norm before; in place.
        average_weights: averages, weights, decay, updates (from 1) -> None; averages in place.
        token_logprobs: hidden (tokens, d_model), weight (vocab, d_model), targets (tokens,) -> ln p
            of each target (tokens,), 0 where it is negative.
        lora_forward: x (..., in), weight (out, in), A (rank, in), B (out, rank), scale -> (...,
            out).
        dpo_loss: ln p of chosen and rejected answers, then the reference's, (pairs,) each, beta,
            label smoothing -> (pairs,).
        gae: rewards, values and which are tokens of the answer, (batch, seq) each, by name gamma
            and lam -> advantages and returns, (batch, seq) each, 0 outside of the answer.
        clipped_objective: ln p of tokens, ln p when they were drawn, advantages, the least and the
            greatest ratio -> losses, as the tokens.
        relative_advantages: rewards (prompts, group), whether they are scaled, eps -> as rewards.
    """

    embed: Callable[[Tensor, Tensor], Tensor]
    vocabulary_logits: Callable[[Tensor, Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    rotary_angles: Callable[[Tensor, int, float], Angles]
    rotate_half: Rotation
    rotate_interleaved: Rotation
    mix_neighbours: Callable[[Tensor, Tensor, Tensor | None], Tensor]
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
    penalize_repetition: Callable[[Tensor, Tensor, float], Tensor]
    scale_by_temperature: Callable[[Tensor, float], Tensor]
    keep_top_k: Callable[[Tensor, int], Tensor]
    keep_top_p: Callable[[Tensor, float], Tensor]
    keep_min_p: Callable[[Tensor, float], Tensor]
    draw: Callable[[Tensor, Tensor], Tensor]
    accept_drafted: Callable[[Tensor, Tensor, Sequence[int], Sequence[float]], tuple[int, int]]
    adamw: AdamW
    orthogonalize: Callable[[Tensor, Sequence[tuple[float, float, float]]], Tensor]
    cosine_schedule: Callable[[int, int, int, float], float]
    wsd_schedule: Callable[[int, int, int, int, float, Literal["linear", "sqrt"]], float]
    clip_gradients: Callable[[Sequence[Tensor], float], Tensor]
    average_weights: Callable[[Sequence[Tensor], Sequence[Tensor], float, int], None]
    token_logprobs: Callable[[Tensor, Tensor, Tensor], Tensor]
    lora_forward: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    dpo_loss: PairLoss
    gae: Estimate
    clipped_objective: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    relative_advantages: Callable[[Tensor, bool, float], Tensor]

    def origins(self) -> dict[str, str]:
        """The module and name of each part's code: whose code runs where."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: f"{part.__module__}.{getattr(part, '__qualname__', type(part).__name__)}"
            for name, part in parts.items()
        }
