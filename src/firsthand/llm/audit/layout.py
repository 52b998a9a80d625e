"""Strides, hidden copies and dtype casts of one forward and backward pass, with their bytes.

`trace_step` runs a training step of a model under the tracer and adds up what it saw: groups of
equal operations at one line, over all layers, by bytes; totals by kind of work.

A copy moves values without changing them: because a shape does not fit the strides, because a
tensor that is repeated must be written out, because gradients of pieces are joined. A cast changes
the type alone. Both cost what they read and write, and no arithmetic hides it. Copies that a matrix
product makes inside are not seen; the operands that force it to are listed instead.

Bytes are those of the operands, each counted once, whatever a cache holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.operands import KINDS, Kind, Operand
from firsthand.llm.audit.tracer import Event, Phase, Tracer, differentiate
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.config import Precision, RunConfig
from firsthand.llm.training.memory import explained_memory
from firsthand.llm.training.precision import autocast


@dataclass(frozen=True, kw_only=True)
class Group:
    """Equal operations at one line, over all layers.

    Attributes:
        phase: "forward", "backward", or "recomputed" within it.
        kind: of work.
        operation: its name in PyTorch's dispatcher, or whose compiled loops it is.
        reason: of a copy, why; of a cast, from which type to which.
        module: with * for the number of a layer.
        where, source: file and line, and the text of the line.
        node: of autograd, in the backward pass.
        example: shapes and strides of the first one.
        count: how many.
        read, written: bytes of all.
    """

    phase: Phase
    kind: Kind
    operation: str
    reason: str
    module: str
    where: str
    source: str
    node: str
    example: str
    count: int
    read: int
    written: int

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True, kw_only=True)
class Total:
    """What all operations of one kind moved: how many they are, bytes."""

    count: int = 0
    read: int = 0
    written: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True, kw_only=True)
class Lying:
    """Operands that lie badly for their operation, or are repeated in it.

    Attributes:
        operation, module, where: as in `Group`.
        example: shape and stride of the first.
        count: how many.
        stored, seen: bytes that there are, and bytes that the operation goes over.
    """

    operation: str
    module: str
    where: str
    example: str
    count: int
    stored: int
    seen: int


@dataclass(frozen=True)
class Layout:
    """What one forward and backward pass moved.

    Attributes:
        events: in order.
        facts: what was traced, name to value.
    """

    events: tuple[Event, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def groups(self, *kinds: Kind) -> list[Group]:
        """The operations of these kinds (none named: of all), most bytes first."""
        found: dict[tuple[str, ...], list[Event]] = {}
        for event in self.events:
            if not kinds or event.traffic.kind in kinds:
                found.setdefault(_key(event), []).append(event)
        groups = [_group(key, events) for key, events in found.items()]
        return sorted(groups, key=lambda group: -group.nbytes)

    def totals(self, *phases: Phase) -> dict[Kind, Total]:
        """By kind, of these phases (none named: of all); kinds that do not occur are left out."""
        result: dict[Kind, Total] = {}
        for kind in KINDS:
            events = [
                e for e in self.events
                if e.traffic.kind == kind and (not phases or e.phase in phases)
            ]  # fmt: skip
            if events:
                read = sum(e.traffic.read for e in events)
                written = sum(e.traffic.written for e in events)
                result[kind] = Total(count=len(events), read=read, written=written)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes read and written by all operations."""
        return sum(e.traffic.read + e.traffic.written for e in self.events)

    @property
    def allocated(self) -> int:
        """Bytes of all memory that PyTorch's operations asked for, freed in between or not.

        Those of autograd's sums, `Event.sums`, are among them though it may do without.
        """
        return sum(e.traffic.allocated for e in self.events)

    def share(self, *kinds: Kind) -> float:
        """Of all bytes that were moved, those by operations of these kinds; 0 if none were."""
        totals = self.totals()
        own = sum(totals[kind].nbytes for kind in kinds if kind in totals)
        return own / self.nbytes if self.nbytes else 0.0

    def strided_operands(self) -> list[Lying]:
        """Operands of matrix products whose rows and columns both have gaps, most bytes first.

        BLAS takes a matrix by rows or by columns; of these it is given a copy, which is not among
        the events.
        """
        return _lying(
            (event, operand, operand.nbytes, operand.nbytes)
            for event in self.events
            for operand in event.traffic.strided
        )

    def broadcasts(self) -> list[Lying]:
        """Operands of elementwise operations that are repeated over others, most bytes first."""
        return _lying(
            (event, operand, operand.nbytes, event.traffic.outputs[0].elements * operand.itemsize)
            for event in self.events
            for operand in event.traffic.repeated
        )

    def to_json(self) -> dict[str, Any]:
        """Facts, totals by phase and kind, groups, strided operands and broadcasts."""
        phases = dict.fromkeys(event.phase for event in self.events)
        return {
            "facts": self.facts,
            "bytes": self.nbytes,
            "allocated": self.allocated,
            "shares": {kind: self.share(kind) for kind in self.totals()},
            "totals": {
                phase: {kind: asdict(total) for kind, total in self.totals(phase).items()}
                for phase in phases
            },
            "groups": [asdict(group) for group in self.groups() if group.nbytes],
            "strided_operands": [asdict(item) for item in self.strided_operands()],
            "broadcasts": [asdict(item) for item in self.broadcasts()],
        }


