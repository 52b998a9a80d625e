"""The facts of a run as rows of text: headline, parameters, memory, parts, checkpoints, config."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firsthand.llm.model.config import ModelConfig, parameter_counts
from firsthand.llm.training.report.contents import TOKENS, Contents, Record, finite
from firsthand.llm.training.report.plots import short

Row = tuple[str, ...]
UNKNOWN = "not known"
_FLOAT = 4  # bytes of a master weight, a gradient and a value of the optimizer


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows below a head; columns from `numbers` on are numbers.

    Attributes:
        note: a sentence below it.
    """

    title: str
    head: Row
    rows: Sequence[Row]
    note: str = ""
    numbers: int = 1


def headline(contents: Contents) -> list[tuple[str, str]]:
    """Names and values of the figures at the top of the page; what is not known is said so."""
    train, validation = contents.of_kind("train"), contents.of_kind("validation")
    bits = _last(validation, "bits_per_byte")
    loss = _last(validation, "loss")
    accuracy = _last(validation, "accuracy")
    gzip = finite(contents.about.get("gzip_bits_per_byte"))
    config = contents.model()
    speeds = _values(train, "tokens_per_second")
    done, asked = contents.steps()
    figures = [
        ("validation bits per byte", UNKNOWN if bits is None else f"{bits:.3f}"),
        ("gzip -9 on the same text", UNKNOWN if gzip is None else f"{gzip:.3f}"),
        (
            "validation loss, nats per token" if contents.unit == TOKENS else "validation loss",
            UNKNOWN if loss is None else f"{loss:.4f}",
        ),
        *([] if accuracy is None else [("accuracy on held-out questions", f"{accuracy:.1%}")]),
        ("steps", f"{done:,} of {asked:,}" if asked else f"{done:,}"),
        (contents.unit, _whole(_last(train, "tokens"))),
        (
            f"{contents.unit} per second, median",
            _whole(statistics.median(speeds) if speeds else None),
        ),
        ("parameters", _whole(sum(parameter_counts(config).values()) if config else None)),
        ("peak memory", size(max(_values(train, "memory_bytes"), default=None))),
        ("training time", duration(_last(train, "seconds"))),
    ]
    known = [(name, value) for name, value in figures if value != UNKNOWN]
    return known + [(name, value) for name, value in figures if value == UNKNOWN]


def state(contents: Contents) -> str:
    """Where the run stands, in a sentence."""
    done, asked = contents.steps()
    if not contents.metrics:
        return "No step has been logged yet."
    if asked and done >= asked:
        return f"The run is complete: {done:,} steps."
    if asked:
        return f"The run is at step {done:,} of {asked:,}: still running, or stopped there."
    return f"The last step that was logged is {done:,}."


def parameters(config: ModelConfig) -> Table:
    """Parameters by component, in the order of the forward pass."""
    counts = parameter_counts(config)
    total = sum(counts.values())
    rows = [
        (name.replace("_", " "), f"{count:,}", f"{count / total:.1%}")
        for name, count in counts.items()
        if count
    ]
    tied = "The output is the embedding, so it counts once." if config.tied else ""
    return Table(
        title="Parameters",
        head=("component", "parameters", "share"),
        rows=[*rows, ("all", f"{total:,}", "100.0%")],
        note=tied,
    )


def memory(config: ModelConfig, contents: Contents) -> Table:
    """Bytes of weights, gradients and optimizer, computed; and the peak, measured."""
    counts = parameter_counts(config)
    total = sum(counts.values())
    settings = contents.config.get("optimizer")
    muon = isinstance(settings, Mapping) and settings.get("kind") == "muon"
    matrices = counts["attention"] + counts["feed_forward"] if muon else 0
    rows = [
        ("weights, float32", size(total * _FLOAT)),
        ("gradients, float32", size(total * _FLOAT)),
        ("AdamW's two averages", size((total - matrices) * 2 * _FLOAT)),
    ]
    if muon:
        rows.append(("Muon's momentum", size(matrices * _FLOAT)))
    training = contents.config.get("training")
    averaged = bool(isinstance(training, Mapping) and training.get("average"))
    if averaged:
        rows.append(("average of the weights", size(total * _FLOAT)))
    computed = averaged * total * _FLOAT
    computed += (3 if muon else 4) * matrices * _FLOAT + (total - matrices) * 4 * _FLOAT
    rows.append(("sum of these", size(computed)))
    peak = max(_values(contents.of_kind("train"), "memory_bytes"), default=None)
    rows.append(("peak of the process, measured", size(peak)))
    return Table(
        title="Memory",
        head=("what", "bytes"),
        rows=rows,
        note="The rest of the peak is activations and, on a CPU, the program with its libraries.",
    )


