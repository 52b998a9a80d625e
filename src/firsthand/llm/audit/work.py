"""The work of a token, a prompt and a training step as pieces, each of one kernel.

The pieces follow the code: `inference.cpu.stages` for the CPU engine, and for training
what `model.layers`, the kernels of a CPU, `training.loop` and `training.optimizers` do, a gradient
after the other. `latency` turns pieces into seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from firsthand.llm.audit.engine_rates import STREAM_HEAD_WIDTH, STREAM_WIDTH
from firsthand.llm.audit.kernel_rates import attention_flops, muon_flops, muon_side
from firsthand.llm.inference.cpu.stages import ROW_PANEL
from firsthand.llm.kernels.cross_entropy import with_triton as gpu_cross_entropy
from firsthand.llm.kernels.cross_entropy.with_torch import CHUNK
from firsthand.llm.kernels.int8_matmul.panels import PANEL, padded
from firsthand.llm.model.config import ModelConfig, parameter_counts
from firsthand.llm.training.config import OptimizerSettings, RunConfig

FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Piece:
    """Work of one kernel.

    Attributes:
        part: the kind of work that it is shown under.
        rate: the kernel's name in `DeviceCeilings.kernel_rates`; "": its bytes decide.
        size: on which the rate depends.
        work: as the rate counts it.
        flops, bytes: in all.
        fills: how many times longer it takes since threads wait for the last one.
        stream: the rate of the same kernel by bytes of the working set, at `stream_size`. The
            time is that one's, and as much more as `rate` differs between `size` and
            `stream_size` within a cache.
        stream_size: see there.
    """

    part: str
    rate: str
    size: float
    work: float
    flops: float
    bytes: float
    fills: float = 1.0
    stream: str = ""
    stream_size: float = 0.0


# --------------------------------------------------------------------------- the CPU engine


def engine_work(
    config: ModelConfig, *, rows: int, past: int, threads: int, logits: int = 1
) -> list[Piece]:
    """The pieces of one call of the CPU engine, all layers together.

    Args:
        rows: tokens of one text; 1 is a step of decoding.
        past: tokens that the cache holds.
        threads: that share the work.
        logits: rows whose logits are wanted, the last ones; the others end in the last layer with
            their keys and values.
    """
    d, layers = config.d_model, config.n_layers
    q, k, v = config.qkv_rows
    portions = _fills(config.n_heads + 2 * config.kv_heads, threads)
    copies = threads if rows == 1 else 1
    pieces = [
        _int8_product("queries, keys, values", rows, q + k + v, d, layers, portions),
        _elements("norms and grids", "int8 quantization", d, layers * rows * copies * d),
        _elements(
            "rotation and cache", "int8 heads", config.head_width, layers * rows * (q + k + v / 2)
        ),
    ]
    seen = rows * past + rows * (rows + 1) // 2
    whole = layers if logits == rows else layers - 1
    pieces += _behind_the_heads(config, rows, seen, past + rows, threads, whole)
    if 0 < logits < rows:
        last = logits * (past + rows) - logits * (logits - 1) // 2
        pieces += _behind_the_heads(config, logits, last, past + rows, threads, 1)
    portions = _fills(-(-config.vocab_size // (PANEL if logits > 1 else ROW_PANEL)), threads)
    pieces.append(_int8_product("logits", logits, config.vocab_size, d, min(1, logits), portions))
    return pieces


def _behind_the_heads(
    config: ModelConfig, rows: int, seen: int, cached: int, threads: int, layers: int
) -> Iterator[Piece]:
    """What follows queries, keys and values in so many layers.

    Args:
        seen: keys that the rows look at, all together.
        cached: keys of the text.
    """
    d, hidden, width = config.d_model, config.hidden_width, config.head_width
    q = config.qkv_rows[0]
    one = rows == 1
    panel = ROW_PANEL if one else PANEL
    for part, out, wide, portions in (
        ("attention's output", d, q, -(-d // panel)),
        ("gate and up", 2 * hidden, d, -(-hidden // panel)),
        ("down", d, hidden, -(-d // panel)),
    ):
        yield _int8_product(part, rows, out, wide, layers, _fills(portions, threads))
    operations = 4.0 * layers * q * seen
    yield Piece(
        part="attention",
        rate="int8 attention row" if one else "int8 attention",
        size=width,
        work=operations,
        flops=operations,
        bytes=float(layers * 2 * config.kv_heads * cached * (width + FLOAT)),
        # A prompt has so many portions that their rest does not count.
        fills=_fills(config.n_heads, threads) if one else 1.0,
        stream="int8 attention stream" if one else "",
        stream_size=STREAM_HEAD_WIDTH,
    )
    # Of a single row every thread prepares the whole; of many each has its share.
    prepared = layers * rows * (threads if one else 1) * (d + q + hidden)
    yield _elements("norms and grids", "int8 quantization", d, prepared)
    yield _elements("gate's activation", "int8 gate", hidden, layers * rows * hidden)
    yield Piece("stream", "", 0, 0.0, 0.0, 2.0 * layers * rows * d * 3 * FLOAT)


def engine_meetings(config: ModelConfig, *, rows: int, logits: int = 1) -> int:
    """How often the engine's threads meet in a call."""
    # After the embedding of many rows; in each layer after the heads, attention, its output, the
    # gate and the output of the feed-forward, and with many rows after each norm or quantization.
    found = (rows > 1) + config.n_layers * (1 + (rows > 1))
    found += (config.n_layers - 1) * _meetings_behind_the_heads(rows)
    # In the last layer the rows wanted are gathered; the last norm has a meeting, and the call.
    if logits:
        found += (logits < rows) + _meetings_behind_the_heads(logits) + (logits > 1)
    return found + 1


