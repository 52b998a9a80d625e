"""How fast a run trained, from its metrics, and what share of the machine's peak that is."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.footprint import row_flops
from firsthand.llm.audit.latency import predicted_step
from firsthand.llm.audit.waterfall import spread
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.report.contents import TOKENS, Contents, Record, finite

# Methods whose time is that of writing answers, of more passes than a plain update, or of logits
# for a part of the tokens alone.
_OTHER_WORK = ("sft", "dpo", "ppo", "grpo", "reward")


@dataclass(frozen=True)
class Throughput:
    """Of a run's updates.

    Attributes:
        updates: whose speed was logged.
        tokens_per_second: the median.
        unit: what an update of this method counts, for its tokens.
        spread: half the distance between the quartiles, as a share of the median.
        step_seconds: of an update, the median.
        flops_per_token: of products, forward and backward, each once; 0 where it is not known.
        precision: of the products.
        device: "cpu" or "cuda", on which the run was trained as far as the run says.
        peak: FLOPs a second of this machine's products in that precision; None if not measured.
        predicted_seconds: of an update on this machine; None without its limits.
        bound: the prediction is a lower bound.
        memory: bytes of the process at its peak, as logged; 0 if they were not.
        why: what there is no share for, in a sentence.
    """

    updates: int
    tokens_per_second: float
    spread: float
    step_seconds: float
    flops_per_token: float
    precision: str
    device: str
    peak: float | None = None
    predicted_seconds: float | None = None
    bound: bool = False
    memory: int = 0
    why: str = ""
    unit: str = TOKENS

    @property
    def flop_rate(self) -> float:
        """FLOPs a second; 0 where the work of a token is not known."""
        return self.flops_per_token * self.tokens_per_second

    @property
    def share(self) -> float | None:
        """Of the peak: the model FLOPs utilization (Chowdhery et al. 2022, section 4.1)."""
        return self.flop_rate / self.peak if self.peak and self.flops_per_token else None

    def to_json(self) -> dict[str, Any]:
        """The fields, the rate and the share."""
        return {**asdict(self), "flop_rate": self.flop_rate, "share": self.share}


def measured_throughput(
    contents: Contents, config: RunConfig, method: str, ceilings: MachineCeilings | None
) -> tuple[Throughput | None, str]:
    """Read a run's speed; None, and why in a sentence, where it logged none.

    Args:
        contents: of the run's folder.
        config: of the run, its model with the vocabulary that it really has.
        method: of an alignment, or "".
        ceilings: of this machine, or None.
    """
    records = contents.of_kind("train")
    speeds = [value for r in records if (value := finite(r.get("tokens_per_second")))]
    if not speeds:
        return None, "The run has no metrics of its training speed: metrics.jsonl logs no update."
    speed = statistics.median(speeds)
    memory = max((finite(r.get("memory_bytes")) or 0.0 for r in records), default=0.0)
    device = _device(contents, config)
    precision = config.training.precision
    other = method in _OTHER_WORK
    peak, why, predicted, bound = None, "", None, False
    if other:
        why = f"No share of the peak: an update of {method} does not do what pretraining does."
    elif ceilings is None:
        why = "No share of the peak: this machine was not measured; firsthand machine does."
    else:
        limits = ceilings.gpu if device == "cuda" else ceilings.cpu
        dtype = "bfloat16" if precision == "float16" else precision
        if limits is None:
            why = "No share of the peak: it may have been trained on a GPU, and here is none."
        elif dtype not in limits.flop_rates:
            why = f"No share of the peak: {limits.name} was not measured in {dtype}."
        else:
            peak = limits.flop_rates[dtype]
            try:
                found = predicted_step(config, limits)
                predicted, bound = found.seconds, found.bound
            except AuditError as error:
                why = f"No prediction: {error}."
    return (
        Throughput(
            updates=len(speeds),
            tokens_per_second=speed,
            spread=spread(speeds),
            step_seconds=_step_seconds(records) or config.tokens_per_step / speed,
            flops_per_token=0.0 if other else row_flops(config) / config.sequence_length,
            precision=precision,
            device=device,
            peak=peak,
            predicted_seconds=predicted,
            bound=bound,
            memory=int(memory),
            why=why,
            unit=contents.unit,
        ),
        "",
    )


def _step_seconds(records: Sequence[Record]) -> float:
    """Of an update: between the lines of the log; 0 where there are not two of them."""
    known = [(finite(record.get("seconds")), finite(record.get("step"))) for record in records]
    times = [(seconds, step) for seconds, step in known if seconds is not None and step is not None]
    each = [
        (seconds - earlier) / (step - before)
        for (earlier, before), (seconds, step) in itertools.pairwise(times)
        if step > before and seconds >= earlier
    ]
    return statistics.median(each) if each else 0.0


def _device(contents: Contents, config: RunConfig) -> str:
    """Where it was trained: as it was told, or as its PyTorch could."""
    told = config.training.device.partition(":")[0]
    if told in ("cpu", "cuda"):
        return told
    versions = contents.about.get("versions")
    torch = str(versions.get("torch", "")) if isinstance(versions, dict) else ""
    if torch.endswith("+cpu"):
        return "cpu"
    from firsthand.llm.training.distributed import pick_device

    return "cuda" if pick_device("auto").type == "cuda" else "cpu"
