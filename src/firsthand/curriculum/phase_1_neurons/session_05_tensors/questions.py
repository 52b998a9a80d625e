"""Session 1.5, the steps that are answered by typing."""

import inspect
from collections.abc import Mapping, Sequence

import numpy as np

from firsthand.course.steps import (
    Defend,
    Generator,
    Line,
    Measure,
    Order,
    Parameters,
    Predict,
    Scenario,
    Trace,
    Worked,
)
from firsthand.llm.foundations.memory import row_major_strides
from firsthand.llm.foundations.tensor_gradients import unbroadcast

FLOAT64_BYTES = np.dtype(np.float64).itemsize
CACHE_LINE_BYTES = 64  # of x86-64 and most Arm cores; Drepper 2007, section 3.3

# --------------------------------------------------------------------------- trace-broadcast


def draw_broadcast(generator: Generator, small: bool) -> Worked:
    """A column plus a row; small: one number plus a row."""
    rows, columns = (1, 2) if small else ((2, 3), (3, 2))[int(generator.integers(2))]
    left_shape = (1,) if small else (rows, 1)
    shape = np.broadcast_shapes(left_shape, (columns,))
    gradient = generator.integers(1, 10, size=shape) * generator.choice([-1, 1], size=shape)
    full = gradient.astype(np.float64)
    left = unbroadcast(full, left_shape).ravel()
    right = unbroadcast(full, (columns,)).ravel()
    grid = gradient.reshape(rows, columns)
    names = [f"a{i + 1}" for i in range(rows)] + [f"b{j + 1}" for j in range(columns)]

    def blanks(values: Sequence[float]) -> dict[str, float | int | tuple[int, ...]]:
        return {
            "shape": tuple(int(length) for length in shape),
            **{name: int(value) for name, value in zip(names, values, strict=True)},
        }

    def mean_blanks() -> dict[str, float | int | tuple[int, ...]]:
        means = [*(left / columns), *(right / rows)]
        return {"shape": shape, **{n: float(v) for n, v in zip(names, means, strict=True)}}

    def added(values: np.ndarray) -> str:
        terms = " + ".join(f"({value})" if value < 0 else str(value) for value in values)
        return str(values[0]) if len(values) == 1 else f"{terms} = {values.sum()}"

    working = [f"shape: {left_shape} and {(columns,)} stretch to {shape}"]
    working += [f"a{i + 1} = {added(grid[i])}" for i in range(rows)]
    working += [f"b{j + 1} = {added(grid[:, j])}" for j in range(columns)]
    total = int(gradient.sum())
    return Worked(
        given=(
            f"Y = a + b, where a has the shape {left_shape} and b the shape {(columns,)}. "
            f"The loss sends G = dL/dY = {gradient.tolist()} back. Give the shape of Y, the "
            f"entries of dL/da ({', '.join(names[:rows])}) and those of dL/db "
            f"({', '.join(names[rows:])}), from the first to the last."
        ),
        blanks=blanks([*left, *right]),
        working=tuple(working),
        wrong={
            "first-copy-only": blanks([*grid[:, 0], *grid[0]]),
            "mean-over-copies": mean_blanks(),
            "total-for-each": blanks([total] * len(names)),
        },
    )


trace_broadcast = Trace(
    id="trace-broadcast",
    draw=draw_broadcast,
    hints=(
        "Align the two shapes at their right ends; an axis of length 1 or a missing one stretches.",
        "Mark every entry of Y in which a1 stands. Each of them sends its gradient to a1.",
    ),
)

# --------------------------------------------------------------------------- order-matmul

order_matmul = Order(
    id="order-matmul",
    ask=(
        "A has the shape (r, k), B the shape (k, c), and L depends on A only through Y = A B. "
        "Put the lines that lead to dL/dA in an order in which each uses only what stands above "
        "it, and leave out the lines that are wrong."
    ),
    lines=(
        Line(id="product", text="Y_ij = sum over k of A_ik B_kj"),
        Line(id="upstream", text="G_ij = dL/dY_ij is known, shape (r, c)"),
        Line(
            id="chain",
            text="dL/dA_mk = sum over all i, j of G_ij dY_ij/dA_mk",
            needs=("product", "upstream"),
        ),
        Line(
            id="local",
            text="dY_ij/dA_mk = B_kj where i = m, and 0 in every other row",
            needs=("product",),
        ),
        Line(
            id="insert",
            text="dL/dA_mk = sum over j of G_mj B_kj",
            needs=("chain", "local"),
        ),
        Line(
            id="transpose",
            text="B_kj = (B^T)_jk, so the sum is the entry (m, k) of G B^T",
            needs=("insert",),
        ),
        Line(
            id="shapes",
            text="dL/dA = G B^T: (r, c) times (c, k) gives (r, k), the shape of A",
            needs=("transpose",),
        ),
    ),
    wrong={
        "every-row-feels": "dY_ij/dA_mk = B_kj for every row i",
        "indices-swapped": "dL/dA_mk = sum over j of G_mj B_jk",
        "product-from-the-left": "dL/dA = B^T G: (c, k) times (r, c) gives (r, k)",
    },
    hints=(
        "Two lines need nothing: what Y is, and what comes back from the loss.",
        "An entry of A in row m stands only in the sums of one row of Y.",
        "Check each product of shapes: its inner lengths must be equal.",
    ),
)

