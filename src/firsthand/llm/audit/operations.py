"""FLOPs and bytes of each operation of a model: forward, backward, and of the optimizer.

A multiplication and an addition are two FLOPs. Products are counted exactly, as
`torch.utils.flop_counter` counts them; of the rest each arithmetic operation is one, and so are an
exponential and a root. Bytes are what an operation must move if it finds nothing in a cache and
keeps all of its scratch there: every operand read once, every result written once. FLOPs over bytes
is the arithmetic intensity, and the roofline says which side of it bounds the time.
Source: Williams, Waterman & Patterson 2009, "Roofline".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.optimizer_memory import matrix_heights, muon_names, nearest_block
from firsthand.llm.audit.records import DeviceCeilings
from firsthand.llm.kernels.attention.with_numba import BLOCK
from firsthand.llm.model.config import ModelConfig, parameter_counts
from firsthand.llm.quantization.shapes import matrix_shapes
from firsthand.llm.training.config import OptimizerSettings

FLOAT, TOKEN = 4.0, 8.0
# Arithmetic of one element: squares, their sum, times the root, times the weight; LayerNorm also
# takes the mean, and the difference from it.
_NORM = {"rms": 4, "layer": 6}
# Of one hidden feature: σ is an exponential, an addition and a division.
_ACTIVATION = {"swiglu": 5, "gelu": 8, "relu2": 2}
_ACTIVATION_BACK = {"swiglu": 10, "gelu": 14, "relu2": 2}
# Of one score: scale, less the maximum, exponential, sum, division. Back: p again, dp - Δ, times
# p, scale.
_SOFTMAX, _SOFTMAX_BACK = 5, 6
# Of one element in a pair that RoPE turns.
_ROPE = 3
# AdamW: both moments, the root, the quotient, the decay, the difference.
_ADAMW = 14
# In memory: p, g, m and v are read; p, m and v are written.
_ADAMW_READ, _ADAMW_WRITTEN = 16, 12
_PRODUCT = re.compile("queries, keys, values|attention|feed-forward|logits|newton-schulz")


@dataclass(frozen=True)
class Operation:
    """One of `count` equal operations.

    Attributes:
        name: "queries, keys, values"; of a backward pass with ", by input" or ", by weight" behind.
        count: how many.
        flops: of one.
        read, written: bytes of one.
    """

    name: str
    count: int
    flops: float
    read: float
    written: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte; 0 of what moves nothing."""
        moved = self.read + self.written
        return self.flops / moved if moved else 0.0

    @property
    def is_product(self) -> bool:
        """Whether it is a product of matrices."""
        return _PRODUCT.match(self.name) is not None


def totals(operations: Iterable[Operation]) -> tuple[float, float, float]:
    """FLOPs, bytes read and bytes written of all."""
    all_ = list(operations)
    return (
        sum(each.count * each.flops for each in all_),
        sum(each.count * each.read for each in all_),
        sum(each.count * each.written for each in all_),
    )


def side(
    operation: Operation, ceilings: DeviceCeilings, dtype: str = "float32"
) -> Literal["memory", "compute"]:
    """What bounds the operation on a device: its bytes from memory or its arithmetic.

    Raises:
        AuditError: the device was not measured in that type.
    """
    if dtype not in ceilings.flop_rates:
        known = ", ".join(ceilings.flop_rates) or "nothing"
        raise AuditError(f"{ceilings.name} was measured in {known}; not in {dtype}")
    whole = ceilings.bandwidths[-1].working_set
    moving = operation.read / ceilings.read_bandwidth(whole)
    moving += operation.written / ceilings.write_bandwidth(whole)
    return "memory" if operation.flops / ceilings.flop_rates[dtype] < moving else "compute"


def seen_pairs(config: ModelConfig, length: int, past: int = 0, block: int = 1) -> int:
    """Pairs of a query and a key whose score is computed for one text and one head.

    With ALiBi or a window that is narrower than the text PyTorch computes all of them and hides
    some; else queries are taken in blocks that see the keys up to their last query.

    Args:
        length: queries.
        past: keys before the first of them.
        block: 1 is each query by itself: no pair too many.
    """
    narrow = 0 < config.window < past + length
    if length == 1:
        return min(past + 1, config.window) if narrow else past + 1
    if narrow or config.positions == "alibi":
        return length * (past + length)
    ends = range(length, 0, -block)
    return sum((end - max(0, end - block)) * (past + end) for end in ends)


