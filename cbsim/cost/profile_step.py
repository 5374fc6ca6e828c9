"""profile_step_s: the seconds of one step by a `ProfileRecord`, the formula of `cbsim/cost/form.py`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from cbsim.cost.attention import chunk_attention_s, decode_attention_s, fused_attention_s, length_s
from cbsim.cost.elementwise import bit_length, larger, smaller
from cbsim.cost.form import dense_s, logits_s
from cbsim.cost.grid_step import beyond_launch_s, decodes_by_grid_s, mixed_by_grid_s
from cbsim.cost.interpolation import at_line, nearest
from cbsim.cost.step_columns import chunk_pairs, context_in_window, context_read, window_pairs

MOST_BITS = 24
"""The largest bit length in tables of one or two sizes."""
Host = Literal["async", "sync", "none"]


class HostTime(NamedTuple):
    """A step takes `max(gpu, hidden) + added`, each linear in the requests of the step, in seconds; without a
    CUDA graph no less than `eager_s` before what is added.

    Rounding is monotone, so `max(gpu + added, hidden + added)` is the same number to the last bit.
    """

    hidden_step_s: float = 0.0
    hidden_request_s: float = 0.0
    added_step_s: float = 0.0
    added_request_s: float = 0.0
    eager_s: float = 0.0
    """To launch the kernels of a step one by one."""
    graph_tokens: int = 0
    """Tokens up to which a step with chunks has a graph; one of decodes has as far as they are padded."""

    @classmethod
    def of(cls, host: Host, step_s: float, request_s: float, gap_s: float, **eager: Any) -> HostTime:
        """Of a host that works beside the GPU (and then leaves a gap), before it, or not at all; `eager` are
        `eager_s` and `graph_tokens`.
        """
        if host == "async":
            return cls(step_s, request_s, gap_s, 0.0, **eager)
        return cls(added_step_s=step_s, added_request_s=request_s, **eager) if host == "sync" else cls()


def profile_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step."""
    figures, num_decodes = cost.figures, shape.num_decodes
    num_tokens, num_rows = shape.num_prefill_tokens + num_decodes, shape.num_finishing_chunks + num_decodes
    attention_s, after_s = decodes_attention_s(cost, shape), 0.0
    if shape.num_chunks > 0:
        attention_s, after_s = chunks_attention_s(cost, shape, chunks, attention_s)
    elif num_decodes < len(cost.padded):
        num_tokens = cost.padded[num_decodes]
    layers_s = cost.dense[num_tokens] if num_tokens < len(cost.dense) else far_layers_s(cost, num_tokens)
    if figures.has_shared:
        num_group_tokens = num_tokens + shape.num_other_tokens
        if num_group_tokens < len(cost.shared):
            layers_s += cost.shared[num_group_tokens]
        else:
            layers_s += far_shared_s(cost, num_group_tokens)
    head_s = cost.logits[num_rows] if num_rows < len(cost.logits) else far_head_s(cost, num_rows)
    gpu_s = ((layers_s + head_s) + figures.num_full_layers * attention_s) + figures.num_full_layers * after_s
    if figures.num_sliding_layers > 0.0:
        gpu_s += figures.num_sliding_layers * sliding_attention_s(cost, shape, chunks)
    if figures.has_errors:
        gpu_s += error_s(cost, shape, chunks, num_tokens, layers_s, head_s, gpu_s)
    if cost.host.eager_s > gpu_s and not has_graph(cost, shape):
        gpu_s = cost.host.eager_s
    return with_host_s(cost.host, gpu_s, shape.num_chunks + num_decodes)


def has_graph(cost: Any, shape: Any) -> Any:
    """Whether a step is launched as a CUDA graph, not kernel by kernel."""
    if shape.num_chunks > 0:
        return shape.num_prefill_tokens + shape.num_decodes <= cost.host.graph_tokens
    return shape.num_decodes < len(cost.padded)


def far_layers_s(cost: Any, num_tokens: Any) -> Any:
    """Seconds of all layers outside attention, beyond their list."""
    return cost.figures.num_layers * dense_s(cost.dense_line, num_tokens)


def far_shared_s(cost: Any, num_tokens: Any) -> Any:
    """Seconds of all layers' experts and collectives and of hops, by the tokens of all ranks."""
    layer_s = dense_s(cost.experts_line, num_tokens) + dense_s(cost.collectives_line, num_tokens)
    hops_s = cost.figures.hop_s + cost.figures.hop_token_s * num_tokens
    return cost.figures.num_layers * layer_s + hops_s


def sliding_attention_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of one layer's attention with a window: the decodes' launch and the chunks'."""
    window, tile = cost.figures.window, cost.sliding_prefill.tile
    seconds = 0.0
    if shape.num_decodes > 0:
        seconds += decode_attention_s(
            cost.sliding_decode, shape.num_decodes, context_in_window(shape, window)
        )
    if shape.num_chunks > 0:
        num_pairs = longest = 0
        for place in range(shape.num_chunks):
            tokens, before = chunks[place].num_tokens, chunks[place].num_computed_tokens
            num_pairs += window_pairs(tile, tokens, before, window)
            longest = max(longest, tokens + min(before, window))
        seconds += chunk_attention_s(
            cost.sliding_prefill,
            cost.sliding_spill,
            num_pairs,
            0.0,
            shape.num_prefill_tokens,
            shape.num_chunks,
            longest,
        )
    return seconds


