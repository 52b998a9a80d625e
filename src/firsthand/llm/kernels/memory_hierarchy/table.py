"""Rungs and tiles side by side: modelled, simulated, the least there can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from firsthand.llm.kernels.int8_matmul.panels import PANEL
from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy import programs
from firsthand.llm.kernels.memory_hierarchy.bounds import (
    attention_bound,
    best_product_tile,
    mixed_product_bound,
    pairs,
    product_bound,
)
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.passes import Program, modelled, simulated
from firsthand.llm.kernels.memory_hierarchy.products import Tile, panel_product, product
from firsthand.llm.kernels.memory_hierarchy.streams import (
    simulate_flash,
    simulate_panel_product,
    simulate_product,
)
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic, flash

ATTENTION_SHAPE: Shape = {
    "batch": 2, "heads": 8, "kv_heads": 4, "queries": 512, "keys": 512, "width": 64
}  # fmt: skip
# Rows of an odd number of lines: powers of two would meet in few sets of a cache.
PRODUCT_SHAPE: Shape = {"m": 192, "n": 240, "k": 336}
BLOCKS = (32, 64, 128)
SQUARES = (8, 16, 32, 64, 128)
TRITON_ITEMSIZE = 2


@dataclass(frozen=True)
class Row:
    """One rung with one tile.

    Attributes:
        rung: of the ladder; or "triple loop" and "tiled" for a float32 product.
        tile: as the rung takes it; "" for none.
        modelled: by the formulas.
        simulated: by the cache; None if not asked for.
        bound: least bytes for this operation in the rung's types.
        flops: of the operation.
    """

    rung: str
    tile: str
    modelled: Traffic
    simulated: Traffic | None
    bound: int
    flops: int

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that is modelled to move."""
        return self.flops / self.modelled.bytes_moved


def attention_rows(
    shape: Shape, level: CacheLevel, *, blocks: Iterable[int] = BLOCKS, simulate: bool = True
) -> list[Row]:
    """The rungs of the attention ladder, forward, tiled ones with each block.

    float32, and bfloat16 for Triton. Its rows have tiles of block x block, of which SRAM holds what
    it needs; `level` is the cache behind.

    Raises:
        TrafficError: a shape that no attention has, a block below 1.
    """
    rows = []
    flops = pairs(shape) * (4 * shape["width"] + 5)
    bound = attention_bound(shape, level.size)
    blocks = tuple(blocks)

    def row(rung: str, tile: str, program: Program) -> Row:
        run = simulated(program, level) if simulate else None
        return Row(rung, tile, modelled(program, level.size), run, bound, flops)

    for rung in programs.ATTENTION:
        tile = (
            f"{programs.sdpa_rows(shape)}x{programs.SDPA_COLUMNS}" if rung == "torch-sdpa" else ""
        )
        rows.append(row(rung, tile, programs.attention_program(rung, shape)))
    for rung in programs.TILED_ATTENTION:
        for block in blocks:
            program = programs.attention_program(rung, shape, block)
            wide = "seen" if rung == "numba" else str(block)
            rows.append(row(rung, f"{block}x{wide}", program))
    for block in blocks:
        run = simulate_flash(shape, block, block, level, TRITON_ITEMSIZE) if simulate else None
        moved = flash(shape, block, block, level.size, TRITON_ITEMSIZE, level.line)
        least = attention_bound(shape, level.size, TRITON_ITEMSIZE)
        rows.append(Row("triton (bf16)", f"{block}x{block}", moved, run, least, flops))
    return rows


def product_rows(
    shape: Shape, level: CacheLevel, *, tiles: Iterable[Tile] | None = None, simulate: bool = True
) -> list[Row]:
    """The triple loop and tiles of a float32 product, then the rungs of the INT8 ladder.

    Args:
        shape: m rows of x, n of w, k numbers along the sum.
        level: the cache.
        tiles: None is squares, and the best for this cache.
        simulate: whether the cache is run too.
    Raises:
        TrafficError: a size that is missing or below 1, too much to simulate.
    """
    if missing := [name for name in ("m", "n", "k") if name not in shape]:
        raise TrafficError(f"the shape of a product lacks {', '.join(missing)}")
    m, n, k = shape["m"], shape["n"], shape["k"]
    flops, bound = 2 * m * n * k, product_bound(m, n, k, level.size)
    if tiles is None:
        best = best_product_tile(m, n, k, level.size, level.line)
        squares = (Tile(size, size, size).within(m, n, k) for size in SQUARES)
        tiles = [*dict.fromkeys(squares), best]
    rows = []
    for tile in (None, *tiles):
        run = simulate_product(m, n, k, level, tile) if simulate else None
        moved = product(m, n, k, level.size, tile, level.line)
        name, text = ("tiled", str(tile)) if tile else ("triple loop", "")
        rows.append(Row(name, text, moved, run, bound, flops))
    least = mixed_product_bound(m, n, k)
    for rung in programs.INT8:
        program = programs.int8_program(rung, m, n, k)
        run = simulated(program, level) if simulate else None
        rows.append(Row(f"int8 {rung}", "", modelled(program, level.size), run, least, flops))
    run = simulate_panel_product(m, n, k, level) if simulate else None
    moved = panel_product(m, n, k, level.size, level.line)
    rows.append(Row("int8 numba", f"{PANEL} rows", moved, run, least, flops))
    return rows
