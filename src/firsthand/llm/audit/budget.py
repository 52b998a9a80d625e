"""A budget of memory, and settings of a run with what they are predicted to take of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.latency import Prediction, predicted_step
from firsthand.llm.audit.ledger import Ledger, StepSettings, training_ledger
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.audit.work import training_work
from firsthand.llm.training.config import RunConfig

Device = Literal["cpu", "cuda"]

MB, GB = 10**6, 10**9
# What the ledger cannot know: bytes, and what they are for.
RESERVES = {
    "cuda": (1 * GB, "the CUDA context, cuBLAS workspaces, and gaps between allocations"),
    "cpu": (2 * GB, "the system, Python with PyTorch, the text's pages, and gaps in the heap"),
}


class BudgetError(AuditError):
    """Nothing fits.

    Attributes:
        smallest: bytes of the least budget that would do, a whole number of MB.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True)
class Budget:
    """What a training may use.

    Attributes:
        device: "cpu" or "cuda".
        memory: bytes of RAM or VRAM.
        reserve: bytes of these for what the ledger cannot know.
        reserve_reason: what that is.
    """

    device: Device
    memory: int
    reserve: int
    reserve_reason: str

    @property
    def usable(self) -> int:
        """Bytes that the ledger's categories may take."""
        return self.memory - self.reserve


def budget(device: Device, memory: int, reserve: int | None = None) -> Budget:
    """A budget with the device's usual reserve, or another one.

    Raises:
        AuditError: an unknown device, or a size that cannot be.
    """
    if device not in RESERVES:
        raise AuditError(f"the device is cpu or cuda; not {device!r}")
    usual, reason = RESERVES[device]
    reserve = usual if reserve is None else reserve
    if memory < 1 or reserve < 0:
        raise AuditError(f"a budget is above 0 and a reserve at least 0: {memory}, {reserve}")
    return Budget(device, memory, reserve, reason)


@dataclass(frozen=True)
class Candidate:
    """Settings, and what they are predicted to take.

    Attributes:
        config: the run.
        ledger: bytes at the peak.
        prediction: seconds of an update; None where the device was not measured.
        flops, bytes: of an update.
    """

    config: RunConfig
    ledger: Ledger
    prediction: Prediction | None
    flops: float
    bytes: float

    @property
    def cost(self) -> tuple[float, ...]:
        """What is compared first: seconds; without a measurement bytes moved and FLOPs."""
        if self.prediction is not None:
            return (self.prediction.seconds,)
        return (self.flops, self.bytes)


def candidate(config: RunConfig, device: Device, ceilings: DeviceCeilings | None) -> Candidate:
    pieces = training_work(config)
    return Candidate(
        config=config,
        ledger=training_ledger(config.model, StepSettings.of(config, device)),
        prediction=None if ceilings is None else predicted_step(config, ceilings),
        flops=sum(piece.flops for piece in pieces),
        bytes=sum(piece.bytes for piece in pieces),
    )


def parsed_amount(text: str) -> int:
    """Bytes of "16GB", "8 GiB" or "500MB": GB is 10^9 bytes and GiB 2^30.

    Raises:
        AuditError: it is written otherwise, or is not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", text, re.IGNORECASE)
    if found is None:
        raise AuditError(f"memory is written as 16GB, 1.5GiB or 500MB; this is {text!r}")
    power = "kmgt".index(found[2][0].lower()) + 1
    count: int = round(float(found[1]) * (1024 if "i" in found[2].lower() else 1000) ** power)
    if count < 1:
        raise AuditError(f"memory is above 0; this is {text!r}")
    return count


def amount(count: float) -> str:
    """Bytes as text: GB from 1 GB on, else MB."""
    return f"{count / GB:,.2f} GB" if abs(count) >= GB else f"{count / MB:,.1f} MB"
