"""Direct preference optimization: learn from pairs without a reward model.

With π the model, π_ref the frozen one that it started from, y_w the preferred answer to x and y_l
the other, the margin is

    Δ = ln π(y_w|x)/π_ref(y_w|x) - ln π(y_l|x)/π_ref(y_l|x)

and the loss of a pair is

    sigmoid   -ln σ(βΔ)
    smoothed  -(1 - ε) ln σ(βΔ) - ε ln σ(-βΔ)
    ipo       (Δ - 1 / 2β)²

from Rafailov et al. 2023, equation 7; Mitchell 2023, "A note on DPO with noisy preferences",
equation 3; and Azar et al. 2023, equation 17, whose τ is β here.

β ln π/π_ref is the reward that the pair's loss trains implicitly (Rafailov et al., equation 5, up
to a function of x alone, which the difference removes).
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.model.parts import PairLoss

PairLossKind: TypeAlias = Literal["sigmoid", "ipo"]
Pairs: TypeAlias = Float[Tensor, " pairs"]


class PairLosses(NamedTuple):
    """The losses of a batch of pairs and what they say about the policy.

    Attributes:
        losses: (pairs,), with gradient; the caller sums and divides by the pairs of all batches.
        chosen_rewards, rejected_rewards: β ln π/π_ref of the answers, (pairs,), no gradient.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor

    @property
    def margins(self) -> Tensor:
        """βΔ: (pairs,)."""
        return self.chosen_rewards - self.rejected_rewards

    def sums(self) -> dict[str, float]:
        """Sums over the pairs, by name, so that batches add up; divided by the pairs, means."""
        return {
            "margin": float(self.margins.sum()),
            "accuracy": float((self.margins > 0).sum()),
            "chosen_reward": float(self.chosen_rewards.sum()),
            "rejected_reward": float(self.rejected_rewards.sum()),
        }


def dpo_loss(
    chosen: Pairs,
    rejected: Pairs,
    reference_chosen: Pairs,
    reference_rejected: Pairs,
    beta: float,
    label_smoothing: float,
) -> Pairs:
    """-(1 - ε) ln σ(βΔ) - ε ln σ(-βΔ) of each pair; with ε = 0 the loss of Rafailov et al.

    Args:
        chosen, rejected: ln π of the answers, summed over their tokens.
        reference_chosen, reference_rejected: ln π_ref of the same.
        beta: β.
        label_smoothing: ε, the share of pairs taken to be the wrong way round.
    """
    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    # -ln σ(x) = softplus(-x), which stays finite.
    right, wrong = functional.softplus(-beta * margins), functional.softplus(beta * margins)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def ipo_loss(
    chosen: Pairs,
    rejected: Pairs,
    reference_chosen: Pairs,
    reference_rejected: Pairs,
    beta: float,
) -> Pairs:
    """(Δ - 1 / 2β)² of each pair: a margin to reach, not one to widen without end."""
    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    return (margins - 1 / (2 * beta)).square()


def likelihood_losses(chosen: Pairs, lengths: Int[Tensor, " pairs"]) -> Pairs:
    """-ln π(y_w|x) / |y_w| of each pair, to be added to its loss.

    A margin also grows where both answers become less probable, the chosen one more slowly; this
    term does not let it.

    Args:
        chosen: ln π of the preferred answers, summed over their tokens.
        lengths: tokens of these.
    Source: Pang et al. 2024, "Iterative reasoning preference optimization", equation 1.
    """
    return -chosen / lengths


def dpo_losses(
    chosen: Pairs,
    rejected: Pairs,
    reference_chosen: Pairs,
    reference_rejected: Pairs,
    *,
    beta: float,
    kind: PairLossKind = "sigmoid",
    label_smoothing: float = 0.0,
    loss: PairLoss = dpo_loss,
) -> PairLosses:
    """The losses of pairs from the log-probabilities of their answers.

    The log-ratios are those of whole answers, for IPO as for DPO: so both papers write them. TRL
    divides those of IPO by the tokens of each answer; means in place of sums give its loss.

    Args:
        chosen, rejected: ln π of the answers, summed over their tokens, with gradient.
        reference_chosen, reference_rejected: ln π_ref of the same.
        beta: how strongly the reference holds; for "ipo" the τ of its paper.
        kind: "sigmoid" or "ipo".
        label_smoothing: ε, at least 0 and below 1/2; for "sigmoid" only.
        loss: the part that "sigmoid" is computed by.
    Raises:
        AlignmentError: a number out of its range, or shapes that differ.
    """
    shapes = {tuple(t.shape) for t in (chosen, rejected, reference_chosen, reference_rejected)}
    if len(shapes) > 1:
        raise AlignmentError(f"log-probabilities of the same pairs have one shape: {shapes}")
    if not 0 < beta < torch.inf:
        raise AlignmentError(f"beta is above 0; not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise AlignmentError(f"label_smoothing is at least 0 and below 0.5; not {label_smoothing}")
    four = (chosen, rejected, reference_chosen, reference_rejected)
    if kind == "ipo":
        if label_smoothing:
            raise AlignmentError("label_smoothing is for the sigmoid loss; IPO has none")
        losses = ipo_loss(*four, beta)
    elif kind == "sigmoid":
        losses = loss(*four, beta, label_smoothing)
    else:
        raise AlignmentError(f"the loss is sigmoid or ipo; not {kind!r}")
    return PairLosses(
        losses,
        beta * (chosen - reference_chosen).detach(),
        beta * (rejected - reference_rejected).detach(),
    )
