"""Which engine a model gets, and what is said of a model that none can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.generation import decoding as in_torch
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference import decoding
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.errors import InferenceError
from firsthand.llm.inference.opening import open_engine, rounded
from firsthand.llm.inference.scheduler import Scheduler
from firsthand.llm.inference.torch_engine import TorchEngine
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import save_quantized
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.transformer import quantized_transformer
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.training.errors import TrainingError


def fast() -> Parts:
    return FAST


def no_torch() -> Parts:
    raise AssertionError("PyTorch is not needed here")


def small(**changes: Any) -> Transformer:
    shape = {"vocab_size": 300, "context": 64, "d_model": 32, "n_layers": 2, "n_heads": 2}
    return Transformer(ModelConfig(**{**shape, "d_ff": 48, **changes}), FAST, seed=5)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Any:
    def made(**changes: Any) -> Path:
        folder = tmp_path / "model-8"
        save_quantized(folder, rounded(small(**changes)), tokenizer)
        return folder

    return made


def test_a_quantized_folder_runs_on_the_cpu_engine(saved: Any, tokenizer: Tokenizer) -> None:
    opened = open_engine(saved(), no_torch, slots=2, capacity=40, threads=1)
    assert isinstance(opened.engine, CPUEngine)
    assert (opened.engine.slots, opened.engine.capacity) == (2, 40)
    assert opened.how == "INT8 on 1 thread of the CPU engine"
    assert opened.tokenizer == tokenizer
    prompts = ["the dog", "a", "und"]
    sampling = Sampling(temperature=0, max_new_tokens=10)
    found = decoding.generate(Scheduler(opened.engine, opened.tokenizer), prompts, sampling)
    model = quantized_transformer(rounded(small()), FAST)
    wanted = in_torch.generate(model, prompts, sampling, tokenizer=tokenizer)
    assert [result.ids for result in found] == [result.ids for result in wanted]
    opened.engine.close()


def test_what_the_cpu_engine_cannot_run_runs_on_pytorch(saved: Any) -> None:
    folder = saved(positions="alibi")
    opened = open_engine(folder, fast)
    assert isinstance(opened.engine, TorchEngine)
    assert opened.how.startswith("on PyTorch: it has positions = 'alibi'")
    with pytest.raises(InferenceError, match="positions = 'alibi'"):
        open_engine(folder, no_torch, "cpu")
    asked_for = open_engine(folder, fast, "torch", slots=3)
    assert (asked_for.how, asked_for.engine.slots) == ("on PyTorch", 3)
    assert asked_for.fingerprint != opened.fingerprint


def test_bad_names(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="one of auto, cpu, torch; not gpu"):
        open_engine(saved(), no_torch, "gpu")
    with pytest.raises(TrainingError, match="no-such"):
        open_engine(tmp_path / "no-such", fast)
    for sizes in ({"slots": 0}, {"capacity": 65}, {"capacity": -1}):
        with pytest.raises(InferenceError):
            open_engine(saved(), fast, "torch", **sizes)
        with pytest.raises(InferenceError):
            open_engine(saved(), no_torch, "cpu", **sizes)


def test_files_that_are_damaged(saved: Any) -> None:
    folder = saved()
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    for wrong in (content[:-100], content[:50], b"", content[:-1] + bytes([content[-1] ^ 1])):
        weights.write_bytes(wrong)
        with pytest.raises(QuantizationError, match=r"weights\.safetensors"):
            open_engine(folder, no_torch)


def test_weights_that_are_not_numbers_are_not_rounded() -> None:
    model = small()
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[2, 3] = float("nan")
    with pytest.raises(QuantizationError, match=r"blocks\.0\.attention\.qkv\.weight"):
        rounded(model)
    model = small()
    with torch.no_grad():
        model.blocks[1].attention_norm.weight[3] = float("inf")
    with pytest.raises(QuantizationError, match=r"blocks\.1\.attention_norm\.weight"):
        rounded(model)


def test_rounding_keeps_what_it_does_not_round() -> None:
    model = small()
    quantized = rounded(model)
    names = {*quantized.matrices, *quantized.vectors}
    assert names == {name for name, _ in model.named_parameters()}
    weight = model.embedding.weight.detach().numpy()
    matrix = quantized.matrices["embedding.weight"]
    assert (np.abs(matrix.dequantized() - weight) <= matrix.scales * 0.5001).all()
    # The model may go, the integers stay.
    with torch.no_grad():
        model.final_norm.weight.zero_()
    assert (quantized.vectors["final_norm.weight"] == 1).all()
