"""An exponential moving average of the weights, to be evaluated in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from firsthand.llm.model.parts import Parts
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.sharding import local
from firsthand.llm.training.state import load_state


def average_weights(
    averages: Sequence[Tensor], weights: Sequence[Tensor], decay: float, updates: int
) -> None:
    """Take the weights into their average in place: a ← a + (1 - β) / (1 - βⁿ) (w - a).

    A sum Σ (1 - β) βⁿ⁻ⁱ wᵢ has the weights 1 - βⁿ in all, so an average begun at zero would be too
    small by that. With the correction inside the step, `averages` is unbiased at every n, needs no
    division when it is read, and its first value is a copy.

    Args:
        averages: one for each of the weights; any finite value before the first update.
        decay: β, at least 0 and below 1.
        updates: n, counted from 1.
    """
    share = (1.0 - decay) / (1.0 - decay**updates)
    torch._foreach_lerp_(list(averages), list(weights), share)


def decay_of_half_life(steps: float) -> float:
    """The β with which a weight counts half as much after so many steps: βˢ = 1/2."""
    return float(0.5 ** (1.0 / steps))


class Average:
    """The average of a model's weights.

    Args:
        model: shards (DTensor) are averaged each on its own rank.
        decay: β of `average_weights`.
        parts: whose `average_weights`.

    Attributes:
        updates: how many times the weights were taken in.
    """

    def __init__(self, model: nn.Module, decay: float, parts: Parts) -> None:
        self.decay, self.parts = decay, parts
        self.updates = 0
        self._weights = dict(model.named_parameters())
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now; call it after each step of the optimizer."""
        self.updates += 1
        self.parts.average_weights(
            local(self._averages.values()),
            local(weight.detach() for weight in self._weights.values()),
            self.decay,
            self.updates,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the average; afterwards its own weights again, bit for bit.

        Raises:
            TrainingError: there is no update yet.
        """
        if not self.updates:
            raise TrainingError("the average of the weights has taken in no step yet")
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def tensors(self) -> dict[str, Tensor]:
        """The live averages by the names of their parameters."""
        return dict(self._averages)

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Go on from saved averages.

        Raises:
            TrainingError: names or shapes differ.
        """
        load_state(self._averages, tensors, "the average of the weights is")
        self.updates = updates

    @property
    def nbytes(self) -> int:
        """Bytes of the averages on this rank."""
        return sum(average.nbytes for average in local(self._averages.values()))

    @torch.no_grad()
    def _exchange(self) -> None:
        weights, averages = local(self._weights.values()), local(self._averages.values())
        for weight, average in zip(weights, averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
