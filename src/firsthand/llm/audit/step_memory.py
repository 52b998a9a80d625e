"""One update of the training loop over values without numbers: which storages live when.

It follows `training.loop`, `model.transformer`, `model.layers`, `model.block` and
`training.optimizers`, by the names of their variables where these hold memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from firsthand.llm.audit import attention_memory, part_memory
from firsthand.llm.audit.lifetimes import Gradients, Tape, Timeline, Value
from firsthand.llm.audit.optimizer_memory import Update, optimizer_state, optimizer_step
from firsthand.llm.audit.part_memory import HALF, LONG, Pass
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.quantization.shapes import matrix_shapes, vector_shapes

# What PyTorch's allocator for GPUs rounds to.
CUDA_BLOCK = 512


class Step(Update, Protocol):
    """What an update depends on besides the model; `ledger.StepSettings` documents it."""

    @property
    def micro_batch(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def checkpoint_blocks(self) -> bool: ...

    @property
    def accumulation(self) -> int: ...

    @property
    def average(self) -> bool: ...

    @property
    def flow(self) -> bool: ...

    @property
    def autocast(self) -> bool: ...


class Weights:
    """The parameters of a model by name."""

    def __init__(self, config: ModelConfig, tape: Tape) -> None:
        shapes = {**matrix_shapes(config), **vector_shapes(config)}
        self._values: dict[str, Value] = {}
        for name, shape in shapes.items():
            elements = 1
            for extent in shape:
                elements *= extent
            self._values[name] = tape.parameter(name, elements)
        self.elements = {name: value.elements for name, value in self._values.items()}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def get(self, name: str) -> Value | None:
        """None where the config has no such parameter."""
        return self._values.get(name)

    def forget_gradients(self) -> None:
        """As `Optimizer.zero_gradients`."""
        for value in self._values.values():
            value.node.gradient = None  # type: ignore[union-attr]


def live_bytes(config: ModelConfig, step: Step, *, events: bool = False) -> Timeline:
    """The timeline of an update."""
    line = Timeline(CUDA_BLOCK if step.on_gpu else 1)
    tape = Tape(line)
    weights = Weights(config, tape)
    parameters = sum(weights.elements.values())
    state = optimizer_state(config, step, weights.elements, line)
    average = line.value("average", parameters if step.average else 0, category="average")
    half = config.head_width // 2
    angles = config.context * half if config.positions == "rope" else 0
    tables = [line.value("angles of all positions", angles) for _ in range(2)]
    if events:
        line.events = []
    for _ in range(min(step.accumulation, 2)):
        micro_batch(config, step, weights, tape)
    if step.flow:
        with line.within("optimizer", category="workspace"):
            copies = [line.new("old weights", count) for count in weights.elements.values()]
    with line.within("optimizer", category="workspace"):
        optimizer_step(config, step, line)
    if step.flow:
        del copies
    weights.forget_gradients()
    del state, average, tables
    return line


def micro_batch(config: ModelConfig, step: Step, weights: Weights, tape: Tape) -> None:
    """A forward and a backward pass."""
    p = Pass(tape, step.micro_batch, step.length, step.autocast, "cuda" if step.on_gpu else "cpu")
    line = tape.timeline
    # On a CPU the batch is NumPy's memory.
    batch = p.tokens if step.on_gpu else 0
    with line.within("embedding, forward"):
        inputs = line.value("inputs", batch, LONG, category="batch")
        targets = line.value("targets", batch, LONG, category="batch")
        hidden = _hidden(p, config, weights, step.checkpoint_blocks)
        with line.within("loss, forward"):
            output = weights["embedding.weight" if config.tied else "output.weight"]
            total = attention_memory.cross_entropy(p, hidden, output, config.vocab_size)
        del hidden, targets
        p.casts.clear()
    with line.within(category="workspace"):
        assert total.node is not None
        tape.backward(total.node, [p.back("cotangent of the loss", 1)])
    del inputs


def _hidden(p: Pass, config: ModelConfig, weights: Weights, checkpointed: bool) -> Value:
    """`Transformer.hidden`."""
    positions = p.new("positions", p.length, LONG)
    x = _embedded(p, config, weights)
    x = _with_positions(p, config, weights, x)
    biased = config.positions == "alibi" or 0 < config.window < p.length
    bias = None
    if biased:
        alibi = config.positions == "alibi"
        bias = attention_memory.bias_of_scores(p, config.n_heads if alibi else 1, alibi)
    for layer in range(config.n_layers):
        run = partial(_block, p, config, weights, layer, bias)
        if checkpointed:
            spare = HALF * x.elements if p.autocast else 0
            x = p.tape.checkpointed(partial(_again, p, run), x, spare)
        else:
            x = run(x)
    if config.norm_placement == "pre":
        with p.tape.timeline.within("last norm, forward"):
            x = _norm(p, config, weights, "final_norm", x)
    del positions
    return x


def _again(p: Pass, run: Callable[[Value], Value], x: Value) -> Value:
    """The copies of weights in half precision that a second run needs are its own."""
    if p.tape.keeping and p.autocast:
        before, p.casts = p.casts, {}
        result = run(x)
        p.casts = before
        return result
    return run(x)


def _embedded(p: Pass, config: ModelConfig, weights: Weights) -> Value:
    width, count = config.d_model, config.neighbours
    x = part_memory.embedding(p, weights["embedding.weight"], p.tokens, width)
    if not count:
        return x
    weight = weights["neighbours.weight"]
    rows = _padded(p, x, count * width)
    del x
    mixed, size = rows, p.tokens * width
    for _ in range(count):
        mixed = _mixed(p, mixed, rows, weight, size, width)
    return mixed


def _padded(p: Pass, x: Value, before: int) -> Value:
    result = p.new("embeddings with those before", x.elements + p.rows * before)
    elements = x.elements

    def run(g: Value) -> Gradients:
        return (p.back("gradient of embeddings", elements),)

    p.tape.link([x], [result], run)
    return result


def _mixed(p: Pass, mixed: Value, rows: Value, weight: Value, size: int, width: int) -> Value:
    """One neighbour more, by `addcmul`; gradients of slices have the size of the whole."""
    result = p.new("embeddings with neighbours", size)
    first = mixed.storage is rows.storage
    kept, whole, of_weight = rows.detached, rows.elements, weight.elements

    def run(g: Value) -> Gradients:
        by_row = p.back("gradient of a neighbour", size)
        twice = p.back("neighbours", kept.elements and size)
        product = p.back("gradient of the mixture", size)
        del twice
        row = p.back("gradient of one weight", width)
        del product
        dweight = p.back("gradient of the weights", of_weight)
        del row
        dmixed = p.back("gradient of a slice", whole) if first else g
        drows = p.back("gradient of a slice", whole)
        del by_row
        return dmixed, drows, dweight

    p.tape.link([mixed, rows, weight], [result], run)
    return result


def _with_positions(p: Pass, config: ModelConfig, weights: Weights, x: Value) -> Value:
    count = p.length * config.d_model
    if config.positions == "learned":
        weight = weights["position_embedding.weight"]
        return part_memory.add(p, x, part_memory.embedding(p, weight, p.length, config.d_model))
    if config.positions == "sinusoidal":
        waves = p.new("waves", count, LONG)
        scaled = p.new("waves, scaled", count, LONG)
        again = p.new("waves, scaled again", count, LONG)
        del scaled
        narrow = p.new("waves, cast", count)
        del again
        result = p.new("sum", x.elements)

        def run(g: Value) -> Gradients:
            return (g,)

        p.tape.link([x], [result], run)
        del waves, narrow
        return result
    return x


def _norm(p: Pass, config: ModelConfig, weights: Weights, name: str, x: Value) -> Value:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    if config.norm == "rms":
        return part_memory.rms_norm(p, x, weight, config.d_model)
    return part_memory.layer_norm(p, x, weight, bias, config.d_model)


def _block(
    p: Pass, config: ModelConfig, weights: Weights, layer: int, bias: Value | None, x: Value
) -> Value:
    """`Block.forward`, wired as `model.block` says."""
    name = f"blocks.{layer}"
    moment = f"{name}, {'computed again' if p.tape.again else 'forward'}"
    with p.tape.timeline.within(moment, category="activations", layer=layer):
        attend = partial(_attention, p, config, weights, name, bias)
        forward = partial(_feed_forward, p, config, weights, name)
        first = partial(_norm, p, config, weights, f"{name}.attention_norm")
        second = partial(_norm, p, config, weights, f"{name}.feed_forward_norm")
        if config.norm_placement == "pre":
            x = part_memory.add(p, x, attend(first(x)))
            return part_memory.add(p, x, forward(second(x)))
        x = first(part_memory.add(p, x, attend(x)))
        return second(part_memory.add(p, x, forward(x)))


def _attention(
    p: Pass, config: ModelConfig, weights: Weights, name: str, bias: Value | None, x: Value
) -> Value:
    path, width = f"{name}.attention", config.head_width
    many, few = config.n_heads, config.kv_heads
    fused = part_memory.linear(
        p, x, weights[f"{path}.qkv.weight"], weights.get(f"{path}.qkv.bias"), sum(config.qkv_rows)
    )
    q, k, v = part_memory.split_qkv(p, fused, (many, few, few), width)
    del fused
    if config.qk_norm:
        q, k = (
            part_memory.head_norm(p, x, weights[f"{path}.{which}_norm.weight"], width)
            for which, x in (("query", q), ("key", k))
        )
    if config.positions == "rope":
        pairing = config.rope_pairing
        q, k = (part_memory.rotated(p, x, width, pairing) for x in (q, k))
    mixed = attention_memory.attention(p, q, k, v, bias, (many, few, width))
    return part_memory.linear(
        p,
        attention_memory.merged(p, mixed),
        weights[f"{path}.output.weight"],
        weights.get(f"{path}.output.bias"),
        config.d_model,
    )


def _feed_forward(p: Pass, config: ModelConfig, weights: Weights, name: str, x: Value) -> Value:
    path = f"{name}.feed_forward"
    up, down = (
        (weights[f"{path}.{which}.weight"], weights.get(f"{path}.{which}.bias"))
        for which in ("up", "down")
    )
    return part_memory.feed_forward(
        p,
        x,
        kind=config.feed_forward,
        up=up,
        down=down,
        hidden=config.hidden_width,
        width=config.d_model,
    )
