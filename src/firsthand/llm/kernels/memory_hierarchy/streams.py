"""The loops of the rungs as uses of cache lines, in the order in which the rungs make them."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.int8_matmul.panels import PANEL, ROW_MULTIPLE, padded
from firsthand.llm.kernels.ladder import AnyArray, Shape
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.products import TILE_ROWS, Tile
from firsthand.llm.kernels.memory_hierarchy.simulator import (
    CHANGE,
    FILL,
    READ,
    Cache,
    bounded,
    touch,
    touch_line,
)
from firsthand.llm.kernels.memory_hierarchy.traffic import (
    FLOAT,
    Traffic,
    attention_shape,
    keys_seen,
    require,
)


def simulate_product(
    m: int, n: int, k: int, level: CacheLevel, tile: Tile | None = None
) -> Traffic:
    """`traffic.product`, run.

    Raises:
        TrafficError: a size below 1, or too much to run.
    """
    t = (tile or Tile(m, n, k)).within(m, n, k)
    pieces = -(-k // t.k)
    bounded(m * n * (2 * k * FLOAT / level.line + pieces), level)
    x, w, y = _placed(level.line, m * k * FLOAT, n * k * FLOAT, m * n * FLOAT)
    cache = Cache(level)
    cache.run(_product, x, w, y, m, n, k, t.m, t.n, t.k)
    return cache.traffic


def simulate_panel_product(m: int, n: int, k: int, level: CacheLevel) -> Traffic:
    """`traffic.panel_product`, run."""
    require(m=m, n=n, k=k)
    k = padded(k)
    bounded(m * n * k * 3 / level.line, level)
    x, w, y = _placed(level.line, 2 * m * k, n * k, m * n * FLOAT)
    cache = Cache(level)
    cache.run(_panels, x, w, y, m, n, k)
    return cache.traffic


def simulate_flash(
    shape: Shape, rows: int, columns: int, level: CacheLevel, itemsize: int = 2
) -> Traffic:
    """`traffic.flash`, run."""
    attention_shape(shape)
    require(rows=rows, columns=columns, itemsize=itemsize)
    seen = np.array(keys_seen(shape, rows, columns), np.int64)
    heads, kv_heads = shape["batch"] * shape["heads"], shape["batch"] * shape["kv_heads"]
    row = shape["width"] * itemsize
    like_q, like_k = heads * shape["queries"] * row, kv_heads * shape["keys"] * row
    bounded(heads * int(seen.sum()) * 2 * row / level.line, level)
    places = np.array(
        _placed(level.line, like_q, like_k, like_k, like_q, heads * shape["queries"] * FLOAT)
    )
    group = shape["heads"] // shape["kv_heads"]
    cache = Cache(level)
    cache.run(
        _flash, places, seen, heads, group, shape["queries"], shape["keys"], rows, columns, row
    )
    return cache.traffic


def _placed(line: int, *sizes: int) -> list[int]:
    """Where arrays of these sizes begin, one behind the other, each on a line of its own."""
    places, free = [], 0
    for size in sizes:
        places.append(free)
        free += -(-size // line) * line
    return places


@compiled
def _product(
    entries: AnyArray,
    counts: AnyArray,
    line: int,
    x: int,
    w: int,
    y: int,
    m: int,
    n: int,
    k: int,
    tile_m: int,
    tile_n: int,
    tile_k: int,
) -> None:
    for top in range(0, m, tile_m):
        for left in range(0, n, tile_n):
            for start in range(0, k, tile_k):
                size = (min(start + tile_k, k) - start) * FLOAT
                for i in range(top, min(top + tile_m, m)):
                    for j in range(left, min(left + tile_n, n)):
                        # A line of one row, then the same of the other, as the sum goes on.
                        for part in range(0, size, line):
                            most = min(line, size - part)
                            here = start * FLOAT + part
                            touch(entries, counts, line, x + i * k * FLOAT + here, most, READ)
                            touch(entries, counts, line, w + j * k * FLOAT + here, most, READ)
                        place = y + (i * n + j) * FLOAT
                        touch_line(entries, counts, place // line, CHANGE)


@compiled
def _panels(
    entries: AnyArray,
    counts: AnyArray,
    line: int,
    x: int,
    w: int,
    y: int,
    m: int,
    n: int,
    k: int,
) -> None:
    tiles = (m + TILE_ROWS - 1) // TILE_ROWS
    for first in range(0, n, PANEL):
        for tile in range(tiles):
            top, bottom = m * tile // tiles, m * (tile + 1) // tiles
            for j in range(first, min(n, first + PANEL)):
                for start in range(0, k, ROW_MULTIPLE):
                    for i in range(top, bottom):
                        place = x + 2 * (i * k + start)
                        touch(entries, counts, line, place, 2 * ROW_MULTIPLE, READ)
                    touch(entries, counts, line, w + j * k + start, ROW_MULTIPLE, READ)
                for i in range(top, bottom):
                    touch_line(entries, counts, (y + (i * n + j) * FLOAT) // line, CHANGE)


@compiled
def _flash(
    entries: AnyArray,
    counts: AnyArray,
    line: int,
    places: AnyArray,
    seen: AnyArray,
    heads: int,
    group: int,
    queries: int,
    keys: int,
    rows: int,
    columns: int,
    row: int,
) -> None:
    for head in range(heads):
        for i in range(len(seen) - 1, -1, -1):
            top = head * queries + i * rows
            tall = min(rows, queries - i * rows)
            touch(entries, counts, line, places[0] + top * row, tall * row, READ)
            for left in range(0, seen[i], columns):
                first = (head // group * keys + left) * row
                size = min(columns, seen[i] - left) * row
                touch(entries, counts, line, places[1] + first, size, READ)
                touch(entries, counts, line, places[2] + first, size, READ)
            touch(entries, counts, line, places[4] + top * FLOAT, tall * FLOAT, FILL)
            touch(entries, counts, line, places[3] + top * row, tall * row, FILL)
