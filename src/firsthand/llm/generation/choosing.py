"""One step of sampling for a batch whose rows may have different settings."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.results import Choice
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.parts import Parts


def filtered(
    parts: Parts,
    logits: Float[Tensor, "rows vocab"],
    sampling: Sampling,
    seen: Bool[Tensor, "rows vocab"] | None,
) -> Float[Tensor, "rows vocab"]:
    """The logits of the distribution that these settings draw from.

    Args:
        seen: the tokens of prompt and text; needed with a repetition penalty alone.
    """
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = parts.penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature != 1:
        logits = parts.scale_by_temperature(logits, sampling.temperature)
    if sampling.temperature == 0:
        return logits
    if sampling.top_k:
        logits = parts.keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = parts.keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = parts.keep_min_p(logits, sampling.min_p)
    return logits


def choose(
    parts: Parts,
    logits: Float[Tensor, "rows vocab"],
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    seen: Bool[Tensor, "rows vocab"] | None = None,
) -> list[Choice]:
    """The next token of each row.

    Args:
        logits: in float32 or wider.
        samplings: the settings of each row.
        uniforms: a number in [0, 1) for each row; greedy rows do not use it.
        seen: as `filtered`.
    Raises:
        GenerationError: logits that are NaN or infinite.
    """
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, sampling in enumerate(samplings):
        groups.setdefault(sampling.filters, []).append(row)
    if len(groups) == 1:
        return _alike(parts, logits, samplings, uniforms, seen)
    choices: dict[int, Choice] = {}
    for rows in groups.values():
        found = _alike(
            parts,
            logits[rows],
            [samplings[row] for row in rows],
            [uniforms[row] for row in rows],
            None if seen is None else seen[rows],
        )
        choices.update(zip(rows, found, strict=True))
    return [choices[row] for row in range(len(samplings))]


def require_finite(peaks: Float[Tensor, " rows"]) -> None:
    """Refuse rows whose greatest logit is no number: NaN and infinity both show there.

    Raises:
        GenerationError: the model is broken, not the request.
    """
    if not all(map(math.isfinite, peaks.tolist())):
        raise GenerationError("the model's logits are not finite: its weights are damaged")


def _alike(
    parts: Parts,
    logits: Tensor,
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    seen: Tensor | None,
) -> list[Choice]:
    first, records = samplings[0], any(sampling.records for sampling in samplings)
    if first.temperature == 0 and first.repetition_penalty == 1 and not records:
        peaks, best = logits.max(dim=-1)
        require_finite(peaks)
        return [Choice(token=token) for token in best.tolist()]
    require_finite(logits.amax(dim=-1))
    left = filtered(parts, logits, first, seen)
    if first.temperature == 0:
        tokens = left.argmax(dim=-1)
    else:
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        tokens = parts.draw(torch.softmax(left, dim=-1), numbers)
    if not records:
        return [Choice(token=token) for token in tokens.tolist()]
    return recorded(logits, left, tokens, samplings)


def recorded(
    logits: Float[Tensor, "rows vocab"],
    left: Float[Tensor, "rows vocab"],
    tokens: Tensor,
    samplings: Sequence[Sampling],
) -> list[Choice]:
    """The tokens with their log-probabilities, for the rows that record them.

    Args:
        logits: of the model.
        left: after the filters.
        tokens: (rows,).
    """
    model = torch.log_softmax(logits, dim=-1)
    chosen = model.gather(-1, tokens[:, None])[:, 0].tolist()
    drawn = chosen
    if left is not logits:
        drawn = torch.log_softmax(left, dim=-1).gather(-1, tokens[:, None])[:, 0].tolist()
    count = min(logits.shape[-1], max(sampling.top_logprobs for sampling in samplings))
    values, ids = (part.tolist() for part in model.topk(count, dim=-1))
    choices = []
    for row, (token, sampling) in enumerate(zip(tokens.tolist(), samplings, strict=True)):
        if not sampling.records:
            choices.append(Choice(token=token))
            continue
        top = list(zip(ids[row], values[row], strict=True))[: sampling.top_logprobs]
        choices.append(
            Choice(token=token, logprob=chosen[row], sampled_logprob=drawn[row], top=tuple(top))
        )
    return choices