def _meetings_behind_the_heads(rows: int) -> int:
    return 4 + 3 * (rows > 1)


def _int8_product(part: str, rows: int, out: int, width: int, times: int, fills: float) -> Piece:
    wide = padded(width)
    operations = 2.0 * times * rows * out * wide
    rate = "int8 row" if rows == 1 else "int8 panel"
    stream = "int8 row stream" if rows == 1 else ""
    weights = float(times * out * (wide + FLOAT))
    return Piece(part, rate, width, operations, operations, weights, fills, stream, STREAM_WIDTH)


def _fills(portions: int, threads: int) -> float:
    """How many times longer equal portions take than if they could be shared without rest."""
    return -(-portions // threads) * threads / portions if portions else 1.0


# --------------------------------------------------------------------------- PyTorch, no gradient


def forward_work(
    config: ModelConfig, *, rows: int, past: int, weight_bytes: float, logits: int = 1
) -> list[Piece]:
    """The pieces of a pass of PyTorch's model over one text, without gradients.

    Args:
        weight_bytes: of a weight, an activation and a cached number: 4 or 2.
    """
    d, hidden = config.d_model, config.hidden_width
    q, k, v = config.qkv_rows
    up = hidden * (2 if config.feed_forward == "swiglu" else 1)
    sizes = [
        ("queries, keys, values", q + k + v, d),
        ("attention's output", d, q),
        ("gate and up", up, d),
        ("down", d, hidden),
    ]
    pieces = [
        _dense(part, rows, out, wide, config.n_layers, weight_bytes) for part, out, wide in sizes
    ]
    pieces.append(_dense("logits", logits, config.vocab_size, d, min(1, logits), weight_bytes))
    seen = rows * past + rows * (rows + 1) // 2
    moved = config.n_layers * (2.0 * (k + v) / 2 * (past + rows) + 2.0 * rows * q) * weight_bytes
    pieces.append(Piece("attention", "", 0, 0.0, 4.0 * config.n_layers * q * seen, moved))
    around = config.n_layers * rows * (8 * d + 2 * (q + k) + up + hidden) * weight_bytes
    pieces.append(Piece("norms, rotation, activation, stream", "", 0, 0.0, 0.0, around))
    return pieces


def _dense(part: str, rows: int, out: int, width: int, times: int, each: float) -> Piece:
    flops = 2.0 * times * rows * out * width
    return Piece(part, "", 0, 0.0, flops, times * each * (out * width + rows * (out + width)))


# --------------------------------------------------------------------------- training


def training_work(config: RunConfig) -> list[Piece]:
    """The pieces of one update: all micro-batches forward and backward, then the optimizer."""
    settings = config.training
    micro = settings.micro_batch or settings.batch_size
    times = settings.batch_size // micro
    each = FLOAT if settings.precision == "float32" else HALF
    pieces = [
        _times(piece, times)
        for piece in micro_batch_work(
            config.model,
            micro,
            config.sequence_length,
            settings.checkpoint_blocks,
            each,
            loss_chunk(config),
        )
    ]
    if times > 1:
        # The first micro-batch leaves its gradients, the others add theirs.
        added = float((times - 1) * sum(parameter_counts(config.model).values()))
        pieces.append(Piece("gradients", "", 0, 0.0, added, 3 * FLOAT * added))
    return pieces + optimizer_work(config.model, config.optimizer)


def loss_chunk(config: RunConfig) -> int:
    """Tokens whose logits exist at a time on the run's device."""
    if config.training.device == "cuda":
        return gpu_cross_entropy.default_chunk(config.model.vocab_size, FLOAT)
    return CHUNK


def micro_batch_work(
    config: ModelConfig,
    rows: int,
    length: int,
    checkpointed: bool = False,
    each: int = FLOAT,
    chunk: int = CHUNK,
) -> Iterator[Piece]:
    """The pieces of the forward and the backward pass of so many rows.

    Args:
        checkpointed: each block runs forward twice.
        each: bytes of a number in matrix products and between them.
        chunk: tokens whose logits exist at a time.
    """
    n, d, hidden, layers = rows * length, config.d_model, config.hidden_width, config.n_layers
    q, k, v = config.qkv_rows
    forwards = 2 if checkpointed else 1
    up = hidden * (2 if config.feed_forward == "swiglu" else 1)
    for part, out, wide in (
        ("attention's products", q + k + v, d),
        ("attention's products", d, q),
        ("feed-forward's products", up, d),
        ("feed-forward's products", d, hidden),
    ):
        # Forward, and the gradients of both factors.
        passes = float(layers * (forwards + 2))
        flops = 2 * passes * n * out * wide
        moved = each * passes * (n * (out + wide) + out * wide)
        yield Piece(part, "product", min(out, wide), flops, flops, moved)
    attention = layers * attention_flops(rows, config.n_heads, length, config.head_width)
    seen = float(each * layers * n * (2 * q + k + v))
    # Two products forward; backward five.
    for name, factor in (("forward", float(forwards)), ("backward", 2.5)):
        flops = factor * attention
        rate = f"attention {name}"
        yield Piece("attention", rate, config.head_width, flops, flops, factor * seen)
    for piece in _element_work(config, n, forwards):
        yield replace(piece, bytes=piece.bytes * each / FLOAT)
    matrix = float(config.vocab_size * d)
    flops = 6 * n * matrix
    # Each chunk reads the output matrix twice and adds to its gradient.
    moved = 4 * each * (matrix * -(-n // chunk) + n * d)
    yield Piece("cross-entropy", "cross-entropy", d, flops, flops, moved)
    # Scaled by the cotangent, and for a tied embedding joined with its other gradient.
    passes = 2 + (4 if config.tied else 1)
    yield Piece("embedding", "", 0, 0.0, 0.0, FLOAT * (passes * matrix + 4 * n * d))


def _element_work(config: ModelConfig, n: int, forwards: int) -> Iterator[Piece]:
    """Norms, rotation, activation, copies and sums of float32, forward and backward."""
    d, layers = config.d_model, config.n_layers
    q, k, v = config.qkv_rows
    rms, rope = config.norm == "rms", config.positions == "rope"
    hidden, gated = n * config.hidden_width, config.feed_forward == "swiglu"
    turned = n * (q + k) / 2
    again = layers * forwards
    # Part, rate, whether it is this config's kernel, elements of one, how many, arrays moved.
    kinds: list[tuple[str, str, bool, float, int, int]] = [
        ("norms", "norm forward", rms, n * d, 2 * again + 1, 2),
        ("norms", "norm backward", rms, n * d, 2 * layers + 1, 3),
        ("rotation", "rotation forward", True, turned, 2 * again * rope, 2),
        ("rotation", "rotation backward", True, turned, 2 * layers * rope, 2),
        ("norms", "norm forward", True, turned, 2 * again * config.qk_norm, 2),
        ("norms", "norm backward", True, turned, 2 * layers * config.qk_norm, 3),
        # Forward, once more in the backward pass, which keeps its input alone, and its gradient.
        ("activation", "swiglu forward", gated, hidden, again + layers, 3),
        ("activation", "swiglu backward", gated, hidden, layers, 5),
        # The stream forward, and its gradient where two paths join.
        ("stream", "addition", True, n * d, 2 * again + 2 * layers, 3),
        # Values in one piece forward; the gradients of queries, keys and values joined.
        ("copies", "addition", True, n * v, again, 2),
        ("copies", "addition", True, n * (q + k + v), layers, 2),
    ]
    for part, rate, measured, elements, count, arrays in kinds:
        work = float(elements * count)
        yield Piece(part, rate if measured else "", elements, work, 0.0, FLOAT * arrays * work)


def optimizer_work(config: ModelConfig, settings: OptimizerSettings) -> list[Piece]:
    """The pieces of one update of the weights: the norm, the clipping, AdamW and Muon."""
    parameters = sum(parameter_counts(config).values())
    matrices = _matrices(config) if settings.kind == "muon" else []
    muon = float(sum(rows * columns for rows, columns in matrices))
    adamw = parameters - muon
    clipped = float(FLOAT * parameters * (3 if settings.clip else 1))
    pieces = [
        Piece("clipping", "", 0, 0.0, 0.0, clipped),
        Piece("AdamW", "adamw", adamw, adamw, 0.0, 7 * FLOAT * adamw),
    ]
    if matrices:
        for shape, count in Counter((min(shape), max(shape)) for shape in matrices).items():
            flops = count * muon_flops(*shape, settings.muon_iterations, settings.muon_block)
            side = muon_side(shape[0], settings.muon_block)
            pieces.append(Piece("Muon", "muon", side, flops, flops, 0.0))
        # Momentum, the update into a stack, its division, the weights: read and written.
        pieces.append(Piece("Muon", "", 0, 0.0, 0.0, 14 * FLOAT * muon))
    return pieces


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of each matrix that Muon makes orthogonal."""
    d, hidden = config.d_model, config.hidden_width
    ups = 2 if config.feed_forward == "swiglu" else 1
    layer = [(rows, d) for rows in config.qkv_rows] + [(d, config.qkv_rows[0])]
    layer += [(hidden, d)] * ups + [(d, hidden)]
    return layer * config.n_layers


def _elements(part: str, rate: str, size: float, elements: float) -> Piece:
    return Piece(part, rate, size, elements, 0.0, 0.0)


def _times(piece: Piece, times: int) -> Piece:
    if times == 1:
        return piece
    return replace(
        piece, work=piece.work * times, flops=piece.flops * times, bytes=piece.bytes * times
    )
