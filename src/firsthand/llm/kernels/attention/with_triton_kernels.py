"""The Triton kernels of causal attention; `with_triton` has the mathematics and launches them.

A program owns one tile of rows (or, for dk and dv, of keys) of one head and walks over the tiles
that it can see. Those that it sees whole come in a loop without a mask, those that the diagonal
cuts in a second one. M is the height of a tile of queries, N of keys; WIDTH features are padded to
WIDE, a power of two, with zeros. Products take factors of the type FACTOR: the inputs' own, except
in Triton's interpreter, which would multiply the bits of bfloat16 as if they were integers.
"""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def _tile(
    pointer: tl.tensor,
    start: tl.tensor,
    stride: tl.tensor,
    stop: tl.tensor,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
) -> tl.tensor:
    """Rows start to start + ROWS as (ROWS, WIDE), zeros from `stop` and from WIDTH on."""
    row, feature = start + tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row[:, None] < stop) & (feature[None, :] < WIDTH)
    where = pointer + row[:, None] * stride + feature[None, :]
    return tl.load(where, inside, 0.0).to(FACTOR)


@jit
def _store(
    pointer: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    stride: tl.tensor,
    stop: tl.tensor,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row, feature = start + tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row[:, None] < stop) & (feature[None, :] < WIDTH)
    where = pointer + row[:, None] * stride + feature[None, :]
    tl.store(where, values.to(pointer.dtype.element_ty), inside)


@jit
def _attend(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    last_seen: tl.tensor,
    scale: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    keys: tl.tensor,
    output: tl.tensor,
    total: tl.tensor,
    highest: tl.tensor,
    N: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    DIAGONAL: tl.constexpr,
) -> tl.tensor:
    """Keys first to last join the running output, sum and maximum of each row."""
    column, feature = tl.arange(0, N), tl.arange(0, WIDE)
    k_spots = column[:, None] * k_stride + feature[None, :]
    v_spots = column[:, None] * v_stride + feature[None, :]
    for start in range(first, last, N):
        start = tl.multiple_of(start, N)
        if DIAGONAL:
            inside = ((start + column)[:, None] < keys) & (feature < WIDTH)[None, :]
        else:
            inside = (feature < WIDTH)[None, :]
        key = tl.load(k + start * k_stride + k_spots, inside, 0.0).to(FACTOR)
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION)
        if DIAGONAL:
            seen = last_seen[:, None] >= (start + column)[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - raised[:, None])
        shrink = tl.exp2(highest - raised)
        total = total * shrink + tl.sum(p, 1)
        output = output * shrink[:, None]
        value = tl.load(v + start * v_stride + v_spots, inside, 0.0).to(FACTOR)
        p = p.to(v.dtype.element_ty).to(FACTOR)
        output += tl.dot(p, value, input_precision=PRECISION)
        highest = raised
    return output, total, highest


@jit
def forward(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    output: tl.tensor,
    log_sums: tl.tensor,
    scale: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    o_batch: tl.tensor,
    o_head: tl.tensor,
    o_row: tl.tensor,
    length: tl.tensor,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """The output, and for each row the logarithm to base 2 of its sum of exponentials."""
    # The last rows see the most keys: started first, they do not end last.
    tiles = tl.cdiv(queries, M)
    top = (tiles - 1 - tl.program_id(0) % tiles) * M
    number = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = number // heads, number % heads
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head // GROUP * k_head
    v += batch * v_batch + head // GROUP * v_head
    query = _tile(q, top, q_row, queries, M, WIDE, WIDTH, FACTOR)
    row = top + tl.arange(0, M)
    last_seen = row + keys - queries
    whole = (top + keys - queries + 1) // N * N
    behind = tl.minimum(keys, top + M + keys - queries)
    highest = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, WIDE], tl.float32)
    mixed, total, highest = _attend(
        query, k, v, k_row, v_row, last_seen, scale, 0, whole, keys, mixed, total, highest,
        N, WIDE, WIDTH, FACTOR, PRECISION, False,
    )  # fmt: skip
    mixed, total, highest = _attend(
        query, k, v, k_row, v_row, last_seen, scale, whole, behind, keys, mixed, total, highest,
        N, WIDE, WIDTH, FACTOR, PRECISION, True,
    )  # fmt: skip
    log_sum = highest + tl.log2(total)
    tl.store(log_sums + number * queries + row, log_sum, mask=row < queries)
    output += batch * o_batch + head * o_head
    _store(output, mixed / total[:, None], top, o_row, queries, M, WIDE, WIDTH)


