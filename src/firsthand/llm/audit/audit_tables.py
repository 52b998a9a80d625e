"""The figures of an audit as rows of text, for the terminal and the page."""

from __future__ import annotations

from firsthand.llm.audit.footprint import Footprint
from firsthand.llm.audit.full import AuditRecord
from firsthand.llm.audit.machine_tables import seconds_text
from firsthand.llm.audit.roofline import giga_text
from firsthand.llm.audit.throughput import Throughput
from firsthand.llm.audit.waterfall import REST, Waterfall
from firsthand.llm.training.report.tables import Row, Table, size

NONE = "-"


def headline(audit: AuditRecord) -> list[tuple[str, str]]:
    """Names and values of what matters most; what is not known is left out."""
    found = [("parameters", f"{audit.about.total:,}")]
    quality = audit.quality
    if quality.bits_before is not None:
        found.append(("bits per byte, float32", f"{quality.bits_before:.4f}"))
    if quality.bits_after is not None:
        found.append(("bits per byte, INT8", f"{quality.bits_after:.4f}"))
    if quality.accuracy_before is not None:
        found.append(("accuracy, float32", f"{quality.accuracy_before:.1%}"))
    if quality.accuracy_after is not None:
        found.append(("accuracy, INT8", f"{quality.accuracy_after:.1%}"))
    for fall in audit.waterfalls:
        found.append((f"tokens/s, {fall.name}", _rate(fall.tokens_per_second)))
    speed = audit.throughput
    if speed is not None:
        found.append((f"training, {speed.unit}/s", _rate(speed.tokens_per_second)))
        if speed.share is not None:
            found.append(("training, share of peak", f"{speed.share:.1%}"))
    for footprint in audit.footprints[:1]:
        if footprint.total is not None:
            found.append((f"memory of {footprint.name}", size(footprint.total)))
    return found


def parameters_table(audit: AuditRecord) -> Table:
    """Parameters by component, and whether the output is the embedding."""
    total = audit.about.total
    rows = [
        (name.replace("_", " "), f"{count:,}", f"{count / total:.1%}")
        for name, count in audit.about.parameters.items()
    ]
    return Table(
        title="Parameters",
        head=("component", "parameters", "share"),
        rows=[*rows, ("all", f"{total:,}", "100.0%")],
        note=(
            "Tied: the output is the embedding, so it counts once."
            if audit.about.tied
            else "Not tied: embedding and output are two matrices."
        ),
    )


def footprint_table(found: Footprint) -> Table:
    """Predicted and measured bytes by category."""
    names = list(dict.fromkeys([*found.predicted, *found.measured]))
    rows: list[Row] = []
    for name in names:
        measured = found.measured.get(name)
        rows.append(
            (
                name.replace("_", " "),
                size(found.predicted.get(name, 0)),
                NONE if measured is None else size(measured),
                NONE,
            )
        )
    error = found.error
    rows.append(
        (
            "all",
            size(found.predicted_total),
            NONE if found.total is None else size(found.total),
            NONE if error is None else f"{error:+.2%}",
        )
    )
    note = found.why or f"At the moment: {found.moment}."
    return Table(
        title=f"{found.name[0].upper()}{found.name[1:]}",
        head=("category", "predicted", "measured", "error"),
        rows=rows,
        note=note,
    )


def memory_table(audit: AuditRecord) -> Table:
    """A row for each footprint."""
    rows: list[Row] = [
        (
            found.name,
            size(found.predicted_total),
            NONE if found.total is None else size(found.total),
            NONE if found.error is None else f"{found.error:+.2%}",
        )
        for found in audit.footprints
    ]
    return Table(title="Memory", head=("memory", "predicted", "measured", "error"), rows=rows)


def throughput_table(found: Throughput) -> Table:
    """How fast the run trained."""
    rows: list[Row] = [
        (f"{found.unit} a second, median", _rate(found.tokens_per_second)),
        ("its spread", f"{found.spread:.0%}"),
        ("an update", seconds_text(found.step_seconds)),
    ]
    if found.predicted_seconds is not None:
        least = "at least " if found.bound else ""
        rows.append(("an update, predicted here", least + seconds_text(found.predicted_seconds)))
    if found.flops_per_token:
        rows += [
            ("FLOPs a token", f"{found.flops_per_token / 1e6:,.2f} M"),
            ("GFLOP/s", giga_text(found.flop_rate)),
        ]
    if found.peak is not None:
        rows.append((f"peak, {found.precision}, GFLOP/s", giga_text(found.peak)))
    if found.share is not None:
        rows.append(("share of the peak", f"{found.share:.1%}"))
    if found.memory:
        rows.append(("the process at its peak", size(found.memory)))
    where = "GPU" if found.device == "cuda" else "CPU"
    note = found.why or (
        "FLOPs of products forward and backward, each once. The peak is this machine's; the run "
        f"does not say on which machine it was trained, only that it was a {where}."
    )
    return Table(title="Training", head=("figure", "value"), rows=rows, note=note)


