"""What attention and the loss keep and use, as `part_memory` follows the other parts."""

from __future__ import annotations

from collections.abc import Iterator

from firsthand.llm.audit.lifetimes import Gradients, Value
from firsthand.llm.audit.part_memory import FLOAT, HALF, LONG, Pass, cast, cast_weight, contiguous
from firsthand.llm.kernels.attention import with_triton as gpu_attention
from firsthand.llm.kernels.attention.with_numba import BLOCK, TILE_BYTES
from firsthand.llm.kernels.cross_entropy import with_triton as gpu_cross_entropy
from firsthand.llm.kernels.cross_entropy.with_torch import CHUNK

Heads = tuple[int, int, int]  # query heads, key heads, width


def attention(p: Pass, q: Value, k: Value, v: Value, bias: Value | None, heads: Heads) -> Value:
    """The output as (batch, heads, seq, width), in the layout that it comes in."""
    if bias is not None and p.device == "cpu":
        return _with_whole_scores(p, q, k, v, bias, heads)
    if bias is None and p.compiled and p.length > 1:
        return _in_blocks(p, q, k, v, heads)
    return _fused(p, q, k, v, bias, heads)


def merged(p: Pass, x: Value) -> Value:
    """Heads side by side: a copy unless they lie so."""
    if x.layout == "tokens":
        return x
    result = p.new("merged heads", x.elements, x.size)

    def run(g: Value) -> Gradients:
        return (g,)

    p.tape.link([x], [result], run)
    return result


def _fused(p: Pass, q: Value, k: Value, v: Value, bias: Value | None, heads: Heads) -> Value:
    """Triton's kernels on a GPU, PyTorch's flash attention elsewhere: keeps q, k, v, the output
    and a float32 number for each query."""
    if p.autocast:
        q, k, v = cast(p, q, HALF), cast(p, k, HALF), cast(p, v, HALF)
    ours = p.device == "cuda" and bias is None and _takes(heads[2])
    mask = None if bias is None else p.new("bias, cast", bias.elements, q.size)
    # PyTorch's output lies as the queries do, ours by token.
    output = p.new("attention's output", q.elements, q.size, "tokens" if ours else q.layout)
    sums = p.new("logarithms of sums", p.tokens * heads[0])
    p.tape.saves()
    kept = q.detached, k.detached, v.detached, output.detached, sums, mask

    def run(g: Value) -> Gradients:
        deltas = p.back("Δ", p.tokens * heads[0]) if ours else None
        gradients = [p.back("gradient of heads", x.elements, x.size) for x in kept[:3] if x]
        for gradient, x in zip(gradients, kept, strict=False):
            assert x is not None
            gradient.layout = x.layout
        del deltas
        return gradients

    p.tape.link([q, k, v], [output], run)
    return output


def _takes(width: int) -> bool:
    return gpu_attention.NARROWEST <= width <= gpu_attention.WIDEST


def _in_blocks(p: Pass, q: Value, k: Value, v: Value, heads: Heads) -> Value:
    """`kernels.attention.with_numba`."""
    many, few, width = heads
    q, k, v = contiguous(p, q), contiguous(p, k), contiguous(p, v)
    output = p.new("attention's output", q.elements)
    log_sums = p.new("logarithms of sums", p.tokens * many)
    with p.tape.timeline.within(category="workspace"):
        for group in _groups(p, many):
            for rows, seen in _blocks(p.length):
                queries = p.new("queries of a block", _stacked(p, group, heads, rows))
                scores = p.new("scores of a block", group * many * rows * seen)
                del queries
                sums = p.new("sums of a block", _copied(p, group * many * rows, rows))
                p.new("output of a block", group * many * rows * width)
    p.tape.saves()
    kept = q.detached, k.detached, v.detached, output.detached, log_sums
    # What a loop leaves in its variables ends with the function.
    del scores, sums

    def run(g: Value) -> Gradients:
        gradients = [
            p.back("gradient of heads", kept[i].elements, layout="heads") for i in range(3)
        ]
        for group in _groups(p, many):
            for rows, seen in _blocks(p.length):
                count = group * many * rows
                new_queries = p.back("queries of a block", _stacked(p, group, heads, rows))
                # Cotangents lie by token.
                whole = many == 1 or (many == few and group == 1)
                dout = p.back("cotangents of a block", 0 if whole else count * width)
                queries = new_queries
                product = p.back("cotangents ∘ outputs", count * width)
                delta = p.back("Δ of a block", count)
                del product
                scores = p.back("p of a block", count * seen)
                ds = p.back("ds of a block", count * seen)
                sums = p.back("sums of a block", _copied(p, count, rows))
                p.back("gradient of a block's queries", count * width)
        del queries, new_queries, dout, delta, scores, ds, sums
        return gradients

    p.tape.link([q, k, v], [output], run)
    return output


