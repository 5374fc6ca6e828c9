"""Split-KV attention of decodes and chunks over a paged KV cache in Triton, flash-decoding by block tables.

Each program takes some tokens of one sequence with all query heads of one KV head, and one share of the keys
they may see (Flash-Decoding, https://pytorch.org/blog/flash-decoding); a second kernel combines the shares by
their log-sum-exp. Short chunks over long contexts have few queries, as decodes have. Sums are fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbsim.lab.kernels.attention_backends import ChunkBatch, DecodeBatch, LayerCache

LOG2_E = 1.4426950408889634
MIN_ROWS = 16
"""Rows that `tl.dot` needs at least: a program's (token, head) pairs are padded to them."""


# Else it would be compiled anew for numbers that are 1, and that are multiples of 16.
@triton.jit(do_not_specialize=["table_stride", "num_chunks", "num_splits"])  # type: ignore[untyped-decorator]
def _attention_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    block_tables,
    key_lens,
    token_starts,
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
    ARE_CHUNKS: tl.constexpr,
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
    """Attention of up to `QUERIES` tokens of a sequence to one share of their keys: the output, or its part
    and log2-sum-exp2. Decodes have one token each; `token_starts` says where chunks' tokens start.
    """
    place = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    rows = tl.arange(0, ROWS)
    if ARE_CHUNKS:
        # Chunk c has the places from `token_starts[c] // QUERIES + c` on: enough for its last, partly filled
        # one.
        sequence, high = 0, num_chunks
        while high - sequence > 1:
            middle = (sequence + high) // 2
            if tl.load(token_starts + middle) // QUERIES + middle <= place:
                sequence = middle
            else:
                high = middle
        first_row = tl.load(token_starts + sequence)
        num_tokens = tl.load(token_starts + sequence + 1) - first_row
        first = (place - first_row // QUERIES - sequence) * QUERIES
        if first >= num_tokens:
            return
        num_keys = tl.load(key_lens + sequence)
        tokens = first + rows // GROUP
        row = (first_row + tokens).to(tl.int64)
        heads = kv_head * GROUP + rows % GROUP
        is_row = (rows < QUERIES * GROUP) & (tokens < num_tokens)
        last_seen = num_keys - num_tokens + tokens
        seen = tl.minimum(num_keys, num_keys - num_tokens + first + QUERIES)
    else:
        sequence = place.to(tl.int64)
        row = sequence + tl.zeros((ROWS,), tl.int64)
        heads = kv_head * GROUP + rows
        is_row = rows < GROUP
        seen = tl.load(key_lens + sequence)
    tiles_per_split = tl.cdiv(tl.cdiv(seen, TILE), num_splits)
    start = split * tiles_per_split * TILE
    end = tl.minimum(start + tiles_per_split * TILE, seen)

    places = tl.arange(0, PADDED_SIZE)
    in_tile = tl.arange(0, TILE)
    is_place = places < HEAD_SIZE
    wanted = is_row[:, None] & is_place[None, :]
    query_at = query + row[:, None] * query_stride + heads[:, None] * HEAD_SIZE + places[None, :]
    q = tl.load(query_at, mask=wanted, other=0.0)
    if WIDEN:
        q = q.to(tl.float32)

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, PADDED_SIZE), tl.float32)
    table = block_tables + sequence * table_stride
    # The next tile's blocks are looked up ahead: a load that waits for one of its own tile isn't pipelined.
    ahead = tl.load(table + (start + in_tile) // BLOCK_SIZE, mask=start + in_tile < end, other=0)
    for from_key in tl.range(start, end, TILE, num_stages=NUM_STAGES):
        at = from_key + in_tile
        is_key = at < end
        blocks = ahead.to(tl.int64)
        following = at + TILE
        ahead = tl.load(table + following // BLOCK_SIZE, mask=following < end, other=0)
        key_at = blocks * block_stride + (at % BLOCK_SIZE) * token_stride + kv_head * head_stride
        element_at = key_at[:, None] + places[None, :]
        is_element = is_key[:, None] & is_place[None, :]
        k = tl.load(keys + element_at, mask=is_element, other=0.0)
        if CAST:
            k = k.to(query.dtype.element_ty)
        if WIDEN:
            k = k.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        may_see = is_key[None, :]
        if ARE_CHUNKS:
            may_see = may_see & (at[None, :] <= last_seen[:, None])
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

    # A share without keys has a log-sum of -inf, which is no weight; a whole context without any gives 0.
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


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def _combine_kernel(  # type: ignore[no-untyped-def]
    partials,
    log_sums,
    out,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
):
    """Put the shares of one query head together, weighted by their sums."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, PADDED_SPLITS)
    places = tl.arange(0, PADDED_SIZE)
    is_split = splits < num_splits
    is_place = places < HEAD_SIZE
    share = row * num_splits + splits
    log_sum = tl.load(log_sums + share, mask=is_split, other=float("-inf"))
    highest = tl.max(log_sum, 0)
    # -inf less -inf is NaN: where no share has a token, every weight is to be 0.
    weights = tl.exp2(log_sum - tl.where(highest > float("-inf"), highest, 0.0))
    wanted = (weights > 0)[:, None] & is_place[None, :]
    acc = tl.load(partials + share[:, None] * HEAD_SIZE + places[None, :], mask=wanted, other=0.0)
    total = tl.sum(weights, 0)
    result = tl.sum(acc * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD_SIZE + places, result.to(out.dtype.element_ty), mask=is_place)


def paged_attention(
    query: Tensor,
    cache: LayerCache,
    batch: DecodeBatch | ChunkBatch,
    *,
    num_splits: int,
    rows: int = MIN_ROWS,
    tile: int = 64,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Tensor:
    """Attention of `(decodes, num_heads, head_size)` queries, or of those of packed chunks, heads contiguous,
    over the cache's blocks.

    `rows` are the (token, head) pairs of a program of chunks, and `tile` the keys that it reads at once,
    powers of 2 from 16; `num_splits` the shares of each context. Lengths are read on the device, so a CUDA
    graph may be replayed with others: any number of splits is right for any length. A context of 0 tokens
    gives zeros. Returns a new tensor of the queries' shape and dtype; raises ValueError for tensors laid out
    in another way.
    """
    are_chunks = isinstance(batch, ChunkBatch)
    if isinstance(batch, ChunkBatch):
        tables, key_lens, token_starts = batch.tables, batch.key_lens, batch.token_starts
    else:
        tables, key_lens, token_starts = batch.block_tables, batch.context_lens, batch.context_lens
    _check_layout(query, cache, tables, key_lens)
    num_tokens, num_heads, head_size = query.shape
    num_kv_heads, num_sequences = cache.keys.shape[2], key_lens.shape[0]
    group = num_heads // num_kv_heads
    rows = max(rows, triton.next_power_of_2(group))
    queries = rows // group if are_chunks else 1
    num_places = num_sequences + (num_tokens // queries if are_chunks else 0)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    is_whole = num_splits == 1
    shape = (1,) if is_whole else (num_tokens, num_heads, num_splits)
    log_sums = torch.empty(shape, dtype=torch.float32, device=query.device)
    partials = torch.empty((*shape, head_size), dtype=torch.float32, device=query.device)
    sizes = {"HEAD_SIZE": head_size, "PADDED_SIZE": triton.next_power_of_2(head_size)}
    _attention_kernel[num_places, num_kv_heads, num_splits](
        query,
        cache.keys,
        cache.values,
        tables,
        key_lens,
        token_starts,
        out,
        partials,
        log_sums,
        head_size**-0.5 * LOG2_E,
        query.stride(0),
        *cache.keys.stride()[:3],
        tables.stride(0),
        num_sequences,
        num_splits,
        ARE_CHUNKS=are_chunks,
        NUM_HEADS=num_heads,
        GROUP=group,
        QUERIES=queries,
        ROWS=rows,
        BLOCK_SIZE=cache.block_size,
        TILE=tile,
        IS_WHOLE=is_whole,
        NUM_STAGES=num_stages,
        CAST=cache.keys.dtype != query.dtype,
        # Triton's interpreter multiplies the bit patterns of bf16; on a GPU the products are fp32 anyway.
        WIDEN=query.dtype == torch.bfloat16 and not query.is_cuda,
        num_warps=num_warps,
        **sizes,
    )
    if not is_whole:
        _combine_kernel[(num_tokens * num_heads,)](
            partials,
            log_sums,
            out,
            num_splits,
            PADDED_SPLITS=triton.next_power_of_2(num_splits),
            num_warps=4,
            **sizes,
        )
    return out


def _check_layout(query: Tensor, cache: LayerCache, tables: Tensor, lengths: Tensor) -> None:
    """Raise ValueError for tensors that a kernel, which walks heads and tables by their sizes, would misread.

    `tables` are a row of block numbers for each sequence; `lengths` lie one after another.
    """
    head_size = query.shape[2]
    wrong = {
        "heads of a query must lie one after another": query.stride()[1:] != (head_size, 1),
        "keys and values must have equal strides": cache.keys.stride() != cache.values.stride(),
        "elements of a head must lie one after another": cache.keys.stride(3) != 1,
        "query heads must be a multiple of KV heads": query.shape[1] % cache.keys.shape[2] != 0,
        "block numbers of a sequence must lie one after another": tables.stride(1) != 1,
        "context lengths must lie one after another": not lengths.is_contiguous(),
    }
    problems = [problem for problem, is_wrong in wrong.items() if is_wrong]
    if problems:
        raise ValueError(f"paged attention: {'; '.join(problems)}")
