"""The first weights, and why they have this scale.

A matrix with independent weights of variance v that reads a vector of n entries with mean square
1, as a norm delivers it, writes entries of variance n v. With v = 1/n each entry of queries, keys,
values and hidden features starts with variance 1, and a score q · k / √width too: softmax is
neither flat nor one-hot.

The residual stream sums the outputs of 2 n_layers sublayers. If each wrote variance 1, the stream
would grow to √(2 n_layers) times what one sublayer writes, and the first ones would drown. With
the last matrix of each sublayer smaller by √(2 n_layers), all of them together add variance 1 at
most (Radford et al. 2019, section 2.3, scale likewise).

The output matrix reads a normed vector of d entries: with weights of deviation s the logits have
variance d s². For Gaussian logits of variance u the expected loss of a uniformly random target is
ln V + u/2, so at s = 0.02 a model of width 128 starts 0.026 nats above ln V and one of 768 0.15
above. That is why an embedding, which a tied model also uses for its output, does not start with
variance 1.

When the last matrix of each sublayer starts at zero, the stream is the embedding alone, and a
tied output finds it again: the logit of the token just read is d s, not 0. That adds
ln(1 + (exp(d s) - 1) / V): 0.17 nats at width 128 and V = 65, but 5.7 at width 768 and V = 16384,
where embedding_std should be smaller or the output untied.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from firsthand.llm.model.config import ModelConfig


def initial_deviation(fan_in: int, sublayers: int = 0) -> float:
    """1 / √fan_in, and smaller by √sublayers for a matrix whose output joins that many others."""
    return 1.0 / math.sqrt(fan_in * max(1, sublayers))


def expected_first_loss(config: ModelConfig) -> float:
    """Nats before the first step, on random targets: ln V and the two terms derived above."""
    if config.zero_init_projections and not config.tied:
        return math.log(config.vocab_size)
    d, s, vocabulary = config.d_model, config.embedding_std, config.vocab_size
    echo = config.tied and config.zero_init_projections and config.norm_placement == "pre"
    lift = math.log1p(math.expm1(d * s) / vocabulary) if echo else 0.0
    return math.log(vocabulary) + d * s * s / 2 + lift


def normal_(weight: Tensor, deviation: float, generator: torch.Generator | None) -> None:
    """Fill with normal draws of that deviation; 0 fills with zeros and draws nothing."""
    with torch.no_grad():
        if deviation:
            nn.init.normal_(weight, std=deviation, generator=generator)
        else:
            weight.zero_()
