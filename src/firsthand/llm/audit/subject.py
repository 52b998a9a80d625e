"""What is audited: the model of a run, a quantized folder, a GGUF file or another folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.inference.cpu.weights import reason_against
from firsthand.llm.inference.opening import rounded
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.artefact import (
    QuantizedModel,
    is_quantized,
    load_quantized,
    load_tokenizer,
)
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.loading import source_run
from firsthand.llm.tokenizer import Tokenizer, TokenizerError
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.runs import Run
from firsthand.llm.training.trained import load_trained

INT8_FOLDER = "int8"


@dataclass(frozen=True)
class Subject:
    """A model with all that is there of it.

    Attributes:
        path: as it was named.
        kind: "run", "aligned run", "quantized", "gguf" or "hugging face".
        config: of the model.
        tokenizer: of the model.
        model: in float32; None where only its integers are there.
        quantized: in 8 bits: of the folder, or rounded just now.
        int8_from: where the integers come from, in a few words.
        run: that it was trained in, or None.
        step: of the checkpoint; 0 if unknown.
        notes: what is missing or damaged, in sentences.
    """

    path: Path
    kind: str
    config: ModelConfig
    tokenizer: Tokenizer
    model: Transformer | None
    quantized: QuantizedModel
    int8_from: str
    run: Run | None = None
    step: int = 0
    notes: tuple[str, ...] = ()

    @property
    def alignment(self) -> Mapping[str, Any] | None:
        """What run.json says of the alignment; None of any other model."""
        record = self.run.record().get("alignment") if self.run else None
        return record if isinstance(record, dict) else None

    @property
    def no_engine(self) -> str:
        """Why the CPU engine cannot run it, as the end of a sentence; "" if it can."""
        return reason_against(self.quantized)


def open_subject(path: Path, parts: Parts, *, step: int = 0) -> Subject:
    """The model that a path names, float32 and INT8.

    The INT8 of a run is its folder int8 if that is of the same step; else the weights are rounded
    now, each row with a scale of its own. The float32 of a quantized folder is its run's
    checkpoint, where that still stands.

    Args:
        path: a run, a folder that `firsthand quantize` wrote, one in Hugging Face's format, or a
            GGUF file.
        parts: the code of the model.
        step: of the run's checkpoint; 0 is the newest.
    Raises:
        AuditError: there is nothing at the path, or no tokenizer.
        TrainingError, QuantizationError, ExchangeError, TokenizerError: files that cannot be used.
    """
    if not path.exists():
        raise AuditError(f"{path}: there is no such run, folder or file")
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path, parts)
    if is_quantized(path):
        return _of_quantized(path, parts, step)
    trained = load_trained(path, parts, step=step)
    quantized, int8_from, notes = _int8_of(path, trained.model, trained.tokenizer, trained.step)
    return Subject(
        path=path,
        kind=_kind(trained.run),
        config=trained.model.config,
        tokenizer=trained.tokenizer,
        model=trained.model,
        quantized=quantized,
        int8_from=int8_from,
        run=trained.run,
        step=trained.step,
        notes=(*trained.problems, *notes),
    )


def _of_quantized(path: Path, parts: Parts, step: int) -> Subject:
    quantized = load_quantized(path)
    tokenizer = load_tokenizer(path, quantized)
    found = int(quantized.record.get("step") or 0)
    if step not in (0, found):
        raise AuditError(f"{path}: quantized from step {found}, there is no step {step}")
    run = source_run(path, quantized, tokenizer)
    model, notes = None, []
    if run is None:
        notes.append("The run that it was quantized from is gone: nothing in float32 is audited.")
    else:
        try:
            model = load_trained(run.folder, parts, step=found).model
        except TrainingError as error:
            notes.append(f"Nothing in float32 is audited: {error}.")
    return Subject(
        path=path,
        kind="quantized",
        config=quantized.config,
        tokenizer=tokenizer,
        model=model,
        quantized=quantized,
        int8_from="the folder",
        run=run,
        step=found,
        notes=tuple(notes),
    )


def _of_gguf(path: Path, parts: Parts) -> Subject:
    from firsthand.llm.quantization.gguf_import import load_gguf

    found = load_gguf(path, parts)
    if found.tokenizer is None:
        raise AuditError(f"{path}: {found.no_tokenizer}")
    model = found.model.eval()
    return Subject(
        path=path,
        kind="gguf",
        config=model.config,
        tokenizer=found.tokenizer,
        model=model,
        quantized=rounded(model),
        int8_from="rounded for this audit",
    )


def _int8_of(
    path: Path, model: Transformer, tokenizer: Tokenizer, step: int
) -> tuple[QuantizedModel, str, list[str]]:
    """The folder int8 of a run if it is of this step, else the weights rounded now."""
    folder = path / INT8_FOLDER
    notes: list[str] = []
    if is_quantized(folder):
        try:
            quantized = load_quantized(folder)
            load_tokenizer(folder, quantized)
            same = quantized.config == model.config
            if same and int(quantized.record.get("step") or 0) == step:
                return quantized, f"{folder}", notes
            notes.append(f"{folder} is of another step and was left out.")
        except (QuantizationError, TokenizerError) as error:
            notes.append(f"{folder} was left out: {error}.")
    return rounded(model), "rounded for this audit", notes


def _kind(run: Run | None) -> str:
    if run is None:
        return "hugging face"
    return "aligned run" if run.record().get("alignment") else "run"
