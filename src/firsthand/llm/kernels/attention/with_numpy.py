"""Causal attention in NumPy: with the whole matrix of scores, and in tiles that never hold it.

Naive backward, with P the probabilities and dS the gradient of the scores:

    dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - δ),  dQ = dS K / √width,  dK = dSᵀ Q / √width,

where δ = Σ P dP over a row. Since P V = O, δ is also Σ dO O over the width, which needs no row of
P: tiles can be differentiated with one saved number a row, the log of its sum.
Source: Dao 2023, "FlashAttention-2", algorithms 1 and 2.
"""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs

BLOCK = 64


def attention(q: AnyArray, k: AnyArray, v: AnyArray) -> AnyArray:
    """(batch, heads, queries, width), from the whole (queries, keys) scores of each head."""
    probabilities = _probabilities(_grouped(q, k), k[:, :, None])
    return (probabilities @ v[:, :, None]).reshape(q.shape)


def attention_gradients(q: AnyArray, k: AnyArray, v: AnyArray, cotangent: AnyArray) -> Outputs:
    """The output, dq, dk and dv, in the shapes of q, k and v."""
    grouped, dout = _grouped(q, k), _grouped(cotangent, k)
    keys, values = k[:, :, None], v[:, :, None]
    scale = _scale(q)
    p = _probabilities(grouped, keys)
    dp = dout @ _turned(values)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
    dk = (_turned(ds) @ grouped).sum(axis=2)
    dv = (_turned(p) @ dout).sum(axis=2)
    return [(p @ values).reshape(q.shape), (ds @ keys).reshape(q.shape), dk, dv]


def tiled_attention(q: AnyArray, k: AnyArray, v: AnyArray, block: int = BLOCK) -> AnyArray:
    """The same in tiles of `block` queries and keys, with a running maximum and sum."""
    return _tiled(_grouped(q, k), k[:, :, None], v[:, :, None], block)[0].reshape(q.shape)


def tiled_attention_gradients(
    q: AnyArray, k: AnyArray, v: AnyArray, cotangent: AnyArray, block: int = BLOCK
) -> Outputs:
    """The output, dq, dk and dv; each tile of probabilities is computed again."""
    grouped, dout = _grouped(q, k), _grouped(cotangent, k)
    keys, values = k[:, :, None], v[:, :, None]
    output, log_sums = _tiled(grouped, keys, values, block)
    delta = (dout * output).sum(axis=-1, keepdims=True)
    scale = _scale(q)
    dq, dk, dv = np.zeros_like(grouped), np.zeros_like(k), np.zeros_like(v)
    for rows, columns in _tiles(grouped.shape[-2], k.shape[-2], block):
        scores = _scores(grouped, keys, rows, columns)
        p = np.exp(scores - log_sums[..., rows, :])
        dv[..., columns, :] += (_turned(p) @ dout[..., rows, :]).sum(axis=2)
        dp = dout[..., rows, :] @ _turned(values[..., columns, :])
        ds = p * (dp - delta[..., rows, :]) * scale
        dq[..., rows, :] += ds @ keys[..., columns, :]
        dk[..., columns, :] += (_turned(ds) @ grouped[..., rows, :]).sum(axis=2)
    return [output.reshape(q.shape), dq.reshape(q.shape), dk, dv]


def _tiled(q: AnyArray, k: AnyArray, v: AnyArray, block: int) -> tuple[AnyArray, AnyArray]:
    """The output and the logarithm of each row's sum of exponentials, (..., queries, 1)."""
    output = np.zeros_like(q)
    maximum = np.full((*q.shape[:-1], 1), -np.inf, dtype=q.dtype)
    total = np.zeros_like(maximum)
    for rows, columns in _tiles(q.shape[-2], k.shape[-2], block):
        scores = _scores(q, k, rows, columns)
        raised = np.maximum(maximum[..., rows, :], scores.max(axis=-1, keepdims=True))
        shrink = np.exp(maximum[..., rows, :] - raised)
        p = np.exp(scores - raised)
        total[..., rows, :] = total[..., rows, :] * shrink + p.sum(axis=-1, keepdims=True)
        output[..., rows, :] = output[..., rows, :] * shrink + p @ v[..., columns, :]
        maximum[..., rows, :] = raised
    return output / total, maximum + np.log(total)


def _tiles(queries: int, keys: int, block: int) -> list[tuple[slice, slice]]:
    """Row and column ranges of the tiles in which some query sees some key, left to right."""
    tiles = []
    for top in range(0, queries, block):
        bottom = min(top + block, queries)
        for left in range(0, bottom + keys - queries, block):
            tiles.append((slice(top, bottom), slice(left, min(left + block, keys))))
    return tiles


def _scores(q: AnyArray, k: AnyArray, rows: slice, columns: slice) -> AnyArray:
    scores = (q[..., rows, :] @ _turned(k[..., columns, :])) * _scale(q)
    last_seen = np.arange(rows.start, rows.stop) + k.shape[-2] - q.shape[-2]
    hidden = np.arange(columns.start, columns.stop) > last_seen[:, None]
    return np.where(hidden, q.dtype.type(-np.inf), scores)


def _probabilities(q: AnyArray, k: AnyArray) -> AnyArray:
    scores = _scores(q, k, slice(0, q.shape[-2]), slice(0, k.shape[-2]))
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: AnyArray = p / p.sum(axis=-1, keepdims=True)
    return result


def _grouped(q: AnyArray, k: AnyArray) -> AnyArray:
    """(batch, heads, queries, width) -> (batch, kv_heads, group, queries, width), a view."""
    batch, _, queries, width = q.shape
    return q.reshape(batch, k.shape[1], -1, queries, width)


def _scale(q: AnyArray) -> AnyArray:
    result: AnyArray = q.dtype.type(1.0 / np.sqrt(q.shape[-1]))
    return result


def _turned(x: AnyArray) -> AnyArray:
    return np.swapaxes(x, -1, -2)
