"""The audit of a model: what it is, holds, costs and says, measured and predicted, in a record."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.energy import Energy, PackageCounters, gpu_energy, processor_energy
from firsthand.llm.audit.engine_waterfalls import int8_waterfall, torch_waterfall
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.footprint import (
    Footprint,
    engine_footprint,
    torch_footprint,
    training_footprint,
)
from firsthand.llm.audit.processor import Processor, read_processor
from firsthand.llm.audit.quality import Quality, measure_quality
from firsthand.llm.audit.subject import Subject
from firsthand.llm.audit.throughput import Throughput, measured_throughput
from firsthand.llm.audit.waterfall import Waterfall
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.problems import DataError
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.engine import Engine
from firsthand.llm.model.config import parameter_counts
from firsthand.llm.model.parts import Parts
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.report.contents import read_contents

FORMAT, VERSION = "firsthand-audit", 1

# What is done, and the share of all, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class About:
    """Which model it was.

    Attributes:
        name: of its folder or file.
        kind: as `Subject.kind`.
        method: of the alignment; "" of any other model.
        step: of the checkpoint; 0 if unknown.
        int8_from: where its integers came from.
        model: the config, as a record.
        identity: of the config, the tokenizer and the integers: equal for the same model.
        tied: the output is the embedding.
        parameters: by component, those with none left out.
    """

    name: str
    kind: str
    method: str
    step: int
    int8_from: str
    model: dict[str, Any]
    identity: str
    tied: bool
    parameters: dict[str, int]

    @property
    def total(self) -> int:
        """Parameters."""
        return sum(self.parameters.values())


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """All figures of an audit.

    Attributes:
        about: the model.
        processor: the machine.
        machine: its measured limits, or None.
        footprints: bytes of a training step and of engines.
        throughput: of the run's training, or None.
        waterfalls: of each engine and type that ran.
        quality: before and after quantization.
        energies: of tokens.
        no_energy: why there are none, or fewer than waterfalls, in a sentence.
        notes: what could not be audited, in sentences.
        created: date and time, ISO 8601, UTC.
        seconds: that it took.
    """

    about: About
    processor: Processor
    machine: MachineCeilings | None
    footprints: tuple[Footprint, ...]
    throughput: Throughput | None
    waterfalls: tuple[Waterfall, ...]
    quality: Quality
    energies: tuple[Energy, ...]
    no_energy: str
    notes: tuple[str, ...]
    created: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` is its inverse."""
        record = {
            **asdict(self),
            "footprints": [each.to_json() for each in self.footprints],
            "throughput": self.throughput and self.throughput.to_json(),
            "waterfalls": [each.to_json() for each in self.waterfalls],
            "quality": self.quality.to_json(),
        }
        return {"format": FORMAT, "version": VERSION, **record}

    @classmethod
    def from_json(cls, record: Any) -> AuditRecord:
        """Read what `to_json` wrote.

        Raises:
            AuditError: it is another thing, of another version, or damaged.
        """
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise AuditError("this is no audit; firsthand audit RUN writes one")
        if record.get("version") != VERSION:
            raise AuditError(
                f"this is an audit of version {record.get('version')}, and this firsthand reads "
                f"version {VERSION}: audit the model again"
            )
        fields = {name: value for name, value in record.items() if name not in _HEAD}
        try:
            return _adapter().validate_python(fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise AuditError(f"the audit is damaged at {place}: {wrong['msg']}") from error

    def save(self, path: Path) -> None:
        """Write one JSON file, whole or not at all.

        Raises:
            AuditError: it cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(path, text.encode("utf-8"))
        except (OSError, DataError) as error:
            raise AuditError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> AuditRecord:
        """Read what `save` wrote.

        Raises:
            AuditError: it cannot be read, or is no audit; names the file.
        """
        try:
            record = json.loads(path.read_bytes())
        except OSError as error:
            raise AuditError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise AuditError(f"{path}: this is no audit but no JSON at all: {error}") from error
        try:
            return cls.from_json(record)
        except AuditError as error:
            raise AuditError(f"{path}: {error}") from error


_HEAD = ("format", "version")


def _adapter() -> TypeAdapter[AuditRecord]:
    return TypeAdapter(AuditRecord)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much an audit measures.

    Attributes:
        seconds: for each waterfall and each measurement of energy, about.
        tokens: of validation text to predict; 0 is the whole split.
        questions: of each split that an aligned run is asked; 0 asks none.
        training: an update is run to measure its memory.
    """

    seconds: float = 2.0
    tokens: int = 32_768
    questions: int = 150
    training: bool = True


def audit(
    subject: Subject,
    parts: Parts,
    *,
    ceilings: MachineCeilings | None = None,
    effort: Effort | None = None,
    progress: Progress = lambda what, share: None,
) -> AuditRecord:
    """Audit a model on this machine.

    Args:
        subject: the model.
        parts: the code of training and of a quantized model on PyTorch.
        ceilings: of this machine, for predictions and shares.
        effort: None is the usual.
        progress: is told what is measured.
    """
    return _Audit(subject, parts, ceilings, effort or Effort(), progress).record()


def about(subject: Subject) -> About:
    """Which model it is."""
    counts = {name: n for name, n in parameter_counts(subject.config).items() if n}
    alignment = subject.alignment
    return About(
        name=subject.path.resolve().name,
        kind=subject.kind,
        method=str(alignment["method"]) if alignment else "",
        step=subject.step,
        int8_from=subject.int8_from,
        model=subject.config.to_record(),
        identity=_identity(subject),
        tied=subject.config.tied,
        parameters=counts,
    )


class _Audit:
    def __init__(
        self,
        subject: Subject,
        parts: Parts,
        ceilings: MachineCeilings | None,
        effort: Effort,
        progress: Progress,
    ) -> None:
        self.subject, self.parts, self.ceilings, self.effort = subject, parts, ceilings, effort
        self.progress = progress
        self.notes = list(subject.notes)
        self.energies: list[Energy] = []
        self.no_energy: list[str] = []
        self.gpu = torch.cuda.is_available()

    def record(self) -> AuditRecord:
        began = time.monotonic()
        if self.ceilings is None:
            self.notes.append(
                "This machine was not measured, so nothing is predicted: firsthand machine."
            )
        self.progress("training", 0.0)
        throughput = self._throughput()
        footprints = self._footprints()
        waterfalls = [*self._int8(), *self._torch()]
        self.progress("quality", 0.6)
        quality = measure_quality(
            self.subject,
            self.parts,
            tokens=self.effort.tokens,
            questions=self.effort.questions,
            report=lambda share: self.progress("quality", 0.6 + 0.4 * share),
        )
        return AuditRecord(
            about=about(self.subject),
            processor=self.ceilings.processor if self.ceilings else read_processor(),
            machine=self.ceilings,
            footprints=tuple(footprints),
            throughput=throughput,
            waterfalls=tuple(waterfalls),
            quality=quality,
            energies=tuple(self.energies),
            no_energy=" ".join(dict.fromkeys(self.no_energy)),
            notes=tuple(
                dict.fromkeys(
                    [*self.notes, *(f.unquiet for f in waterfalls if f.unquiet), *quality.missing]
                )
            ),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - began,
        )

    @property
    def config(self) -> RunConfig | None:
        """Of the run, with the model as it really is."""
        run = self.subject.run
        return replace(run.config, model=self.subject.config) if run else None

    @property
    def method(self) -> str:
        alignment = self.subject.alignment
        return str(alignment["method"]) if alignment else ""

    def _throughput(self) -> Throughput | None:
        run, config = self.subject.run, self.config
        if run is None or config is None:
            self.notes.append("There is no run, so nothing is said about its training.")
            return None
        found, why = measured_throughput(
            read_contents(run.folder), config, self.method, self.ceilings
        )
        self.notes += [why] if why else []
        return found

    def _footprints(self) -> list[Footprint]:
        found = []
        config = self.config
        if config is not None and self.method in ("", "sft"):
            self.progress("memory of a training step", 0.05)
            device = "cuda" if self.gpu and config.training.device != "cpu" else "cpu"
            limits = {} if self.effort.training else {"most_flops": 0.0}
            try:
                step = training_footprint(config, self.parts, device=device, **limits)
                if not self.effort.training:
                    step = replace(step, why="Not measured, as was asked.")
                found.append(step)
            except (RuntimeError, MemoryError, ValueError) as error:
                self.notes.append(f"The memory of a training step was not measured: {error}.")
        elif config is not None:
            self.notes.append(
                f"The ledger is that of next-token training; {self.method} holds other things."
            )
        if not self.subject.no_engine:
            with CPUEngine(self.subject.quantized, threads=1) as engine:
                found.append(engine_footprint(engine))
        if self.subject.model is not None:
            found.append(torch_footprint(self.subject.model))
        return found

    def _int8(self) -> list[Waterfall]:
        if self.subject.no_engine:
            self.notes.append(
                f"INT8 has no waterfall, the CPU engine cannot run it: {self.subject.no_engine}."
            )
            return []
        self.progress("INT8 on the CPU engine", 0.2)
        try:
            found = int8_waterfall(
                self.subject.quantized,
                self.subject.tokenizer,
                self.ceilings.cpu if self.ceilings else None,
                seconds=self.effort.seconds,
            )
        except AuditError as error:
            self.notes.append(f"INT8 has no waterfall: {error}.")
            return []
        with CPUEngine(self.subject.quantized, threads=found.threads) as engine:
            self._energy(found, engine)
        return [found]

    def _torch(self) -> list[Waterfall]:
        model = self.subject.model
        if model is None:
            return []
        found = []
        kinds = [(d, t) for d in ("cpu", "cuda")[: 1 + self.gpu] for t in ("float32", "bfloat16")]
        for number, (device, dtype) in enumerate(kinds):
            self.progress(f"{dtype} on PyTorch, {device}", 0.3 + 0.3 * number / len(kinds))
            limits = None
            if self.ceilings is not None:
                limits = self.ceilings.gpu if device == "cuda" else self.ceilings.cpu
            try:
                measured = torch_waterfall(
                    model,
                    self.subject.tokenizer,
                    limits,
                    dtype=dtype,
                    device=device,
                    seconds=self.effort.seconds,
                )
            except (RuntimeError, TypeError, ValueError) as error:
                said = str(error).splitlines()[0].rstrip(".") if str(error) else "it failed"
                self.notes.append(f"{dtype} on PyTorch has no waterfall on {device}: {said}.")
                continue
            found.append(measured)
            if (device, dtype) in (("cpu", "float32"), ("cuda", "bfloat16")):
                self._torch_energy(measured, device, dtype)
        return found

    def _torch_energy(self, measured: Waterfall, device: str, dtype: str) -> None:
        from copy import deepcopy

        from firsthand.llm.audit.engine_waterfalls import DTYPES
        from firsthand.llm.inference.torch_engine import TorchEngine

        model = self.subject.model
        assert model is not None
        if device != "cpu" or dtype != "float32":
            model = deepcopy(model).to(device=device, dtype=DTYPES[dtype])
        self._energy(measured, TorchEngine(model))

    def _energy(self, measured: Waterfall, engine: Engine) -> None:
        """Of a token at the depth 0; its products are those of any other."""
        nothing = np.zeros(1, np.int32)
        measure = processor_energy if measured.device == "cpu" else gpu_energy
        try:
            if measured.device == "cpu":
                PackageCounters()
            self.energies.append(
                measure(
                    measured.name,
                    lambda: engine.forward(nothing, nothing, nothing, nothing),
                    seconds=self.effort.seconds,
                )
            )
        except AuditError as error:
            said = str(error)
            self.no_energy.append(f"{said[0].upper()}{said[1:]}.")


def _identity(subject: Subject) -> str:
    """A digest of the shape, the tokenizer and the integers."""
    digest = hashlib.sha256()
    head = [subject.config.to_record(), subject.tokenizer.hash]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(subject.quantized.matrices):
        digest.update(np.ascontiguousarray(subject.quantized.matrices[name].values).data)
    return digest.hexdigest()[:16]
