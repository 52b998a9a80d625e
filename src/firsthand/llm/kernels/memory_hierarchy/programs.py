"""What the NumPy, PyTorch and Numba rungs do to memory: their operations over arrays, forward.

A buffer that an operation frees is taken by the next of its size, which is why few names occur: an
allocator keeps blocks of this size for itself. A product reads its right factor once for each
PRODUCT_ROWS rows of its left one, if the cache does not hold it; libraries choose about this. One
number a row (maximum, sum) and masks are left out; so is what threads do to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from firsthand.llm.kernels.attention import with_numba, with_numpy, with_torch
from firsthand.llm.kernels.ladder import Shape
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.passes import Operation, Program, Use
from firsthand.llm.kernels.memory_hierarchy.traffic import FLOAT, attention_shape, require

PRODUCT_ROWS = 128
# A minute of modelling.
MOST_OPERATIONS = 100_000
SDPA_COLUMNS = 512
Operations = Iterator[Operation]


def product(left: Use, right: list[Use], out: list[Use], *, heads: int, rows: int) -> Operation:
    """out = left · right by heads; `rows` of the left factor in each head."""
    times = -(-rows // PRODUCT_ROWS)
    swept = (Use(use.array, use.size, use.written, heads, times) for use in right)
    return (left, *swept, *out)


def numpy_attention(shape: Shape) -> Operations:
    """`with_numpy.attention`: whole scores in three buffers, ten passes over them."""
    q, k, scores = _sizes(shape)
    heads, rows = shape["batch"] * shape["kv_heads"], _rows_of_a_key_head(shape)
    a, b, c = (Use(name, scores, written=True) for name in ("a", "b", "c"))
    yield product(Use("q", q), [Use("k", k)], [a], heads=heads, rows=rows)
    yield (a,)  # the scale
    yield (_read(a), b)  # the mask
    yield (_read(b),)  # the maximum
    yield (_read(b), a)  # the difference
    yield (_read(a), c)  # the exponential
    yield (_read(c),)  # the sum
    yield (_read(c), a)  # the quotient
    yield product(_read(a), [Use("v", k)], [Use("o", q, True)], heads=heads, rows=rows)


def torch_attention(shape: Shape) -> Operations:
    """`with_torch.attention`: keys and values repeated, whole scores in three buffers."""
    q, k, scores = _sizes(shape)
    heads, rows = shape["batch"] * shape["heads"], shape["queries"]
    repeated = k * shape["heads"] // shape["kv_heads"]
    a, b, c = (Use(name, scores, written=True) for name in ("a", "b", "c"))
    keys, values = (Use(name, repeated, written=True) for name in ("keys", "values"))
    yield (Use("k", k), keys)
    yield (Use("v", k), values)
    yield product(Use("q", q), [_read(keys)], [a], heads=heads, rows=rows)
    yield (_read(a), b)  # the scale
    yield (_read(b), a)  # a copy to be masked
    yield (a,)  # the mask
    yield (_read(a), c)  # the softmax, a row at a time
    yield product(_read(c), [_read(values)], [Use("o", q, True)], heads=heads, rows=rows)


def numpy_tiled_attention(shape: Shape, block: int = with_numpy.BLOCK) -> Operations:
    """`with_numpy.tiled_attention`: tiles of all heads at once, ten passes over each."""
    group = shape["heads"] // shape["kv_heads"]
    heads = shape["batch"] * shape["kv_heads"]
    row, key = _row_bytes(shape)
    for i, tall, _ in _blocks(shape, block):
        yield (Use(f"o{i}", tall * row, True),)
    for i, tall, seen in _blocks(shape, block):
        output, mixed, shrunk = (
            Use(name, tall * row, True) for name in (f"o{i}", "mixed", "shrunk")
        )
        for j, wide in _columns(seen, shape["keys"], block):
            tile = shape["batch"] * shape["heads"] * tall * wide * FLOAT
            a, b, c = (Use(name, tile, written=True) for name in ("a", "b", "c"))
            rows = group * tall
            keys, values = [Use(f"k{j}", wide * key)], [Use(f"v{j}", wide * key)]
            yield product(Use(f"q{i}", tall * row), keys, [a], heads=heads, rows=rows)
            yield (a,)
            yield (_read(a), b)
            yield (_read(b),)
            yield (_read(b), a)
            yield (_read(a), c)
            yield (_read(c),)
            yield (_read(output), shrunk)
            yield product(_read(c), values, [mixed], heads=heads, rows=rows)
            yield (shrunk, _read(mixed))
            yield (_read(shrunk), output)
    for i, tall, _ in _blocks(shape, block):
        yield (Use(f"o{i}", tall * row), Use(f"result{i}", tall * row, True))


def torch_tiled_attention(shape: Shape, block: int = with_torch.BLOCK) -> Operations:
    """`with_torch.tiled_attention`: tiles of all heads at once, in place where that is possible."""
    group = shape["heads"] // shape["kv_heads"]
    heads = shape["batch"] * shape["heads"]
    row, key = _row_bytes(shape)
    offset = shape["keys"] - shape["queries"]
    for i, tall, seen in _blocks(shape, block):
        run, mixed, other = (Use(name, tall * row, True) for name in ("run", "mixed", "other"))
        yield (run,)
        for j, wide in _columns(seen, seen, block):
            tile = Use("a", heads * tall * wide * FLOAT, written=True)
            repeated = Use("repeated", group * wide * key, written=True)
            if group > 1:
                yield (Use(f"k{j}", wide * key), repeated)
            factor = [_read(repeated) if group > 1 else Use(f"k{j}", wide * key)]
            yield product(Use(f"q{i}", tall * row), factor, [tile], heads=heads, rows=tall)
            yield (tile,)  # the scale
            if j * block + wide - 1 > i * block + offset:
                yield (tile,)  # the mask
            yield (_read(tile),)  # the maximum
            yield (tile,)  # the difference
            yield (tile,)  # the exponential
            yield (_read(tile),)  # the sum
            yield (_read(run), other)
            if group > 1:
                yield (Use(f"v{j}", wide * key), repeated)
            factor = [_read(repeated) if group > 1 else Use(f"v{j}", wide * key)]
            yield product(_read(tile), factor, [mixed], heads=heads, rows=tall)
            yield (_read(other), _read(mixed), run)
        yield (_read(run), other)
        yield (_read(other), Use(f"o{i}", tall * row, True))


def sdpa_rows(shape: Shape) -> int:
    """Queries of a block of `with_torch.sdpa` on a CPU.

    Source: PyTorch, aten/src/ATen/native/cpu/FlashAttentionKernel.cpp, the sizes of its blocks.
    """
    return 256 if shape["queries"] >= 768 else 64 if shape["queries"] >= 192 else 32


def sdpa_attention(shape: Shape) -> Operations:
    """`with_torch.sdpa` on a CPU: a head at a time, SDPA_COLUMNS keys, scores in one buffer."""
    width = shape["width"] * FLOAT
    group = shape["heads"] // shape["kv_heads"]
    for head in range(shape["batch"] * shape["heads"]):
        for i, tall, seen in _blocks(shape, sdpa_rows(shape)):
            run = Use("run", tall * width, written=True)
            for j, wide in _columns(seen, seen, SDPA_COLUMNS):
                scores = Use("scores", tall * wide * FLOAT, written=True)
                k, v = (Use(f"{name}{head // group}.{j}", wide * width) for name in "kv")
                q = Use(f"q{head}.{i}", tall * width)
                yield product(q, [k], [scores], heads=1, rows=tall)
                yield (scores,)
                yield product(_read(scores), [v], [run], heads=1, rows=tall)
            yield (_read(run), Use(f"o{head}.{i}", tall * width, True))


def numba_attention(shape: Shape, block: int = with_numba.BLOCK) -> Operations:
    """`with_numba.attention`: blocks of queries against all that they see, softmax in place."""
    row, key = _row_bytes(shape)
    heads = shape["kv_heads"]
    rows_at_once = 4 * shape["heads"] * min(block, shape["queries"]) * shape["keys"]
    together = min(shape["batch"], max(1, with_numba.TILE_BYTES // rows_at_once))
    for start in range(0, shape["batch"], together):
        batch = min(together, shape["batch"] - start)
        share = batch / shape["batch"]
        for i, tall, seen in reversed(list(_blocks(shape, block))):
            q, stacked, mixed, o = (
                Use(name, round(tall * row * share), written)
                for name, written in (
                    (f"q{start}.{i}", False), ("stacked", True), ("mixed", True),
                    (f"o{start}.{i}", True),
                )
            )  # fmt: skip
            pieces = list(_columns(seen, seen, block))
            k, v = (
                [Use(f"{name}{start}.{j}", round(wide * key * share)) for j, wide in pieces]
                for name in "kv"
            )
            each = batch * shape["heads"] * tall * FLOAT
            scores = [Use(f"a{j}", each * wide, written=True) for j, wide in pieces]
            rows = _rows_of_a_key_head({**shape, "queries": tall})
            some = {"heads": heads * batch, "rows": rows}
            yield (q, stacked)
            yield product(_read(stacked), k, scores, **some)
            yield tuple(scores)
            yield (*product(_read(scores[0]), v, [mixed], **some), *map(_read, scores[1:]))
            yield (_read(mixed), o)


def numpy_int8(m: int, n: int, k: int) -> Operations:
    """`with_numpy.int8_matmul`: both in 32 bits, all of w again for each row of x."""
    x, w, sums = Use("x32", 4 * m * k, True), Use("w32", 4 * n * k, True), Use("a", 4 * m * n, True)
    b, c = Use("b", 4 * m * n, True), Use("c", 4 * m * n, True)
    yield (Use("x", 2 * m * k), x)
    yield (Use("w", n * k), w)
    yield (_read(x), Use(w.array, w.size, parts=1, times=m), sums)
    yield (_read(sums), b)
    yield (_read(b), c)
    yield (_read(c), sums)


def torch_int8(m: int, n: int, k: int) -> Operations:
    """`with_torch.int8_matmul`: both in 64 bits."""
    x, w, sums = Use("x64", 8 * m * k, True), Use("w64", 8 * n * k, True), Use("a", 8 * m * n, True)
    b, c, d = (Use(name, 4 * m * n, True) for name in "bcd")
    yield (Use("x", 2 * m * k), x)
    yield (Use("w", n * k), w)
    yield product(_read(x), [_read(w)], [sums], heads=1, rows=m)
    yield (_read(sums), b)
    yield (_read(b), c)
    yield (_read(c), d)


def dequantized_int8(m: int, n: int, k: int) -> Operations:
    """`with_torch.dequantized_matmul`: both cast to float32, then scaled, then multiplied."""
    x, scaled_x = Use("x32", 4 * m * k, True), Use("sx", 4 * m * k, True)
    w, scaled_w = Use("w32", 4 * n * k, True), Use("sw", 4 * n * k, True)
    yield (Use("x", 2 * m * k), x)
    yield (_read(x), scaled_x)
    yield (Use("w", n * k), w)
    yield (_read(w), scaled_w)
    yield product(_read(scaled_x), [_read(scaled_w)], [Use("y", 4 * m * n, True)], heads=1, rows=m)


ATTENTION: dict[str, Callable[[Shape], Operations]] = {
    "numpy": numpy_attention,
    "torch": torch_attention,
    "torch-sdpa": sdpa_attention,
}
TILED_ATTENTION: dict[str, tuple[Callable[[Shape, int], Operations], int]] = {
    "numpy-tiled": (numpy_tiled_attention, with_numpy.BLOCK),
    "torch-tiled": (torch_tiled_attention, with_torch.BLOCK),
    "numba": (numba_attention, with_numba.BLOCK),
}
INT8: dict[str, Callable[[int, int, int], Operations]] = {
    "numpy": numpy_int8,
    "torch": torch_int8,
    "torch-dequantized": dequantized_int8,
}


def attention_program(rung: str, shape: Shape, block: int | None = None) -> Program:
    """The operations of a rung of the attention ladder, forward, in float32.

    Args:
        rung: of ATTENTION or TILED_ATTENTION.
        shape: batch, heads, kv_heads, queries, keys, width.
        block: of a tiled rung, queries and keys of a tile; None is the rung's own.
    Raises:
        TrafficError: a shape that no attention has.
        KeyError: no such rung.
    """
    attention_shape(shape)
    if rung in ATTENTION:
        operations = ATTENTION[rung](shape)
    else:
        tiled, own = TILED_ATTENTION[rung]
        if block is not None:
            require(block=block)
        operations = tiled(shape, own if block is None else block)
    program = list(islice(operations, MOST_OPERATIONS + 1))
    if len(program) > MOST_OPERATIONS:
        raise TrafficError(
            f"{rung} would take more than {MOST_OPERATIONS} operations: choose larger tiles or a "
            "smaller shape"
        )
    return program


def int8_program(rung: str, m: int, n: int, k: int) -> Program:
    """The operations of a rung of the INT8 ladder.

    Raises:
        TrafficError: a size below 1.
        KeyError: no such rung.
    """
    require(m=m, n=n, k=k)
    return list(INT8[rung](m, n, k))


def _read(use: Use) -> Use:
    return Use(use.array, use.size)


def _sizes(shape: Shape) -> tuple[int, int, int]:
    """Bytes of q, of k and of all scores."""
    row, key = _row_bytes(shape)
    scores = shape["batch"] * shape["heads"] * shape["queries"] * shape["keys"] * FLOAT
    return shape["queries"] * row, shape["keys"] * key, scores


def _row_bytes(shape: Shape) -> tuple[int, int]:
    """Bytes of one query in all heads, and of one key."""
    each = shape["batch"] * shape["width"] * FLOAT
    return shape["heads"] * each, shape["kv_heads"] * each


def _rows_of_a_key_head(shape: Shape) -> int:
    return shape["heads"] // shape["kv_heads"] * shape["queries"]


def _blocks(shape: Shape, block: int) -> Iterator[tuple[int, int, int]]:
    """Number, queries and keys seen of each block of queries."""
    for number, top in enumerate(range(0, shape["queries"], block)):
        bottom = min(top + block, shape["queries"])
        yield number, bottom - top, bottom + shape["keys"] - shape["queries"]


def _columns(seen: int, end: int, block: int) -> Iterator[tuple[int, int]]:
    """Number and keys of each tile of the keys seen; a tile goes on to `end` at most."""
    for number, left in enumerate(range(0, seen, block)):
        yield number, min(block, end - left)