@jit
def _query_tile(
    dq: tl.tensor,
    q: tl.tensor,
    dout: tl.tensor,
    log_sum: tl.tensor,
    delta: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    last_seen: tl.tensor,
    scale: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    keys: tl.tensor,
    N: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    DIAGONAL: tl.constexpr,
) -> tl.tensor:
    column, feature = tl.arange(0, N), tl.arange(0, WIDE)
    k_spots = column[:, None] * k_stride + feature[None, :]
    v_spots = column[:, None] * v_stride + feature[None, :]
    for start in range(first, last, N):
        start = tl.multiple_of(start, N)
        if DIAGONAL:
            inside = ((start + column)[:, None] < keys) & (feature < WIDTH)[None, :]
        else:
            inside = (feature < WIDTH)[None, :]
        key = tl.load(k + start * k_stride + k_spots, inside, 0.0).to(FACTOR)
        value = tl.load(v + start * v_stride + v_spots, inside, 0.0).to(FACTOR)
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION)
        p = tl.exp2(scores * scale - log_sum[:, None])
        if DIAGONAL:
            seen = last_seen[:, None] >= (start + column)[None, :]
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(dout, tl.trans(value), input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(k.dtype.element_ty).to(FACTOR)
        dq += tl.dot(ds, key, input_precision=PRECISION)
    return dq


@jit
def backward_queries(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    output: tl.tensor,
    dout: tl.tensor,
    log_sums: tl.tensor,
    deltas: tl.tensor,
    dq: tl.tensor,
    scale: tl.tensor,
    root: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    o_batch: tl.tensor,
    o_head: tl.tensor,
    o_row: tl.tensor,
    g_batch: tl.tensor,
    g_head: tl.tensor,
    g_row: tl.tensor,
    dq_batch: tl.tensor,
    dq_head: tl.tensor,
    dq_row: tl.tensor,
    length: tl.tensor,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """dq, and Δ for the other kernel: here the rows of the output and of dout are read anyway."""
    tiles = tl.cdiv(queries, M)
    top = (tiles - 1 - tl.program_id(0) % tiles) * M
    number = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = number // heads, number % heads
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head // GROUP * k_head
    v += batch * v_batch + head // GROUP * v_head
    output += batch * o_batch + head * o_head
    dout += batch * g_batch + head * g_head
    row = top + tl.arange(0, M)
    cotangent = _tile(dout, top, g_row, queries, M, WIDE, WIDTH, FACTOR)
    out = _tile(output, top, o_row, queries, M, WIDE, WIDTH, FACTOR)
    delta = tl.sum(cotangent.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(deltas + number * queries + row, delta, mask=row < queries)
    # Infinite where there is no query: its probabilities come out as 0.
    log_sum = tl.load(log_sums + number * queries + row, row < queries, float("inf"))
    query = _tile(q, top, q_row, queries, M, WIDE, WIDTH, FACTOR)
    last_seen = row + keys - queries
    whole = (top + keys - queries + 1) // N * N
    behind = tl.minimum(keys, top + M + keys - queries)
    gradient = tl.zeros([M, WIDE], tl.float32)
    gradient = _query_tile(
        gradient, query, cotangent, log_sum, delta, k, v, k_row, v_row, last_seen, scale,
        0, whole, keys, N, WIDE, WIDTH, FACTOR, PRECISION, False,
    )  # fmt: skip
    gradient = _query_tile(
        gradient, query, cotangent, log_sum, delta, k, v, k_row, v_row, last_seen, scale,
        whole, behind, keys, N, WIDE, WIDTH, FACTOR, PRECISION, True,
    )  # fmt: skip
    dq += batch * dq_batch + head * dq_head
    _store(dq, gradient * root, top, dq_row, queries, M, WIDE, WIDTH)


@jit
def _key_tile(
    dk: tl.tensor,
    dv: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    q: tl.tensor,
    dout: tl.tensor,
    log_sums: tl.tensor,
    deltas: tl.tensor,
    q_stride: tl.tensor,
    g_stride: tl.tensor,
    first_seer: tl.tensor,
    scale: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    queries: tl.tensor,
    M: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    RAGGED: tl.constexpr,
    DIAGONAL: tl.constexpr,
) -> tl.tensor:
    """Turned round, keys by queries, so that p and ds are left factors as they are."""
    rows, feature = tl.arange(0, M), tl.arange(0, WIDE)
    q_spots = rows[:, None] * q_stride + feature[None, :]
    g_spots = rows[:, None] * g_stride + feature[None, :]
    for start in range(first, last, M):
        start = tl.multiple_of(start, M)
        row = start + rows
        if RAGGED:
            inside = (row < queries)[:, None] & (feature < WIDTH)[None, :]
            # Infinite where there is no query: its probabilities come out as 0.
            log_sum = tl.load(log_sums + row, row < queries, float("inf"))
            delta = tl.load(deltas + row, row < queries, 0.0)
        else:
            inside = (feature < WIDTH)[None, :]
            log_sum = tl.load(log_sums + row)
            delta = tl.load(deltas + row)
        query = tl.load(q + start * q_stride + q_spots, inside, 0.0).to(FACTOR)
        cotangent = tl.load(dout + start * g_stride + g_spots, inside, 0.0).to(FACTOR)
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        p = tl.exp2(scores * scale - log_sum[None, :])
        if DIAGONAL:
            p = tl.where(row[None, :] >= first_seer[:, None], p, 0.0)
        share = p.to(dout.dtype.element_ty).to(FACTOR)
        dv += tl.dot(share, cotangent, input_precision=PRECISION)
        dp = tl.dot(value, tl.trans(cotangent), input_precision=PRECISION)
        ds = (p * (dp - delta[None, :])).to(q.dtype.element_ty).to(FACTOR)
        dk += tl.dot(ds, query, input_precision=PRECISION)
    return dk, dv


@jit
def backward_keys(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    dout: tl.tensor,
    log_sums: tl.tensor,
    deltas: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    scale: tl.tensor,
    root: tl.tensor,
    kv_heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    g_batch: tl.tensor,
    g_head: tl.tensor,
    g_row: tl.tensor,
    dk_batch: tl.tensor,
    dk_head: tl.tensor,
    dk_row: tl.tensor,
    dv_batch: tl.tensor,
    dv_head: tl.tensor,
    dv_row: tl.tensor,
    length: tl.tensor,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    RAGGED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """dk and dv of a tile of keys, summed over the query heads that share it."""
    # The first keys are seen by the most queries, and the first programs start first.
    tiles = tl.cdiv(keys, N)
    left = tl.program_id(0) % tiles * N
    number = (tl.program_id(0) // tiles).to(tl.int64)
    batch, shared = number // kv_heads, number % kv_heads
    k += batch * k_batch + shared * k_head
    v += batch * v_batch + shared * v_head
    key = _tile(k, left, k_row, keys, N, WIDE, WIDTH, FACTOR)
    value = _tile(v, left, v_row, keys, N, WIDE, WIDTH, FACTOR)
    ahead = keys - queries
    first_seer = left - ahead + tl.arange(0, N)
    first = tl.maximum(0, left - ahead) // M * M
    whole = tl.minimum(tl.cdiv(tl.maximum(0, left + N - 1 - ahead), M) * M, queries)
    dkey = tl.zeros([N, WIDE], tl.float32)
    dvalue = tl.zeros([N, WIDE], tl.float32)
    for member in range(GROUP):
        head = shared * GROUP + member
        q_here = q + batch * q_batch + head * q_head
        g_here = dout + batch * g_batch + head * g_head
        sums = log_sums + (number * GROUP + member) * queries
        delta = deltas + (number * GROUP + member) * queries
        dkey, dvalue = _key_tile(
            dkey, dvalue, key, value, q_here, g_here, sums, delta, q_row, g_row, first_seer,
            scale, first, whole, queries, M, WIDE, WIDTH, FACTOR, PRECISION, RAGGED, True,
        )  # fmt: skip
        dkey, dvalue = _key_tile(
            dkey, dvalue, key, value, q_here, g_here, sums, delta, q_row, g_row, first_seer,
            scale, whole, queries, queries, M, WIDE, WIDTH, FACTOR, PRECISION, RAGGED, False,
        )  # fmt: skip
    dk += batch * dk_batch + shared * dk_head
    dv += batch * dv_batch + shared * dv_head
    _store(dk, dkey * root, left, dk_row, keys, N, WIDE, WIDTH)
    _store(dv, dvalue, left, dv_row, keys, N, WIDE, WIDTH)
