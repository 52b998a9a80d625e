"""How much memory a process took, what one row of a batch costs, and what to do without enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.config import TrainingSettings
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.precision import autocast


def peak_bytes(device: torch.device) -> int:
    """The most so far: of the GPU's memory allocated by tensors, or of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, weights left out.

    Args:
        forward: returns a scalar with a gradient.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python found no memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator has no exception of its own, and words of its own on each system.
    said = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


class OutOfMemoryError(TrainingError):
    """There was not enough memory for a step; says what to change, and by how much."""


@contextmanager
def explained_memory(model: Transformer, settings: TrainingSettings, length: int) -> Iterator[None]:
    """Turn a failed allocation into an error that names the settings which help, with figures.

    Args:
        model: being trained.
        settings: of the run.
        length: tokens in a row.
    """
    failed = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = str(error).splitlines()[0] if str(error) else "no memory"
    # Outside the handler, which keeps the frames of the step and their tensors alive.
    if failed:
        raise OutOfMemoryError(f"{failed} {_advice(model, settings, length)}")


def _advice(model: Transformer, settings: TrainingSettings, length: int) -> str:
    model.zero_grad(set_to_none=True)
    rows = settings.micro_batch or settings.batch_size
    try:
        row = row_bytes(model, settings.precision, length)
        was, model.checkpoint_blocks = model.checkpoint_blocks, True
        lean = row_bytes(model, settings.precision, length)
        model.checkpoint_blocks = was
    except (RuntimeError, MemoryError):
        return "Not even one row fits: choose a smaller model or a shorter sequence_length."
    now = f"{rows} rows of {length} tokens keep {_megabytes(rows * row)} for the backward pass."
    half = max(1, rows // 2)
    ways = []
    if half < rows:
        ways.append(f"training.micro_batch={half} keeps {_megabytes(half * row)}, same result")
    if not settings.checkpoint_blocks:
        ways.append(
            f"training.checkpoint_blocks=true keeps {_megabytes(rows * lean)} and computes each "
            "block twice"
        )
    if settings.precision == "float32":
        ways.append("training.precision=bfloat16 about halves both")
    return f"{now} What helps: {'; '.join(ways) or 'a smaller model'}."


def row_bytes(model: Transformer, precision: Any, length: int) -> int:
    """What one row keeps between its forward and its backward pass; measured on the model."""
    device = model.embedding.weight.device
    tokens = torch.zeros(1, length, dtype=torch.int64, device=device)

    def forward() -> Tensor:
        with autocast(precision, device):
            return model.loss(tokens, tokens).total

    return saved_bytes(forward)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
