"""A number for a text: the scalar head that a reward model and a value function are made of.

The reward of an answer is the head's number at its last token, which has seen all of it. It learns
from pairs: by Bradley & Terry's model the chosen answer wins with probability σ(r_c - r_r), so the
loss of a pair is -ln σ(r_c - r_r) (Ouyang et al. 2022, equation 1). Rewards are known only up to a
constant for each prompt.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.model.transformer import Transformer

REWARD_HEAD, VALUE_HEAD = "reward_head", "value_head"
Tokens: TypeAlias = Int[Tensor, "batch seq"]


class ScalarHead(nn.Module):
    """h · w + b at each position, 0 before training.

    Its weight is one vector, so that an optimizer takes it as it takes a norm's: no weight decay,
    no Muon.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """A number for each row, in float32 or wider."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.to(wide) @ self.weight.to(wide) + self.bias.to(wide)


class RewardLosses(NamedTuple):
    """The losses of pairs.

    Attributes:
        losses: (pairs,), with gradient.
        accurate: (pairs,), whether the chosen answer has the greater reward.
    """

    losses: Tensor
    accurate: Tensor


def add_head(model: Transformer, name: str = REWARD_HEAD) -> ScalarHead:
    """Attach a head to the model, by whose name its state carries it; one that is there is kept.

    Args:
        model: on its device; its other parameters stay as they are.
        name: REWARD_HEAD or VALUE_HEAD.
    Raises:
        AlignmentError: another name.
    """
    if name not in (REWARD_HEAD, VALUE_HEAD):
        raise AlignmentError(f"a head is {REWARD_HEAD} or {VALUE_HEAD}; not {name!r}")
    if not hasattr(model, name):
        like = model.embedding.weight
        model.add_module(name, ScalarHead(model.config.d_model).to(like.device, like.dtype))
    return head_of(model, name)


def head_of(model: Transformer, name: str = REWARD_HEAD) -> ScalarHead:
    """The model's head of that name.

    Raises:
        AlignmentError: it has none.
    """
    head = getattr(model, name, None)
    if not isinstance(head, ScalarHead):
        raise AlignmentError(f"the model has no {name}: it was not trained as such")
    return head


def remove_head(model: Transformer, name: str = REWARD_HEAD) -> None:
    """The model without the head; nothing happens where it has none."""
    if hasattr(model, name):
        delattr(model, name)


def last_positions(mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, " batch"]:
    """The last position of each row that the mask counts.

    Raises:
        AlignmentError: a row without any.
    """
    if not bool(mask.any(dim=1).all()):
        raise AlignmentError("a text without tokens has no reward")
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, places, -1).amax(dim=1)


def sequence_rewards(
    model: Transformer, tokens: Tokens, mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """The reward of each row's text, read at its last token.

    Args:
        model: with a reward head.
        tokens: prompt and answer, padded on the right with any token.
        mask: which tokens are real.
    Raises:
        AlignmentError: no reward head, or a row without tokens.
    """
    head = head_of(model)
    last = last_positions(mask)
    hidden = model.hidden(tokens)
    rows = torch.arange(len(tokens), device=tokens.device)
    result: Tensor = head(hidden[rows, last])
    return result


def reward_losses(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> RewardLosses:
    """-ln σ(r_c - r_r) of each pair, and whether it is the right way round.

    Equal rewards count as wrong: such a model tells nothing apart.
    """
    difference = chosen - rejected
    return RewardLosses(functional.softplus(-difference), difference.detach() > 0)
