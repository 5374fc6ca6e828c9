"""Attention of prompt chunks over a paged KV cache in Triton, without copying what the cache holds.

Each program takes some tokens of one chunk with all query heads of one KV head, and one share of the keys
they may see: short chunks over long contexts have few queries, so that their keys are split, as those of
decodes are. `triton_decode` puts the shares together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbsim.lab.kernels.attention_backends import ChunkBatch, LayerCache
from cbsim.lab.kernels.triton_decode import LOG2_E, check_layout, combine


@triton.jit(do_not_specialize=["table_stride", "num_chunks", "num_splits"])  # type: ignore[untyped-decorator]
def _chunk_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    block_tables,
    token_starts,
    key_starts,
    out,
    partials,
    log_sums,
    scale_log2,
    query_stride,
    block_stride,
    token_stride,
    head_stride,
    table_stride,
    num_chunks,
    num_splits,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    CAST: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Attention of up to `QUERIES` tokens of a chunk to one share of their keys."""
    place = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    # Chunk c has the places from `token_starts[c] // QUERIES + c` on: enough for its last, partly filled one.
    low, high = 0, num_chunks
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(token_starts + middle) // QUERIES + middle <= place:
            low = middle
        else:
            high = middle
    first_row = tl.load(token_starts + low)
    num_tokens = tl.load(token_starts + low + 1) - first_row
    num_keys = tl.load(key_starts + low + 1) - tl.load(key_starts + low)
    first = (place - first_row // QUERIES - low) * QUERIES

    if first >= num_tokens:
        return

    rows = tl.arange(0, ROWS)
    places = tl.arange(0, PADDED_SIZE)
    in_tile = tl.arange(0, TILE)
    tokens = first + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    is_row = (rows < QUERIES * GROUP) & (tokens < num_tokens)
    is_place = places < HEAD_SIZE
    wanted = is_row[:, None] & is_place[None, :]
    row = (first_row + tokens).to(tl.int64)
    query_at = query + row[:, None] * query_stride + heads[:, None] * HEAD_SIZE + places[None, :]
    q = tl.load(query_at, mask=wanted, other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    last_seen = num_keys - num_tokens + tokens
    seen = tl.minimum(num_keys, num_keys - num_tokens + first + QUERIES)
    tiles_per_split = tl.cdiv(tl.cdiv(seen, TILE), num_splits)
    start = split * tiles_per_split * TILE
    end = tl.minimum(start + tiles_per_split * TILE, seen)

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, PADDED_SIZE), tl.float32)
    table = block_tables + low * table_stride
    # The next tile's blocks are looked up ahead: see `triton_decode`.
    ahead = tl.load(table + (start + in_tile) // BLOCK_SIZE, mask=start + in_tile < end, other=0)
    for from_key in tl.range(start, end, TILE, num_stages=NUM_STAGES):
        at = from_key + in_tile
        is_key = at < end
        blocks = ahead.to(tl.int64)
        following = at + TILE
        ahead = tl.load(table + following // BLOCK_SIZE, mask=following < end, other=0)
        token_at = blocks * block_stride + (at % BLOCK_SIZE) * token_stride + kv_head * head_stride
        element_at = token_at[:, None] + places[None, :]
        is_element = is_key[:, None] & is_place[None, :]
        k = tl.load(keys + element_at, mask=is_element, other=0.0)
        if CAST:
            k = k.to(query.dtype.element_ty)
        if WIDEN:
            k = k.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        may_see = is_key[None, :] & (at[None, :] <= last_seen[:, None])
        scores = tl.where(may_see, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        # A row that has seen nothing yet has no highest score: -inf less -inf would be NaN.
        known = tl.where(new_highest > float("-inf"), new_highest, 0.0)
        weights = tl.exp2(scores - known[:, None])
        shrink = tl.exp2(highest - known)
        v = tl.load(values + element_at, mask=is_element, other=0.0)
        if CAST:
            v = v.to(query.dtype.element_ty)
        factors = weights.to(v.dtype)
        if WIDEN:
            factors, v = factors.to(tl.float32), v.to(tl.float32)
        acc = acc * shrink[:, None] + tl.dot(factors, v, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        highest = new_highest

    divisor = tl.where(total > 0, total, 1.0)
    result = acc / divisor[:, None]
    out_row = row * NUM_HEADS + heads
    if IS_WHOLE:
        at_out = out + out_row[:, None] * HEAD_SIZE + places[None, :]
        tl.store(at_out, result.to(out.dtype.element_ty), mask=wanted)
    else:
        share = out_row * num_splits + split
        tl.store(log_sums + share, highest + tl.log2(divisor), mask=is_row)
        tl.store(partials + share[:, None] * HEAD_SIZE + places[None, :], result, mask=wanted)


def paged_chunks(
    query: Tensor,
    cache: LayerCache,
    batch: ChunkBatch,
    *,
    num_splits: int = 1,
    rows: int = 64,
    tile: int = 64,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Tensor:
    """Attention of packed `(T, num_heads, head_size)` queries, heads contiguous, over the cache's blocks.

    `rows` are the (token, head) pairs of a program, a power of 2 from 16 and at least the query heads of a KV
    head; `tile` the keys read at once; `num_splits` the shares of the keys. Returns a new tensor of the
    queries' shape and dtype; raises ValueError for tensors laid out in another way.
    """
    check_layout(query, cache, batch.tables, batch.token_starts)
    num_tokens, num_heads, head_size = query.shape
    num_kv_heads = cache.keys.shape[2]
    group = num_heads // num_kv_heads
    rows = max(rows, triton.next_power_of_2(group))
    queries = rows // group
    num_chunks = len(batch.num_tokens)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    is_whole = num_splits == 1
    shape = (1,) if is_whole else (num_tokens, num_heads, num_splits)
    log_sums = torch.empty(shape, dtype=torch.float32, device=query.device)
    partials = torch.empty((*shape, head_size), dtype=torch.float32, device=query.device)
    _chunk_kernel[num_tokens // queries + num_chunks, num_kv_heads, num_splits](
        query,
        cache.keys,
        cache.values,
        batch.tables,
        batch.token_starts,
        batch.key_starts,
        out,
        partials,
        log_sums,
        head_size**-0.5 * LOG2_E,
        query.stride(0),
        *cache.keys.stride()[:3],
        batch.tables.stride(0),
        num_chunks,
        num_splits,
        NUM_HEADS=num_heads,
        GROUP=group,
        QUERIES=queries,
        ROWS=rows,
        HEAD_SIZE=head_size,
        PADDED_SIZE=triton.next_power_of_2(head_size),
        BLOCK_SIZE=cache.block_size,
        TILE=tile,
        IS_WHOLE=is_whole,
        NUM_STAGES=num_stages,
        CAST=cache.keys.dtype != query.dtype,
        # Triton's interpreter multiplies the bit patterns of bf16; on a GPU the products are fp32 anyway.
        WIDEN=query.dtype == torch.bfloat16 and not query.is_cuda,
        num_warps=num_warps,
    )
    if not is_whole:
        combine(partials, log_sums, out)
    return out