@dataclass(frozen=True)
class _Sizes:
    """What formulas of operations are made of: bytes of a number, tokens, pairs."""

    config: ModelConfig
    rows: int
    length: int
    past: int
    weight: float
    each: float
    cached: float
    pairs: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def products(self) -> list[tuple[str, int, int]]:
        """Name, rows and columns of the matrices of a block."""
        config = self.config
        up = config.hidden_width * (2 if config.feed_forward == "swiglu" else 1)
        return [
            ("queries, keys, values", sum(config.qkv_rows), config.d_model),
            ("attention's output", config.d_model, config.qkv_rows[0]),
            ("feed-forward up", up, config.d_model),
            ("feed-forward down", config.d_model, config.hidden_width),
        ]

    def product(self, name: str, count: int, tokens: int, rows: int, columns: int) -> Operation:
        """x Wᵀ (+ b)."""
        biased = self.config.bias and name != "logits"
        return Operation(
            name,
            count,
            tokens * rows * (2.0 * columns),
            self.weight * rows * (columns + biased) + self.each * tokens * columns,
            self.each * tokens * rows,
        )

    def elementwise(
        self, name: str, count: int, flops: float, read: float, written: float
    ) -> Operation:
        """Numbers read and written, of the activations' type."""
        return Operation(name, count, flops, self.each * read, self.each * written)


def forward_operations(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    past: int = 0,
    weight_bytes: float = FLOAT,
    activation_bytes: float = FLOAT,
    cache_bytes: float = FLOAT,
    logits: int | None = None,
    attention_block: int = 1,
) -> list[Operation]:
    """The operations of a forward pass, in order: a prefill, a step of decoding, or training's.

    Args:
        rows: texts.
        length: new tokens of each: 1 in a step of decoding.
        past: tokens of each in the cache.
        weight_bytes, activation_bytes, cache_bytes: of a number; a scale for each row of int8
            weights makes it 1 + 4 / columns, one for each vector of a cache 1 + 4 / width.
        logits: tokens whose logits are computed; None is the last of each text. Training's are
            all, rows · length.
        attention_block: as `seen_pairs`; training on a CPU takes
            `kernels.attention.with_numba.BLOCK`.
    Raises:
        AuditError: a size that cannot be.
    """
    sizes = _sizes(
        config,
        (rows, length, past, attention_block),
        (weight_bytes, activation_bytes, cache_bytes),
    )
    wanted = rows if logits is None else logits
    if not 0 <= wanted <= sizes.tokens:
        raise AuditError(f"logits of 0 to {sizes.tokens} tokens; not of {wanted}")
    n, d = sizes.tokens, config.d_model
    found = [
        Operation("embedding", 1, 0.0, weight_bytes * n * d + 8.0 * n, activation_bytes * n * d)
    ]
    if config.neighbours:
        extra = config.neighbours * n * d
        found.append(sizes.elementwise("neighbours", 1, 2.0 * extra, n * d + extra, extra))
    if config.positions in ("learned", "sinusoidal"):
        table = length * d
        found.append(sizes.elementwise("positions", 1, n * d, n * d + table, n * d))
    found += _block_forward(sizes)
    if config.norm_placement == "pre":
        found.append(_norm(sizes, "last norm", 1))
    if wanted:
        found.append(sizes.product("logits", 1, wanted, config.vocab_size, d))
    return found


def backward_operations(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    weight_bytes: float = FLOAT,
    activation_bytes: float = FLOAT,
    checkpoint_blocks: bool = False,
    attention_block: int = BLOCK,
) -> list[Operation]:
    """The operations of training's backward pass, the loss's gradients first.

    Args:
        rows, length, weight_bytes, activation_bytes: as `forward_operations`.
        checkpoint_blocks: blocks run forward once more, each up to the last thing it keeps.
        attention_block: as `seen_pairs`.
    Raises:
        AuditError: a size that cannot be.
    """
    sizes = _sizes(
        config,
        (rows, length, 0, attention_block),
        (weight_bytes, activation_bytes, activation_bytes),
    )
    n, d = sizes.tokens, config.d_model
    found = _gradients(sizes, "logits", 1, config.vocab_size, d)
    vocabulary = n * config.vocab_size
    found.append(sizes.elementwise("loss", 1, _SOFTMAX * vocabulary, vocabulary, vocabulary))
    if config.norm_placement == "pre":
        found.append(_norm_back(sizes, "last norm", 1))
    if checkpoint_blocks:
        found += _again(sizes)
    found += _block_backward(sizes)
    if config.neighbours:
        extra = config.neighbours * n * d
        found.append(sizes.elementwise("neighbours", 1, 4.0 * extra, n * d + extra, extra))
    if config.positions == "learned":
        found.append(sizes.elementwise("positions", 1, n * d, n * d, config.context * d))
    table = weight_bytes * config.vocab_size * d
    found.append(Operation("embedding", 1, n * d, activation_bytes * n * d, table))
    return found