def token_table(fall: Waterfall) -> Table:
    """The stages of a token, what was predicted, and the rest."""
    rows: list[Row] = [
        (
            stage.name,
            seconds_text(stage.seconds),
            f"{stage.seconds / fall.token_whole:.1%}",
            NONE if stage.predicted is None else seconds_text(stage.predicted),
            f"{stage.spread:.0%}",
        )
        for stage in fall.token
    ]
    rows += [
        (REST, signed(fall.rest), f"{fall.rest / fall.token_whole:.1%}", NONE, NONE),
        (
            "a token, measured whole",
            seconds_text(fall.token_whole),
            "100.0%",
            NONE,
            f"{fall.token_spread:.0%}",
        ),
        (
            "of it, the engine's call",
            seconds_text(fall.engine_seconds),
            f"{fall.engine_seconds / fall.token_whole:.1%}",
            NONE if fall.predicted_token is None else seconds_text(fall.predicted_token),
            NONE,
        ),
    ]
    note = (
        f"Behind {fall.depth} tokens, {threads(fall)}. Medians; spread is half the distance "
        "between the quartiles. The rest is what the whole takes longer than its parts, each "
        "measured by itself: a part costs more among others, which take its place in the caches."
    )
    if fall.predicted_token is not None and fall.bound:
        note += " The prediction is a lower bound."
    return Table(
        title=f"From a token to the next, {fall.name}",
        head=("part", "time", "share", "predicted", "spread"),
        rows=rows,
        note=note,
    )


def latency_table(audit: AuditRecord) -> Table:
    """A row for each engine and type."""
    rows: list[Row] = [
        (
            fall.name,
            seconds_text(fall.first_whole),
            seconds_text(fall.token_whole),
            f"{fall.token_spread:.0%}",
            _rate(fall.tokens_per_second),
            f"{fall.rest / fall.token_whole:.1%}",
        )
        for fall in audit.waterfalls
    ]
    return Table(
        title="Latency",
        head=("engine", "first token", "a token", "spread", "tokens/s", "rest"),
        rows=rows,
    )


def quality_table(audit: AuditRecord) -> Table:
    """Before and after quantization."""
    found = audit.quality
    rows: list[Row] = []
    if found.bits_after is not None:
        percent = found.bits_percent
        rows += [
            (
                "bits per byte",
                _figure(found.bits_before),
                _figure(found.bits_after),
                NONE if percent is None else f"{percent:+.3f} %",
            ),
            ("nats per token", _figure(found.nats_before), _figure(found.nats_after), NONE),
        ]
    if found.accuracy_after is not None:
        before, after = found.accuracy_before, found.accuracy_after
        rows.append(
            (
                "accuracy",
                NONE if before is None else f"{before:.1%}",
                f"{after:.1%}",
                NONE if before is None else f"{100 * (after - before):+.1f} points",
            )
        )
    notes = []
    if found.tokens:
        share = "all of it" if found.whole else f"{found.tokens:,} tokens of it"
        notes.append(f"Text: {found.text}, {share}.")
    if found.questions:
        notes.append(f"{found.questions:,} held-out questions, greedy answers, exact match.")
    return Table(
        title="Quality",
        head=("figure", "float32", "INT8", "difference"),
        rows=rows,
        note=" ".join([*notes, *found.missing]),
    )


def energy_table(audit: AuditRecord) -> Table:
    """Joules of a token."""
    rows: list[Row] = [
        (
            each.name,
            f"{1e3 * each.joules:.3g} mJ",
            f"{each.watts:.1f} W",
            f"{each.idle_watts:.1f} W",
            each.source,
        )
        for each in audit.energies
    ]
    return Table(
        title="Energy",
        head=("engine", "a token", "power", "before", "told by"),
        rows=rows,
        note=audit.no_energy,
    )


def facts(audit: AuditRecord) -> list[tuple[str, str]]:
    """What was audited, where and when."""
    about = audit.about
    kind = f"{about.kind}, {about.method}" if about.method else about.kind
    found = [("model", about.name), ("kind", kind)]
    if about.step:
        found.append(("checkpoint", f"step {about.step:,}"))
    moment = audit.created.replace("T", " ").replace("+00:00", " UTC")
    return [
        *found,
        ("INT8 from", about.int8_from),
        ("CPU", f"{audit.processor.model}, {audit.processor.cores} cores"),
        ("GPU", audit.processor.gpu.name if audit.processor.gpu else "none"),
        ("audited", f"{moment}, in {audit.seconds:.0f} s"),
    ]


def threads(fall: Waterfall) -> str:
    """1 thread, 2 threads, the GPU."""
    if fall.device == "cuda":
        return "on the GPU"
    return f"{fall.threads} thread{'s' if fall.threads > 1 else ''}"


def short_name(name: str, letters: int = 22) -> str:
    """A name that fits before a bar."""
    return name if len(name) <= letters else f"{name[: letters - 3].rstrip()}..."


def signed(seconds: float) -> str:
    """A short time that may be below 0."""
    return f"-{seconds_text(-seconds)}" if seconds < 0 else seconds_text(seconds)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.5f}"
