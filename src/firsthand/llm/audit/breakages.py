"""Ways to break a training run, each by one switch: another part, or other fields of the config.

Nothing is patched: a transformer takes its parts and its settings, so a wrong part or a wrong
setting is one too. All runs are of the same small model, which learns the bytes of Python's library
for a few updates; a switch leaves everything else as it is, the seed included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.model.attention import attention as plain_attention
from firsthand.llm.model.block import Sublayer
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.feed_forward import relu_squared
from firsthand.llm.model.initialization import initial_deviation
from firsthand.llm.model.parts import Parts
from firsthand.llm.training.config import (
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.optimizers.adamw import adamw

STEPS = 24
RATE = 3e-3
_FACTOR = 10.0
_THRESHOLD = 4.0
_DEEP = 12


@dataclass(frozen=True)
class Bench:
    """A run before it starts: its config and its parts."""

    config: RunConfig
    parts: Parts

    def model(self, **fields: Any) -> Bench:
        """With other fields of the model's config."""
        changed = replace(self.config, model=replace(self.config.model, **fields))
        return replace(self, config=changed)

    def optimizer(self, **fields: Any) -> Bench:
        """With other fields of the optimizer's settings."""
        changed = replace(self.config, optimizer=replace(self.config.optimizer, **fields))
        return replace(self, config=changed)

    def schedule(self, **fields: Any) -> Bench:
        """With other fields of the schedule."""
        changed = replace(self.config, schedule=replace(self.config.schedule, **fields))
        return replace(self, config=changed)

    def part(self, **parts: Any) -> Bench:
        """With other parts."""
        return replace(self, parts=replace(self.parts, **parts))


Switch = Callable[[Bench], Bench]


@dataclass(frozen=True, kw_only=True)
class Breakage:
    """One thing that is wrong.

    Attributes:
        name: what a command calls it.
        title: what is wrong, in a few words.
        what: which part or setting is another one, and what that does, in a sentence or two.
        switch: makes the healthy run the broken one.
    """

    name: str
    title: str
    what: str
    switch: Switch