def trace(module: nn.Module, loss: Callable[[], Tensor], *, warm_up: bool = True) -> Layout:
    """Record the forward pass of a loss and its backward pass.

    Gradients are afterwards what they were before; within they begin empty, as in a first
    micro-batch.

    Args:
        module: whose modules and parameters are named.
        loss: computes a scalar with a gradient from it.
        warm_up: run both passes once before, so that tables and compiled code exist.
    Raises:
        AuditError: the loss is no scalar with a gradient.
    """
    kept = [(parameter, parameter.grad) for parameter in module.parameters()]
    tracer = Tracer(module)
    try:
        for parameter, _ in kept:
            parameter.grad = None
        if warm_up:
            differentiate(_required(loss()))
            for parameter, _ in kept:
                parameter.grad = None
        with tracer.modules(), tracer:
            total = loss()
            tracer.phase = "backward"
            differentiate(_required(total))
        events = tracer.finish()
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    return Layout(tuple(events))


def trace_step(
    config: RunConfig,
    parts: Parts,
    *,
    rows: int = 0,
    length: int = 0,
    precision: Precision | None = None,
    device: torch.device | str = "cpu",
) -> Layout:
    """The layout of one micro-batch of a run: its model, random tokens, forward and backward.

    torch.compile, which joins operations, is left out: these are the operations as written.

    Args:
        config: of the run.
        parts: of the model.
        rows: of the micro-batch; 0 is the config's.
        length: tokens in a row; 0 is the config's.
        precision: None is the config's.
        device: to run on.
    Raises:
        AuditError: rows or a length that cannot be.
        OutOfMemoryError: it does not fit; says what would.
    """
    settings = config.training
    rows = rows or settings.micro_batch or settings.batch_size
    length = length or config.sequence_length
    precision = precision or settings.precision
    if rows < 1:
        raise AuditError(f"a micro-batch has at least 1 row; not {rows}")
    if not 1 <= length <= config.model.context:
        raise AuditError(
            f"a row has 1 to {config.model.context} tokens (the context); not {length}"
        )
    place = torch.device(device)
    model = Transformer(config.model, parts, seed=config.seed).to(place)
    model.checkpoint_blocks = settings.checkpoint_blocks
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randint(config.model.vocab_size, (rows, length + 1), generator=generator)
    tokens, targets = drawn[:, :-1].contiguous().to(place), drawn[:, 1:].contiguous().to(place)
    documents = None
    if config.data.documents:  # two to a row, as packing makes them
        documents = (torch.arange(length) >= length // 2).int().expand(rows, -1).contiguous()
        documents = documents.to(place)

    def loss() -> Tensor:
        with autocast(precision, place):
            return model.loss(tokens, targets, documents=documents).total * (1.0 / targets.numel())

    with explained_memory(model, settings, length):
        layout = trace(model, loss)
    facts = {
        "run": config.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": rows,
        "length": length,
        "precision": precision,
        "checkpoint_blocks": settings.checkpoint_blocks,
        "device": place.type,
    }
    return Layout(layout.events, facts)


def _required(total: Tensor) -> Tensor:
    if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
        raise AuditError("a loss to trace is one number with a gradient")
    return total


def reason_of(event: Event) -> str:
    """Why a copy or a cast was made, as its operands show; whether autograd sums; else ""."""
    traffic = event.traffic
    if event.sums:
        return "gradients summed"
    if traffic.kind == "cast" and traffic.inputs:
        return f"{traffic.inputs[0].dtype} -> {traffic.outputs[0].dtype}"
    if traffic.kind != "copy" or not traffic.inputs or not traffic.outputs:
        return ""
    name = event.operation.removeprefix("aten.")
    source, target = traffic.inputs[0], traffic.outputs[0]
    if name in ("cat", "stack"):
        return "pieces joined"
    if name.endswith("_backward") or name == "constant_pad_nd":
        return "put among zeros"
    if source.expanded:
        return "repeats written out"
    if name in ("copy_", "_foreach_copy_"):
        return "into memory that exists"
    if source.shape == target.shape and _same_order(source, target):
        return "the same layout twice"
    return "laid out anew"


def _same_order(source: Operand, target: Operand) -> bool:
    pairs = zip(source.shape, source.stride, target.stride, strict=True)
    return all(one == other or size == 1 for size, one, other in pairs)


def _key(event: Event) -> tuple[str, ...]:
    # Compiled loops are handed their arrays in several lines of one function.
    place = event.place
    line = 0 if event.traffic.kind == "compiled" else place.line
    module = re.sub(r"\b\d+\b", "*", place.module)
    where = (place.file, place.function if not line else "", str(line))
    return (event.phase, event.operation, reason_of(event), module, event.node, *where)


def _group(key: tuple[str, ...], events: list[Event]) -> Group:
    first = events[0]
    return Group(
        phase=first.phase,
        kind=first.traffic.kind,
        operation=first.operation,
        reason=key[2],
        module=key[3],
        where=first.place.where,
        source=first.place.source,
        node=first.node,
        example=_example(first),
        count=len(events),
        read=sum(event.traffic.read for event in events),
        written=sum(event.traffic.written for event in events),
    )


def _example(event: Event) -> str:
    inputs = " ".join(described(operand) for operand in event.traffic.inputs)
    outputs = " ".join(described(operand) for operand in event.traffic.outputs)
    return f"{inputs} -> {outputs}" if inputs else f"-> {outputs}"


def described(operand: Operand) -> str:
    """Type, shape and stride: "float32 (2, 3):(3, 1)"."""
    shape, stride = (", ".join(map(str, numbers)) for numbers in (operand.shape, operand.stride))
    return f"{operand.dtype} ({shape}):({stride})"


def _lying(found: Iterable[tuple[Event, Operand, int, int]]) -> list[Lying]:
    groups: dict[tuple[str, ...], list[tuple[Event, Operand, int, int]]] = {}
    for item in found:
        groups.setdefault((*_key(item[0]), described(item[1])), []).append(item)
    result = [
        Lying(
            operation=items[0][0].operation,
            module=key[3],
            where=items[0][0].place.where,
            example=key[-1],
            count=len(items),
            stored=sum(item[2] for item in items),
            seen=sum(item[3] for item in items),
        )
        for key, items in groups.items()
    ]
    return sorted(result, key=lambda item: -item.seen)
