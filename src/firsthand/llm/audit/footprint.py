"""Bytes of a training step and of engines: what the ledger predicts, and what is there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from firsthand.llm.audit.allocations import STEPS, measured_peak
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.ledger import Ledger, StepSettings, inference_ledger, training_ledger
from firsthand.llm.audit.operations import backward_operations, forward_operations, totals
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.torch_engine import TorchEngine
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.config import RunConfig
from firsthand.resources import usable_memory

# Work of the measured updates beyond which they are left out: a minute at 50 GFLOP/s.
MOST_FLOPS = 3e12
# Of the memory that may be used, what a measured update may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Footprint:
    """Bytes at one moment.

    Attributes:
        name: what holds them.
        moment: which, such as "blocks.5, backward".
        predicted: by category; those of 0 bytes are left out.
        measured: by category, of the arrays themselves; empty where only the total is known.
        total: measured; None if it was not.
        why: why it was not, in a sentence.
    """

    name: str
    moment: str
    predicted: dict[str, int]
    measured: dict[str, int] = field(default_factory=dict)
    total: int | None = None
    why: str = ""

    @property
    def predicted_total(self) -> int:
        """Bytes of all categories."""
        return sum(self.predicted.values())

    @property
    def error(self) -> float | None:
        """How much more is predicted than was measured, as a share of the latter."""
        return self.predicted_total / self.total - 1 if self.total else None

    def to_json(self) -> dict[str, Any]:
        """The fields, and the predicted total."""
        return {**asdict(self), "predicted_total": self.predicted_total}


def training_footprint(
    config: RunConfig, parts: Parts, *, device: str = "cpu", most_flops: float = MOST_FLOPS
) -> Footprint:
    """An update at its peak; measured unless that would take too long or too much.

    Args:
        config: of the run, its model with the vocabulary that it really has.
        parts: the code of the training.
        device: "cpu" or "cuda".
        most_flops: of two updates that are run to measure.
    Raises:
        AuditError: rows longer than the context.
    """
    ledger = training_ledger(
        config.model, StepSettings.of(config, "cuda" if device == "cuda" else "cpu")
    )
    found = Footprint("a training step", ledger.moment, _categories(ledger))
    memory = usable_memory() if device == "cpu" else 0
    if STEPS * update_flops(config) > most_flops:
        return replace(found, why="Not measured: two updates would take minutes here.")
    if memory and found.predicted_total > _SHARE * memory:
        return replace(found, why="Not measured: an update takes over half of the memory here.")
    return replace(found, total=measured_peak(config, parts, device=device))


def engine_footprint(engine: CPUEngine) -> Footprint:
    """The CPU engine's arrays."""
    logits = engine._work.logits.nbytes
    ledger = inference_ledger(
        engine.config,
        slots=engine.slots,
        capacity=engine.capacity,
        max_rows=engine.max_rows,
        threads=engine._crew.threads,
    )
    measured = {
        "weights": _once(engine._weights),
        "cache": engine.cache_bytes,
        "logits": logits,
        "workspace": engine.work_bytes - logits,
    }
    return Footprint(
        "INT8 on the CPU engine", "made", _categories(ledger), measured, sum(measured.values())
    )


def torch_footprint(model: Transformer) -> Footprint:
    """A model and its cache on PyTorch; what a call needs besides is not in it."""
    weight = model.embedding.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16"):
        raise AuditError(f"a model on PyTorch is in float32 or bfloat16; not in {dtype}")
    ledger = inference_ledger(model.config, dtype="bfloat16" if dtype == "bfloat16" else "float32")
    engine = TorchEngine(model)
    measured = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "cache": sum(cache.nbytes for cache in engine._caches),
    }
    engine.close()
    return Footprint(
        f"{dtype} on PyTorch", "made", _categories(ledger), measured, sum(measured.values())
    )


def update_flops(config: RunConfig) -> float:
    """FLOPs of all products of an update, each once: what the model needs, however it is run."""
    training = config.training
    return training.batch_size * row_flops(config)


def row_flops(config: RunConfig) -> float:
    """The same of one row of a batch."""
    length = config.sequence_length
    operations = [
        *forward_operations(config.model, rows=1, length=length, logits=length),
        *backward_operations(config.model, rows=1, length=length, attention_block=1),
    ]
    return totals(operation for operation in operations if operation.is_product)[0]


def _categories(ledger: Ledger) -> dict[str, int]:
    return {name: count for name, count in ledger.categories().items() if count}


def _once(arrays: Any) -> int:
    """Bytes of arrays of which some may be the same."""
    return sum({array.ctypes.data: array.nbytes for array in arrays}.values())
