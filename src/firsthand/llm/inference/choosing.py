"""One step of sampling in NumPy, a row at a time: what an engine without PyTorch draws with.

The filters are those of `generation/filters.py`, in the same order and with the same treatment of
equal logits, but work on weights: exp(logit - greatest logit), 0 for a token that is filtered out.
None sorts the vocabulary. Logits are (vocab,) in float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.results import Choice
from firsthand.llm.generation.sampling import Sampling

Logits = NDArray[np.float32]
Weights = NDArray[np.float32]
Seen = NDArray[np.bool_]

# The nucleus is found by classes of weights, so many to a factor of e. In the last class a token
# has at most e^-32 of the greatest one's probability.
CLASSES_PER_NAT, CLASSES = 32, 1024
# A draw adds up so many tokens at a time before it looks at single ones.
STRIDE = 128


def choose(logits: Logits, sampling: Sampling, uniform: float, seen: Seen | None = None) -> Choice:
    """The next token of one text.

    Args:
        logits: of the model.
        sampling: the settings of the text.
        uniform: in [0, 1); a greedy text does not use it.
        seen: the tokens of prompt and text; needed with a repetition penalty alone.
    Raises:
        GenerationError: logits that are NaN or infinite.
    """
    # NaN and infinity both show in the greatest.
    if not math.isfinite(logits.max()):
        raise GenerationError("the model's logits are not finite: its weights are damaged")
    sampled_logprob = 0.0
    if sampling.temperature == 0:
        token = int(penalized(logits, sampling, seen).argmax())
    else:
        weights = filtered(logits, sampling, seen)
        token = draw(weights, uniform)
        if sampling.records:
            sampled_logprob = math.log(weights[token] / weights.sum(dtype=np.float64))
    if not sampling.records:
        return Choice(token=token)
    return recorded(logits, token, sampled_logprob, sampling)


def filtered(logits: Logits, sampling: Sampling, seen: Seen | None = None) -> Weights:
    """The distribution that these settings draw from, up to a factor; a temperature above 0."""
    left = penalized(logits, sampling, seen)
    if sampling.temperature != 1:
        left = left / np.float32(sampling.temperature)
    depths = left.max() - left
    weights: Weights = np.exp(-depths)
    if 0 < sampling.top_k < len(left):
        # The k greatest, and those equal to the least of them.
        rank = len(left) - sampling.top_k
        weights *= left >= np.partition(left, rank)[rank]
    if sampling.top_p < 1:
        keep_top_p(weights, left, sampling.top_p)
    if sampling.min_p:
        weights *= depths <= np.float32(-math.log(sampling.min_p))
    return weights


def penalized(logits: Logits, sampling: Sampling, seen: Seen | None) -> Logits:
    """Seen tokens weakened: Keskar et al. 2019, section 4.1."""
    if sampling.repetition_penalty == 1 or seen is None:
        return logits
    penalty = np.float32(sampling.repetition_penalty)
    weaker = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen, weaker, logits)


def keep_top_p(weights: Weights, logits: Logits, p: float) -> None:
    """Clear all weights but the nucleus: the fewest tokens, heaviest first, that have p of the sum.

    Of equal tokens at its edge the ones with lower ids are in. The mass of each class of similar
    weights says in which class the nucleus ends; only that one is sorted.

    Args:
        weights: changed in place; those already filtered out are 0.
        logits: that the weights are made of.
    """
    depths = (logits.max() - logits) * np.float32(CLASSES_PER_NAT)
    classes = np.minimum(depths, CLASSES - 1).astype(np.intp)
    masses = np.bincount(classes, weights=weights, minlength=CLASSES)
    ends = masses.cumsum()
    wanted = p * ends[-1]
    edge = min(int(np.searchsorted(ends, wanted)), CLASSES - 1)
    members = np.flatnonzero(classes == edge)
    members = members[np.argsort(-logits[members], kind="stable")]
    mass = weights[members].astype(np.float64)
    before = ends[edge] - masses[edge] + mass.cumsum() - mass
    weights *= classes <= edge
    weights[members[before >= wanted]] = 0.0


def draw(weights: Weights, uniform: float) -> int:
    """A token by inverting the cumulative distribution, in the order of the ids."""
    starts = np.arange(0, len(weights), STRIDE)
    sums = np.add.reduceat(weights, starts, dtype=np.float64)
    block, rest = _invert(sums, uniform * sums.sum())
    first = block * STRIDE
    return first + _invert(weights[first : first + STRIDE].astype(np.float64), rest)[0]


def _invert(masses: NDArray[np.float64], target: float) -> tuple[int, float]:
    """In which of the masses, laid end to end, the target lies, and how far in it."""
    ends = masses.cumsum()
    # A product may round up to the total, behind which nothing lies.
    target = min(target, math.nextafter(ends[-1], 0.0))
    place = int(np.searchsorted(ends, target, side="right"))
    return place, max(0.0, target - (ends[place] - masses[place]))


def recorded(logits: Logits, token: int, sampled_logprob: float, sampling: Sampling) -> Choice:
    """The token with the log-probabilities that its settings ask for."""
    base = _log_sum(logits)
    top: tuple[tuple[int, float], ...] = ()
    if count := min(sampling.top_logprobs, len(logits)):
        best = np.argpartition(-logits, count - 1)[:count]
        best = best[np.lexsort((best, -logits[best]))]
        top = tuple((int(i), float(logits[i]) - base) for i in best)
    return Choice(
        token=token,
        logprob=float(logits[token]) - base,
        sampled_logprob=sampled_logprob,
        top=top,
    )


def _log_sum(logits: Logits) -> float:
    peak = logits.max()
    return float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))
