"""Each operation of PyTorch within a block: what it moves, where in the code, for which gradient.

PyTorch hands each of its operations to a dispatcher, below autograd and below autocast. A mode
there sees what Python code does not show: that `reshape` made a copy, that a product was handed a
cast, that a gradient was laid out anew. In the backward pass an operation belongs to one of the
forward pass: autograd numbers its nodes, and the tracer remembers where each was made.

The compiled loops of `firsthand.llm.kernels` are no operations of PyTorch. A tensor that
`kernels.threads.memory` hands to one is followed by its values: it was written if they differ
afterwards, or if nobody had written it before, and it was read if anybody had. What a GPU's own
kernels write is found when PyTorch reads it; what they read is not seen.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from firsthand.llm.audit.operands import Operand, Traffic, traffic_of
from firsthand.llm.kernels import threads

Phase = Literal["forward", "backward", "recomputed"]
Span = tuple[int, int]

_HERE = __file__
_TORCH = str(Path(torch.__file__).parent)
_LIBRARY = str(Path(linecache.__file__).parent)
_MEMORY = threads.memory.__code__


@dataclass(frozen=True)
class Place:
    """Where in the code something happened.

    Attributes:
        module: dotted name of the innermost module that was running; "" outside of all.
        file, line, function: of the innermost line that is not PyTorch's; "" and 0 if none is.
    """

    module: str = ""
    file: str = ""
    line: int = 0
    function: str = ""

    @property
    def source(self) -> str:
        """The text of the line."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def where(self) -> str:
        """File within the package, and line."""
        parts = Path(self.file).parts
        inside = parts[len(parts) - parts[::-1].index("llm") :] if "llm" in parts else parts[-1:]
        return f"{'/'.join(inside)}:{self.line}" if self.file else ""


@dataclass(frozen=True)
class Event:
    """One operation.

    Attributes:
        phase: "recomputed" is a forward pass that runs again inside of the backward pass.
        operation: its name in the dispatcher, "aten.clone"; for compiled code its function.
        place: that asked for it; in the backward pass of PyTorch's own operations the place of the
            operation of the forward pass whose gradient it computes.
        node: of autograd, in the backward pass; else "".
        traffic: its operands and bytes.
        sums: it is autograd's engine that adds the gradients of several uses of one tensor. While
            a tracer looks on, each sum is new memory; else the engine adds in place where it can.
    """

    phase: Phase
    operation: str
    place: Place
    node: str
    traffic: Traffic
    sums: bool = False


