"""Causal attention in Triton, forward and backward, with no array of scores in memory.

forward, over tiles of keys with scores s = q k·√(1/d), log₂e folded into the factor so that the
    exponentials are to base 2: m' = max(m, max s), p = 2^(s - m'), z ← z 2^(m - m') + Σ p,
    o ← o 2^(m - m') + p v; at the end o / z, and L = m + log₂ z is kept for the row.
backward: p = 2^(s - L) again, no division; with Δ = Σ do ∘ o over a row (= Σ p ∘ dp, since
    o = p v): ds = p ∘ (do vᵀ - Δ); dv = Σ pᵀ do, dk = Σ dsᵀ q / √d, dq = Σ ds k / √d.

Memory: whole scores are queries · keys numbers a head, written, read, exponentiated, read ... at
about 3 TB/s; at 8192 keys and 64 features that is 128 numbers of traffic for each one of q, k, v
and o. A tile of scores never leaves the registers, so what moves is q, k, v, o and L, once for each
row of tiles, and mostly from the L2 cache. The backward pass computes the scores twice more, in
one kernel for dq, which owns rows, and in one for dk and dv, which owns keys: seven products
instead of five, and in exchange each number is written by one program, without atomic additions,
in the same order each time. Query heads that share a key head are summed in the second kernel.

The products take the type of the inputs and add up in float32; p and ds are rounded to that type
before theirs. float32 runs in TF32 only if `torch.set_float32_matmul_precision` allows it.
Sources: Dao et al. 2022, "FlashAttention", section 3.1; Dao 2023, "FlashAttention-2", sections 3.1
(L, the order of the loops) and 3.2 (programs by rows, by keys in the backward pass).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.attention.with_torch import sdpa
from firsthand.llm.kernels.triton_support import Choice

WIDEST, NARROWEST = 128, 16
# Below this many queries the first choice of a table runs, unmeasured.
TUNED_FROM = 1024
_LARGEST_OFFSET = 2**31

# Tile height in queries, in keys, warps, stages of loads ahead; by padded width, for types of 16
# bits. The first of a row runs where nothing is measured. For Hopper, whose multiprocessor has
# 228 KB of shared memory and 64K registers: each choice compiles for it without a spilled register
# and multiplies by its warpgroup instructions.
Tiles = tuple[tuple[int, int, int, int], ...]
TILES: dict[str, dict[int, Tiles]] = {
    "forward": {
        32: ((128, 64, 4, 3), (128, 128, 8, 3), (64, 64, 4, 3)),
        64: ((128, 64, 4, 3), (128, 128, 8, 3), (128, 64, 8, 3), (64, 128, 4, 2)),
        128: ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 32, 8, 3)),
    },
    "backward_queries": {
        32: ((128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3)),
        64: ((128, 64, 8, 3), (64, 64, 4, 3), (128, 128, 8, 2), (128, 32, 4, 2)),
        128: ((128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 3), (64, 32, 4, 3)),
    },
    "backward_keys": {
        32: ((64, 128, 8, 3), (64, 64, 4, 3), (32, 128, 4, 3)),
        64: ((64, 128, 8, 3), (64, 64, 4, 3), (64, 128, 8, 2), (32, 128, 8, 3)),
        128: ((32, 128, 8, 3), (32, 64, 4, 3), (32, 128, 8, 2)),
    },
}
# float32, at any width: in TF32, and exactly, which no tensor core does.
ROUNDED: Tiles = ((32, 32, 4, 2),)
EXACT: Tiles = ((16, 16, 4, 2),)
# In the interpreter small tiles, and not square ones, so that short inputs have several.
INTERPRETED = {"forward": (32, 16), "backward_queries": (16, 32), "backward_keys": (32, 16)}

# What was measured, by kernel, width, type, class of lengths and precision.
_best: dict[tuple[Any, ...], Choice] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `with_torch.sdpa`, which also does the rest: a bias, one query, widths beyond 16 to 128.

    float32, float16 and bfloat16 where `triton_support.takes` them; under autocast in its type.
    The result lies so that merging the heads is a view.
    """
    if bias is not None or not _fits(q, k, v):
        return sdpa(q, k, v, bias)
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not q.dtype == k.dtype == v.dtype:
        return sdpa(q, k, v, bias)
    result: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return result


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return (
        triton_support.takes(q, k, v)
        and q.ndim == k.ndim == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[1] % k.shape[1] == 0
        and NARROWEST <= q.shape[-1] == k.shape[-1] <= WIDEST
        and 1 < q.shape[-2] <= k.shape[-2]
        and q.numel() > 0
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _readable(q), _readable(k), _readable(v)
        batch, heads, queries, width = q.shape
        # Laid out so that merging the heads is a view.
        output = q.new_empty(batch, queries, heads, width).transpose(1, 2)
        log_sums = q.new_empty(batch, heads, queries, dtype=torch.float32)
        _launch(
            "forward",
            q,
            lambda tile: _count(queries, tile["M"]) * batch * heads,
            _length_class(q, k),
            *(q, k, v, output, log_sums, _scale(q), heads, queries, k.shape[-2]),
            *(stride for x in (q, k, v, output) for stride in x.stride()[:3]),
            **_constants(q, k),
        )
        ctx.save_for_backward(q, k, v, output, log_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, output, log_sums = ctx.saved_tensors
        cotangent = _readable(cotangent)
        batch, heads, queries, width = q.shape
        kv_heads, keys = k.shape[1:3]
        deltas = torch.empty_like(log_sums)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        constants, length = _constants(q, k), _length_class(q, k)
        scales = (_scale(q), 1.0 / math.sqrt(width))
        _launch(
            "backward_queries",
            q,
            lambda tile: _count(queries, tile["M"]) * batch * heads,
            length,
            *(q, k, v, output, cotangent, log_sums, deltas, dq, *scales, heads, queries, keys),
            *(stride for x in (q, k, v, output, cotangent, dq) for stride in x.stride()[:3]),
            **constants,
        )
        _launch(
            "backward_keys",
            q,
            lambda tile: _count(keys, tile["N"]) * batch * kv_heads,
            length,
            *(q, k, v, cotangent, log_sums, deltas, dk, dv, *scales, kv_heads, queries, keys),
            *(stride for x in (q, k, v, cotangent, dk, dv) for stride in x.stride()[:3]),
            **constants,
            # Every tile height divides 128.
            RAGGED=queries % 128 != 0,
        )
        return dq, dk, dv


def _readable(x: Tensor) -> Tensor:
    """Neighbouring features side by side, and offsets within a head that fit 32 bits."""
    small = x.shape[2] * abs(x.stride(2)) < _LARGEST_OFFSET
    return x if x.stride(3) == 1 and small else x.contiguous()


def _constants(q: Tensor, k: Tensor) -> dict[str, Any]:
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "WIDTH": q.shape[-1],
        "WIDE": triton_support.power_of_two(q.shape[-1]),
        "FACTOR": triton_support.factor(q.dtype),
        "PRECISION": "ieee" if _exact() else "tf32",
        **triton_support.FUSED,
    }


def _scale(q: Tensor) -> float:
    return math.log2(math.e) / math.sqrt(q.shape[-1])


def _count(length: int, tile: int) -> int:
    return -(-length // tile)


def _length_class(q: Tensor, k: Tensor) -> int:
    """What tiles are measured for, 0 where the first choice will do."""
    if q.shape[-2] < TUNED_FROM or torch.are_deterministic_algorithms_enabled():
        return 0
    return triton_support.power_of_two(k.shape[-2])


def _launch(
    name: str,
    q: Tensor,
    programs: Callable[[Choice], int],
    length: int,
    *arguments: Any,
    **constants: Any,
) -> None:
    """Run a kernel with its best tile, which is looked for at its first length of a class."""
    from firsthand.llm.kernels.attention import with_triton_kernels

    kernel = getattr(with_triton_kernels, name)
    what = (name, q.shape[-1], q.dtype, length, constants["PRECISION"])

    def launch(kernel: Any, **tile: int) -> None:
        kernel[lambda tile: (programs(tile),)](*arguments, length, **constants, **tile)

    with triton_support.at(q):
        if what in _best:
            launch(kernel, **_best[what])
            return
        choices = _choices(name, q)
        if length and len(choices) > 1:
            _best[what] = triton_support.fastest(kernel, choices, launch, "length")
        else:
            _best[what] = choices[0]
            launch(kernel, **choices[0])


def _choices(name: str, q: Tensor) -> list[Choice]:
    if triton_support.interpreting():
        tiles: Tiles = ((*INTERPRETED[name], 4, 1),)
    elif q.dtype.itemsize == 2:
        tiles = TILES[name][max(32, triton_support.power_of_two(q.shape[-1]))]
    else:
        tiles = EXACT if _exact() else ROUNDED
    return [
        {"M": m, "N": n, "num_warps": warps, "num_stages": stages} for m, n, warps, stages in tiles
    ]


def _exact() -> bool:
    return torch.get_float32_matmul_precision() == "highest"