def far_head_s(cost: Any, num_rows: Any) -> Any:
    """Seconds of LM head and sampling, beyond their list."""
    return logits_s(cost.logits_form, cost.logits_tiles, num_rows) + cost.figures.sort_row_s * num_rows


def decodes_attention_s(cost: Any, shape: Any) -> Any:
    """Seconds of one layer's attention for the decodes of a step as if alone; 0 without decodes."""
    num_decodes = shape.num_decodes
    if num_decodes == 0:
        return 0.0
    if cost.figures.has_decode_grid:
        return decodes_by_grid_s(cost, shape)
    return decode_attention_s(cost.decode, num_decodes, context_read(shape))


def chunks_attention_s(cost: Any, shape: Any, chunks: Any, decode_s: Any) -> Any:
    """Seconds of one layer's attention in a step with chunks: in two launches, the decodes' and the chunks',
    or of one launch of both, after 0.

    `decode_s` is what the decodes take alone. A launch of both lasts no less than either part.
    """
    figures, num_tokens, num_decodes = cost.figures, shape.num_prefill_tokens, shape.num_decodes
    num_pairs, longest, more_s = chunks_of(cost, shape, chunks)
    together_s = 0.0
    if figures.has_chunk_grid:
        together_s = beyond_launch_s(cost.chunk_grid, chunks, shape.num_chunks)
        alone_s = cost.chunk_grid.values[0] + together_s
    else:
        alone_s = chunk_attention_s(
            cost.prefill, cost.spill, num_pairs, more_s, num_tokens, shape.num_chunks, longest
        )
    if num_decodes > 0 and figures.has_mixed_grid:
        mixed_s = mixed_by_grid_s(cost, shape, chunks, together_s)
    elif num_decodes > 0 and figures.has_fused:
        context, longest_decode = context_read(shape), shape.max_decode_context
        mixed_s = fused_attention_s(
            cost.fused, num_pairs, num_tokens, longest, num_decodes, context, longest_decode
        )
    elif num_decodes > 0 and figures.has_beside:
        beside = cost.beside
        factor = at_line(beside.values, beside.axes, nearest(beside.axes[0], num_decodes))
        mixed_s = alone_s + factor * decode_s
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


def error_s(
    cost: Any, shape: Any, chunks: Any, num_tokens: Any, layers_s: Any, head_s: Any, whole_s: Any
) -> Any:
    """Seconds that a seed's errors add to a step of `whole_s` on the GPU, `num_tokens` padded.

    With `r` the factors of `KernelErrors` less 1, and attention what the step has beyond dense layers and LM
    head: `(layers r + head r) + attention r`.
    """
    errors = cost.errors
    more_layers_s = layers_s * errors.dense[up_to(MOST_BITS, num_tokens)]
    num_rows = shape.num_finishing_chunks + shape.num_decodes
    more_head_s = head_s * errors.logits[up_to(MOST_BITS, num_rows)]
    more_attention_s = (whole_s - (layers_s + head_s)) * attention_excess(errors, shape, chunks)
    return (more_layers_s + more_head_s) + more_attention_s


def attention_excess(errors: Any, shape: Any, chunks: Any) -> Any:
    """What attention's time is multiplied by, less 1, by the octaves of its sizes."""
    num_decodes, num_tokens = shape.num_decodes, shape.num_prefill_tokens
    longest = mean = 0
    for place in range(shape.num_chunks):
        chunk = chunks[place]
        longest = max(longest, chunk.num_tokens + chunk.num_computed_tokens)
    if num_decodes == 0:
        return errors.prefill[up_to(MOST_BITS, num_tokens) * (MOST_BITS + 1) + up_to(MOST_BITS, longest)]
    mean = shape.decode_context // num_decodes
    if shape.num_chunks == 0:
        return errors.decode[up_to(MOST_BITS, num_decodes) * (MOST_BITS + 1) + up_to(MOST_BITS, mean)]
    most = errors.most_bits
    at = up_to(most.tokens, num_tokens) * (most.context + 1) + up_to(most.context, longest)
    at = at * (most.decodes + 1) + up_to(most.decodes, num_decodes)
    return errors.mixed[at * (most.context + 1) + up_to(most.context, mean)]


def up_to(most_bits: Any, size: Any) -> Any:
    """The bit length of a size, at most `most_bits`."""
    return smaller(bit_length(size), most_bits)


def hidden_s(host: Any, num_requests: Any) -> Any:
    """Host seconds that the GPU's own hide; `host` is a `HostTime`."""
    return host.hidden_step_s + host.hidden_request_s * num_requests


def added_s(host: Any, num_requests: Any) -> Any:
    """Host seconds on top."""
    return host.added_step_s + host.added_request_s * num_requests


def with_host_s(host: Any, gpu_s: Any, num_requests: Any) -> Any:
    """Seconds of a step of `num_requests` requests that takes the GPU `gpu_s`."""
    least_s = hidden_s(host, num_requests)
    return (gpu_s if gpu_s > least_s else least_s) + added_s(host, num_requests)
