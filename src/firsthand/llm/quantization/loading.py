"""Any model that can be read for inference: a run, a Hugging Face folder, a quantized folder."""

from __future__ import annotations

from pathlib import Path

import torch

from firsthand.llm.model.parts import Parts
from firsthand.llm.quantization.artefact import (
    QuantizedModel,
    is_quantized,
    load_quantized,
    load_tokenizer,
)
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.transformer import quantized_transformer
from firsthand.llm.tokenizer import Tokenizer, TokenizerError
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.runs import Run, open_run
from firsthand.llm.training.trained import Trained, load_trained


def load_any(
    folder: Path, parts: Parts, *, device: torch.device | str = "cpu", step: int = 0
) -> Trained:
    """As `training.trained.load_trained`, and for a folder that `firsthand quantize` wrote too.

    A quantized model runs on PyTorch with its integers. Its run is the one that it came from,
    where that still stands beside it or at its old place.

    Args:
        folder, parts, device, step: as `load_trained`; a quantized folder has one step.
    Raises:
        QuantizationError: the quantized folder is damaged, or another step is asked for.
        TrainingError, ExchangeError, TokenizerError: as `load_trained`.
    """
    if not is_quantized(folder):
        return load_trained(folder, parts, device=device, step=step)
    quantized = load_quantized(folder)
    tokenizer = load_tokenizer(folder, quantized)
    found = int(quantized.record.get("step") or 0)
    if step not in (0, found):
        raise QuantizationError(f"{folder}: quantized from step {found}, there is no step {step}")
    model = quantized_transformer(quantized, parts).to(device)
    return Trained(model, tokenizer, source_run(folder, quantized, tokenizer), found)


def source_run(folder: Path, quantized: QuantizedModel, tokenizer: Tokenizer) -> Run | None:
    """The run of a quantized folder: the folder above it, or where it was; None if neither is."""
    places = [folder.resolve().parent]
    if quantized.record.get("run"):
        places.append(Path(str(quantized.record["run"])))
    for place in places:
        try:
            run = open_run(place)
            if Tokenizer.load(run.tokenizer).hash == tokenizer.hash:
                return run
        except (TrainingError, TokenizerError, OSError):
            continue
    return None
