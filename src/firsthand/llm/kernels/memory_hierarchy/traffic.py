"""Bytes between a cache and the memory behind it, in closed form, for loops over tiles.

All formulas ask one question of each array: when the loop comes back to a line, how many bytes of
other lines has it used since? A cache of M bytes that drops what was used longest ago still has
the line if these (the reuse distance) fit into M, and has to read it again if not. The distances
of a loop's lines are nearly equal, so traffic jumps where a distance passes M. Within a few
percent of a jump, and where many rows lie a power of two apart and fall into the same sets of a
cache with few ways, the formulas are wrong; the simulator knows better.

One thread, one cache to itself, lines that start at multiples of the line size.
Sources: Mattson et al. 1970, "Evaluation techniques for storage hierarchies" (distances in the
order of use); Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication",
section 4 (which tiles have to stay where).
"""

from __future__ import annotations

from dataclasses import dataclass

from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import LINE

FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes read from the outer memory, and bytes written to it."""

    read: int
    written: int

    @property
    def bytes_moved(self) -> int:
        """Both."""
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.read + other.read, self.written + other.written)

    def times(self, count: int) -> Traffic:
        """The same so many times over."""
        return Traffic(self.read * count, self.written * count)


def require(**sizes: int) -> None:
    """Raise a TrafficError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise TrafficError(f"{name} is at least 1, not {size}")


def flash(
    shape: Shape, rows: int, columns: int, cache: int, itemsize: int = 2, line: int = LINE
) -> Traffic:
    """Causal attention whose scores never leave a program's own memory: the Triton rung, forward.

    A program owns `rows` queries of one head and goes over the keys and values that they see,
    `columns` at a time; the programs of a head run one after the other, the last rows first, then
    those of the next head, and heads that share keys are neighbours. Outputs are written whole,
    without reading them. With κ bytes for a key and its value, and seen(i) keys for tile i of rows:

    - q is read once and o, and a float32 for each row, are written once;
    - tile i - 1 finds its keys in the cache if seen(i) κ and the tiles of q and o fit; if not it
      reads seen(i - 1) κ bytes;
    - the next head of a group finds the keys that tile i was the last to use if seen(i) κ and the
      tiles of q and o since then fit.

    With no cache, or one below all of this, k and v are read Σ seen(i) κ ≈ N² κ / (2 rows) bytes a
    head: with rows = M / (4 d) numbers of SRAM that is the Θ(N² d² / M) of Dao et al. 2022,
    "FlashAttention", theorem 2. A GPU runs many programs at once, which share what they read at the
    same moment: the L2 cache then does a little better than this order.

    Args:
        shape: batch, heads, kv_heads, queries, keys, width.
        rows, columns: of a tile.
        cache: bytes; 0 for the traffic of the SRAM that the tiles lie in.
        itemsize: bytes of a number.
        line: bytes.
    Raises:
        TrafficError: a size below 1, a negative cache, more queries than keys.
    """
    attention_shape(shape)
    require(rows=rows, columns=columns, itemsize=itemsize, cache=cache + 1)
    key = 2 * shape["width"] * itemsize
    tile = min(rows, shape["queries"]) * (key + FLOAT)
    seen = keys_seen(shape, rows, columns)
    within = sum(seen[i - 1] * key for i in range(1, len(seen)) if seen[i] * key + tile > cache)
    between, before = 0, 0
    for i, here in enumerate(seen):
        if here * key + (i + 1) * tile > cache:
            between += (here - before) * key
        before = here
    group = shape["heads"] // shape["kv_heads"]
    kv = (
        shape["batch"]
        * shape["kv_heads"]
        * (seen[-1] * key + group * within + (group - 1) * between)
    )
    q_rows = shape["batch"] * shape["heads"] * shape["queries"]
    q = q_rows * shape["width"] * itemsize
    return Traffic(q + kv, q + q_rows * FLOAT)


def keys_seen(shape: Shape, rows: int, columns: int) -> list[int]:
    """Keys that each tile of rows loads: to the end of the tile that its last query sees."""
    queries, keys = shape["queries"], shape["keys"]
    ends = (min(top + rows, queries) + keys - queries for top in range(0, queries, rows))
    return [min(keys, -(-end // columns) * columns) for end in ends]


def attention_shape(shape: Shape) -> None:
    """Raises:
    TrafficError: a size is missing or below 1, heads do not share keys evenly, or a query would
        see no key.
    """
    names = ("batch", "heads", "kv_heads", "queries", "keys", "width")
    missing = [name for name in names if name not in shape]
    if missing:
        raise TrafficError(f"the shape of attention lacks {', '.join(missing)}")
    require(**{name: shape[name] for name in names})
    if shape["heads"] % shape["kv_heads"]:
        raise TrafficError(
            f"{shape['kv_heads']} key heads do not serve {shape['heads']} heads evenly"
        )
    if shape["queries"] > shape["keys"]:
        raise TrafficError(f"{shape['queries']} queries are more than {shape['keys']} keys")
