"""How the two sublayers of a block join the residual stream."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

Stream: TypeAlias = Float[Tensor, "batch seq d_model"]
Sublayer: TypeAlias = Callable[[Tensor], Tensor]


def pre_norm(
    x: Stream,
    attention_norm: Sublayer,
    attention: Sublayer,
    feed_forward_norm: Sublayer,
    feed_forward: Sublayer,
) -> Stream:
    """Each sublayer reads the normed stream and adds to the stream itself.

    The identity from input to output carries the gradient past all sublayers.
    Source: Xiong et al. 2020, section 3.2.
    """
    x = x + attention(attention_norm(x))
    return x + feed_forward(feed_forward_norm(x))


def post_norm(
    x: Stream,
    attention_norm: Sublayer,
    attention: Sublayer,
    feed_forward_norm: Sublayer,
    feed_forward: Sublayer,
) -> Stream:
    """Each sublayer reads the stream; the sum of both is normed and becomes the stream.

    Source: Vaswani et al. 2017, section 3.1.
    """
    x = attention_norm(x + attention(x))
    return feed_forward_norm(x + feed_forward(x))
