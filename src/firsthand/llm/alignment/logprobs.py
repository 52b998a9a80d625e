"""The one place for log-probabilities: of tokens, of answers, and the entropy beside them."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.kernels.cross_entropy import by_token
from firsthand.llm.model.transformer import Transformer

Tokens: TypeAlias = Int[Tensor, "batch seq"]
PerToken: TypeAlias = Float[Tensor, "batch seq"]


def token_logprobs(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    *,
    chunk: int = 0,
) -> Float[Tensor, " tokens"]:
    """ln p(target) at each position, with gradients to hidden and weight.

    The (tokens, vocab) logits never exist whole, and not at all where a target is negative: there
    the result is 0 and without gradient. Float32 or wider.

    Args:
        chunk: tokens whose logits exist at a time; 0 chooses.
    Raises:
        ValueError: shapes that do not fit.
        IndexError: a target outside the vocabulary.
    """
    return by_token.token_logprobs(hidden, weight, targets, chunk)


def whole_token_logprobs(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """As `token_logprobs`, from the whole (tokens, vocab) logits: the formula as it is written.

    ln p(t) = z_t - ln Σ exp z with z = h Wᵀ.
    """
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    log_p = torch.log_softmax(logits, dim=-1)
    picked = log_p.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return picked.masked_fill(targets < 0, 0.0)


def token_logprobs_and_entropy(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    *,
    chunk: int = 0,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """As `token_logprobs`, and the entropy -Σ p ln p in nats, with its gradient too."""
    return by_token.token_logprobs_and_entropy(hidden, weight, targets, chunk)


def batch_token_logprobs(
    model: Transformer,
    tokens: Tokens,
    targets: Tokens,
    *,
    documents: Tokens | None = None,
    temperature: float = 1.0,
) -> PerToken:
    """ln p(target | what stands before it) at each position; 0 where the target is negative.

    Args:
        tokens: the input; rows of unequal length are padded on the right with any token.
        targets: the token after each position, negative where it does not count.
        documents: a number for each token's document in packed rows (see `Transformer.hidden`).
        temperature: divides the logits, as when the tokens were sampled at it.
    Raises:
        AlignmentError: shapes that do not fit, or a temperature that is not above 0.
    """
    if tokens.shape != targets.shape:
        raise AlignmentError(
            f"tokens {tuple(tokens.shape)} and targets {tuple(targets.shape)} have one shape"
        )
    if not 0 < temperature < torch.inf:
        raise AlignmentError(f"the temperature of log-probabilities is above 0; not {temperature}")
    hidden = model.hidden(tokens, documents=documents).flatten(end_dim=1)
    if temperature != 1.0:
        # Logits are linear in the hidden states, which are fewer numbers to divide.
        hidden = hidden / temperature
    found = model.parts.token_logprobs(hidden, model.output_weight, targets.flatten())
    return found.view(targets.shape)


def sequence_logprobs(
    model: Transformer, tokens: Tokens, targets: Tokens, *, documents: Tokens | None = None
) -> Float[Tensor, " batch"]:
    """The sum of ln p over each row's counted targets: the logarithm of an answer's probability.

    Arguments and errors: as `batch_token_logprobs`.
    """
    return batch_token_logprobs(model, tokens, targets, documents=documents).sum(dim=1)
