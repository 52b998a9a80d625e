"""Why a plan's settings are what they are, in figures, and what would break the budget first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from firsthand.llm.audit.budget import Budget, Candidate, amount, candidate
from firsthand.llm.audit.work import loss_chunk
from firsthand.llm.model.config import parameter_counts
from firsthand.llm.training.config import RunConfig


@dataclass(frozen=True)
class Choice:
    """A setting, its value, and one sentence with the figures that speak for it."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Raised:
    """What one setting takes when it alone goes a step further.

    Attributes:
        name: of the setting.
        before, after: its values.
        total: bytes with the reserve.
    """

    name: str
    before: str
    after: str
    total: int


def choices(chosen: Candidate, all_: list[Candidate], given: Budget) -> Iterator[Choice]:
    training = chosen.config.training
    by = {_key(each): each for each in all_}
    rows, kept, precision = _key(chosen)
    yield Choice("micro_batch", str(rows), _rows_reason(chosen, by, given))
    times = training.batch_size // rows
    yield Choice("accumulation", str(times), _accumulation_reason(chosen, times))
    other = by.get((rows, not kept, precision))
    yield Choice("checkpoint_blocks", str(kept).lower(), _checkpoint_reason(chosen, other, given))
    yield Choice("chunk", str(loss_chunk(chosen.config)), _chunk_reason(chosen))
    other = by.get((rows, kept, "bfloat16" if precision == "float32" else "float32"))
    yield Choice("precision", precision, _precision_reason(chosen, other, given))


def _key(each: Candidate) -> tuple[int, bool, str]:
    training = each.config.training
    return training.micro_batch, training.checkpoint_blocks, training.precision


def _rows_reason(
    chosen: Candidate, by: dict[tuple[int, bool, str], Candidate], given: Budget
) -> str:
    rows, kept, precision = _key(chosen)
    more = [n for n, k, p in by if n > rows and k == kept and p == precision]
    total = amount(chosen.ledger.total)
    if not more:
        if len(by) == 1 or all(n == rows for n, _, _ in by):
            return f"as given; the peak is {total}"
        return f"the whole batch at once; the peak is {total}"
    after = by[min(more), kept, precision]
    needs = after.ledger.total + given.reserve
    if after.ledger.total > given.usable:
        return (
            f"the most that fits: {min(more)} rows would need {amount(needs)}, "
            f"{amount(needs - given.memory)} more than there is"
        )
    return (
        f"{min(more)} rows at a time would need {amount(after.ledger.total - chosen.ledger.total)} "
        f"more, and an update would take {_compared(after, chosen)}"
    )


def _accumulation_reason(chosen: Candidate, times: int) -> str:
    if times == 1:
        return "one micro-batch is the batch"
    parameters = sum(parameter_counts(chosen.config.model).values())
    moved = 12 * parameters * (times - 1)
    return (
        f"{times} micro-batches make an update, which gives the same sums; adding their gradients "
        f"moves {amount(moved)}, {moved / chosen.bytes:.1%} of an update's bytes"
    )


def _checkpoint_reason(chosen: Candidate, other: Candidate | None, given: Budget) -> str:
    on = chosen.config.training.checkpoint_blocks
    if other is None:
        return "as given"
    saved = abs(other.ledger.total - chosen.ledger.total)
    if on:
        fits = other.ledger.total <= given.usable
        why = "" if fits else f", which would need {amount(other.ledger.total + given.reserve)}"
        return (
            f"each block is computed twice: an update takes {_compared(chosen, other)}, and the "
            f"peak is {amount(saved)} below that of keeping them{why}"
        )
    return (
        f"all blocks are kept: computing them twice would save {amount(saved)}, and an update "
        f"would take {_compared(other, chosen)}"
    )


def _chunk_reason(chosen: Candidate) -> str:
    config = chosen.config
    tokens = config.training.micro_batch * config.sequence_length
    half = config.training.device == "cuda" and config.training.precision != "float32"
    one = (2 if half else 4) * config.model.vocab_size
    chunk = min(loss_chunk(config), tokens)
    return (
        f"the logits of {chunk:,} tokens exist at a time, "
        f"{amount(one * chunk)} instead of {amount(one * tokens)} for "
        f"{tokens:,} tokens, and no product is made twice"
    )


def _precision_reason(chosen: Candidate, other: Candidate | None, given: Budget) -> str:
    precision = chosen.config.training.precision
    if other is None:
        if precision == "float32" and given.device == "cpu" and chosen.prediction is not None:
            return "products in bfloat16 were measured to be no faster on this CPU"
        return "as given" if precision != "float32" else "no other was measured here"
    difference = other.ledger.total - chosen.ledger.total
    words = "more" if difference > 0 else "less"
    return (
        f"products in {other.config.training.precision} would need {amount(abs(difference))} "
        f"{words}, and an update would take {_compared(other, chosen)}; weights, gradients and "
        "optimizer are float32 in both"
    )


def _compared(one: Candidate, other: Candidate) -> str:
    """How long one takes beside the other, or else its FLOPs and bytes, behind "take"."""
    if one.prediction is not None and other.prediction is not None:
        share = one.prediction.seconds / other.prediction.seconds - 1
        return f"{_share(share)} time" if round(share, 3) else "the same time"
    flops, moved = one.flops / other.flops - 1, one.bytes / other.bytes - 1
    words = [
        f"{_share(share)} {name}" if round(share, 3) else f"as many {name}"
        for name, share in (("FLOPs", flops), ("bytes moved", moved))
    ]
    return " and ".join(words)


def _share(share: float) -> str:
    return f"{abs(share):.1%} {'more' if share > 0 else 'less'}"


def raised(config: RunConfig, given: Budget) -> Iterator[Raised]:
    """Each setting a step further, the one that takes most first."""
    found = []
    for name, before, after, changed in _steps_further(config):
        total = candidate(changed, given.device, None).ledger.total
        found.append(Raised(name, before, after, total + given.reserve))
    yield from sorted(found, key=lambda raised: -raised.total)


def _steps_further(config: RunConfig) -> Iterator[tuple[str, str, str, RunConfig]]:
    training, model = config.training, config.model
    rows = training.micro_batch
    more = [n for n in range(rows + 1, training.batch_size + 1) if training.batch_size % n == 0]
    if more:
        changed = replace(config, training=replace(training, micro_batch=more[0]))
        yield "training.micro_batch", str(rows), str(more[0]), changed
    else:
        changed = replace(
            config, training=replace(training, batch_size=2 * rows, micro_batch=2 * rows)
        )
        yield "training.batch_size in one piece", str(rows), str(2 * rows), changed
    length = config.sequence_length
    longer = replace(model, context=max(model.context, 2 * length))
    changed = replace(config, model=longer, training=replace(training, sequence_length=2 * length))
    yield "training.sequence_length", str(length), str(2 * length), changed
    for name in ("n_layers", "vocab_size"):
        value = getattr(model, name)
        changed = replace(config, model=replace(model, **{name: 2 * value}))
        yield f"model.{name}", str(value), str(2 * value), changed
    if training.checkpoint_blocks:
        changed = replace(config, training=replace(training, checkpoint_blocks=False))
        yield "training.checkpoint_blocks", "true", "false", changed
    if training.precision != "float32":
        changed = replace(config, training=replace(training, precision="float32"))
        yield "training.precision", training.precision, "float32", changed
