"""Bytes by category, of a training step at its peak and of an engine, from the config alone.

`training_ledger` runs the step over values without numbers (`step_memory`), and its total is the
most that lives at once. No constant is fitted: every byte belongs to an array that the stack makes
and that docs/ledger.md names. What is outside of PyTorch's allocator stands in `outside` and is no
part of the total: on a CPU the batch, which is NumPy's, and tables of addresses.

Measured against PyTorch's record on a CPU, float32 and bfloat16 (`allocations`,
`benchmarks/ledger.py`). On a GPU nothing of this has been measured: there the ledger follows the
code of the Triton rungs, rounds each array up to 512 bytes as PyTorch's allocator does, and leaves
out the remainder of blocks above 1 MB that the allocator does not split, cuBLAS's workspace (which
it does count, 8 MB, 32 MB on Hopper) and what torch.compile saves or adds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.lifetimes import NO_LAYER, Timeline
from firsthand.llm.audit.part_memory import LONG
from firsthand.llm.audit.step_memory import live_bytes
from firsthand.llm.inference.cpu.atomics import APART
from firsthand.llm.inference.cpu.attention import TOGETHER, padded_head
from firsthand.llm.inference.cpu.stages import ROW_PANEL
from firsthand.llm.kernels.int8_matmul.panels import PANEL, padded
from firsthand.llm.kernels.int8_matmul.tiles import SUMS
from firsthand.llm.model.config import ModelConfig, parameter_counts
from firsthand.llm.training.config import Precision, RunConfig

# What AdamW's compiled loop is told of each tensor: four addresses, a length, a number.
_ADDRESSES = 6


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the memory of an update depends on besides the model.

    Attributes:
        micro_batch: rows of one forward pass.
        length: tokens in a row.
        precision: of the products; weights, gradients and optimizer stay float32.
        checkpoint_blocks: blocks are computed again instead of kept.
        optimizer: "adamw" or "muon".
        accumulation: micro-batches of an update.
        compile: by torch.compile; the ledger is then that of the same step without it.
        device: "cpu" or "cuda".
        average: an average of the weights is kept.
        flow: the step records the gradient flow, and holds a copy of the weights for it.
        muon_iterations, muon_block: of Newton and Schulz, as `OptimizerSettings`.
    Raises:
        AuditError: a number below 1, or an unknown name.
    """

    micro_batch: int
    length: int
    precision: Precision = "float32"
    checkpoint_blocks: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    accumulation: int = 1
    compile: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    average: bool = False
    flow: bool = False
    muon_iterations: int = 5
    muon_block: int = 0

    def __post_init__(self) -> None:
        for name in ("micro_batch", "length", "accumulation", "muon_iterations"):
            if getattr(self, name) < 1:
                raise AuditError(f"{name} is at least 1; not {getattr(self, name)}")
        for name, allowed in (
            ("precision", ("float32", "bfloat16", "float16")),
            ("optimizer", ("adamw", "muon")),
            ("device", ("cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                valid = ", ".join(allowed)
                raise AuditError(f"{name} is one of {valid}; not {getattr(self, name)!r}")
        if self.muon_block < 0:
            raise AuditError(f"muon_block is at least 0; not {self.muon_block}")

    @classmethod
    def of(
        cls, config: RunConfig, device: Literal["cpu", "cuda"] = "cpu", *, flow: bool | None = None
    ) -> StepSettings:
        """Of a run on one device.

        Args:
            flow: of a step that records the gradient flow; None is whether the run has such steps.
        """
        training, optimizer = config.training, config.optimizer
        rows = training.micro_batch or training.batch_size
        return cls(
            micro_batch=rows,
            length=config.sequence_length,
            precision=training.precision,
            checkpoint_blocks=training.checkpoint_blocks,
            optimizer=optimizer.kind,
            accumulation=max(1, training.batch_size // rows),
            compile=training.compile,
            device=device,
            average=training.average > 0,
            flow=bool(training.flow_every) if flow is None else flow,
            muon_iterations=optimizer.muon_iterations,
            muon_block=optimizer.muon_block,
        )

    @property
    def autocast(self) -> bool:
        """Whether products run in half precision."""
        return self.precision != "float32"

    @property
    def on_gpu(self) -> bool:
        """Whether the stack's Triton rungs run."""
        return self.device == "cuda"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Bytes at one moment.

    Attributes:
        moment: which, such as "blocks.5, backward".
        weights: of the model; of an engine in its own format.
        gradients: of this update, as far as they are made.
        optimizer: its state.
        average: of the weights.
        activations: of each block.
        other_activations: of what is around the blocks: embeddings, last norm, angles.
        casts: copies of weights in half precision.
        logits: a chunk of them with what the loss makes of it; of an engine those it returns.
        cache: keys and values of an engine.
        workspace: what lives for one operation: gradients of activations, blocks of scores, stacks
            of matrices.
        batch: tokens and targets on the device.
        outside: not in PyTorch's allocator, and not in the total.
    """

    moment: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    activations: tuple[int, ...] = ()
    other_activations: int = 0
    casts: int = 0
    logits: int = 0
    cache: int = 0
    workspace: int = 0
    batch: int = 0
    outside: int = 0

    def categories(self) -> dict[str, int]:
        """Bytes by category, all blocks' activations as one; they add up to the total."""
        named = {
            name: value
            for name, value in asdict(self).items()
            if isinstance(value, int) and name != "outside"
        }
        return {**named, "activations": sum(self.activations)}

    @property
    def total(self) -> int:
        """All that PyTorch's allocator holds; of an engine all of its arrays."""
        return sum(self.categories().values())

    def to_json(self) -> dict[str, Any]:
        """The fields, and the total."""
        return {**asdict(self), "activations": list(self.activations), "total": self.total}


def training_ledger(config: ModelConfig, settings: StepSettings) -> Ledger:
    """What an update holds at its peak.

    One process, one device, rows without `data.documents`. On a CPU the compiled loops run, as
    they do unless PyTorch has many times their threads (`kernels.threads.pays`).

    Raises:
        AuditError: rows longer than the model's context.
    """
    if settings.length > config.context:
        raise AuditError(
            f"{settings.length} tokens in a row are longer than the context of {config.context}"
        )
    line = live_bytes(config, settings)
    found = _by_category(line, config.n_layers)
    tokens = settings.micro_batch * settings.length * settings.accumulation
    outside = 0 if settings.on_gpu else 2 * LONG * tokens + _ADDRESSES * LONG * _tensors(config)
    return Ledger(moment=line.peak_moment, outside=outside, **found)


def _by_category(line: Timeline, layers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"activations": [0] * layers, "other_activations": 0}
    for (category, layer), count in line.at_peak.items():
        if category == "activations" and layer != NO_LAYER:
            found["activations"][layer] += count
        elif category == "activations":
            found["other_activations"] += count
        else:
            found[category] = found.get(category, 0) + count
    return {**found, "activations": tuple(found["activations"])}


def _tensors(config: ModelConfig) -> int:
    """Parameters that AdamW may have to update, counted as tensors."""
    biases = 4 * config.n_layers if config.bias else 0
    norms = 2 * (1 + (config.norm == "layer" and config.bias)) + 2 * config.qk_norm
    return 4 + config.n_layers * (4 + norms) + biases


def inference_ledger(
    config: ModelConfig,
    *,
    slots: int = 1,
    capacity: int = 0,
    max_rows: int = 512,
    threads: int = 1,
    dtype: Literal["int8", "float32", "bfloat16"] = "int8",
) -> Ledger:
    """What an engine holds once it is made: "int8" the CPU engine, else PyTorch's.

    The CPU engine allocates nothing later. PyTorch's makes more for each call, which is not in
    here; its weights and cache are.

    Args:
        slots: texts held at once.
        capacity: tokens of each; 0 is the context.
        max_rows: tokens of one call.
        threads: most of the CPU engine.
        dtype: of the weights.
    Raises:
        AuditError: a size below 1.
    """
    capacity = capacity or config.context
    if min(slots, capacity, max_rows, threads) < 1:
        raise AuditError(
            f"slots, capacity, rows and threads are at least 1: {slots}, {capacity}, {max_rows} "
            f"and {threads}"
        )
    if dtype == "int8":
        return Ledger(
            moment="made",
            weights=_packed_bytes(config, capacity),
            cache=_engine_cache_bytes(config, slots, capacity),
            logits=4 * slots * config.vocab_size,
            workspace=_work_bytes(config, slots, capacity, max_rows, threads),
        )
    if dtype not in ("float32", "bfloat16"):
        raise AuditError(f"dtype is one of int8, float32, bfloat16; not {dtype!r}")
    size = 4 if dtype == "float32" else 2
    window = config.window
    # A model with a window keeps a ring of it and one piece.
    from firsthand.llm.model.cache import PIECE

    ring = window + PIECE - 1 if window and window + PIECE - 1 < capacity else capacity
    return Ledger(
        moment="made",
        weights=size * sum(parameter_counts(config).values()),
        cache=_cache_bytes(config, slots, ring, size),
        workspace=LONG * slots * config.neighbours,
    )


def _cache_bytes(config: ModelConfig, slots: int, capacity: int, size: int) -> int:
    """Keys and values of all layers."""
    shared = config.kv_heads * config.head_width
    return 2 * config.n_layers * slots * capacity * shared * size


def _engine_cache_bytes(config: ModelConfig, slots: int, capacity: int) -> int:
    """Padded int8 keys and values, and a float32 for each."""
    vectors = 2 * config.n_layers * slots * capacity * config.kv_heads
    return vectors * (padded_head(config.head_width) + 4)


def _packed_bytes(config: ModelConfig, capacity: int) -> int:
    """`inference.cpu.weights.Weights`: padded int8 rows, a float32 scale each, norms, angles."""
    d, mixed, hidden = config.d_model, config.qkv_rows[0], config.hidden_width

    def rows(count: int, width: int) -> int:
        return count * (padded(width) + 4)

    layer = rows(sum(config.qkv_rows), d) + rows(d, mixed) + 2 * rows(hidden, d) + rows(d, hidden)
    tables = (1 if config.tied else 2) * rows(config.vocab_size, d)
    norms = 4 * d * (2 * config.n_layers + 1)
    angles = 2 * 4 * capacity * len(range(0, config.head_width, 2))
    return tables + config.n_layers * layer + norms + angles


def _work_bytes(config: ModelConfig, slots: int, capacity: int, rows: int, threads: int) -> int:
    """`inference.cpu.stages.Work` without the logits."""
    d, mixed, hidden = config.d_model, config.qkv_rows[0], config.hidden_width
    numbers = 4 * (3 * rows + slots)
    head = padded_head(config.head_width)
    floats = 4 * rows * (d + config.n_heads * head + mixed + hidden)
    integers = 2 * (rows + threads) * (padded(d) + padded(mixed) + padded(hidden))
    scales = 4 * (rows + threads)
    widest = max(PANEL, ROW_PANEL, config.head_width)
    panels = 2 * 4 * threads * rows * widest
    scratch = 4 * threads * (d + TOGETHER * (capacity + head) + widest * SUMS)
    scratch += LONG * 3 * threads * APART
    return numbers + floats + integers + scales + panels + scratch