def _stacked(p: Pass, group: int, heads: Heads, rows: int) -> int:
    """Elements that `_stacked` copies of contiguous queries: none where a view will do."""
    many, few, width = heads
    return 0 if many == few or rows == p.length else group * many * rows * width


def _copied(p: Pass, elements: int, rows: int) -> int:
    """A slice of all positions is a view, one of some is copied where it must be in one piece."""
    return 0 if rows == p.length else elements


def _groups(p: Pass, heads: int) -> Iterator[int]:
    """Rows of the batch in each group; those after the second take as much as it."""
    step = max(1, TILE_BYTES // (FLOAT * heads * min(BLOCK, p.length) * p.length))
    return (min(step, p.rows - start) for start in range(0, min(p.rows, 2 * step), step))


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Queries of each block, the last first, and the keys that it sees."""
    for stop in range(length, 0, -BLOCK):
        yield stop - max(0, stop - BLOCK), stop


def _with_whole_scores(p: Pass, q: Value, k: Value, v: Value, bias: Value, heads: Heads) -> Value:
    """PyTorch's composed attention, which a bias of three axes gets on a CPU: √scale times q and
    k, whole scores, softmax, the product with v. Keeps the softmax of every head."""
    many, few, _ = heads
    size = q.size
    pairs = p.rows * many * p.length * p.length
    elements = q.elements
    bias_cast = p.new("bias, cast", bias.elements if size < FLOAT else 0, size)
    q, k, v = before = cast(p, q, FLOAT), cast(p, k, FLOAT), cast(p, v, FLOAT)
    q_scaled = _scaled(p, q)
    if many != few:
        k, v = _repeated(p, k, elements), _repeated(p, v, elements)
    k_scaled = _scaled(p, k)
    k_scaled.layout = "turned" if k.layout == "heads" else "tokens"
    flat_q = _for_product(p, q_scaled)
    flat_k = _for_product(p, k_scaled)
    p.tape.saves()
    scores = p.new("scores", pairs)
    of_scores = flat_q.detached, flat_k.detached

    def run_scores(g: Value) -> Gradients:
        dk = p.back("gradient of scaled keys", of_scores[1].elements, layout="turned")
        return p.back("gradient of scaled queries", elements, layout="heads"), dk

    p.tape.link([flat_q, flat_k], [scores], run_scores)
    del flat_q, flat_k, k_scaled
    biased = p.new("scores with bias", pairs)
    _passed(p, scores, biased)
    del scores
    shares = p.new("softmax", pairs)
    # Rows of -inf alone, which have no softmax, are looked for.
    hidden = p.new("-inf among the scores", pairs, 1), p.new("all -inf", pairs // p.length, 1)
    del hidden
    p.tape.saves()
    of_shares = shares.detached

    def run_softmax(g: Value) -> Gradients:
        return (p.back("gradient of scores", of_shares.elements),)

    p.tape.link([biased], [shares], run_softmax)
    del biased
    narrow = p.new("softmax, cast", pairs if size < FLOAT else 0, size)
    flat_v = _for_product(p, v)
    p.tape.saves()
    output = p.new("attention's output", elements, layout="heads")
    of_output = shares.detached, flat_v.detached

    def run_output(g: Value) -> Gradients:
        if p.rows > 1:
            g = contiguous(p, g, back=True)
        dv = p.back("gradient of values", of_output[1].elements, layout="heads")
        return p.back("gradient of softmax", of_output[0].elements), dv

    p.tape.link([shares, flat_v], [output], run_output)
    result = cast(p, output, size)
    del output, narrow, bias_cast, q_scaled, before
    return result


def _scaled(p: Pass, x: Value) -> Value:
    result = p.new("heads, scaled", x.elements, layout=x.layout)

    def run(g: Value) -> Gradients:
        return (p.back("gradient, scaled", g.elements, layout=g.layout),)

    p.tape.link([x], [result], run)
    return result


def _repeated(p: Pass, x: Value, elements: int) -> Value:
    """Each key head for all its query heads."""
    result = p.new("heads, repeated", elements, layout="heads")
    count = x.elements

    def run(g: Value) -> Gradients:
        return (p.back("gradient of shared heads", count, layout="heads"),)

    p.tape.link([x], [result], run)
    return result


def _for_product(p: Pass, x: Value) -> Value:
    """Batched products take the heads of all rows one after the other, also turned; those of one
    row lie so in any case."""
    if x.layout != "tokens" or p.rows == 1:
        return x
    return contiguous(p, x)


def _passed(p: Pass, x: Value, result: Value) -> None:
    def run(g: Value) -> Gradients:
        return (g,)

    p.tape.link([x], [result], run)


def cross_entropy(p: Pass, hidden: Value, weight: Value, vocabulary: int) -> Value:
    """The chunked loss, which makes its gradients on the way: dhidden and dweight."""
    line = p.tape.timeline
    dhidden = line.value(
        "gradient of the last hidden states", hidden.elements, category="workspace"
    )
    dweight = line.value("gradient of the output matrix", weight.elements, category="gradients")
    with line.within(category="logits"):
        if p.device == "cuda":
            _chunks_on_gpu(p, hidden, weight, vocabulary)
        elif p.autocast:
            _chunks_by_torch(p, hidden, weight, vocabulary)
        else:
            losses = p.new("losses", p.tokens)
            space = p.new("logits of a chunk", min(CHUNK, p.tokens) * vocabulary)
            del losses, space
    total = p.new("loss", 1)
    made = [dhidden, dweight]
    del dhidden, dweight

    def run(g: Value) -> Gradients:
        result = list(made)
        made.clear()
        return result

    p.tape.link([hidden, weight], [total], run)
    return total


def _chunks_by_torch(p: Pass, hidden: Value, weight: Value, vocabulary: int) -> None:
    """`with_torch.chunked_cross_entropy` under autocast."""
    width = hidden.elements // p.tokens
    for start in range(0, min(p.tokens, 2 * CHUNK), CHUNK):
        count = min(CHUNK, p.tokens - start)
        # A view of the weight is no leaf, of which autocast would keep the copy.
        factor = p.new("output matrix, cast", weight.elements, HALF)
        some = p.new("hidden states of a chunk, cast", count * width, HALF)
        logits = p.new("logits of a chunk", count * vocabulary, HALF)
        del factor, some
        wide = p.new("logits of a chunk, cast", count * vocabulary)
        log_p = p.new("log-softmax of a chunk", count * vocabulary)
        del wide, logits
        safe = p.new("targets of a chunk", count * (LONG + 3 * FLOAT), 1)
        del safe
        cast_weight(p, weight)
        errors = p.new("errors of a chunk, cast", count * vocabulary, HALF)
        product = p.new("gradient of a chunk's hidden states", count * width, HALF)
        del errors, product, log_p


def _chunks_on_gpu(p: Pass, hidden: Value, weight: Value, vocabulary: int) -> None:
    """`with_triton.chunked_cross_entropy`."""
    size = HALF if p.autocast else FLOAT
    width = hidden.elements // p.tokens
    chunk = min(gpu_cross_entropy.default_chunk(vocabulary, hidden.size), p.tokens)
    factor = p.new("output matrix, cast", weight.elements if p.autocast else 0, size)
    losses = p.new("losses", p.tokens)
    space = p.new("logits of a chunk", chunk * vocabulary, size)
    some = p.new("hidden states of a chunk, cast", chunk * width if p.autocast else 0, size)
    p.new("gradient of a chunk's hidden states", chunk * width, size)
    p.new("a chunk's gradient of the matrix", weight.elements if p.autocast else 0, size)
    del factor, losses, space, some


def bias_of_scores(p: Pass, heads: int, alibi: bool) -> Value:
    """`model.visibility.visibility_bias`: (heads or 1, seq, seq); ALiBi's slopes are doubles."""
    pairs = p.length * p.length
    size = LONG if alibi else FLOAT
    distance = p.new("distances", pairs, LONG)
    seen = p.new("seen", pairs, 1)
    other = p.new("seen, another", pairs, 1)
    del other
    penalty = p.new("penalties", heads * pairs, size)
    hidden = p.new("hidden", pairs, 1)
    bias = p.new("bias", heads * pairs, size)
    del distance, seen, hidden, penalty
    if size == FLOAT:
        return bias
    result = p.new("bias, cast", heads * pairs)
    del bias
    return result
