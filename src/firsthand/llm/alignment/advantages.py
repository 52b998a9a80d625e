"""How much better an action was than expected: by a value function, or by its group."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError

# Added to a deviation before the division; far below any spread of rewards that means something.
EPSILON = 1e-4


class GroupAdvantages(NamedTuple):
    """Advantages of answers, and the prompts that taught nothing.

    Attributes:
        values: (prompts, group).
        flat: (prompts,), where all rewards were equal and the advantages are 0.
    """

    values: Tensor
    flat: Tensor


def gae(
    rewards: Float[Tensor, "batch seq"],
    values: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Generalized advantage estimates and the returns that the value function should predict.

    With δ_t = r_t + γ V_{t+1} - V_t, A_t = Σ_l (γλ)^l δ_{t+l} over the rest of the answer, and
    the return is A_t + V_t. Behind an answer's last token the value is 0. λ = 1 is the sum of
    rewards less V_t, λ = 0 is δ_t alone.

    Args:
        rewards: of each token.
        values: V before each token, without gradient.
        mask: which positions are tokens of the answer: one run in each row.
        gamma: γ, from 0 to 1.
        lam: λ, from 0 to 1.
    Returns:
        Advantages and returns, 0 outside the mask.
    Raises:
        AlignmentError: a number out of its range, shapes that differ, or an answer with gaps.
    Source: Schulman et al. 2015, "High-dimensional continuous control using GAE", equation 16.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise AlignmentError(f"gamma and lam are between 0 and 1; not {gamma} and {lam}")
    if not rewards.shape == values.shape == mask.shape or rewards.ndim != 2:
        raise AlignmentError(
            "rewards, values and mask are (batch, seq); the shapes are "
            f"{tuple(rewards.shape)}, {tuple(values.shape)} and {tuple(mask.shape)}"
        )
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    if bool((starts.sum(dim=1) > 1).any()):
        raise AlignmentError("the mask of an answer is one run of tokens without gaps")
    inside = mask.to(values.dtype)
    # Masked, so that NaN in the padding does not spread.
    v = values.masked_fill(~mask, 0.0)
    r = rewards.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(v)
    after = v.new_zeros(len(v))
    next_value = v.new_zeros(len(v))
    for t in reversed(range(v.shape[1])):
        delta = r[:, t] + gamma * next_value - v[:, t]
        after = inside[:, t] * (delta + gamma * lam * after)
        advantages[:, t] = after
        next_value = v[:, t]
    return advantages, advantages + v


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """(x - mean) / √(variance + eps) over the mask, 0 outside; equal values give 0.

    The variance has n - 1 below it; a single value is its own mean and gives 0.
    """
    count = mask.sum()
    inside = x.masked_fill(~mask, 0.0)
    mean = inside.sum() / count.clamp(min=1)
    centred = (x - mean).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + eps)


def relative_advantages(
    rewards: Float[Tensor, "prompts group"], scaled: bool, eps: float
) -> Float[Tensor, "prompts group"]:
    """Each answer's reward less the mean of its prompt's answers; scaled, over deviation + eps.

    The deviation has n - 1 below it. Source: Shao et al. 2024, "DeepSeekMath", section 4.1.2.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + eps) if scaled else centred


def group_advantages(
    rewards: Float[Tensor, "prompts group"],
    *,
    scaled: bool = True,
    eps: float = EPSILON,
    advantages: Callable[[Tensor, bool, float], Tensor] = relative_advantages,
) -> GroupAdvantages:
    """The advantages within each group, and which groups have none.

    Where all answers of a prompt have the same reward, the advantages are exactly 0: the prompt
    has nothing to teach, which `flat` says.

    Args:
        rewards: of the answers to each prompt.
        scaled: divide by the deviation. Liu et al. 2025 ("Understanding R1-Zero-like training",
            section 3.1) leave that out, since it weighs prompts that are nearly always or nearly
            never solved more.
        eps: added to the deviation.
        advantages: the part that computes them.
    Raises:
        AlignmentError: fewer than two answers to a prompt, or a reward that is not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise AlignmentError(
            "advantages within a group need rewards (prompts, group) of at least two answers; "
            f"the shape is {tuple(rewards.shape)}"
        )
    if not bool(torch.isfinite(rewards).all()):
        raise AlignmentError("rewards are finite numbers; one of them is not")
    flat = rewards.amax(dim=1) == rewards.amin(dim=1)
    # A mean of equal numbers may be one rounding away from them.
    return GroupAdvantages(advantages(rewards, scaled, eps).masked_fill(flat[:, None], 0.0), flat)
