"""What the parts of the stack keep and use, forward and backward, over values without numbers.

Each function follows the code of a part line by line, as far as that code makes arrays, for the
rungs that training takes: compiled loops in float32 on a CPU, PyTorch's own under autocast there,
Triton's kernels on a GPU. A name that is reassigned in a loop is so here, because PyTorch too holds
the old array until the new one is made. Left out: scalars, and scratch within PyTorch's kernels
(`allocations` would show it; of size are only the buffers of its attention on a CPU, one for each
thread).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from firsthand.llm.audit.lifetimes import Gradients, Layout, Tape, Value

FLOAT, HALF, LONG = 4, 2, 8
# As `kernels.norms`: rows whose share of a weight's gradient is summed by itself, and programs.
NORM_BLOCK, NORM_TILE, NORM_PROGRAMS = 64, 1 << 12, 1 << 9


@dataclass
class Pass:
    """One forward and backward pass.

    Attributes:
        tape: what it is recorded on.
        rows, length: of the batch.
        autocast: products run in half precision.
        device: "cpu" or "cuda".
        casts: copies of weights in half precision, which autocast keeps until its end.
    """

    tape: Tape
    rows: int
    length: int
    autocast: bool
    device: Literal["cpu", "cuda"]
    casts: dict[int, Value] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length

    @property
    def compiled(self) -> bool:
        """Whether the compiled loops run."""
        return self.device == "cpu" and not self.autocast

    def new(self, name: str, elements: int, size: int = FLOAT, layout: Layout = "tokens") -> Value:
        """What an operation of the forward pass makes."""
        return self.tape.new(name, elements, size, layout)

    def back(self, name: str, elements: int, size: int = FLOAT, layout: Layout = "tokens") -> Value:
        """What an operation of the backward pass makes."""
        return self.tape.timeline.value(name, elements, size, category="workspace", layout=layout)


def cast(p: Pass, x: Value, size: int) -> Value:
    """x in elements of another size; back, its gradient in the size of x."""
    if x.size == size:
        return x
    result = p.new("cast", x.elements, size, x.layout)
    elements, before = x.elements, x.size

    def run(g: Value) -> Gradients:
        return (p.back("gradient, cast back", elements, before, g.layout),)

    p.tape.link([x], [result], run)
    return result


def cast_weight(p: Pass, weight: Value) -> Value:
    """Autocast's copy of a weight: made at its first use and kept until autocast ends."""
    if not p.autocast:
        return weight
    if id(weight) not in p.casts:
        with p.tape.timeline.within(category="casts"):
            p.casts[id(weight)] = cast(p, weight, HALF)
    return p.casts[id(weight)]


def add(p: Pass, x: Value, y: Value) -> Value:
    """x + y, with y of x's elements or repeated over the rows."""
    result = p.new("sum", x.elements, max(x.size, y.size))
    repeated, narrow, count = y.elements < x.elements, y.size < result.size, y.elements

    def run(g: Value) -> Gradients:
        if repeated:
            return g, p.back("gradient, summed", count)
        return g, p.back("gradient, cast", count, HALF) if narrow else g

    p.tape.link([x, y], [result], run)
    return result


def linear(p: Pass, x: Value, weight: Value, bias: Value | None, outputs: int) -> Value:
    """x Wᵀ + b; keeps x and W."""
    weight, bias = cast_weight(p, weight), None if bias is None else cast_weight(p, bias)
    if p.autocast:
        x = cast(p, x, HALF)
    p.tape.saves()
    tokens, columns = p.tokens, weight.elements // outputs
    result = p.new("product", tokens * outputs, x.size)
    kept = x.detached, weight.detached
    size, wanted = x.size, x.node is not None

    def run(g: Value) -> Gradients:
        dweight = p.back("gradient of a matrix", kept[1].elements, size)
        dx = p.back("gradient of a product's input", tokens * columns, size) if wanted else None
        dbias = p.back("gradient of a bias", outputs, size) if biased else None
        return (dx, dweight, dbias)[: 3 if biased else 2]

    biased = bias is not None
    p.tape.link([x, weight] if bias is None else [x, weight, bias], [result], run)
    return result


def embedding(p: Pass, weight: Value, tokens: int, width: int) -> Value:
    """Rows of the weight; the gradient has its whole size."""
    p.tape.saves()
    result = p.new("embedding", tokens * width)
    count = weight.elements

    def run(g: Value) -> Gradients:
        return (p.back("gradient of the embedding", count),)

    p.tape.link([weight], [result], run)
    return result