# --------------------------------------------------------------------------- view-strides

CYCLES = ((1, 2, 0), (2, 0, 1))  # the orders of three axes that are not their own inverse


def draw_view(generator: Generator, small: bool) -> Parameters:
    lengths = np.arange(2, 5) if small else np.arange(5, 40)
    shape = generator.choice(lengths, size=3, replace=False)
    axes = CYCLES[int(generator.integers(2))]
    return {"shape": tuple(int(length) for length in shape), "axes": axes}


def view_strides_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of the view that `transpose(axes)` gives of a row-major float64 array."""
    return tuple(row_major_strides(shape)[axis] for axis in axes)


def view_working(shape: tuple[int, ...], axes: tuple[int, ...]) -> Sequence[str]:
    strides = row_major_strides(shape)
    return (
        f"before: shape {shape}, strides {strides}",
        f"new axis 0 is old axis {axes[0]}, with the stride {strides[axes[0]]}",
        f"new axis 1 is old axis {axes[1]}, with the stride {strides[axes[1]]}",
        f"new axis 2 is old axis {axes[2]}, with the stride {strides[axes[2]]}",
        f"strides of the view = {view_strides_of(shape, axes)}",
    )


view_strides = Predict(
    id="view-strides",
    draw=draw_view,
    ask=(
        "x is a row-major float64 array of shape {shape}. Which strides, in bytes, has "
        "`x.transpose{axes}`? Answer with one stride an axis, as for a shape."
    ),
    answer=view_strides_of,
    working=view_working,
    hints=(
        "First the strides of x itself, from the last axis to the first.",
        "Entry i of the order names the old axis that becomes new axis i.",
    ),
)

# --------------------------------------------------------------------------- measure-strides


def column_ratio(rows: int = 2**21) -> float:
    """Seconds for the sum of one column over seconds for the sum of the whole block."""
    import statistics
    import time

    import numpy as np

    block = np.ones((rows, 8))
    column, everything = block[:, 0], block.reshape(-1)

    def seconds(values: np.ndarray) -> float:
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            values.sum()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    return seconds(column) / seconds(everything)


# With rows of one cache line this is more than nearly every cache holds.
ROWS: int = inspect.signature(column_ratio).parameters["rows"].default

measure_strides = Measure(
    id="measure-strides",
    ask=(
        "Save this as a file, add the line `print(column_ratio())`, run it, and report the ratio "
        f"with two decimals.\n\n```python\n{inspect.getsource(column_ratio)}```"
    ),
    experiment=column_ratio,
    within=2.0,
    working=(
        f"a row of the block = 8 x {FLOAT64_BYTES} bytes = {CACHE_LINE_BYTES} bytes, one line",
        f"the sum of the block moves {ROWS} lines x {CACHE_LINE_BYTES} bytes "
        f"= {ROWS * CACHE_LINE_BYTES} bytes",
        f"the sum of the column moves one line a row: {ROWS} x {CACHE_LINE_BYTES} "
        f"= {ROWS * CACHE_LINE_BYTES} bytes",
        f"ratio of the bytes moved = {ROWS * CACHE_LINE_BYTES} / {ROWS * CACHE_LINE_BYTES} "
        f"= {ROWS * CACHE_LINE_BYTES // (ROWS * CACHE_LINE_BYTES)}",
    ),
    hints=(
        "Close what else keeps the memory busy, and run it twice: the two runs should agree.",
        "The result is a quotient of two times, so it has no unit.",
    ),
)

# --------------------------------------------------------------------------- close-views

Figures = dict[str, float]


def layout_figures(
    elements: int, passes: int, gather: int = CACHE_LINE_BYTES, copying: bool = True
) -> dict[str, Figures]:
    """Extra memory and bytes moved for each choice.

    gather: bytes moved for one element that is read across the rows. copying: whether the making
    of the copy counts: one gathered read and one dense write for each element.
    """
    dense = FLOAT64_BYTES
    making = (gather + dense) if copying else 0
    view = {"extra": 0.0, "moved": float(elements * passes * gather)}
    copy = {
        "extra": float(elements * dense),
        "moved": float(elements * (making + passes * dense)),
    }
    half = {name: (view[name] + copy[name]) / 2 for name in view}
    return {"view": view, "copy": copy, "half": half}


def draw_layout(generator: Generator, small: bool) -> Scenario:
    if small:
        rows, columns = (int(n) for n in generator.choice([4, 6, 10], size=2, replace=False))
        passes = int(generator.integers(2, 4))
    else:
        rows, columns = (int(n) for n in generator.choice(np.arange(400, 2000, 20), size=2))
        passes = int(generator.integers(1, 11))
    elements = rows * columns
    figures = layout_figures(elements, passes)
    share = float(generator.choice([0.3, 0.7, 1.2]))
    budget = int(share * figures["copy"]["extra"])
    fitting = [name for name in figures if figures[name]["extra"] <= budget]
    best = min(fitting, key=lambda name: figures[name]["moved"])
    making = CACHE_LINE_BYTES + FLOAT64_BYTES
    wrong: Mapping[str, Mapping[str, Figures]] = {
        "copy-for-free": {
            name: layout_figures(elements, passes, copying=False)[name] for name in ("copy", "half")
        },
        "gather-counted-dense": layout_figures(elements, passes, gather=FLOAT64_BYTES),
        "view-takes-memory": {
            name: {**figures[name], "extra": float(elements * FLOAT64_BYTES)}
            for name in ("view", "half")
        },
    }
    chosen = figures[best]
    lines = {
        "view": (
            "extra = no new elements = 0",
            f"moved = {elements} elements x {passes} x {CACHE_LINE_BYTES} = {chosen['moved']:.0f}",
        ),
        "copy": (
            f"extra = {elements} elements x {FLOAT64_BYTES} = {chosen['extra']:.0f}",
            f"making the copy = {elements} x ({CACHE_LINE_BYTES} + {FLOAT64_BYTES}) "
            f"= {elements * making}",
            f"passes = {passes} x {elements} x {FLOAT64_BYTES} "
            f"= {passes * elements * FLOAT64_BYTES}",
            f"moved = {elements * making} + {passes * elements * FLOAT64_BYTES} "
            f"= {chosen['moved']:.0f}",
        ),
        "half": (
            f"extra = {elements} / 2 x {FLOAT64_BYTES} = {chosen['extra']:.0f}",
            f"copied half = {elements} / 2 x ({making} + {passes} x {FLOAT64_BYTES}) "
            f"= {figures['copy']['moved'] / 2:.0f}",
            f"view half = {elements} / 2 x {passes} x {CACHE_LINE_BYTES} "
            f"= {figures['view']['moved'] / 2:.0f}",
            f"moved = {figures['copy']['moved'] / 2:.0f} + {figures['view']['moved'] / 2:.0f} "
            f"= {chosen['moved']:.0f}",
        ),
    }
    return Scenario(
        text=(
            f"A row-major float64 matrix of {rows} rows and {columns} columns is read whole, "
            f"column by column, in {passes} {'pass' if passes == 1 else 'passes'}; no cache keeps "
            "any of it from one pass to the next. Count like this: an "
            f"element read along a column moves one cache line of {CACHE_LINE_BYTES} bytes; an "
            f"element read or written in the order of memory moves {FLOAT64_BYTES} bytes. The "
            f"program has {budget} bytes left for new arrays. Choose what moves the fewest bytes "
            "within this budget. State the bytes of new arrays (extra) and the bytes moved in all, "
            "the making of any copy included (moved)."
        ),
        choices={
            "view": "read every pass through the transposed view",
            "copy": "copy the transpose once into row-major order, read every pass from the copy",
            "half": "the same as copy for half of the elements, the same as view for the others",
        },
        figures=figures,
        best=(best,),
        units={"extra": "bytes", "moved": "bytes"},
        budget={"extra": float(budget)},
        working=lines[best],
        wrong=wrong,
    )


close_views = Defend(
    id="close-views",
    draw=draw_layout,
    closes="views",
    hints=(
        "Making a copy reads each element once across the rows and writes it once in order.",
        "Work out both figures for all three, strike what is over the budget, then compare.",
    ),
)
