"""A tile of the INT8 product in registers: up to eight rows of activations times a row of weights.

Both operands lie row by row along the sum, so nothing is rearranged: each sum has a vector of its
own, eight partial sums wide, and the loop goes along the rows in pieces of 16. With x86's AVX2 one
instruction, `vpmaddwd`, multiplies 16 pairs of 16-bit integers and adds neighbours. All rows of a
tile share the loaded and widened weights. A single row of activations meets eight rows of weights,
one after the other.

Numba's own loops keep one sum per loop at best; LLVM then loses the instruction among several
sums, so the tile is written in LLVM's language. Source: Goto & van de Geijn 2008, sections 4 and 5
(register blocks); Intel, "Intrinsics Guide", `_mm256_madd_epi16`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types

from firsthand.llm.kernels.compiling import emitted
from firsthand.llm.kernels.vectors import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    LONG,
    SHORT,
    intrinsic,
    lane_sums,
    load,
    spread,
    sum_loop,
    transposed,
)

# Integers of one step along the sum; rows are padded with zeros to a multiple.
STEP = 16
# Steps in one turn of the loop over a single row: 64 weights, a cache line.
UNROLLED = 4
# Sums that a tile writes, whether it has as many or not.
SUMS = LANES

_PADDWD = "llvm.x86.avx2.pmadd.wd"


def has_pair_products() -> bool:
    """Whether this processor has AVX2's `vpmaddwd`; elsewhere LLVM makes the sums as it can."""
    return bool(binding.get_host_cpu_features().get("avx2", False))


def dot_tiles(*, from_memory: bool) -> Callable[..., None]:
    """A compiled function (x, row, rows, w, column, first, last, sums, place) -> None.

    It adds Σ_k x[row + i, k] · w[column, k], for k from first to last, to sums[place, i], for each
    i below rows, which is 1 to SUMS. So a caller can cut a long sum into pieces that stay in the
    innermost cache.

    Args:
        from_memory: w is read for the first time: the next row's piece is asked for in advance.

    The function takes x as int16 (m, k), w as int8 (n, k) and sums as int32 (places, SUMS), all
    C-contiguous; last - first is a multiple of STEP and above 0.
    """

    @emitted
    def tile(
        context: Any, x: Any, row: Any, rows: Any, w: Any, column: Any, first: Any, last: Any,
        sums: Any, place: Any,
    ) -> Any:  # fmt: skip
        number = types.int64
        signature = types.void(x, number, number, w, number, number, number, sums, number)

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, row, rows, w, column, first, last, sums, place = arguments
            kinds = [signature.args[place] for place in (0, 3, 7)]
            x, w, sums, width = _pointers(target, builder, kinds, (x, w, sums))
            x = builder.gep(x, [builder.add(builder.mul(row, width), first)])
            w = builder.gep(w, [builder.add(builder.mul(column, width), first)])
            sums = builder.gep(sums, [builder.mul(place, LONG(SUMS))])
            given = [x, w, sums, width, builder.sub(last, first)]
            _call_for(builder, rows, given, from_memory)
            return target.get_dummy_value()

        return signature, generate

    return tile


def dot_rows(*, ahead: int) -> Callable[..., None]:
    """A compiled function (x, row, w, column, sums) -> None.

    It writes Σ_k x[row, k] · w[column + j, k] to sums[0, j], for each j below SUMS. One weight row
    is read after the other, as they lie in memory, and the eight vectors are summed together.

    Args:
        ahead: bytes of w to ask of memory in advance.

    The function takes arrays as that of `dot_tiles` does; k is a multiple of STEP · UNROLLED.
    """

    @emitted
    def tile(context: Any, x: Any, row: Any, w: Any, column: Any, sums: Any) -> Any:
        signature = types.void(x, types.int64, w, types.int64, sums)

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, row, w, column, sums = arguments
            kinds = [signature.args[place] for place in (0, 2, 4)]
            x, w, sums, width = _pointers(target, builder, kinds, (x, w, sums))
            x = builder.gep(x, [builder.mul(row, width)])
            w = builder.gep(w, [builder.mul(column, width)])
            given = [x, w, sums, width, width]
            builder.call(_rows_function(builder.module, ahead), given)
            return target.get_dummy_value()

        return signature, generate

    return tile


@emitted
def scale_tile(
    context: Any, sums: Any, place: Any, w_scales: Any, n: Any, x_scales: Any, row: Any, out: Any,
    i: Any, column: Any,
) -> Any:  # fmt: skip
    """out[i + a, column + b] = sums[place + b, a] · w_scales[n + b] · x_scales[row + a], a, b < 8.

    Eight weight rows and eight activation rows at a time: the sums lie the other way round, and
    turned in registers they are read and written in whole vectors.

    The function takes sums as int32 (places, SUMS), the scales as float32 vectors and out as
    float32 (rows, columns), all C-contiguous.
    """
    number = types.int64
    kinds = (sums, number, w_scales, number, x_scales, number, out, number, number)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            target.make_array(signature.args[at])(target, builder, arguments[at])
            for at in (0, 2, 4, 6)
        ]
        place, n, row, i, column = (arguments[at] for at in (1, 3, 5, 7, 8))
        sums, w_scales, x_scales, out = (array.data for array in arrays)
        width = builder.extract_value(arrays[3].shape, 1)
        x = load(builder, x_scales, row, FLOAT, LANES, 4)
        scaled = []
        for b in range(LANES):
            at = builder.mul(builder.add(place, LONG(b)), LONG(SUMS))
            found = builder.sitofp(load(builder, sums, at, INT, LANES, 4), FLOATS)
            step = builder.load(builder.gep(w_scales, [builder.add(n, LONG(b))]))
            # In the order of `panels.scaled`, which rounds after each.
            scaled.append(builder.fmul(builder.fmul(found, spread(builder, step)), x))
        for a, found in enumerate(transposed(builder, scaled)):
            at = builder.add(builder.mul(builder.add(i, LONG(a)), width), column)
            target_row = builder.bitcast(builder.gep(out, [at]), FLOATS.as_pointer())
            builder.store(found, target_row).align = 4
        return target.get_dummy_value()

    return types.void(*kinds), generate


