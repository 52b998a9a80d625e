"""Public benchmarks of a trained model, by EleutherAI's lm-evaluation-harness.

The harness asks three things of a model: the log-probability of a continuation and whether greedy
decoding would give it, the log-probability of a whole text, and texts up to a stop string. The
package is an extra and is imported when a benchmark is asked for.

Source: Gao et al. 2021, "A framework for few-shot language model evaluation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.generation.decoding import Request, generate
from firsthand.llm.generation.prompts import end_of_text
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.evaluation import evaluate

MISSING = (
    "benchmarks need the package lm-eval, which is missing: pip install 'firsthand[evaluation]'"
)
DEFAULT_NEW_TOKENS = 256
# What the harness calls a setting, and what `Sampling` does.
_OPTIONS = {
    "max_gen_toks": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}


class Score(NamedTuple):
    """ln of a continuation's probability, and whether each of its tokens is the most probable."""

    logprob: float
    is_greedy: bool


def score_continuations(
    model: Transformer, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int = 8
) -> list[Score]:
    """Score each continuation behind its context.

    A context that is too long loses its beginning.

    Args:
        pairs: the ids of a context, at least one, and of its continuation.
        batch_size: rows in a forward pass.
    Raises:
        TrainingError: an empty context, or a continuation longer than the model's context.
    """
    for context, continuation in pairs:
        if not context:
            raise TrainingError("a continuation needs a context of at least one token")
        if len(continuation) > model.config.context:
            raise TrainingError(
                f"a continuation of {len(continuation)} tokens is longer than the model's context "
                f"of {model.config.context}"
            )
    scores: dict[int, Score] = {}
    # Rows of similar length stand together, so that little is padding.
    order = sorted(range(len(pairs)), key=lambda k: -sum(map(len, pairs[k])))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [_row(*pairs[index], model.config.context) for index in chosen]
        scores |= dict(zip(chosen, _scores(model, rows), strict=True))
    return [scores[index] for index in range(len(pairs))]


def score_text(model: Transformer, ids: Sequence[int], end: int, *, batch_size: int = 8) -> float:
    """ln of the probability of a text, read in windows without overlap, from an end-of-text on."""
    if not ids:
        return 0.0
    stream = TokenStream([np.asarray(ids, np.uint32)], end)
    return -evaluate(model, stream, batch_size=batch_size).nats


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """The settings of a generation request of the harness; greedy unless it says otherwise.

    Raises:
        TrainingError: a value that cannot be.
    """
    known = {_OPTIONS[name]: options[name] for name in _OPTIONS if options.get(name) is not None}
    sampled = options.get("do_sample", float(known.get("temperature", 0)) > 0)
    until = options.get("until") or ()
    values = {
        "max_new_tokens": DEFAULT_NEW_TOKENS,
        **known,
        "temperature": float(known.get("temperature", 1.0)) if sampled else 0.0,
        "stop": tuple(s for s in ([until] if isinstance(until, str) else until) if s),
    }
    try:
        return Sampling(**values)
    except (SettingsError, TypeError) as error:
        raise TrainingError(f"a benchmark asks for a generation that cannot be: {error}") from error


def harness_model(model: Transformer, tokenizer: Tokenizer, *, batch_size: int = 8) -> Any:
    """The model as an `lm_eval.api.model.LM`.

    Raises:
        TrainingError: the package is missing, or the tokenizer has no end-of-text, with which
            the harness begins a text.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise TrainingError(MISSING) from error
    found = end_of_text(tokenizer)
    if found is None:
        raise TrainingError("the tokenizer has no end-of-text token to begin a text with")
    end: int = found
    base: Any = TemplateLM

    class HarnessModel(base):  # type: ignore[misc]
        """Answers the harness's three questions."""

        @property
        def eot_token_id(self) -> int:
            return end

        @property
        def max_length(self) -> int:
            return model.config.context

        @property
        def tokenizer_name(self) -> str:
            return f"firsthand-{tokenizer.hash[:16]}"

        def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[Score]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            return score_continuations(model, pairs, batch_size=batch_size)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            texts = [tokenizer.encode(request.args[0]) for request in requests]
            return [score_text(model, ids, end, batch_size=batch_size) for ids in texts]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [
                Request(prompt=text, sampling=sampling_of(options))
                for text, options in (request.args for request in requests)
            ]
            texts: list[str] = []
            for start in range(0, len(asked), batch_size):
                batch = asked[start : start + batch_size]
                results = generate(model, batch, tokenizer=tokenizer, truncate="left")
                texts += [result.text for result in results]
            return texts

    return HarnessModel()


def run_benchmarks(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[Any],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    shots: int | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Run tasks of the harness.

    Args:
        tasks: names, which the harness downloads the data of, or its own task records.
        batch_size: rows in a forward pass.
        limit: only so many examples of each task; None is all.
        shots: worked examples before each question; None is the task's own choice.
        options: passed to `lm_eval.simple_evaluate`.
    Returns:
        For each task its measures by name, such as {"acc,none": 0.27, ...}.
    Raises:
        TrainingError: the package is missing, or a task cannot be found or loaded.
    """
    adapter = harness_model(model, tokenizer, batch_size=batch_size)
    import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            model=adapter, tasks=list(tasks), num_fewshot=shots, limit=limit, **options
        )
    except (KeyError, ValueError, OSError) as error:
        raise TrainingError(
            f"the harness could not run {', '.join(map(str, tasks))}: {error}"
        ) from error
    results: dict[str, dict[str, Any]] = (found or {}).get("results", {})
    return results


class _Row(NamedTuple):
    """The tokens that a model reads, and those it should predict at the last of them."""

    inputs: list[int]
    targets: list[int]


def _row(context: list[int], continuation: list[int], longest: int) -> _Row:
    read = (context + continuation)[:-1][-longest:] if continuation else context[-longest:]
    return _Row(read, continuation)


def _scores(model: Transformer, rows: list[_Row]) -> list[Score]:
    longest = max(len(row.inputs) for row in rows)
    # Padding stands behind a row, where its own tokens do not see it.
    padded = [row.inputs + [0] * (longest - len(row.inputs)) for row in rows]
    device = model.embedding.weight.device
    with torch.no_grad():
        hidden = model.hidden(torch.tensor(padded, device=device))
        return [_score(model, line, row) for line, row in zip(hidden, rows, strict=True)]


def _score(model: Transformer, hidden: Tensor, row: _Row) -> Score:
    end = len(row.inputs)
    # Logits of the continuation alone: those of the whole batch may not fit into memory.
    read = hidden[end - len(row.targets) : end]
    logits = model.parts.vocabulary_logits(read, model.output_weight).float()
    targets = torch.tensor(row.targets, dtype=torch.int64, device=hidden.device)
    logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).sum(dtype=torch.float64)
    return Score(float(logprobs), bool((logits.argmax(-1) == targets).all()))
