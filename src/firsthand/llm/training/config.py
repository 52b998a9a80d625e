"""One config is a whole run: the tables of its TOML file as frozen records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.settings import SettingsError, require_at_least, require_choices

Precision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the text comes from.

    Attributes:
        source: files, folders, "hf:NAME" or "embedded", the running Python's own library.
        size: at most so many bytes of the embedded corpus; 0 is all of it.
        field: of a JSONL or Parquet record.
        unit: what a document is in a text file: "file", "section" or "line".
        validation_share: of the documents that training never sees.
        folder: a prepared folder; "" prepares the source inside the run.
        tokenizer: a tokenizer file; "" trains one with `model.vocab_size` tokens on the source.
        documents: attention stays within a document.
    """

    source: tuple[str, ...] = ("embedded",)
    size: int = 0
    field: str = "text"
    unit: Literal["file", "section", "line"] = "file"
    validation_share: float = 0.02
    folder: str = ""
    tokenizer: str = ""
    documents: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 0, "size")
        if not self.source:
            raise SettingsError('source names at least one file, or "embedded"')
        if not 0.0 < self.validation_share < 1.0:
            raise SettingsError(f"validation_share is between 0 and 1; not {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW for all parameters, or Muon for the matrices and AdamW for the rest.

    Attributes:
        kind: "adamw" or "muon".
        learning_rate: of AdamW, at the height of the schedule.
        beta1, beta2, eps: of AdamW.
        weight_decay: decoupled, of matrices; norms and biases never decay.
        decay_embeddings: embeddings and the output decay too.
        embedding_rate: a factor on the learning rate of embeddings and output.
        muon_learning_rate: of the matrices, at the height of the schedule.
        muon_momentum: of the matrices' gradients.
        muon_iterations: of Newton and Schulz.
        muon_floor: the smallest singular value, of a matrix of Frobenius norm 1, that they bring
            near 1 with the best coefficients for it (Amsel et al. 2025); 0 takes Jordan's.
        muon_block: a matrix is cut along its short side into blocks of so many rows (or columns),
            or the nearest divisor below, each made orthogonal by itself, for less work; 0 is off.
        muon_scale: "shape" scales an update by √max(1, rows / columns) (Jordan 2024), "adamw" by
            0.2 √max(rows, columns), which lets AdamW's rates be kept (Liu et al. 2025).
        clip: largest global norm of the gradient; 0 is off.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    embedding_rate: float = 1.0
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_iterations: int = 5
    muon_floor: float = 0.0
    muon_block: int = 0
    muon_scale: Literal["shape", "adamw"] = "shape"
    clip: float = 1.0

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 0, "weight_decay", "clip", "embedding_rate", "muon_block")
        require_at_least(self, 1, "muon_iterations")
        for name in ("learning_rate", "eps", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is above 0; not {getattr(self, name)}")
        for name in ("beta1", "beta2", "muon_momentum", "muon_floor"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} is at least 0 and below 1; not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the steps, as a factor.

    Attributes:
        kind: "cosine", "wsd" (warmup, stable, decay) or "constant" (after the warmup).
        warmup: steps from near 0 to 1.
        final: the factor at the last step.
        decay_share: of all steps, the last ones, in which "wsd" decays.
        decay_shape: of "wsd": "linear", or "sqrt", which falls by 1 - √ of the way.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = 20
    final: float = 0.1
    decay_share: float = 0.2
    decay_shape: Literal["linear", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 0, "warmup")
        for name in ("final", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is between 0 and 1; not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long, how much at once, in which precision, and what is recorded on the way.

    Attributes:
        steps: updates of the weights.
        sequence_length: tokens in a row; 0 is the model's context.
        batch_size: rows of one update, over all ranks.
        micro_batch: rows of one forward pass on one rank; 0 is all of its share at once.
        precision: of the forward pass; weights and optimizer stay float32.
        checkpoint_blocks: compute each block again in the backward pass instead of keeping it.
        compile: run the model through torch.compile.
        average: decay of an average of the weights, evaluated in their place; 0 is off.
        log_every, evaluate_every, sample_every, save_every, flow_every: in steps; 0 is never
            (the last step is logged, evaluated and saved all the same).
        evaluate_batches: of the validation split on the way; 0 is the whole split, as at the end.
        keep: how many checkpoints stay.
        parallel: with several ranks, "ddp" copies the model to each, "fsdp" shares it out.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: of PyTorch on the CPU; 0 leaves its own choice.
        tensorboard: also write TensorBoard's files.
        prompts: of the samples; "" begins a document.
        sample_tokens: length of a sample.
    """

    steps: int = 1000
    sequence_length: int = 0
    batch_size: int = 32
    micro_batch: int = 0
    precision: Precision = "float32"
    checkpoint_blocks: bool = False
    compile: bool = False
    average: float = 0.0
    log_every: int = 1
    evaluate_every: int = 100
    sample_every: int = 0
    save_every: int = 100
    flow_every: int = 50
    evaluate_batches: int = 16
    keep: int = 2
    parallel: Parallel = "ddp"
    device: str = "auto"
    threads: int = 0
    tensorboard: bool = False
    prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 100

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, "steps", "batch_size", "keep", "sample_tokens", "log_every")
        names = ("sequence_length", "micro_batch", "evaluate_every", "sample_every", "save_every")
        require_at_least(self, 0, *names, "flow_every", "evaluate_batches", "threads")
        if not 0 <= self.average < 1:
            raise SettingsError(f"average is at least 0 and below 1; not {self.average}")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise SettingsError(
                f"batch_size {self.batch_size} does not divide by micro_batch {self.micro_batch}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    Attributes:
        name: of the preset it began with.
        seed: of the first weights, the order of the data and the samples.
    """

    model: ModelConfig
    name: str = ""
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if self.sequence_length > self.model.context:
            raise SettingsError(
                f"training.sequence_length {self.sequence_length} is longer than "
                f"model.context {self.model.context}"
            )

    @property
    def sequence_length(self) -> int:
        """Tokens in a row, with the automatic value filled in."""
        return self.training.sequence_length or self.model.context

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update, over all ranks."""
        return self.training.batch_size * self.sequence_length
