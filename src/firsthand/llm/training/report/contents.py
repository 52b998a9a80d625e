"""What the folder of a run holds, read so that a piece that is missing or damaged costs itself."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firsthand.llm.model.config import ModelConfig, model_config, resized
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.tokenizer import Tokenizer, TokenizerError
from firsthand.llm.training.errors import TrainingError

Record = dict[str, Any]

# NaN and infinities as the metrics spell them, since JSON has no such numbers.
_SPELLED = ("NaN", "Infinity", "-Infinity")
_LISTED = 3
# What updates count, unless they say another thing.
TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on the disk: its name and the bytes of its files."""

    name: str
    size: int


@dataclass(kw_only=True)
class Contents:
    """All that a report is made of.

    Attributes:
        folder: of the run.
        config: config.toml as plain tables, of any stage.
        about: run.json.
        metrics, samples: the records of the two files, in order.
        checkpoints: the oldest first.
        vocabulary: of the run's tokenizer; 0 when it cannot be read.
        problems: what is missing or damaged, in sentences.
    """

    folder: Path
    config: Record = field(default_factory=dict)
    about: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    vocabulary: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What the counts and the speed of the updates count."""
        for record in reversed(self.metrics):
            unit = record.get("unit")
            if record.get("kind") == "train" and isinstance(unit, str):
                return unit
        return TOKENS

    def of_kind(self, kind: str) -> list[Record]:
        """The records of the metrics of one kind, by step; of equal steps the last one."""
        found = [record for record in self.metrics if record.get("kind") == kind]
        if kind == "event":
            return found
        steps = {int(number(record.get("step")) or 0): record for record in found}
        return [steps[step] for step in sorted(steps)]

    def steps(self) -> tuple[int, int]:
        """The last step that was logged and the steps that were asked for; 0 for unknown."""
        logged = [int(number(record.get("step")) or 0) for record in self.metrics]
        asked = _table(self.config, "training").get("steps", 0)
        return max(logged, default=0), asked if isinstance(asked, int) else 0

    def model(self) -> ModelConfig | None:
        """The shape of the model, with the vocabulary it really has; None if it cannot be told."""
        table = _table(self.config, "model")
        try:
            config = model_config(table)
        except SettingsError:
            return None
        return resized(config, self.vocabulary) if self.vocabulary else config


def read_contents(folder: Path) -> Contents:
    """Read a run at any time: before its first step, while it trains, or after a crash.

    Raises:
        TrainingError: there is no such folder, or it has neither config.toml nor metrics.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: there is no such run")
    if not (folder / "config.toml").exists() and not (folder / "metrics.jsonl").exists():
        raise TrainingError(f"{folder}: not a run, it has neither config.toml nor metrics.jsonl")
    contents = Contents(folder=folder)
    problems = contents.problems
    contents.config = _toml(folder / "config.toml", problems)
    contents.about = _json(folder / "run.json", problems)
    contents.metrics = _lines(folder / "metrics.jsonl", "nothing has been logged yet", problems)
    contents.samples = _lines(folder / "samples.jsonl", "no sample has been written", problems)
    contents.checkpoints = _checkpoints(folder / "checkpoints")
    if not contents.checkpoints:
        problems.append("There is no checkpoint.")
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        try:
            contents.vocabulary = Tokenizer.load(tokenizer).vocabulary_size
        except (TokenizerError, OSError, ValueError) as error:
            problems.append(f"tokenizer.json cannot be read: {error}.")
    if not contents.of_kind("validation"):
        problems.append("There is no validation yet.")
    return contents


def number(value: Any) -> float | None:
    """A number of the metrics, NaN and infinities too; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if value in _SPELLED else None


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _table(config: Mapping[str, Any], name: str) -> Record:
    table = config.get(name)
    return dict(table) if isinstance(table, Mapping) else {}


def _toml(path: Path, problems: list[str]) -> Record:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
    return {}


def _json(path: Path, problems: list[str]) -> Record:
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record, dict):
            return record
        problems.append(f"{path.name} holds no object.")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
    return {}


def _lines(path: Path, absent: str, problems: list[str]) -> list[Record]:
    """The records of a file; damaged lines are left out and said."""
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problems.append(f"{path.name}: {absent if missing else error.strerror}.")
        return []
    records, damaged = [], []
    for place, line in enumerate(raw[:-1], start=1):  # a last line without its end is half written
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged.append(place)
    if damaged:
        places = ", ".join(map(str, damaged[:_LISTED])) + (", ..." if damaged[_LISTED:] else "")
        problems.append(f"{path.name}: {len(damaged)} damaged lines left out: {places}.")
    if not records and not damaged:
        problems.append(f"{path.name}: {absent}.")
    return records


def _checkpoints(folder: Path) -> list[Checkpoint]:
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.glob("step-*")):
        try:  # training may remove an old one meanwhile
            sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        except OSError:
            continue
        found.append(Checkpoint(name=path.name, size=sum(sizes)))
    return found