def healthy_bench(parts: Parts, *, seed: int = 0, steps: int = STEPS) -> Bench:
    """The run that the others differ from by one switch; the first third of the steps warms up."""
    config = RunConfig(
        model=ModelConfig(vocab_size=256, context=64, d_model=64, n_layers=4, n_heads=2, d_ff=160),
        name="healthy",
        seed=seed,
        optimizer=OptimizerSettings(learning_rate=RATE),
        schedule=ScheduleSettings(kind="constant", warmup=max(2, steps // 3)),
        training=TrainingSettings(
            steps=steps, batch_size=8, evaluate_every=0, save_every=0, device="cpu"
        ),
    )
    return Bench(config, parts)


def _larger(fan_in: int, sublayers: int = 0) -> float:
    return _FACTOR * initial_deviation(fan_in, sublayers)


def _zero(fan_in: int, sublayers: int = 0) -> float:
    return 0.0


def _unscaled(fan_in: int, sublayers: int = 0) -> float:
    return initial_deviation(fan_in)


def _no_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * weight


def _no_identity(
    x: Tensor,
    attention_norm: Sublayer,
    attention: Sublayer,
    feed_forward_norm: Sublayer,
    feed_forward: Sublayer,
) -> Tensor:
    return feed_forward(feed_forward_norm(attention(attention_norm(x))))


def _unscaled_scores(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return plain_attention(q * math.sqrt(q.shape[-1]), k, v, bias)


def _seeing(ahead: int) -> Callable[..., Tensor]:
    """Attention whose queries see the keys up to so many behind their own position."""

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
        hidden = ones.triu(1 + ahead)
        return plain_attention(q, k, v, q.new_zeros(hidden.shape).masked_fill(hidden, -math.inf))

    return attention


def _everything(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return plain_attention(q, k, v, q.new_zeros(q.shape[-2], k.shape[-2]))


def _high_threshold(x: Tensor) -> Tensor:
    return relu_squared(x - _THRESHOLD)


def _rounding(parameters: Sequence[Tensor], *others: Any, **named: Any) -> None:
    adamw(parameters, *others, **named)
    for parameter in parameters:
        parameter.copy_(parameter.bfloat16())


BREAKAGES: dict[str, Breakage] = {
    breakage.name: breakage
    for breakage in (
        Breakage(
            name="large-init",
            title="First weights far too large",
            what="The part initial_deviation gives ten times its value. Scores grow with the "
            "square of it, so each query looks at one key, and gradients have nowhere to go.",
            switch=lambda bench: bench.part(initial_deviation=_larger),
        ),
        Breakage(
            name="zero-init",
            title="All first weights zero",
            what="The part initial_deviation gives 0. Of two matrices in a row each gets a "
            "gradient through the other, which is 0, so none of them ever moves.",
            switch=lambda bench: bench.part(initial_deviation=_zero),
        ),
        Breakage(
            name="no-residual-scaling",
            title="Sublayers write at full size",
            what="The part initial_deviation leaves out 1/√(2 n_layers) for the matrices that "
            "write to the stream, which then grows with depth.",
            switch=lambda bench: bench.part(initial_deviation=_unscaled),
        ),
        Breakage(
            name="large-embedding",
            title="A tied embedding of deviation 1",
            what="model.embedding_std is 1. The output is the same matrix, so the logits begin "
            "with a deviation near √d_model instead of near 0.",
            switch=lambda bench: bench.model(embedding_std=1.0),
        ),
        Breakage(
            name="no-norm",
            title="No norm",
            what="The part rms_norm multiplies by its weights alone. Sublayers read the stream at "
            "whatever size it has, and so does the output.",
            switch=lambda bench: bench.part(rms_norm=_no_norm),
        ),
        Breakage(
            name="deep-post-norm",
            title=f"Norms behind the sum, {_DEEP} blocks deep, sublayers at full size",
            what="model.norm_placement is post, as in 2017, with first weights of that time. Each "
            "norm rescales the stream, so no identity leads from the first block to the last.",
            switch=lambda bench: bench.model(norm_placement="post", n_layers=_DEEP).part(
                initial_deviation=_unscaled
            ),
        ),
        Breakage(
            name="no-residual",
            title="No residual stream",
            what="The part pre_norm leaves out the identity: a block's output is what its "
            "feed-forward makes.",
            switch=lambda bench: bench.part(pre_norm=_no_identity),
        ),
        Breakage(
            name="no-score-scaling",
            title="Scores without 1/√width",
            what="The part attention takes q k as scores. Their deviation is √width instead of 1, "
            "and softmax is sharp before anything is learnt.",
            switch=lambda bench: bench.part(attention=_unscaled_scores),
        ),
        Breakage(
            name="no-mask",
            title="No causal mask",
            what="The part attention lets each query see all keys, the token to be predicted "
            "among them.",
            switch=lambda bench: bench.part(attention=_everything),
        ),
        Breakage(
            name="mask-one-late",
            title="A mask that begins one key late",
            what="The part attention lets each query see the next key, which is the token to be "
            "predicted.",
            switch=lambda bench: bench.part(attention=_seeing(1)),
        ),
        Breakage(
            name="mask-one-early",
            title="A mask that begins one key early",
            what="The part attention hides each query's own key. The first query sees none, and a "
            "softmax over nothing is 0/0.",
            switch=lambda bench: bench.part(attention=_seeing(-1)),
        ),
        Breakage(
            name="high-rate",
            title="A learning rate far too high",
            what="optimizer.learning_rate is 30 times as large.",
            switch=lambda bench: bench.optimizer(learning_rate=30 * RATE),
        ),
        Breakage(
            name="low-rate",
            title="A learning rate far too low",
            what="optimizer.learning_rate is a hundredth.",
            switch=lambda bench: bench.optimizer(learning_rate=RATE / 100),
        ),
        Breakage(
            name="no-warmup",
            title="No warm-up",
            what="schedule.warmup is 0. Adam's first update is the sign of the gradient: every "
            "weight moves by the whole rate, as in no later update.",
            switch=lambda bench: bench.schedule(warmup=0),
        ),
        Breakage(
            name="no-clipping",
            title="No clipping",
            what="optimizer.clip is 0. Adam divides by the size of the gradient, so a steady one "
            "may be of any size; a single large one is what clipping is for.",
            switch=lambda bench: bench.optimizer(clip=0.0),
        ),
        Breakage(
            name="dead-relu",
            title="Dead units",
            what=f"model.feed_forward is relu2, and the part relu_squared begins at "
            f"{_THRESHOLD:g} instead of 0, as a bias of -{_THRESHOLD:g} would make it. A unit that "
            "is 0 for every token gets no gradient.",
            switch=lambda bench: bench.model(feed_forward="relu2").part(
                relu_squared=_high_threshold
            ),
        ),
        Breakage(
            name="bfloat16-weights",
            title="Weights kept in bfloat16",
            what="The part adamw rounds what it writes to bfloat16, as without float32 copies. Its "
            "8 significant bits swallow an update below 1/512 of the weight.",
            switch=lambda bench: bench.part(adamw=_rounding),
        ),
    )
}
