"""Tokens to vectors, and vectors to logits over the vocabulary."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def embed(
    tokens: Int[Tensor, "batch seq"], weight: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """Row t of the weight for each token t: a look-up, not a product.

    Raises:
        IndexError: a token outside the vocabulary.
    """
    return functional.embedding(tokens, weight)


def vocabulary_logits(
    hidden: Float[Tensor, "*tokens d_model"], weight: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "*tokens vocab"]:
    """The product of each hidden state with each row of the output matrix."""
    return hidden @ weight.T