def rms_norm(p: Pass, x: Value, weight: Value, width: int) -> Value:
    """`kernels.norms`: keeps x and one number a row; composed of operations under autocast."""
    if p.device == "cpu" and p.autocast:
        return _composed_rms_norm(p, x, weight, width)
    rows = x.elements // width
    result = p.new("normed", x.elements, x.size, x.layout)
    roots = p.new("1 / root mean square", rows)
    p.tape.saves()
    kept, layout, size = (x.detached, roots), x.layout, x.size

    def run(g: Value) -> Gradients:
        dx = p.back("gradient of a norm's input", kept[0].elements, size, layout)
        blocks = -(-rows // NORM_BLOCK)
        if p.device == "cuda":
            tile = max(1, NORM_TILE // (1 << (width - 1).bit_length()))
            blocks = min(NORM_PROGRAMS, -(-rows // tile))
        partial = p.back("shares of a norm's gradient", blocks * width)
        dweight = p.back("gradient of a norm", width)
        del partial
        return dx, dweight

    p.tape.link([x, weight], [result], run)
    return result


def layer_norm(p: Pass, x: Value, weight: Value, bias: Value | None, width: int) -> Value:
    """PyTorch's kernel: keeps x, a mean and a deviation for each row."""
    rows = x.elements // width
    result = p.new("normed", x.elements, x.size)
    kept = x.detached, p.new("means", rows), p.new("1 / deviations", rows)
    p.tape.saves()
    size = x.size

    def run(g: Value) -> Gradients:
        dx = p.back("gradient of a norm's input", kept[0].elements, size)
        dweight = p.back("gradient of a norm", width)
        return (dx, dweight, p.back("gradient of a bias", width))[: 3 if biased else 2]

    biased = bias is not None
    p.tape.link([x, weight] if bias is None else [x, weight, bias], [result], run)
    return result


def _composed_rms_norm(p: Pass, x: Value, weight: Value, width: int) -> Value:
    """`functional.rms_norm` as PyTorch composes it: x² -> mean -> root -> x r -> x r w."""
    narrow, layout = x.size, x.layout
    x = cast(p, x, FLOAT)
    count, rows = x.elements, x.elements // width
    p.tape.saves()
    squares = p.new("squares", count, layout=layout)
    of_x = x.detached

    def run_square(g: Value) -> Gradients:
        power = p.back("x", count)
        twice = p.back("2 x", count)
        product = p.back("gradient by the squares", count, layout=layout)
        del power, twice
        assert of_x is not None
        return (product,)

    p.tape.link([x], [squares], run_square)
    mean = p.new("mean square", rows)

    def run_mean(g: Value) -> Gradients:
        return (p.back("gradient of the squares", count),)

    p.tape.link([squares], [mean], run_mean)
    del squares
    root = p.new("1 / root mean square", rows)
    p.tape.saves()
    of_root = root.detached

    def run_root(g: Value) -> Gradients:
        return (p.back("gradient of the mean", of_root.elements),)

    p.tape.link([mean], [root], run_root)
    del mean
    scaled = _product(p, x, root, layout)
    result = _product(p, scaled, weight, layout)
    if narrow == FLOAT:
        return result
    return cast(p, contiguous(p, result), narrow)


def _product(p: Pass, x: Value, y: Value, layout: Layout) -> Value:
    """x ∘ y, y repeated; both are kept."""
    p.tape.saves()
    result = p.new("product by elements", x.elements, layout=layout)
    kept = x.detached, y.detached

    def run(g: Value) -> Gradients:
        dx = p.back("gradient by elements", kept[0].elements, layout=layout)
        whole = p.back("gradient before its sum", kept[0].elements)
        dy = p.back("gradient, summed", kept[1].elements)
        del whole
        return dx, dy

    p.tape.link([x, y], [result], run)
    return result


def contiguous(p: Pass, x: Value, *, back: bool = False) -> Value:
    """Heads without gaps: a copy unless they lie so."""
    if x.layout == "heads":
        return x
    if back:
        return p.back("copy of heads", x.elements, x.size, "heads")
    result = p.new("copy of heads", x.elements, x.size, "heads")

    def run(g: Value) -> Gradients:
        return (g,)

    p.tape.link([x], [result], run)
    return result


def split_qkv(p: Pass, x: Value, heads: Sequence[int], width: int) -> list[Value]:
    """Queries, keys and values as heads: views of x. Back, copies by token, then joined."""
    counts = [p.tokens * count * width for count in heads]
    total, size = x.elements, x.size
    parts = [x.seen_as(count) for count in counts]

    def run(*gradients: Value) -> Gradients:
        return (p.back("gradient of queries, keys and values", total, size),)

    p.tape.link([x], parts, run)
    return [_as_heads(p, part, count) for part, count in zip(parts, heads, strict=True)]


def _as_heads(p: Pass, x: Value, heads: int) -> Value:
    result = x.seen_as(x.elements)
    elements, size = x.elements, x.size

    def run(g: Value) -> Gradients:
        if g.layout != "heads" or heads == 1:
            return (g,)
        return (p.back("heads, by token", elements, size),)

    p.tape.link([x], [result], run)
    return result


def rotated(p: Pass, x: Value, width: int, pairing: str) -> Value:
    """RoPE: one new array; keeps the angles alone."""
    if p.device == "cpu" and p.autocast:
        turn = _rotated_half if pairing == "half" else _rotated_as_complex
        return turn(p, x, width)
    result = p.new("rotated heads", x.elements, x.size, "heads")
    p.tape.saves()
    size, angles = x.size, p.length * width // 2

    def run(g: Value) -> Gradients:
        # Kernels on a GPU take the sign as a number.
        negative = p.back("negative sines", angles) if p.device == "cpu" else None
        turned = p.back("rotated gradient", g.elements, size, "heads")
        if g.layout == "turned":
            contiguous(p, g, back=True)
        del negative
        return (turned,)

    p.tape.link([x], [result], run)
    return result


def _rotated_half(p: Pass, x: Value, width: int) -> Value:
    """`kernels.rope.with_torch.fused_rotate_half`."""
    size, layout, half = x.size, x.layout, p.length * width // 2
    kept = [p.new("angles, cast", half, size) for _ in range(2)]
    both = p.new("cosines, twice", 2 * half, size)
    result = p.new("rotated heads", x.elements, size, layout)
    del both
    p.tape.saves()

    def run(g: Value) -> Gradients:
        assert kept
        both = p.back("cosines, twice", 2 * half, size)
        turned = p.back("rotated gradient", g.elements, size, g.layout)
        del both
        return (turned,)

    p.tape.link([x], [result], run)
    return result


def _rotated_as_complex(p: Pass, x: Value, width: int) -> Value:
    """`kernels.rope.with_torch.complex_rotate_interleaved`: in float32, times kept turns."""
    size, layout = x.size, x.layout
    x = cast(p, x, FLOAT)
    turns = p.new("turns", p.length * width)
    p.tape.saves()
    result = p.new("turned pairs", x.elements, layout=layout)
    kept = turns.detached
    del turns

    def run(g: Value) -> Gradients:
        # As pairs of real and imaginary parts they must lie without gaps.
        pairs = contiguous(p, g, back=True)
        against = p.back("turns back", kept.elements)
        turned = p.back("gradient, turned back", pairs.elements, layout=pairs.layout)
        del against
        return (turned,)

    p.tape.link([x], [result], run)
    return cast(p, result, size)


def feed_forward(
    p: Pass,
    x: Value,
    *,
    kind: str,
    up: tuple[Value, Value | None],
    down: tuple[Value, Value | None],
    hidden: int,
    width: int,
) -> Value:
    """Product, activation, product; `model.recomputed` keeps no activated array where it can."""
    factor = 2 if kind == "swiglu" else 1
    u = linear(p, x, *up, factor * hidden)
    if down[1] is not None or p.autocast:
        return linear(p, activation(p, u, kind, hidden), *down, width)
    weight, tokens, weight_elements = down[0], p.tokens, down[0].elements
    result = _forward_of_product(p, u, kind, hidden, width)
    kept = u.detached, weight.detached

    def run(g: Value) -> Gradients:
        again = p.tape.leaf(kept[0])
        activated = activation(p, again, kind, hidden)
        dweight = p.back("gradient of a matrix", weight_elements)
        dactivated = p.back("gradient of the activated", tokens * hidden)
        root = activated.node
        assert root is not None
        p.tape.backward(root, [dactivated])
        return getattr(again.node, "gradient", None), dweight

    p.tape.link([u, weight], [result], run)
    return result


def _forward_of_product(p: Pass, u: Value, kind: str, hidden: int, width: int) -> Value:
    """Nothing is recorded in here; the operation keeps its input and the weight at its end."""
    keeping, p.tape.keeping = p.tape.keeping, False
    activated = activation(p, u.detached, kind, hidden, recorded=False)
    result = p.new("product", p.tokens * width)
    del activated
    p.tape.keeping = keeping
    p.tape.saves()
    return result


def activation(p: Pass, u: Value, kind: str, hidden: int, *, recorded: bool = True) -> Value:
    """SwiGLU and GELU keep their input, ReLU² its positive part."""
    count, size = p.tokens * hidden, u.size
    if kind == "relu2":
        positive = p.new("positive part", count, size)
        kept = positive.detached
        del positive
    else:
        kept = u.detached
    result = p.new("activated", count, size)
    if recorded:
        p.tape.saves()

    def run(g: Value) -> Gradients:
        gradient = p.back("gradient of an activation's input", of_u, size)
        if kind == "swiglu" and not (p.compiled or p.device == "cuda"):
            # `kernels.swiglu.with_torch`: silu(gate), then cotangent · up and silu's gradient.
            silu = p.back("silu of the gate", count, size)
            del silu
            product = p.back("cotangent of silu", count, size)
            dgate = p.back("gradient of the gate", count, size)
            del product, dgate
        assert kept is not None
        return (gradient,)

    of_u = u.elements
    p.tape.link([u], [result], run)
    return result


def head_norm(p: Pass, x: Value, weight: Value, width: int) -> Value:
    """RMSNorm of each head; the compiled rungs copy heads that lie by token."""
    if not (p.device == "cpu" and p.autocast):
        x = contiguous(p, x)
    return rms_norm(p, x, weight, width)
