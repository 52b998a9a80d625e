"""Proximal policy optimization of answers: rewards by token, and the clipped objective.

An answer's tokens are actions. With ρ = π / π_old the ratio of a token's probability now and when
it was drawn, and A its advantage (see `advantages.gae`), the loss of a token is

    -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)
    + c_v ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²)
    - c_e H

where R is the return and H the entropy. The clip takes the gradient away from a token that has
already moved as far as ε in the direction that A asks for.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms", equations 7 and 9. The clip
of the value is not in the paper but in its authors' code.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError


class PolicyLosses(NamedTuple):
    """What the policy loses on each token.

    Attributes:
        losses: as the log-probabilities, with gradient.
        clipped: bool, where the clip has taken the gradient away.
        ratios: ρ, no gradient.
    """

    losses: Tensor
    clipped: Tensor
    ratios: Tensor


class PpoLoss(NamedTuple):
    """The summed loss of a minibatch, and sums for the log line.

    Attributes:
        total: a scalar with gradient; divided by `tokens` it is the mean of the docstring above.
        tokens: how many the mask counts.
        sums: by name, over the tokens: "policy", "value" and "entropy" (without coefficients),
            "clipped" (a count) and "old_kl" (k3 to the policy that drew them).
    """

    total: Tensor
    tokens: int
    sums: dict[str, float]


ClippedObjective: TypeAlias = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def clipped_objective(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    low: float,
    high: float,
) -> Float[Tensor, "*tokens"]:
    """-min(ρ A, clip(ρ, low, high) A) for each token.

    Args:
        logprobs: ln π of the tokens, with gradient.
        old_logprobs: ln π_old, when they were drawn.
        advantages: A, without gradient; broadcast to the tokens.
        low, high: 1 - ε and 1 + ε.
    """
    ratios = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)


def policy_losses(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    *,
    clip: float,
    clip_high: float | None = None,
    objective: ClippedObjective = clipped_objective,
) -> PolicyLosses:
    """The clipped objective of each token, and what the clip did.

    Args:
        logprobs, old_logprobs, advantages: as `clipped_objective`.
        clip: ε, above 0 and below 1.
        clip_high: the upper ε where it differs (Yu et al. 2025, "DAPO", equation 10); None is clip.
        objective: the part that computes the losses.
    Raises:
        AlignmentError: an ε out of its range.
    """
    upper = clip if clip_high is None else clip_high
    if not (0 < clip < 1 and clip <= upper < torch.inf):
        raise AlignmentError(
            f"clip is above 0 and below 1, clip_high at least clip; not {clip} and {clip_high}"
        )
    low, high = 1 - clip, 1 + upper
    losses = objective(logprobs, old_logprobs, advantages, low, high)
    ratios = torch.exp(logprobs - old_logprobs).detach()
    clipped = ((ratios > high) & (advantages > 0)) | ((ratios < low) & (advantages < 0))
    return PolicyLosses(losses, clipped, ratios)


def value_losses(
    values: Float[Tensor, "*tokens"],
    old_values: Float[Tensor, "*tokens"],
    returns: Float[Tensor, "*tokens"],
    *,
    clip: float = 0.0,
) -> Float[Tensor, "*tokens"]:
    """Half the squared error of each token's value, by the worse of itself and its clipped self.

    Args:
        values: V, with gradient.
        old_values: V when the tokens were drawn.
        returns: R.
        clip: ε_v, how far V counts as moved; 0 is no clip.
    """
    errors = (values - returns).square()
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - returns).square())
    return errors / 2


def ppo_loss(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    clip: float,
    values: Float[Tensor, "batch seq"] | None = None,
    old_values: Float[Tensor, "batch seq"] | None = None,
    returns: Float[Tensor, "batch seq"] | None = None,
    value_clip: float = 0.0,
    value_coefficient: float = 0.5,
    entropies: Float[Tensor, "batch seq"] | None = None,
    entropy_coefficient: float = 0.0,
    counts: Float[Tensor, " batch"] | None = None,
    objective: ClippedObjective = clipped_objective,
) -> PpoLoss:
    """The sum of the losses above over the tokens of the mask.

    Args:
        logprobs, old_logprobs, advantages, clip, objective: as `policy_losses`.
        mask: which positions are tokens of an answer.
        values, old_values, returns, value_clip: as `value_losses`; None leaves that term out.
        value_coefficient: c_v.
        entropies: H at each token; None leaves that term out.
        entropy_coefficient: c_e.
        counts: of equal answers that each row stands for; None is one each.
    Raises:
        AlignmentError: a number out of its range.
    """
    policy = policy_losses(logprobs, old_logprobs, advantages, clip=clip, objective=objective)
    times = logprobs.new_ones(len(mask)) if counts is None else counts

    def inside(x: Tensor) -> Tensor:
        return (x.masked_fill(~mask, 0.0).sum(dim=1) * times).sum()

    total = inside(policy.losses)
    difference = (logprobs - old_logprobs).detach()
    sums = {
        "policy": float(total.detach()),
        "clipped": float(inside(policy.clipped.to(times.dtype))),
        "old_kl": float(inside(torch.expm1(difference) - difference)),
    }
    if values is not None:
        if old_values is None or returns is None:
            raise AlignmentError("values are trained towards returns, from old values")
        errors = inside(value_losses(values, old_values, returns, clip=value_clip))
        total = total + value_coefficient * errors
        sums["value"] = float(errors.detach())
    if entropies is not None:
        spread = inside(entropies)
        total = total - entropy_coefficient * spread
        sums["entropy"] = float(spread.detach())
    return PpoLoss(total, int((mask.sum(dim=1) * times).sum()), sums)


def penalized_rewards(
    scores: Float[Tensor, " batch"],
    logprobs: Float[Tensor, "batch seq"],
    reference: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    coefficient: float,
) -> Float[Tensor, "batch seq"]:
    """-β (ln π - ln π_ref) at each token of an answer, and its score at the last.

    Args:
        scores: of whole answers, by a reward model or a verifier.
        logprobs: ln π when the tokens were drawn.
        reference: ln π_ref of the same.
        mask: which positions are tokens of the answer, at least one in each row.
        coefficient: β.
    Raises:
        AlignmentError: an answer without tokens, or a score that is not finite.
    Sources: Ziegler et al. 2019, equation 2; Ouyang et al. 2022, equation 2.
    """
    if not bool(mask.any(dim=1).all()):
        raise AlignmentError("an answer without tokens has no place for its reward")
    if not bool(torch.isfinite(scores).all()):
        raise AlignmentError("rewards are finite numbers; one of them is not")
    rewards = (-coefficient * (logprobs - reference)).masked_fill(~mask, 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(dim=1, keepdim=True)
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def explained_variance(
    values: Float[Tensor, "batch seq"],
    returns: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
) -> float:
    """1 - Var(R - V) / Var(R) over the mask: 1 is a perfect value function, 0 a constant one."""
    actual, left = returns[mask], (returns - values)[mask]
    spread = float(actual.var(correction=0)) if len(actual) else 0.0
    return 1 - float(left.var(correction=0)) / spread if spread > 0 else 0.0
