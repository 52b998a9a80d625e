"""The model that a run has come to, for everything that only reads it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firsthand.llm.model.config import resized
from firsthand.llm.model.hugging_face import CONFIG_FILE, load_hugging_face
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.hugging_face import read_hugging_face
from firsthand.llm.training.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_latest,
)
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.runs import CONFIG, Run, open_run
from firsthand.llm.training.sharded_checkpoints import is_sharded, read_sharded
from firsthand.llm.training.state import load_state


@dataclass(frozen=True)
class Trained:
    """A model with its tokenizer.

    Attributes:
        run: it comes from, or None for a folder in Hugging Face's format.
        step: of the checkpoint; 0 for such a folder.
        problems: newer checkpoints that are damaged.
    """

    model: Transformer
    tokenizer: Tokenizer
    run: Run | None = None
    step: int = 0
    problems: tuple[str, ...] = ()


def load_trained(
    folder: Path, parts: Parts, *, device: torch.device | str = "cpu", step: int = 0
) -> Trained:
    """The model of a run's checkpoint, or of a folder with config.json and tokenizer.json.

    Where the run averages its weights, the model has the average. Of an alignment run it is the
    language model alone: adapters are merged, a head is left out.

    Args:
        folder: of the run, or in the format of Hugging Face's Llama or GPT-2.
        parts: the code of the model.
        device: where it shall be.
        step: of the checkpoint; 0 is the newest whole one.
    Raises:
        TrainingError: neither, no checkpoint yet, none of this step, or damaged.
        ExchangeError, TokenizerError: a file of the folder cannot be used.
    """
    if not (folder / CONFIG).exists() and (folder / CONFIG_FILE).exists():
        model = load_hugging_face(folder, parts).to(device)
        return Trained(model.eval(), read_hugging_face(folder / "tokenizer.json"))
    run = open_run(folder)
    if step:
        path = checkpoint_path(run.checkpoints, step)
        if not path.is_dir():
            steps = [int(p.name.rpartition("-")[2]) for p in list_checkpoints(run.checkpoints)]
            raise TrainingError(f"{folder}: no checkpoint of step {step}; it has {steps or 'none'}")
        checkpoint = load_checkpoint(path)
        problems: tuple[str, ...] = ()
    else:
        latest = load_latest(run.checkpoints)
        if latest.checkpoint is None:
            raise TrainingError(f"{folder}: the run has no checkpoint yet")
        checkpoint, problems = latest.checkpoint, latest.problems
    tokenizer = Tokenizer.load(run.tokenizer)
    config = resized(run.config.model, tokenizer.vocabulary_size)
    model = Transformer(config, parts, seed=run.config.seed)
    weights = dict(model.state_dict())
    averaged = bool(run.config.training.average) and checkpoint.state["average_updates"] > 0
    group = "average" if averaged else "model"
    if is_sharded(checkpoint.path):
        read_sharded(checkpoint.path, {group: weights})
    else:
        saved: Mapping[str, Tensor] = checkpoint.tensors[group]
        if not saved.keys() <= weights.keys():
            saved = plain_weights(saved, weights, run.record().get("alignment"))
        load_state(weights, saved, f"{checkpoint.path}: its {group} is")
    return Trained(model.to(device).eval(), tokenizer, run, checkpoint.step, problems)


@torch.no_grad()
def plain_weights(
    saved: Mapping[str, Tensor], names: Container[str], alignment: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """The weights of the plain model from those of an alignment run's.

    W + α / rank · B A stands for each matrix with an adapter (Hu et al. 2021, section 4.1).

    Args:
        saved: with adapters or heads beside the model's own tensors.
        names: of the plain model's tensors; others are left out.
        alignment: what run.json says; None for any other run, whose tensors all stay.
    """
    if alignment is None:
        return dict(saved)
    plain = {name: tensor for name, tensor in saved.items() if name in names}
    for name, a in saved.items():
        matrix, _, what = name.rpartition(".")
        if what == "lora_a":
            scale = alignment["settings"]["lora"]["alpha"] / len(a)
            b = saved[f"{matrix}.lora_b"]
            plain[f"{matrix}.weight"] = plain[f"{matrix}.weight"] + scale * (b @ a)
    return plain
