"""How far the policy is from its reference: estimates from samples, and a controller for them.

For tokens drawn from π, with d = ln π - ln π_ref (Schulman 2020, "Approximating KL divergence"):

    k1 = d                  unbiased, often negative
    k2 = d² / 2             never negative, biased
    k3 = exp(-d) - 1 + d    unbiased and never negative

All estimate KL(π ‖ π_ref) in nats for each token. Their gradients differ: only that of k2, for
tokens drawn from π, is in expectation the gradient of the divergence; that of k1 is 0 and that of
k3 belongs to the reverse divergence KL(π_ref ‖ π). GRPO (Shao et al. 2024, equation 4) takes k3
all the same.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError, DivergenceError

Estimator: TypeAlias = Literal["k1", "k2", "k3"]


def kl_estimates(
    logprobs: Float[Tensor, "*tokens"],
    reference: Float[Tensor, "*tokens"],
    kind: Estimator = "k3",
) -> Float[Tensor, "*tokens"]:
    """The estimate for each token, with the gradient of its formula.

    Args:
        logprobs: ln π of tokens drawn from π.
        reference: ln π_ref of the same.
        kind: "k1", "k2" or "k3".
    Raises:
        AlignmentError: no such estimator.
    """
    difference = logprobs - reference
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        # expm1 keeps the digits that exp(-d) - 1 loses near 0.
        return torch.expm1(-difference) + difference
    raise AlignmentError(f"the estimator is k1, k2 or k3; not {kind!r}")


class Controller(Protocol):
    """What sets the weight of the KL penalty."""

    coefficient: float

    def update(self, kl: float, samples: int) -> None:
        """Take in the mean KL of so many new answers, in nats per answer."""

    def state(self) -> dict[str, float]:
        """What a resume needs, as plain JSON values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""


class FixedController:
    """A weight that stays.

    Args:
        coefficient: of the penalty; 0 turns it off.
    Raises:
        AlignmentError: it is negative or not finite.
    """

    def __init__(self, coefficient: float) -> None:
        _require_coefficient(coefficient)
        self.coefficient = coefficient

    def update(self, kl: float, samples: int) -> None:
        """Nothing follows from the measurement."""

    def state(self) -> dict[str, float]:
        """The weight."""
        return {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the state's weight."""
        self.coefficient = float(state["coefficient"])


class AdaptiveController:
    """A weight that holds the KL near a target: raised while it is above, lowered while below.

    After n answers with mean KL k: e = clip(k / target - 1, -0.2, 0.2), β ← β (1 + e n / horizon).
    Source: Ziegler et al. 2019, section 2.2, whose K_β is n / horizon.

    Args:
        coefficient: the first weight, above 0: a product never leaves 0.
        target: nats per answer.
        horizon: answers over which a constant error of 0.2 changes the weight by about a fifth.
    Raises:
        AlignmentError: a number that is not above 0.
    """

    def __init__(self, coefficient: float, target: float, horizon: float) -> None:
        for name, value in (
            ("coefficient", coefficient),
            ("target", target),
            ("horizon", horizon),
        ):
            if not 0 < value < math.inf:
                raise AlignmentError(f"the {name} of the adaptive KL is above 0; not {value}")
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, samples: int) -> None:
        """Raise or lower the weight.

        Raises:
            AlignmentError: the KL is not finite.
        """
        if not math.isfinite(kl):
            raise AlignmentError(f"the KL divergence to the reference is {kl}")
        error = min(0.2, max(-0.2, kl / self.target - 1))
        # More answers than the horizon at once would make the factor negative.
        self.coefficient *= 1 + error * min(1.0, samples / self.horizon)

    def state(self) -> dict[str, float]:
        """The weight; the rest is settings."""
        return {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the state's weight."""
        self.coefficient = float(state["coefficient"])


def require_near(kl: float, limit: float, step: int) -> None:
    """Raise DivergenceError when the KL is above the limit or not finite.

    Args:
        kl: nats, measured as the limit is meant.
        limit: 0 allows everything finite.
        step: named in the error.
    """
    if not math.isfinite(kl) or (limit and kl > limit):
        raise DivergenceError(step, kl, limit or math.inf)


def _require_coefficient(coefficient: float) -> None:
    if not 0 <= coefficient < math.inf:
        raise AlignmentError(f"the KL coefficient is at least 0; not {coefficient}")