def _pointers(target: Any, builder: Any, kinds: Any, arrays: Any) -> tuple[Any, Any, Any, Any]:
    """To the first elements of x, w and sums, and the width of a row of x and w."""
    x, w, sums = (
        target.make_array(kind)(target, builder, array)
        for kind, array in zip(kinds, arrays, strict=True)
    )
    found = (
        builder.bitcast(array.data, kind.as_pointer())
        for array, kind in ((x, SHORT), (w, BYTE), (sums, INT))
    )
    return *found, builder.extract_value(w.shape, 1)


def _call_for(builder: Any, rows: Any, given: list[Any], from_memory: bool) -> None:
    """Call the tile of so many rows, a number that is known when the code runs."""
    done = builder.append_basic_block("tiled")
    sizes = [builder.append_basic_block(f"rows_{size}") for size in range(1, SUMS + 1)]
    chosen = builder.switch(rows, sizes[-1])
    for size, block in enumerate(sizes, 1):
        chosen.add_case(LONG(size), block)
        builder.position_at_end(block)
        builder.call(_tile_function(builder.module, size, from_memory), given)
        builder.branch(done)
    builder.position_at_end(done)


def _tile_function(module: Any, rows: int, from_memory: bool) -> Any:
    def body(builder: Any, x: Any, w: Any, sums: Any, width: Any, count: Any) -> None:
        left = [builder.gep(x, [builder.mul(width, LONG(i))]) for i in range(rows)]
        totals = _loop(builder, left, w, count, 1, width if from_memory else None)
        place = builder.bitcast(sums, INTS.as_pointer())
        before = builder.load(place)
        before.align = 4
        builder.store(builder.add(before, _sums(builder, totals)), place).align = 4

    return _function(module, f"firsthand_dot_tile_{rows}_{from_memory}", body)


def _rows_function(module: Any, ahead: int) -> Any:
    def body(builder: Any, x: Any, w: Any, sums: Any, width: Any, count: Any) -> None:
        totals = []
        for j in range(SUMS):
            row = builder.gep(w, [builder.mul(width, LONG(j))])
            totals += _loop(builder, [x], row, count, UNROLLED, LONG(ahead))
        place = builder.bitcast(sums, INTS.as_pointer())
        builder.store(_sums(builder, totals), place).align = 4

    return _function(module, f"firsthand_dot_rows_{ahead}", body)


def _function(module: Any, name: str, body: Callable[..., None]) -> Any:
    """`void (int16 *x, int8 *w, int32 *sums, int64 width, int64 count)` in this module.

    A function that is not inlined: beside other code in one function, LLVM keeps some of the sums
    in memory, and the loop takes twice as long.
    """
    if name in module.globals:
        return module.globals[name]
    kinds = [kind.as_pointer() for kind in (SHORT, BYTE, INT)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*kinds, LONG, LONG]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    body(builder, *function.args)
    builder.ret_void()
    return function


def _loop(
    builder: Any, left: list[Any], w: Any, count: Any, unrolled: int, ahead: Any
) -> list[Any]:
    """The loop along the sum: a vector of partial sums for each row of x."""

    def body(k: Any, totals: list[Any]) -> list[Any]:
        for turn in range(unrolled):
            place = builder.add(k, LONG(STEP * turn))
            weights = load(builder, w, place, BYTE, STEP, 1)
            weights = builder.sext(weights, ir.VectorType(SHORT, STEP))
            totals = [
                builder.add(
                    total,
                    _pair_products(builder, load(builder, row, place, SHORT, STEP, 1), weights),
                )
                for total, row in zip(totals, left, strict=True)
            ]
        if ahead is not None:
            arguments = [BYTE.as_pointer(), INT, INT, INT]
            fetch = intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
            # To be read, kept in all caches, data.
            place = builder.gep(w, [builder.add(k, ahead)])
            builder.call(fetch, [place, INT(0), INT(3), INT(1)])
        return totals

    return sum_loop(builder, count, STEP * unrolled, INTS, len(left), body)


def _sums(builder: Any, totals: list[Any]) -> Any:
    return lane_sums(builder, totals, INTS, builder.add)


def _pair_products(builder: Any, x: Any, w: Any) -> Any:
    """x0 w0 + x1 w1, x2 w2 + x3 w3, ... in 32 bits."""
    if has_pair_products():
        multiply = intrinsic(builder, _PADDWD, INTS, [x.type, w.type])
        return builder.call(multiply, [x, w])
    nothing = ir.Constant(x.type, ir.Undefined)
    halves = []
    for first in (0, 1):
        picked = ir.Constant(INTS, list(range(first, STEP, 2)))
        pair = [builder.sext(builder.shuffle_vector(v, nothing, picked), INTS) for v in (x, w)]
        halves.append(builder.mul(*pair))
    return builder.add(*halves)