def optimizer_operation(
    config: ModelConfig, kind: Literal["adamw", "muon"] | OptimizerSettings
) -> Operation:
    """One update of all weights in float32.

    Of Muon, the FLOPs of the iteration's products and the bytes of their operands and results.

    Args:
        kind: or an optimizer's settings, for other iterations or blocks than the default's.
    Raises:
        AuditError: an unknown optimizer.
    """
    settings = kind if isinstance(kind, OptimizerSettings) else None
    if settings is None:
        if kind not in ("adamw", "muon"):
            raise AuditError(f"the optimizer is adamw or muon; not {kind!r}")
        settings = OptimizerSettings(kind=kind)
    parameters = sum(parameter_counts(config).values())
    shapes = matrix_shapes(config)
    names = muon_names(config) if settings.kind == "muon" else []
    matrices = sum(shapes[name][0] * shapes[name][1] for name in names)
    rest = parameters - matrices
    flops, moved = 0.0, 0.0
    for name in names:
        columns = shapes[name][1]
        for height in matrix_heights(config, name, shapes[name][0]):
            short, long = min(height, columns), max(height, columns)
            block = nearest_block(short, settings.muon_block)
            each = newton_schulz(block, long, settings.muon_iterations)
            flops += short // block * each[0]
            moved += short // block * each[1]
    # m ← lerp(m, g), u = lerp(g, m), the norm, the division, W decays, W - s u.
    flops += _ADAMW * rest + 11.0 * matrices
    # Read: m, g; g, m; u; u; W; W, u. Written: m, u, u, W, W.
    read = _ADAMW_READ * rest + FLOAT * 9 * matrices + moved * 2 / 3
    written = _ADAMW_WRITTEN * rest + FLOAT * 5 * matrices + moved / 3
    return Operation(settings.kind, 1, flops, read, written)


def newton_schulz(short: int, long: int, iterations: int) -> tuple[float, float]:
    """FLOPs, and bytes of operands and results, of `gram_orthogonalize`'s products in float32."""
    square, whole = 2.0 * short**3, 2.0 * short**2 * long
    s, x = FLOAT * short**2, FLOAT * short * long
    if long < 2 * short or iterations < 2:
        return iterations * (2 * whole + square), iterations * (2 * (2 * x + s) + 3 * s)
    products = 4 * iterations - 3
    return 2 * whole + products * square, 2 * (2 * x + s) + products * 3 * s


def _sizes(
    config: ModelConfig, counts: tuple[int, int, int, int], sizes: tuple[float, float, float]
) -> _Sizes:
    rows, length, past, block = counts
    if min(rows, length, block) < 1 or past < 0:
        raise AuditError(
            f"rows, length and block are at least 1 and past at least 0: {rows}, {length}, "
            f"{block} and {past}"
        )
    if min(sizes) <= 0:
        raise AuditError(f"a number takes more than 0 bytes: {sizes}")
    pairs = rows * config.n_heads * seen_pairs(config, length, past, block)
    return _Sizes(config, rows, length, past, *sizes, pairs)


def _norm(sizes: _Sizes, name: str, count: int) -> Operation:
    config, n = sizes.config, sizes.tokens * sizes.config.d_model
    return sizes.elementwise(name, count, _NORM[config.norm] * n, n + config.d_model, n)


def _norm_back(sizes: _Sizes, name: str, count: int) -> Operation:
    """Twice the arithmetic: the sum along the row, then dx and the weight's share."""
    config, n = sizes.config, sizes.tokens * sizes.config.d_model
    read, written = 2 * n + config.d_model, n + config.d_model
    return sizes.elementwise(name, count, 2 * _NORM[config.norm] * n, read, written)


