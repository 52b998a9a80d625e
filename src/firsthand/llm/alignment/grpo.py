"""Group relative policy optimization: PPO whose baseline is the mean of the prompt's answers.

There is no value function. With A_i the advantage of answer i in its group (see
`advantages.group_advantages`), ρ_t = π / π_old and k3 the estimate of the KL to the reference, the
loss of token t of answer i is

    -min(ρ_t A_i, clip(ρ_t, 1 - ε, 1 + ε) A_i) + β k3_t             Shao et al. 2024, equations 3, 4

and a batch's loss is its mean: over the tokens of an answer and then over answers ("answer", the
paper's), or over all tokens ("token": Yu et al. 2025, "DAPO", equation 8), which weighs a token of
a long answer as much as one of a short answer.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.kl import kl_estimates
from firsthand.llm.alignment.ppo import ClippedObjective, clipped_objective, policy_losses

Mean: TypeAlias = Literal["answer", "token"]


@dataclass(frozen=True)
class GrpoLoss:
    """The summed loss of a minibatch, and sums for the log line.

    Attributes:
        total: a scalar with gradient; divided by `count` it is the mean.
        count: answers or tokens, as the mean is over.
        tokens: how many the mask counts.
        sums: over the tokens: "clipped" (a count), "old_kl" (k3 to the policy that drew them) and,
            with a reference, "kl" (k3 to it).
    """

    total: Tensor
    count: int
    tokens: int
    sums: dict[str, float]


def grpo_loss(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch seq"],
    *,
    clip: float,
    clip_high: float | None = None,
    reference: Float[Tensor, "batch seq"] | None = None,
    kl_coefficient: float = 0.0,
    mean: Mean = "answer",
    counts: Float[Tensor, " batch"] | None = None,
    objective: ClippedObjective = clipped_objective,
) -> GrpoLoss:
    """The loss above, as a sum and what it is a mean over.

    Args:
        logprobs: ln π of the answers' tokens, with gradient.
        old_logprobs: ln π_old, when they were drawn.
        advantages: of the answers.
        mask: which positions are tokens of an answer, at least one in each row.
        clip, clip_high, objective: as `ppo.policy_losses`.
        reference: ln π_ref; None where there is no penalty.
        kl_coefficient: β.
        mean: "answer" or "token".
        counts: of equal answers that each row stands for; None is one each.
    Raises:
        AlignmentError: a number out of its range, a penalty without a reference, or an answer
            without tokens.
    """
    if mean not in ("answer", "token"):
        raise AlignmentError(f"the mean is over answer or token; not {mean!r}")
    if not 0 <= kl_coefficient < torch.inf:
        raise AlignmentError(f"the KL coefficient is at least 0; not {kl_coefficient}")
    if kl_coefficient and reference is None:
        raise AlignmentError("a KL penalty needs the log-probabilities of the reference")
    lengths = mask.sum(dim=1)
    if not bool((lengths > 0).all()):
        raise AlignmentError("an answer without tokens has no loss")
    policy = policy_losses(
        logprobs,
        old_logprobs,
        advantages[:, None],
        clip=clip,
        clip_high=clip_high,
        objective=objective,
    )
    losses = policy.losses
    times = logprobs.new_ones(len(mask)) if counts is None else counts

    def total_of(tokens: Tensor) -> float:
        return float((tokens.masked_fill(~mask, 0.0).sum(dim=1) * times).sum())

    difference = (logprobs - old_logprobs).detach()
    sums = {
        "clipped": total_of(policy.clipped.to(times.dtype)),
        "old_kl": total_of(torch.expm1(difference) - difference),
    }
    if reference is not None:
        divergence = kl_estimates(logprobs, reference, "k3")
        if kl_coefficient:
            losses = losses + kl_coefficient * divergence
        sums["kl"] = total_of(divergence.detach())
    by_answer = losses.masked_fill(~mask, 0.0).sum(dim=1) * times
    tokens = int((lengths * times).sum())
    if mean == "token":
        return GrpoLoss(by_answer.sum(), tokens, tokens, sums)
    return GrpoLoss((by_answer / lengths).sum(), int(times.sum()), tokens, sums)
