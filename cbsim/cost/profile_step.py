"""profile_step_s: the seconds of one step by a `ProfileRecord`, the formula of `cbsim/cost/form.py`."""

from __future__ import annotations

from typing import Any

from cbsim.cost.attention import (
    chunk_attention_s,
    decode_attention_s,
    fused_attention_s,
    length_s,
)
from cbsim.cost.columns import chunk_pairs
from cbsim.cost.elementwise import larger
from cbsim.cost.form import dense_s, logits_s
from cbsim.cost.grid_step import beyond_launch_s, decodes_by_grid_s, mixed_by_grid_s
from cbsim.cost.host import with_host_s


def profile_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step."""
    num_layers = cost.figures.num_layers
    if shape.num_chunks == 0:
        base_s = decodes_base_s(cost, shape.num_decodes)
        gpu_s = base_s + num_layers * decodes_attention_s(cost, shape)
    else:
        num_rows = shape.num_finishing_chunks + shape.num_decodes
        base_s = layers_s(cost, shape.num_prefill_tokens + shape.num_decodes) + rows_s(cost, num_rows)
        decode_s, prefill_s = attention_s(cost, shape, chunks)
        gpu_s = (base_s + num_layers * decode_s) + num_layers * prefill_s
    return with_host_s(cost.host, gpu_s, shape.num_chunks + shape.num_decodes)


def layers_s(cost: Any, num_tokens: Any) -> Any:
    """Seconds of all layers outside attention."""
    if num_tokens < len(cost.dense):
        return cost.dense[num_tokens]
    return cost.figures.num_layers * dense_s(cost.dense_line, num_tokens)


def rows_s(cost: Any, num_rows: Any) -> Any:
    """Seconds of LM head and sampling."""
    if num_rows < len(cost.logits):
        return cost.logits[num_rows]
    return logits_s(cost.logits_form, cost.logits_tiles, num_rows)


def decodes_base_s(cost: Any, num_decodes: Any) -> Any:
    """Seconds outside attention of a step of decodes alone, padded to a CUDA graph."""
    if num_decodes < len(cost.decodes_base):
        return cost.decodes_base[num_decodes]
    return layers_s(cost, num_decodes) + rows_s(cost, num_decodes)


def decodes_attention_s(cost: Any, shape: Any) -> Any:
    """Seconds of one layer's attention for the decodes of a step as if alone; 0 without decodes."""
    num_decodes = shape.num_decodes
    if num_decodes == 0:
        return 0.0
    if cost.figures.has_decode_grid:
        return decodes_by_grid_s(
            cost.decode_grid, cost.harmonic, num_decodes, shape.decode_context, shape.max_decode_context
        )
    return decode_attention_s(cost.decode, num_decodes, shape.decode_context)


def attention_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of one layer's attention: the decodes', and the chunks' (or all of a mixed step)."""
    figures = cost.figures
    decode_s = decodes_attention_s(cost, shape)
    if shape.num_chunks == 0:
        return decode_s, 0.0
    num_pairs, longest, more_s = chunks_of(cost, shape, chunks)
    together_s = 0.0
    if figures.has_chunk_grid:
        together_s = beyond_launch_s(cost.chunk_grid, chunks, shape.num_chunks)
        alone_s = cost.chunk_grid.values[0] + together_s
    else:
        alone_s = chunk_attention_s(
            cost.prefill,
            cost.spill,
            num_pairs,
            more_s,
            shape.num_prefill_tokens,
            shape.num_chunks,
            longest,
        )
    if shape.num_decodes == 0:
        return 0.0, alone_s
    if figures.has_mixed_grid:
        mixed_s = mixed_by_grid_s(cost, shape, chunks, together_s)
    elif figures.has_fused:
        mixed_s = fused_attention_s(
            cost.fused,
            num_pairs,
            shape.num_prefill_tokens,
            longest,
            shape.num_decodes,
            shape.decode_context,
            shape.max_decode_context,
        )
    else:
        return decode_s, alone_s
    return 0.0, larger(larger(mixed_s, decode_s), alone_s)


def chunks_of(cost: Any, shape: Any, chunks: Any) -> Any:
    """(Query, key) pairs of all chunks by tiles, their longest context, and seconds that lengths add."""
    has_lengths, tile = cost.figures.has_lengths, cost.prefill.tile
    num_pairs = longest = 0
    more_s = 0.0
    for place in range(shape.num_chunks):
        chunk = chunks[place]
        tokens, before = chunk.num_tokens, chunk.num_computed_tokens
        num_pairs += chunk_pairs(tile, tokens, before)
        if before + tokens > longest:
            longest = before + tokens
        if has_lengths:
            if tokens < len(cost.by_length):
                more_s += cost.by_length[tokens]
            else:
                more_s += length_s(cost.lengths, cost.lengths_more, tokens)
    return num_pairs, longest, more_s