def _block_forward(sizes: _Sizes) -> list[Operation]:
    config, n, layers = sizes.config, sizes.tokens, sizes.config.n_layers
    q, k, v = config.qkv_rows
    qkv, output, up, down = (
        sizes.product(name, layers, n, rows, columns) for name, rows, columns in sizes.products()
    )
    found = [_norm(sizes, "norms", 2 * layers), qkv]
    if config.qk_norm:
        heads = n * (q + k)
        found.append(sizes.elementwise("head norms", layers, 4.0 * heads, heads, heads))
    if config.positions == "rope":
        heads, angles = n * (q + k), sizes.length * config.head_width
        found.append(sizes.elementwise("rotation", layers, _ROPE * heads, heads + angles, heads))
    kept = sizes.cached * n * (k + v)
    found.append(Operation("cache", layers, 0.0, sizes.each * n * (k + v), kept))
    seen = sizes.rows * (sizes.past + sizes.length) * (k + v)
    if sizes.length == 1 and 0 < config.window < sizes.past + 1:
        seen = sizes.rows * config.window * (k + v)
    found += [
        Operation(
            "attention",
            layers,
            4.0 * sizes.pairs * config.head_width,
            sizes.each * n * q + sizes.cached * seen,
            sizes.each * n * q,
        ),
        Operation("softmax", layers, float(_SOFTMAX * sizes.pairs), 0.0, 0.0),
        output,
        _residual(sizes),
        up,
    ]
    hidden = n * config.hidden_width
    into = hidden * (2 if config.feed_forward == "swiglu" else 1)
    flops = float(_ACTIVATION[config.feed_forward] * hidden)
    return [*found, sizes.elementwise("activation", layers, flops, into, hidden), down]


def _residual(sizes: _Sizes) -> Operation:
    n = sizes.tokens * sizes.config.d_model
    return sizes.elementwise("stream", 2 * sizes.config.n_layers, float(n), 2 * n, n)


def _gradients(sizes: _Sizes, name: str, count: int, rows: int, columns: int) -> list[Operation]:
    """Of the input and of the weight."""
    n = sizes.tokens
    flops = 2.0 * n * rows * columns
    matrix = sizes.weight * rows * columns
    inputs, outputs = sizes.each * n * columns, sizes.each * n * rows
    return [
        Operation(f"{name}, by input", count, flops, outputs + matrix, inputs),
        Operation(f"{name}, by weight", count, flops, outputs + inputs, matrix),
    ]


def _block_backward(sizes: _Sizes) -> list[Operation]:
    config, n, layers = sizes.config, sizes.tokens, sizes.config.n_layers
    q, k, v = config.qkv_rows
    qkv, output, up, down = (
        _gradients(sizes, name, layers, rows, columns) for name, rows, columns in sizes.products()
    )
    hidden = n * config.hidden_width
    into = hidden * (2 if config.feed_forward == "swiglu" else 1)
    # Without a bias the activation is computed once more.
    again = _ACTIVATION[config.feed_forward] * hidden
    flops = float(_ACTIVATION_BACK[config.feed_forward] * hidden + again)
    heads = n * (q + k)
    # Where whole scores are kept, four products; else the scores are a fifth.
    kept = config.positions == "alibi" or 0 < config.window < sizes.length
    products = 4 if kept else 5
    pairs = float(sizes.pairs)
    moved = n * (3 * q + k + v)
    attention = Operation(
        "attention",
        layers,
        2.0 * products * pairs * config.head_width,
        sizes.each * moved,
        sizes.each * n * (q + k + v),
    )
    found = [*down, sizes.elementwise("activation", layers, flops, into + hidden, into), *up]
    found += [_norm_back(sizes, "norms", 2 * layers), _residual(sizes), *output, attention]
    found.append(Operation("softmax", layers, _SOFTMAX_BACK * pairs, 0.0, 0.0))
    if config.positions == "rope":
        found.append(sizes.elementwise("rotation", layers, float(_ROPE * heads), heads, heads))
    if config.qk_norm:
        found.append(sizes.elementwise("head norms", layers, 8.0 * heads, 2 * heads, heads))
    return found + qkv


def _again(sizes: _Sizes) -> list[Operation]:
    """A block's forward pass up to the last thing it keeps.

    That is what the last product was made of where the activated array is kept beside it, so the
    product itself is left out; elsewhere the product has run by then, or a norm stands behind.
    """
    config = sizes.config
    keeps_activated = config.bias or sizes.each < FLOAT
    left_out = config.norm_placement == "pre" and keeps_activated
    return [
        replace(each, name=f"{each.name}, again")
        for each in _block_forward(sizes)
        if not (left_out and each.name == "feed-forward down")
    ]
