"""The ladder of causal attention."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.attention import with_numba, with_numpy, with_torch, with_triton
from firsthand.llm.kernels.ladder import AnyArray, Costs, Inputs, Ladder, Outputs, Rung, Shape


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """q: (batch, heads, queries, width); k and v: (batch, kv_heads, keys, width)."""
    batch, width = shape["batch"], shape["width"]
    keys_shape = (batch, shape["kv_heads"], shape["keys"], width)
    return {
        "q": generator.standard_normal((batch, shape["heads"], shape["queries"], width)),
        "k": generator.standard_normal(keys_shape),
        "v": generator.standard_normal(keys_shape),
    }


def oracle(q: AnyArray, k: AnyArray, v: AnyArray, cotangent: AnyArray) -> Outputs:
    """Query by query over the keys it sees, each head by itself."""
    output, dq = np.zeros_like(q), np.zeros_like(q)
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    group, offset = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    for b, head, i in np.ndindex(*q.shape[:3]):
        shared, seen = head // group, slice(0, i + offset + 1)
        scores = k[b, shared, seen] @ q[b, head, i] / np.sqrt(q.shape[-1])
        p = np.exp(scores - np.logaddexp.reduce(scores))
        output[b, head, i] = p @ v[b, shared, seen]
        g = cotangent[b, head, i]
        jacobian = np.diag(p) - np.outer(p, p)
        dscores = jacobian @ (v[b, shared, seen] @ g) / np.sqrt(q.shape[-1])
        dq[b, head, i] = dscores @ k[b, shared, seen]
        dk[b, shared, seen] += np.outer(dscores, q[b, head, i])
        dv[b, shared, seen] += np.outer(p, g)
    return [output, dq, dk, dv]


def _pairs(shape: Shape) -> int:
    """Pairs of a query and a key it sees, over all heads."""
    queries, keys = shape["queries"], shape["keys"]
    seen = queries * (keys - queries) + queries * (queries + 1) // 2
    return shape["batch"] * shape["heads"] * seen


def _operands(shape: Shape, queries: int, keys: int) -> int:
    """Bytes of `queries` arrays like q and `keys` arrays like k."""
    each = 4 * shape["batch"] * shape["width"]
    like_q = each * shape["heads"] * shape["queries"]
    return queries * like_q + keys * each * shape["kv_heads"] * shape["keys"]


def _whole(forward: int, both: int) -> Costs:
    """Passes over the whole scores, hidden keys included, besides the operands."""

    def count(shape: Shape, passes: int, queries: int, keys: int) -> int:
        scores = 4 * shape["batch"] * shape["heads"] * shape["queries"] * shape["keys"]
        return passes * scores + _operands(shape, queries, keys)

    return Costs(lambda s: count(s, forward, 2, 2), lambda s: count(s, both, 6, 8))


def _tiled(block: int, forward: int, both: int) -> Costs:
    """Keys and values read again for each block of queries, and the passes over each tile."""

    def count(shape: Shape, passes: int, queries: int, keys: int) -> int:
        blocks = -(-shape["queries"] // block)
        return 4 * passes * _pairs(shape) + _operands(shape, queries, blocks * keys)

    return Costs(lambda s: count(s, forward, 2, 2), lambda s: count(s, both, 6, 6))


def _twice_tiled(block: int) -> Costs:
    """Keys read again for each block of queries, and in the backward pass queries for keys too."""

    def both(shape: Shape) -> int:
        rows, columns = (-(-shape[name] // block) for name in ("queries", "keys"))
        return _operands(shape, 6 + 2 * columns, 4 + 4 * rows)

    return Costs(lambda s: _operands(s, 2, 2 * -(-s["queries"] // block)), both)


LADDER = Ladder(
    name="attention",
    inputs=inputs,
    oracle=oracle,
    differentiable=("q", "k", "v"),
    # Two products forward and five more backward, one of which repeats the scores.
    flops=Costs(
        lambda s: _pairs(s) * (4 * s["width"] + 5), lambda s: _pairs(s) * (14 * s["width"] + 14)
    ),
    bytes_moved=Costs(lambda s: _operands(s, 2, 2), lambda s: _operands(s, 5, 6)),
    shape={"batch": 2, "heads": 8, "kv_heads": 4, "queries": 512, "keys": 512, "width": 64},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.attention,
            _whole(12, 24),
            with_numpy.attention_gradients,
        ),
        Rung(
            "numpy-tiled",
            "numpy",
            with_numpy.tiled_attention,
            _tiled(with_numpy.BLOCK, 10, 30),
            with_numpy.tiled_attention_gradients,
        ),
        Rung("torch", "torch", with_torch.attention, _whole(8, 18)),
        Rung(
            "torch-tiled",
            "torch",
            with_torch.tiled_attention,
            _tiled(with_torch.BLOCK, 8, 22),
        ),
        # The kernel keeps a tile in the cache: no pass over the scores reaches memory.
        Rung("torch-sdpa", "torch", with_torch.sdpa, _tiled(with_torch.BLOCK, 0, 0)),
        Rung("numba", "torch", with_numba.attention, _tiled(with_numba.BLOCK, 0, 0)),
        Rung(
            "triton",
            "torch",
            with_triton.attention,
            _twice_tiled(128),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)
