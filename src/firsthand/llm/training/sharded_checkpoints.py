"""The tensors of a model that is spread over ranks, by PyTorch's distributed checkpoints.

Each rank writes the pieces that it holds; any number of ranks, one included, reads what it needs
of them. The files are safetensors, as PyTorch's Hugging Face storage writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, distributed
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from firsthand.llm.training.checkpoints import CheckpointError

FOLDER = "sharded"

Groups = Mapping[str, Mapping[str, Tensor]]


def write_sharded(partial: Path, tensors: Groups) -> None:
    """Write the pieces of this rank; every rank calls it.

    Args:
        partial: the folder of a checkpoint that is not finished, seen by all ranks.
        tensors: plain or shared-out tensors by group and name.
    """
    writer = HuggingFaceStorageWriter(str(partial / FOLDER), save_distributed=True)
    save(_flat(tensors), storage_writer=writer)


def read_sharded(path: Path, tensors: Groups) -> None:
    """Copy what a checkpoint holds into the tensors, in place; every rank calls it.

    Raises:
        CheckpointError: it lacks a tensor, or holds one of another shape.
    """
    reader = HuggingFaceStorageReader(str(path / FOLDER))
    try:
        # One process reads what several wrote, without a process group.
        alone = not distributed.is_initialized()
        load(_flat(tensors), storage_reader=reader, no_dist=alone)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this model: {error}") from error


def is_sharded(path: Path) -> bool:
    """Whether the checkpoint at `path` is one of these."""
    return (path / FOLDER).is_dir()


def _flat(tensors: Groups) -> dict[str, Tensor]:
    return {f"{group}/{name}": t for group, named in tensors.items() for name, t in named.items()}