def parts(contents: Contents) -> Table | None:
    """Whose code ran where; None when the run does not say."""
    whose = contents.about.get("whose")
    origins = contents.about.get("parts")
    rows: list[Row] = []
    if isinstance(whose, Mapping):
        found = {name: row for name, row in whose.items() if isinstance(row, Mapping)}
        rows = [
            (str(name), str(row.get("whose", UNKNOWN)), str(row.get("where", UNKNOWN)))
            for name, row in found.items()
        ]
    elif isinstance(origins, Mapping):
        rows = [
            (str(name), "stack" if str(place).startswith("firsthand.") else "yours", str(place))
            for name, place in origins.items()
        ]
    if not rows:
        return None
    own = sum(row[1] == "yours" for row in rows)
    return Table(
        title="Whose code ran",
        head=("part", "whose", "code"),
        rows=sorted(rows, key=lambda row: row[1] != "yours"),
        note=f"{own} of {len(rows)} parts are yours.",
        numbers=3,
    )


def checkpoints(contents: Contents) -> Table | None:
    """The checkpoints on the disk; None without any."""
    if not contents.checkpoints:
        return None
    rows = [(checkpoint.name, size(checkpoint.size)) for checkpoint in contents.checkpoints]
    return Table(title="Checkpoints", head=("folder", "bytes"), rows=list(rows))


def validations(contents: Contents) -> Table | None:
    """Each validation in figures; None without any."""
    records = contents.of_kind("validation")
    names = [n for n in ("loss", "bits_per_byte", "perplexity") if _values(records, n)]
    others = {n for r in records for n in r if finite(r[n]) is not None}
    names += sorted(others - {*names, "step", "seconds", "bytes", "tokens"})
    if not records or not names:
        return None
    rows: list[Row] = [
        (f"{int(finite(record.get('step')) or 0):,}", *(_cell(record.get(n)) for n in names))
        for record in records
    ]
    head = ("step", *(name.replace("_", " ") for name in names))
    return Table(title="Validation", head=head, rows=rows, numbers=0)


def flow(contents: Contents) -> Table | None:
    """The last record of the gradient flow, layer by layer; None without any."""
    records = [r for r in contents.of_kind("flow") if isinstance(r.get("layers"), dict)]
    if not records:
        return None
    layers: Record = {n: f for n, f in records[-1]["layers"].items() if isinstance(f, dict)}
    names = list(dict.fromkeys(name for figures in layers.values() for name in figures))
    rows: list[Row] = [
        (layer, *(_cell(figures.get(name)) for name in names)) for layer, figures in layers.items()
    ]
    head = ("layer", *(name.replace("_", " ").replace("rms", "RMS") for name in names))
    step = int(finite(records[-1].get("step")) or 0)
    return Table(title=f"At step {step:,}", head=head, rows=rows)


def flow_cost(contents: Contents) -> str:
    """What recording took, as a share of the training, in a sentence; "" when it is not known."""
    spent = sum(_values(contents.of_kind("flow"), "seconds"))
    trained = _last(contents.of_kind("train"), "seconds")
    if not spent or not trained:
        return ""
    return f"Recording took {spent:.2f} s, {spent / trained:.2%} of the training time."


def settings(contents: Contents) -> Table | None:
    """config.toml by dotted names; None without it."""
    rows = _flat(contents.config)
    if not rows:
        return None
    return Table(title="Config", head=("setting", "value"), rows=rows, numbers=2)


def origin(contents: Contents) -> list[tuple[str, str]]:
    """The preset, the date, the machine and the versions, as far as they are known."""
    found = [("preset", str(contents.config["name"]))] if contents.config.get("name") else []
    for name in ("created", "machine", "versions"):
        value = contents.about.get(name)
        if isinstance(value, Mapping):
            found += [(str(key), str(item)) for key, item in value.items()]
        elif value:
            found.append((name, str(value)))
    return found


def size(count: float | None) -> str:
    """Bytes for a reader."""
    if count is None:
        return UNKNOWN
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:,.2f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds for a reader."""
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _flat(table: Mapping[str, Any], path: str = "") -> list[Row]:
    rows: list[Row] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{path}{name}.")
        else:
            shown = ", ".join(map(repr, value)) if isinstance(value, list) else str(value)
            rows.append((path + name, shown))
    return rows


def _values(records: list[Record], name: str) -> list[float]:
    return [value for record in records if (value := finite(record.get(name))) is not None]


def _last(records: list[Record], name: str) -> float | None:
    values = _values(records, name)
    return values[-1] if values else None


def _cell(value: Any) -> str:
    found = finite(value)
    return "" if value is None else str(value) if found is None else short(found)


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"
