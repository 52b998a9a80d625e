"""A model on disk to an engine: which engine, and how the weights get there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from firsthand.llm.inference.cpu.weights import reason_against
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.engine import Engine
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.quantization.artefact import (
    QuantizedModel,
    is_quantized,
    load_quantized,
    load_tokenizer,
)
from firsthand.llm.quantization.schemes import quantize_matrix, require_finite
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes
from firsthand.llm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from firsthand.llm.model.parts import Parts
    from firsthand.llm.model.transformer import Transformer

# PyTorch is imported where it is used: a quantized folder does without it.
EngineKind = Literal["auto", "cpu", "torch"]


@dataclass(frozen=True)
class Opened:
    """A model that is ready to write.

    Attributes:
        engine: that runs it.
        tokenizer: of the model.
        how: on which engine and why, for people.
    """

    engine: Engine
    tokenizer: Tokenizer
    how: str

    @property
    def fingerprint(self) -> str:
        """Tells answers of different models and engines apart, as far as their shapes do."""
        record = [self.engine.config.to_record(), self.tokenizer.hash, self.how]
        return "fp_" + hashlib.sha256(json.dumps(record).encode()).hexdigest()[:10]


def open_engine(
    path: Path,
    parts: Callable[[], Parts],
    kind: str = "auto",
    *,
    slots: int = 1,
    capacity: int = 0,
    threads: int = 0,
    step: int = 0,
) -> Opened:
    """A model with its tokenizer on an engine.

    Weights that are not quantized become integers on the way, each row with a scale of its own
    and nothing else done about their errors; what the CPU engine cannot run stays as it is and
    runs on PyTorch.

    Args:
        path: a folder that `firsthand quantize` wrote, a run, a folder in Hugging Face's format or
            a GGUF file.
        parts: gives the code of a model on PyTorch; called where one is needed.
        kind: "cpu", "torch", or "auto" for the CPU engine wherever it can run the model.
        slots: texts held at once.
        capacity: tokens of each; 0 is the model's context.
        threads: of the CPU engine; 0 finds the best number.
        step: of a run's checkpoint; 0 is the newest.
    Raises:
        InferenceError: an unknown kind, or "cpu" for a model that the CPU engine cannot run.
        QuantizationError, TrainingError, TokenizerError, ExchangeError: files that cannot be used.
    """
    if kind not in get_args(EngineKind):
        raise InferenceError(f"the engine is one of {', '.join(get_args(EngineKind))}; not {kind}")
    if is_quantized(path) and kind != "torch":
        quantized = load_quantized(path)
        reason = reason_against(quantized)
        if not reason or kind == "cpu":
            tokenizer = load_tokenizer(path, quantized)
            engine = _cpu_engine(quantized, slots, capacity, threads)
            return Opened(engine, tokenizer, f"INT8 on {_threads(engine)}")
        return _on_torch(path, parts, slots, capacity, step, reason)
    if kind == "torch":
        return _on_torch(path, parts, slots, capacity, step, "")
    model, tokenizer = _loaded(path, parts, step)
    quantized = rounded(model)
    reason = reason_against(quantized)
    if not reason or kind == "cpu":
        engine = _cpu_engine(quantized, slots, capacity, threads)
        how = f"rounded to INT8 just now, on {_threads(engine)}"
        return Opened(engine, tokenizer, how)
    return Opened(_torch_engine(model, slots, capacity), tokenizer, _why(reason))


def rounded(model: Transformer) -> QuantizedModel:
    """The model in 8 bits by the default settings, without calibration.

    Raises:
        QuantizationError: weights that are not finite; names the tensor.
    """
    import torch

    with torch.no_grad():  # copies, for the arrays outlive the model
        state = {
            name: parameter.float().cpu().numpy().copy()
            for name, parameter in model.named_parameters()
        }
    for name, values in state.items():
        require_finite(values, name)
    settings = QuantizationSettings()
    return QuantizedModel(
        config=model.config,
        settings=settings,
        matrices={
            name: quantize_matrix(state[name], settings.scheme, name)
            for name in matrix_shapes(model.config)
        },
        vectors={name: state[name] for name in vector_shapes(model.config)},
    )


def _loaded(path: Path, parts: Callable[[], Parts], step: int) -> tuple[Transformer, Tokenizer]:
    if path.suffix == ".gguf" and not path.is_dir():
        from firsthand.llm.quantization.gguf_import import load_gguf

        found = load_gguf(path, parts())
        if found.tokenizer is None:
            raise InferenceError(found.no_tokenizer)
        return found.model, found.tokenizer
    from firsthand.llm.quantization.loading import load_any

    trained = load_any(path, parts(), step=step)
    return trained.model, trained.tokenizer


def _on_torch(
    path: Path, parts: Callable[[], Parts], slots: int, capacity: int, step: int, reason: str
) -> Opened:
    model, tokenizer = _loaded(path, parts, step)
    return Opened(_torch_engine(model, slots, capacity), tokenizer, _why(reason))


def _cpu_engine(quantized: QuantizedModel, slots: int, capacity: int, threads: int) -> CPUEngine:
    context = quantized.config.context
    if capacity > context:
        raise InferenceError(
            f"a slot holds at most the model's context of {context} tokens; not {capacity}"
        )
    return CPUEngine(quantized, slots=slots, capacity=capacity, threads=threads)


def _torch_engine(model: Transformer, slots: int, capacity: int) -> Engine:
    from firsthand.llm.inference.torch_engine import TorchEngine

    return TorchEngine(model, slots=slots, capacity=capacity)


def _threads(engine: CPUEngine) -> str:
    return f"{engine.threads} thread{'s' if engine.threads > 1 else ''} of the CPU engine"


def _why(reason: str) -> str:
    return f"on PyTorch: {reason}" if reason else "on PyTorch"
