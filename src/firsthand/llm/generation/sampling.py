"""How the next token is chosen and when a text ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firsthand.llm.model.settings import SettingsError, require_at_least

LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings of one request; the defaults sample from the model's own distribution.

    Attributes:
        temperature: divides the logits; 0 is greedy: the most probable token, the first of equals.
        top_k: only the k most probable tokens; 0 is off.
        top_p: only the fewest tokens whose probabilities sum to p; 1 is off.
        min_p: only tokens at least this fraction as probable as the most probable; 0 is off.
        repetition_penalty: weakens every token of the prompt and of the text so far; 1 is off.
        max_new_tokens: the text is cut after so many.
        stop: strings that end the text and are not part of it.
        seed: the same request with the same seed gives the same text, whatever else is in the
            batch; -1 takes a seed from the operating system.
        logprobs: record the logarithm of each token's probability.
        top_logprobs: record so many of the most probable tokens at each place, too.

    The filters are applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        # Written so that NaN is refused as well.
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise SettingsError(
                f"temperature is 0 (greedy) or at least {LEAST_TEMPERATURE:g}; "
                f"not {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is above 0 and at most 1; not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise SettingsError(f"min_p is between 0 and 1; not {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise SettingsError(
                f"repetition_penalty is above 0 and finite; not {self.repetition_penalty}"
            )
        require_at_least(self, 0, "top_k", "top_logprobs")
        require_at_least(self, 1, "max_new_tokens")
        require_at_least(self, -1, "seed")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise SettingsError(f"stop is a list of strings that are not empty; not {self.stop!r}")

    @property
    def records(self) -> bool:
        """Whether log-probabilities are recorded."""
        return self.logprobs or self.top_logprobs > 0

    @property
    def filters(self) -> tuple[float, int, float, float, float]:
        """What decides the distribution: requests that share it are sampled together."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
