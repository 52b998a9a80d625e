"""What an optimizer keeps, and what its update needs meanwhile."""

from __future__ import annotations

from typing import Protocol

from firsthand.llm.audit.lifetimes import Timeline, Value
from firsthand.llm.audit.part_memory import FLOAT, HALF
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.quantization.shapes import matrix_shapes
from firsthand.llm.training.optimizers.muon import STACK


class Update(Protocol):
    """What it depends on besides the model; `ledger.StepSettings` documents it."""

    @property
    def optimizer(self) -> str: ...

    @property
    def muon_iterations(self) -> int: ...

    @property
    def muon_block(self) -> int: ...

    @property
    def on_gpu(self) -> bool: ...


def optimizer_state(
    config: ModelConfig, step: Update, elements: dict[str, int], line: Timeline
) -> list[Value]:
    """AdamW's two moments, or Muon's one of the matrices within the blocks."""
    by_muon = muon_names(config) if step.optimizer == "muon" else []
    return [
        line.value("moment", count, category="optimizer")
        for name, count in elements.items()
        for _ in range(1 if name in by_muon else 2)
    ]


def muon_names(config: ModelConfig) -> list[str]:
    """The matrices that Muon updates."""
    return [name for name in matrix_shapes(config) if name.startswith("blocks.")]


def optimizer_step(config: ModelConfig, step: Update, line: Timeline) -> None:
    """Scratch of the update: none of AdamW's compiled loop; stacks of matrices of Muon's."""
    if step.optimizer != "muon":
        return
    shapes = matrix_shapes(config)
    stacks: dict[tuple[int, int], list[bool]] = {}
    for name in muon_names(config):
        rows, columns = shapes[name]
        for height in matrix_heights(config, name, rows):
            shape = min(height, columns), max(height, columns)
            stacks.setdefault(shape, []).append(height > columns)
    for (short, long), tall in stacks.items():
        together = min(len(tall), max(1, STACK // (short * long)))
        _muon_stack(line, step, short, long, together, any(tall))


def matrix_heights(config: ModelConfig, name: str, rows: int) -> tuple[int, ...]:
    """As `Transformer.matrix_rows`."""
    if name.endswith("attention.qkv.weight"):
        return config.qkv_rows
    if name.endswith("feed_forward.up.weight") and config.feed_forward == "swiglu":
        return rows // 2, rows // 2
    return (rows,)


def _muon_stack(
    line: Timeline, step: Update, short: int, long: int, together: int, tall: bool
) -> None:
    """`Muon._update`: a stack, its orthogonalized copy, and what the iteration needs."""
    each = short * long
    stack = line.value("stack", together * each)
    if tall:
        line.value("a transposed matrix", each)
    block = nearest_block(short, step.muon_block)
    blocks = together * (short // block)
    size = HALF if step.on_gpu else FLOAT
    narrow = line.value("stack in half precision", together * each if step.on_gpu else 0, size)
    result = _orthogonalized(line, blocks, block, long, step.muon_iterations, size)
    wide = line.value("result", together * each if step.on_gpu else 0)
    if step.on_gpu:
        result = wide
    del narrow, stack
    line.value("a transposed matrix", each if tall else 0)
    del result, wide


def nearest_block(short: int, most: int) -> int:
    if not most:
        return short
    return max(size for size in range(1, min(short, most) + 1) if short % size == 0)


def _orthogonalized(
    line: Timeline, count: int, short: int, long: int, iterations: int, size: int
) -> Value:
    """`newton_schulz.gram_orthogonalize`, on X or on its Gram matrix."""

    def square(name: str) -> Value:
        return line.value(name, count * short * short, size)

    def whole(name: str) -> Value:
        return line.value(name, count * short * long, size)

    if size == HALF or long < 2 * short or iterations < 2:
        x = whole("X")
        for _ in range(iterations):
            gram = square("X Xᵀ")
            rest = square("b A + c A²")
            x = whole("X")
        assert gram is not rest
        return x
    gram = square("X Xᵀ")
    line.value("squared norms", count)
    product: Value | None = None
    for number in range(iterations):
        rest = square("b A + c A²")
        if number < iterations - 1:
            gram = square("Q A")
            gram = square("Q A Q")
        product = rest if product is None else square("Q P")
    assert product is not None
    return whole("P X")
