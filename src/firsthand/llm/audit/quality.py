"""How well a model predicts and answers, in float32 and in INT8, on text that it never learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from firsthand.llm.alignment.accuracy import accuracy
from firsthand.llm.alignment.questions import held_out_tasks, policy_questions
from firsthand.llm.alignment.settings import read_settings
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.subject import Subject
from firsthand.llm.data.loading import TokenStream, open_split
from firsthand.llm.data.named import named_source
from firsthand.llm.data.problems import DataError
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.texts import gathered
from firsthand.llm.quantization.transformer import quantized_transformer
from firsthand.llm.training.distributed import World
from firsthand.llm.training.evaluation import Evaluation, byte_lengths, evaluate
from firsthand.llm.training.pretraining import SHARDS

Report = Callable[[float], None]

BATCH = 16
EMBEDDED_BYTES = 1_000_000
# Methods whose questions come from the run's own files where it has any.
_POLICIES = ("ppo", "grpo")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures before and after quantization; None where the model is not there to be measured.

    Attributes:
        text: what was predicted.
        tokens, bytes: of it.
        whole: all of the split was.
        bits_before, bits_after: bits per byte, in float32 and in INT8.
        nats_before, nats_after: per token.
        questions: held-out questions that were asked; 0 of a run that was not aligned.
        accuracy_before, accuracy_after: share of exact answers, greedy.
        missing: what was not measured, in sentences.
    """

    text: str = ""
    tokens: int = 0
    bytes: int = 0
    whole: bool = False
    bits_before: float | None = None
    bits_after: float | None = None
    nats_before: float | None = None
    nats_after: float | None = None
    questions: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def bits_percent(self) -> float | None:
        """How much more bits INT8 takes, in percent; None where one is not known."""
        if not self.bits_before or self.bits_after is None:
            return None
        return 100 * (self.bits_after / self.bits_before - 1)

    def to_json(self) -> dict[str, Any]:
        """The fields, and the difference in percent."""
        return {**asdict(self), "missing": list(self.missing), "bits_percent": self.bits_percent}


def measure_quality(
    subject: Subject,
    parts: Parts,
    *,
    tokens: int = 32_768,
    questions: int = 150,
    report: Report = lambda share: None,
) -> Quality:
    """Predict the run's validation split, and ask an aligned run its held-out questions.

    A model without a run predicts the beginning of the embedded corpus, which it may have learnt.
    The integers run on PyTorch as the engine runs them: rounded activations and cache.

    Args:
        parts: the code of the quantized model.
        tokens: to predict, about, from windows at even distances; 0 is the whole split.
        questions: of each split of held-out questions, at most; 0 asks none.
        report: is told the share that is done.
    Raises:
        AuditError: a negative number.
    """
    if tokens < 0 or questions < 0:
        raise AuditError(f"tokens and questions are at least 0: {tokens} and {questions}")
    after = quantized_transformer(subject.quantized, parts)
    models = [subject.model, after]
    found: dict[str, Any] = {}
    missing: list[str] = []
    try:
        found |= _predicted(subject, models, tokens, report)
    except (DataError, QuantizationError, OSError, ValueError) as error:
        missing.append(f"Bits per byte were not measured: {str(error).rstrip('.')}.")
    if questions and subject.alignment:
        try:
            found |= _asked(subject, subject.alignment, models, questions)
        except (DataError, OSError, ValueError) as error:
            missing.append(f"The accuracy was not measured: {str(error).rstrip('.')}.")
    report(1.0)
    return Quality(**found, missing=tuple(missing))


def _predicted(
    subject: Subject, models: list[Transformer | None], tokens: int, report: Report
) -> dict[str, Any]:
    stream, text = _text(subject, tokens)
    if not len(stream):
        raise QuantizationError("the validation split is empty")
    run, context = subject.run, subject.config.context
    length = context if run is None else min(context, run.config.sequence_length)
    # As `firsthand evaluate` does: each window but the first has half of it as context.
    overlap = length // 2
    batch = max(1, min(BATCH, -(-tokens // (length - overlap)))) if tokens else BATCH
    results: list[Evaluation | None] = []
    for place, model in enumerate(models):
        if model is None:
            results.append(None)
            continue
        results.append(
            evaluate(
                model,
                stream,
                lengths=byte_lengths(subject.tokenizer),
                sequence_length=length,
                overlap=overlap,
                batch_size=batch,
                max_batches=-(-tokens // (batch * (length - overlap))),
                progress=lambda done, total, place=place: report(  # type: ignore[misc]
                    (place + done / total) / len(models)
                ),
            )
        )
    before, after = results
    assert after is not None
    return {
        "text": text,
        "tokens": after.tokens,
        "bytes": after.bytes,
        "whole": after.tokens == len(stream),
        "bits_before": before and before.bits_per_byte,
        "bits_after": after.bits_per_byte,
        "nats_before": before and before.nats_per_token,
        "nats_after": after.nats_per_token,
    }


def _text(subject: Subject, tokens: int) -> tuple[TokenStream, str]:
    if subject.run is None:
        source = named_source((), size=EMBEDDED_BYTES)
        stream = gathered(source, subject.tokenizer, tokens or EMBEDDED_BYTES)
        return stream, "the beginning of the embedded corpus, for there is no run"
    place = Path(subject.run.config.data.folder or subject.run.folder / SHARDS)
    stream = open_split(place, "validation", tokenizer_hash=subject.tokenizer.hash)
    return stream, "the run's validation split"


def _asked(
    subject: Subject,
    alignment: Mapping[str, Any],
    models: list[Transformer | None],
    most: int,
) -> dict[str, Any]:
    assert subject.run is not None
    method, settings = str(alignment["method"]), read_settings(alignment["settings"])
    if method == "reward":
        raise AuditError("a reward model gives rewards and no answers")
    world = World(0, 1, torch.device("cpu"))
    seed, tokenizer = subject.run.config.seed, subject.tokenizer
    if method in _POLICIES:
        held_out = policy_questions(settings, tokenizer, seed, world)[1]
    else:
        held_out = held_out_tasks(settings, tokenizer, seed, world)
    asked = {name: list(listed)[:most] for name, listed in held_out.questions.items()}
    shares = [
        None
        if model is None
        else accuracy(model, tokenizer, asked, settings.tasks.max_new_tokens).get("accuracy")
        for model in models
    ]
    return {
        "questions": sum(map(len, asked.values())),
        "accuracy_before": shares[0],
        "accuracy_after": shares[1],
    }
