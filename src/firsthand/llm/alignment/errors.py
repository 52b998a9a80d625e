"""What can go wrong while a model is aligned."""

from __future__ import annotations

import math


class AlignmentError(ValueError):
    """Data, a model or numbers that cannot be aligned with; names the file and line or the step."""


class DivergenceError(AlignmentError):
    """The policy has left its reference too far behind: the run stops with its last good weights.

    Args:
        step: the update at which it was seen.
        kl: nats per answer or token, as the caller measures it.
        limit: what was allowed.
    """

    def __init__(self, step: int, kl: float, limit: float) -> None:
        what = "is not a finite number"
        if math.isfinite(kl):
            what = f"is {kl:.4g} nats, more than the limit of {limit:.4g}"
        super().__init__(
            f"step {step}: the KL divergence to the reference {what}; a larger kl_coefficient or "
            "a smaller learning rate keeps the policy closer"
        )
        self.step, self.kl, self.limit = step, kl, limit


def require_same_vocabulary(policy: int, reference: int, name: str = "the reference") -> None:
    """Raise AlignmentError when two models do not have tokens in common.

    Args:
        policy, reference: rows of their embeddings.
        name: of the second, as a user knows it.
    """
    if policy != reference:
        raise AlignmentError(
            f"{name} has a vocabulary of {reference} and the model one of {policy}; "
            "log-probabilities compare only over the same tokens"
        )