@dataclass
class _Lent:
    """A tensor that compiled code has: an alias that is no part of the graph."""

    tensor: Tensor
    operand: Operand
    fresh: bool
    before: int
    phase: Phase
    place: Place
    node: str


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records each operation inside of its `with` block.

    Args:
        model: whose modules and parameters give the places their names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.phase: Phase = "forward"
        self._names = {module: name for name, module in model.named_modules()}
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._open: list[str] = []
        self._places: dict[int, Place] = {}
        self._numbered = 0
        # Of memory that was allocated without values: which bytes have been written since.
        self._written: dict[int, list[Span]] = {}
        self._lent: list[_Lent] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and record it."""
        named = kwargs or {}
        result = function(*args, **named)
        # Before any value changes hands: what compiled code did is judged by values.
        traffic = traffic_of(function, args, named, result)
        caller, place = _asking(sys._getframe(1), self._open[-1] if self._open else "")
        lends = caller is _MEMORY
        if traffic.kind not in ("view", "allocation"):
            self._settle([*traffic.inputs, *traffic.outputs], during=traffic)
        phase, node, place = self._context(place)
        name = f"aten.{function.overloadpacket.__name__}"
        self._note_unseen_writes(traffic, phase, place, node)
        engine = bool(node) and (caller is None or not _in_function())
        sums = engine and name == "aten.add" and len(traffic.inputs) == 2
        self.events.append(Event(phase, name, place, node, traffic, sums))
        self._mark_written(traffic)
        if lends and isinstance(result, Tensor) and result.is_contiguous():
            self._lend(result, phase, place, node)
        return result

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Within, the tracer knows which module runs."""

        def enter(module: nn.Module, _: Any) -> None:
            self._open.append(self._names.get(module, type(module).__name__))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if self._open:
                self._open.pop()

        # Hooks on all modules at once: one on a module itself can change what the model does.
        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> list[Event]:
        """The events, after the last values have been looked at; lets go of all tensors."""
        self._settle(None)
        return self.events

    def _context(self, place: Place) -> tuple[Phase, str, Place]:
        """Phase, autograd's node and place, which in the forward pass is kept by its number."""
        number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        node: Any = torch._C._current_autograd_node()
        if node is None or self._open:
            self._remember(number, place)
            again = self.phase == "backward" and bool(self._open)
            return ("recomputed" if again else self.phase), "", place
        variable = getattr(node, "variable", None)
        if variable is not None:
            name = self._parameters.get(id(variable), "an input")
            return self.phase, "AccumulateGrad", Place(module=name)
        forward = self._places.get(node._sequence_nr(), Place())
        if place.file and _in_function():
            forward = Place(forward.module, place.file, place.line, place.function)
        # A Function may build a graph of its own there, and go back through it.
        self._remember(number, forward)
        return self.phase, str(node.name()), forward

    def _remember(self, number: int, place: Place) -> None:
        for new in range(self._numbered, number):
            self._places[new] = place
        self._numbered = number

    def _lend(self, tensor: Tensor, phase: Phase, place: Place, node: str) -> None:
        operand = Operand.of(tensor)
        self._settle([operand])
        spans = self._written.get(operand.storage)
        fresh = spans is not None and not any(_overlap(operand.span, span) for span in spans)
        before = 0 if fresh else _checksum(tensor)
        alias = tensor.detach()
        self._lent.append(_Lent(alias, operand, fresh, before, phase, place, node))
        if spans is not None:
            spans.append(operand.span)

    def _settle(self, touched: list[Operand] | None, during: Traffic | None = None) -> None:
        """Judge what compiled code did to lent tensors that are touched now; None is all."""
        kept = []
        for lent in self._lent:
            operand = lent.operand
            if touched is not None and not any(
                operand.storage == other.storage and _overlap(operand.span, other.span)
                for other in touched
            ):
                kept.append(lent)
                continue
            changed = not lent.fresh and _checksum(lent.tensor) != lent.before
            writes, reads = lent.fresh or changed, not lent.fresh
            size = operand.nbytes
            traffic = Traffic(
                "compiled",
                (operand,) if reads else (),
                (operand,) if writes else (),
                size * reads,
                size * writes,
            )
            name = f"compiled loops of {lent.place.function}"
            self.events.append(Event(lent.phase, name, lent.place, lent.node, traffic))
        self._lent = kept

    def _note_unseen_writes(self, traffic: Traffic, phase: Phase, place: Place, node: str) -> None:
        """Memory that is read though PyTorch has written none of it: a kernel has."""
        if traffic.kind in ("view", "allocation"):
            return
        for operand in traffic.inputs:
            if self._written.get(operand.storage) == [] and operand not in traffic.outputs:
                del self._written[operand.storage]
                unseen = Traffic("compiled", (), (operand,), 0, operand.nbytes)
                self.events.append(Event(phase, "a kernel before", place, node, unseen))

    def _mark_written(self, traffic: Traffic) -> None:
        for operand in traffic.outputs:
            if traffic.kind == "allocation":
                self._written[operand.storage] = []
            elif traffic.kind != "view" and operand.storage in self._written:
                if traffic.allocated:
                    del self._written[operand.storage]
                else:
                    self._written[operand.storage].append(operand.span)


def differentiate(total: Tensor) -> None:
    """The backward pass of a scalar; where it begins, a search for the asking line ends."""
    torch.autograd.backward([total])


def _asking(frame: FrameType | None, module: str) -> tuple[CodeType | None, Place]:
    """The code that called PyTorch, and the innermost line that is no plumbing."""
    caller: CodeType | None = None
    while frame is not None:
        code = frame.f_code
        if code in _ENDS:
            break
        if caller is None and not code.co_filename.startswith((_TORCH, _HERE)):
            caller = code
        if not _is_plumbing(code.co_filename):
            place = Place(module, code.co_filename, frame.f_lineno, code.co_qualname)
            return caller, place
        frame = frame.f_back
    return caller, Place(module)


_ENDS = {differentiate.__code__}


def _in_function() -> bool:
    """Whether autograd's node is a Function, whose backward pass is written in Python."""
    node: Any = torch._C._current_autograd_node()
    return isinstance(node, torch.autograd.function.BackwardCFunction)


@cache
def _is_plumbing(file: str) -> bool:
    """Whether a file stands between the lines of a model and PyTorch, and says nothing itself."""
    if file.startswith((_TORCH, _HERE, threads.__file__, "<")):
        return True
    return file.startswith(_LIBRARY) and "-packages" not in file


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _checksum(tensor: Tensor) -> int:
    """A number that changes with the values; the tensor lies in one piece."""
    return int(tensor.detach().flatten().view(torch.int32).sum(dtype=torch.int64))
