"""Bits per byte of a model before and after it was quantized, on the same text."""

from __future__ import annotations

from collections.abc import Callable

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.artefact import QuantizedModel, Record
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.transformer import quantized_transformer
from firsthand.llm.training.evaluation import ByteLengths, evaluate


def compare(
    model: Transformer,
    quantized: QuantizedModel,
    parts: Parts,
    stream: TokenStream,
    *,
    lengths: ByteLengths,
    sequence_length: int = 0,
    overlap: int = 0,
    batch_size: int = 16,
    max_batches: int = 0,
    report: Callable[[str, int, int], None] | None = None,
) -> Record:
    """Both on one text, token by token: the floats, and the integers on PyTorch.

    The integers run as an engine runs them: rounded activations, and keys and values as the
    cache would return them.

    Args:
        model: before.
        quantized: after.
        parts: the code of both.
        stream, lengths, sequence_length, overlap, batch_size, max_batches: as
            `training.evaluation.evaluate`.
        report: is told the stage and how far it is.
    Returns:
        "bits_per_byte_before", "bits_per_byte_after", "loss_percent" (how much worse), nats per
        token before and after, tokens and bytes.
    Raises:
        QuantizationError: the text has no bytes.
    """
    tell = report or (lambda stage, done, total: None)
    device = model.embedding.weight.device
    found = []
    for stage, which in (
        ("evaluating before", model),
        ("evaluating after", quantized_transformer(quantized, parts).to(device)),
    ):
        result = evaluate(
            which,
            stream,
            lengths=lengths,
            sequence_length=sequence_length,
            overlap=overlap,
            batch_size=batch_size,
            max_batches=max_batches,
            progress=lambda done, total, stage=stage: tell(stage, done, total),  # type: ignore[misc]
        )
        found.append(result)
    before, after = found
    if not before.bits_per_byte or not after.bits_per_byte:
        raise QuantizationError("the validation text has no bytes to measure on")
    return {
        "bits_per_byte_before": before.bits_per_byte,
        "bits_per_byte_after": after.bits_per_byte,
        "loss_percent": 100 * (after.bits_per_byte / before.bits_per_byte - 1),
        "nats_per_token_before": before.nats_per_token,
        "nats_per_token_after": after.nats_per_token,
        "tokens": before.tokens,
        "bytes": before.bytes,
    }
