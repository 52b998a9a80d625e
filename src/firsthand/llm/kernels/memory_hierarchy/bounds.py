"""What no order of the loops can go below, and the tiles that come closest."""

from __future__ import annotations

import math

from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import LINE
from firsthand.llm.kernels.memory_hierarchy.products import Tile, product
from firsthand.llm.kernels.memory_hierarchy.traffic import FLOAT, attention_shape, flash, require

TILE_SIZES = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def product_bound(m: int, n: int, k: int, cache: int, itemsize: int = FLOAT) -> int:
    """Least bytes, read and written, of y = x wᵀ by any order of its m n k products.

    Every number of x and w is read and every one of y written once: itemsize (m k + n k + m n).
    And while a cache of M numbers takes in M more, the products that can be made are limited, for
    those of M numbers of x, w and y are the volume of a body whose three shadows have these areas
    (Loomis & Whitney 1949): at least 2 m n k / √M - 2 M numbers move for y ← y + x wᵀ. Without
    reading y that is m n less, and m n are written: the same sum.

    Sources: Hong & Kung 1981, "I/O complexity: the red-blue pebble game", section 6 (the order,
    m n k / √M); Smith et al. 2017, "A tight I/O lower bound for matrix multiplication" (the
    constant, which an outer product into a square tile of √M reaches).

    Raises:
        TrafficError: a size below 1.
    """
    require(m=m, n=n, k=k, cache=cache, itemsize=itemsize)
    numbers = cache / itemsize
    once = m * k + n * k + m * n
    return math.ceil(itemsize * max(once, 2 * m * n * k / math.sqrt(numbers) - 2 * numbers))


def mixed_product_bound(m: int, n: int, k: int) -> int:
    """Least bytes of the INT8 product: int16 x, int8 w and float32 y, each once.

    `product_bound` is for numbers of one size, so its second term is not used.
    """
    require(m=m, n=n, k=k)
    return 2 * m * k + n * k + FLOAT * m * n


def pairs(shape: Shape) -> int:
    """Pairs of a query and a key it sees, over all heads."""
    attention_shape(shape)
    queries, keys = shape["queries"], shape["keys"]
    seen = queries * (keys - queries) + queries * (queries + 1) // 2
    return shape["batch"] * shape["heads"] * seen


def attention_bound(shape: Shape, cache: int, itemsize: int = FLOAT) -> int:
    """Least bytes of causal attention that makes each score from a whole query and a whole key.

    Every number of q, k and v is read and every one of o written once. And while a cache of M
    numbers takes in M more, it has held at most 2 M / d rows of q and k, of which at most M² / d²
    pairs can be made: P scores take P d² / M - M numbers. FlashAttention, which keeps o as well and
    reads v too, moves four times that at best: 4 P d² / M.

    Sources: Dao et al. 2022, "FlashAttention", theorem 2 and proposition 3; Saha & Ye 2024, "The
    I/O complexity of attention, or how optimal is FlashAttention?" (Ω(N² d² / M) for any algorithm,
    where M ≥ d²; below, a product that splits rows moves less).

    Raises:
        TrafficError: a shape that no attention has, a size below 1.
    """
    attention_shape(shape)
    require(cache=cache, itemsize=itemsize)
    width, numbers = shape["width"], cache / itemsize
    like_q = shape["batch"] * shape["heads"] * shape["queries"] * width
    like_k = shape["batch"] * shape["kv_heads"] * shape["keys"] * width
    seen = pairs(shape) * width**2 / numbers - numbers if numbers >= width**2 else 0
    return math.ceil(itemsize * max(2 * like_q + 2 * like_k, seen))


def best_product_tile(m: int, n: int, k: int, cache: int, line: int = LINE) -> Tile:
    """Of TILE_SIZES in each direction, the tile for which `product` moves the fewest bytes.

    A tenth of the cache is left to what the formulas do not know: near a jump they are unsure. Of
    equals the largest.
    """
    require(m=m, n=n, k=k, cache=cache)
    usable = cache * 9 // 10
    tiles = {
        Tile(tall, wide, deep).within(m, n, k)
        for tall in TILE_SIZES
        for wide in TILE_SIZES
        for deep in TILE_SIZES
    }
    return min(
        tiles,
        key=lambda t: (
            product(m, n, k, usable, t, line).bytes_moved,
            -t.m * t.n * t.k,
            (t.m, t.n),
        ),
    )


def best_flash_tile(shape: Shape, sram: int, itemsize: int = 2, stages: int = 2) -> tuple[int, int]:
    """Rows and columns, powers of two from 16, for which `flash` moves the fewest bytes to SRAM.

    SRAM holds the tile of q, `stages` tiles of k and of v (one multiplied, the others on their way)
    and the scores and the output in float32. So many rows as fit, and narrow columns: traffic is
    N² κ / (2 rows), and columns only make tiles wide enough to be multiplied.

    Raises:
        TrafficError: not even 16 x 16 fits.
    """
    attention_shape(shape)
    require(sram=sram, itemsize=itemsize, stages=stages)
    width = shape["width"]
    sizes = [2**power for power in range(4, 11)]

    def taken(rows: int, columns: int) -> int:
        q = rows * width * itemsize
        return q + 2 * stages * columns * width * itemsize + rows * (columns + width) * FLOAT

    fitting = [(r, c) for r in sizes for c in sizes if taken(r, c) <= sram]
    if not fitting:
        raise TrafficError(
            f"a tile of 16 x 16 with rows of {width} numbers takes {taken(16, 16)} bytes of SRAM, "
            f"not {sram}"
        )
    return min(
        fitting,
        key=lambda tile: (
            flash(shape, tile[0], tile[1], 0, itemsize).bytes_moved,
            -tile[0],
            -tile[1],
        ),
    )
