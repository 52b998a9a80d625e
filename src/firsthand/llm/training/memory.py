"""How much memory a process took, what one row of a batch costs, and what to do without enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    fewer = fitting_rows(settings.batch_size, rows, row, free_bytes(model.embedding.weight.device))
    ways = []
    if fewer < rows:
        ways.append(f"training.micro_batch={fewer} keeps {_megabytes(fewer * row)}, same result")
    if not settings.checkpoint_blocks:
        ways.append(
            f"training.checkpoint_blocks=true keeps {_megabytes(rows * lean)} and computes each "
            "block twice"
        )
    if settings.precision == "float32":
        ways.append("training.precision=bfloat16 about halves both")
    return f"{now} What helps: {'; '.join(ways) or 'a smaller model'}."


def fitting_rows(batch_size: int, rows: int, row: int, free: int) -> int:
    """Fewer rows than `rows`, a divisor of the batch, that fit into 3/4 of `free`, or 1.

    Args:
        batch_size: rows of an update.
        rows: of a forward pass that did not fit.
        row: bytes that each keeps.
        free: bytes; 0 when nobody knows, and then half of the rows has to do.
    """
    smaller = [n for n in range(1, rows // 2 + 1) if batch_size % n == 0]
    fitting = [n for n in smaller if not free or n * row <= 0.75 * free]
    return max(fitting, default=1)


def free_bytes(device: torch.device) -> int:
    """Memory that a process could still get, within its limits; 0 where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            free = min(free, limit - used * resource.getpagesize())
    except (OSError, StopIteration, ValueError, ModuleNotFoundError):
        return 0
    return max(0, free)


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
