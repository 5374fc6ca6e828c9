"""CompiledStep: `StepForm` and the host for one step at a time, under a microsecond and with the same bits.

A simulation spends much of its time here, so the formulas of `form.py` are written out once more: as closures
over local constants, with tables of what depends on counts alone. Multiplying by a power of two is exact, so
`blend` takes halves of its arguments for `(a + b) / 2 + sqrt(...) / 2`. Sizes that the tables lack go to the
vector form itself.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from cbsim.cost.attention import DecodeAttention, FusedAttention, PrefillAttention
from cbsim.cost.attention_grid import ChunkTable
from cbsim.cost.compiled_decodes import CompiledDecodes, DecodeSeconds, DecodesSeconds
from cbsim.cost.compiled_grid import compiled_chunks, compiled_mixed
from cbsim.cost.cost_model import StepShape
from cbsim.cost.counted import CountTables
from cbsim.cost.form import StepForm
from cbsim.cost.host import HostTime
from cbsim.cost.step_columns import num_pairs

StepSeconds = Callable[[StepShape], float]

VECTOR_STEPS = 80
"""Steps in a row from which arrays are quicker than a loop."""


class CompiledStep:
    """Scalar evaluation of whole steps: three functions that give the bits of `HostTime` over `StepForm`.

    `padded_tokens[n]` is the token count that a pure decode step of n decodes runs dense layers at; it may be
    shorter than the tables.
    """

    decode_s: DecodeSeconds
    """Seconds of a step of decodes alone."""
    decodes_s: DecodesSeconds
    """Seconds of so many such steps in a row, each with one token more of context for every decode."""
    step_s: StepSeconds
    """Seconds of any step."""

    def __init__(self, form: StepForm, padded_tokens: list[int], host: HostTime | None = None) -> None:
        tables = CountTables(form, padded_tokens, host or HostTime())
        if form.grid is None:
            self.decode_s = _decode(tables, form.decode)
            self.decodes_s = _decodes(tables, form.decode)
            self.step_s = _step(tables, form, self.decode_s, _decode_attention(form.decode))
            return
        decodes = CompiledDecodes(form.grid.decode)
        prefill, mixed = form.grid.prefill, form.grid.mixed
        self.decode_s, self.decodes_s = decodes.step(tables), decodes.steps(tables)
        if prefill is None:
            self.step_s = _step(tables, form, self.decode_s, decodes.attention_s)
        elif mixed is None:
            self.step_s = _step_by_parts(tables, self.decode_s, _parts(form, prefill, decodes))
        else:
            mixed_s = compiled_mixed(prefill, mixed, decodes)
            self.step_s = _step_by_parts(tables, self.decode_s, lambda shape: (0.0, mixed_s(shape)))


def _decode(tables: CountTables, form: DecodeAttention) -> DecodeSeconds:
    counted, counted_at, layers, launch_s = tables.counted, tables.counted_at, tables.layers, form.launch_s
    near_s, far_s, start_s, start = _stream(form)
    half_floor_s = 0.5 * form.floor_s
    floor_softness_s = form.floor_softness * half_floor_s

    def decode_s(num_decodes: int, context: int, max_context: int) -> float:
        try:
            base_s, decodes_s, softness_s, added_s, least_s = counted[num_decodes]
        except IndexError:
            base_s, decodes_s, softness_s, added_s, least_s = counted_at(num_decodes)
        stream_s = near_s * context if context < start else far_s * context + start_s
        apart_s = decodes_s - stream_s
        work_s = (decodes_s + stream_s) + sqrt(apart_s * apart_s + softness_s * stream_s)
        apart_s = half_floor_s - work_s
        blended_s = (half_floor_s + work_s) + sqrt(apart_s * apart_s + floor_softness_s * work_s)
        seconds = base_s + layers * (launch_s + blended_s) + added_s
        return seconds if seconds > least_s else least_s

    return decode_s


def _decodes(tables: CountTables, form: DecodeAttention) -> DecodesSeconds:
    counted, counted_at, layers, launch_s = tables.counted, tables.counted_at, tables.layers, form.launch_s
    near_s, far_s, start_s, start = _stream(form)
    half_floor_s = 0.5 * form.floor_s
    floor_softness_s = form.floor_softness * half_floor_s

    def decodes_s(num_decodes: int, context: int, max_context: int, num_steps: int) -> list[float]:
        try:
            base_s, decodes_s, softness_s, added_s, least_s = counted[num_decodes]
        except IndexError:
            base_s, decodes_s, softness_s, added_s, least_s = counted_at(num_decodes)
        if num_steps >= VECTOR_STEPS:
            contexts = context + num_decodes * np.arange(num_steps, dtype=np.int64)
            attention = form.seconds(num_decodes, contexts)
            vector: list[float] = np.maximum(base_s + layers * attention + added_s, least_s).tolist()
            return vector
        # Sums and products of floats are quicker than of mixed types, and as exact.
        tokens, more = float(context), float(num_decodes)
        series: list[float] = []
        for _ in range(num_steps):
            stream_s = near_s * tokens if tokens < start else far_s * tokens + start_s
            tokens += more
            apart_s = decodes_s - stream_s
            work_s = (decodes_s + stream_s) + sqrt(apart_s * apart_s + softness_s * stream_s)
            apart_s = half_floor_s - work_s
            blended_s = (half_floor_s + work_s) + sqrt(apart_s * apart_s + floor_softness_s * work_s)
            series.append(base_s + layers * (launch_s + blended_s) + added_s)
        if base_s + added_s < least_s:
            return [seconds if seconds > least_s else least_s for seconds in series]
        return series

    return decodes_s


def _stream(form: DecodeAttention) -> tuple[float, float, float, float]:
    """Quarters of a stream's seconds a token near its start and beyond it, and where that begins."""
    near_s = 0.25 * (form.per_token_s + form.start_per_token_s)
    start_s = 0.25 * (form.start_per_token_s * form.start_tokens)
    return near_s, 0.25 * form.per_token_s, start_s, form.start_tokens


def _step(
    tables: CountTables, form: StepForm, decode_s: DecodeSeconds, attend_s: DecodeSeconds
) -> StepSeconds:
    """Chunks by the formula; `attend_s` is the attention of one layer's decodes."""
    dense, logits, vector_s, layers = tables.dense, tables.logits, tables.step_s, tables.layers
    hidden_step_s, hidden_request_s, added_step_s, added_request_s = tables.host
    prefill, fused_s = form.prefill, _fused(form.fused)
    tile, half_tile, round_up = prefill.tile, prefill.tile // 2, prefill.tile - 1
    tokens_s = (0.25 * prefill.tokens_s(np.arange(tables.size, dtype=np.int64))).tolist()
    pair_s, chunk_s, longest_s = (
        0.25 * figure for figure in (prefill.per_pair_s, prefill.per_chunk_s, prefill.per_longest_token_s)
    )
    softness, half_floor_s, launch_s = prefill.softness, 0.5 * prefill.floor_s, prefill.launch_s
    floor_softness_s = prefill.floor_softness * half_floor_s
    measured_s = _measured_work(prefill, tables.size)

    def step_s(shape: StepShape) -> float:
        chunks, num_finishing, num_decodes, context, max_context = shape
        if not chunks:
            return decode_s(num_decodes, context, max_context)
        pairs = num_tokens = longest = 0
        for tokens, before in chunks:
            num_tokens += tokens
            pairs += (tokens + round_up) // tile * half_tile * (2 * before + tokens + tile)
            reach = before + tokens
            if reach > longest:
                longest = reach
        num_chunks = len(chunks)
        try:
            base_s = dense[num_tokens + num_decodes] + logits[num_finishing + num_decodes]
            work_s = pair_s * pairs + tokens_s[num_tokens] + chunk_s * num_chunks
        except IndexError:
            return vector_s(shape)
        if measured_s is not None:
            work_s = measured_s(work_s, chunks, num_tokens)
        chain_s = longest_s * longest
        apart_s = chain_s - work_s
        work_s = (chain_s + work_s) + sqrt(apart_s * apart_s + softness * chain_s * work_s)
        apart_s = half_floor_s - work_s
        blended_s = (half_floor_s + work_s) + sqrt(apart_s * apart_s + floor_softness_s * work_s)
        prefill_s = launch_s + blended_s
        if num_decodes:
            attention_s = attend_s(num_decodes, context, max_context)
            if fused_s is None:
                base_s += layers * attention_s
            else:
                together_s = fused_s(pairs, num_tokens, longest, shape)
                prefill_s = max(together_s, attention_s, prefill_s)
        num_requests = num_chunks + num_decodes
        gpu_s = base_s + layers * prefill_s
        hidden_s = hidden_step_s + hidden_request_s * num_requests
        return (gpu_s if gpu_s > hidden_s else hidden_s) + (added_step_s + added_request_s * num_requests)

    return step_s


def _measured_work(
    prefill: PrefillAttention, size: int
) -> Callable[[float, tuple[tuple[int, int], ...], int], float] | None:
    """A quarter of W, of a quarter of its usual terms, the chunks and their tokens; `None` if that is all."""
    lengths, spill = prefill.lengths, prefill.spill
    if lengths is None and spill is None:
        return None
    counts = np.arange(size, dtype=np.int64)
    more_s: list[float] = [] if lengths is None else (0.25 * lengths.at(counts)).tolist()
    spilled_s: list[float] = [] if spill is None else (0.125 * spill.at(counts)).tolist()
    softness = 0.0 if spill is None else spill.softness

    def work_s(formula_s: float, chunks: tuple[tuple[int, int], ...], num_tokens: int) -> float:
        if more_s:
            together_s = 0.0
            for tokens, _ in chunks:
                together_s += more_s[tokens]
            formula_s += together_s
        if not spilled_s:
            return formula_s
        half_s, streamed_s = 0.5 * formula_s, spilled_s[num_tokens]
        apart_s = half_s - streamed_s
        return (half_s + streamed_s) + sqrt(apart_s * apart_s + softness * half_s * streamed_s)

    return work_s


def _decode_attention(form: DecodeAttention) -> DecodeSeconds:
    launch_s, half_floor_s, decode_s = form.launch_s, 0.5 * form.floor_s, 0.25 * form.per_decode_s
    near_s, far_s, start_s, start = _stream(form)
    softness, floor_softness_s = form.softness, form.floor_softness * half_floor_s

    def seconds(num_decodes: int, context: int, max_context: int) -> float:
        decodes_s = decode_s * num_decodes
        stream_s = near_s * context if context < start else far_s * context + start_s
        apart_s = decodes_s - stream_s
        work_s = (decodes_s + stream_s) + sqrt(apart_s * apart_s + softness * decodes_s * stream_s)
        apart_s = half_floor_s - work_s
        blended_s = (half_floor_s + work_s) + sqrt(apart_s * apart_s + floor_softness_s * work_s)
        return launch_s + blended_s

    return seconds


def _fused(form: FusedAttention | None) -> Callable[[int, int, int, StepShape], float] | None:
    """Of pairs, tokens, the chunks' longest context, and the step for its decodes."""
    if form is None:
        return None
    launch_s, pair_s, token_s = form.launch_s, 0.5 * form.per_pair_s, 0.5 * form.per_token_s
    decode_s, context_token_s = 0.5 * form.per_decode_s, 0.5 * form.per_context_token_s
    beyond_token_s, beyond = 0.5 * form.beyond_per_context_token_s, form.beyond_context_tokens
    longest_token_s = 0.5 * form.per_longest_token_s
    longest_decode_token_s, softness = 0.5 * form.per_longest_decode_token_s, form.softness

    def seconds(pairs: int, num_tokens: int, longest: int, shape: StepShape) -> float:
        _, _, num_decodes, context, max_context = shape
        work_s = pair_s * pairs + token_s * num_tokens + decode_s * num_decodes + context_token_s * context
        if context > beyond:
            work_s += beyond_token_s * (context - beyond)
        chain_s = longest_token_s * longest
        decode_chain_s = longest_decode_token_s * max_context
        if decode_chain_s > chain_s:
            chain_s = decode_chain_s
        apart_s = work_s - chain_s
        return launch_s + ((work_s + chain_s) + sqrt(apart_s * apart_s + softness * work_s * chain_s))

    return seconds


def _parts(
    form: StepForm, prefill: ChunkTable, decodes: CompiledDecodes
) -> Callable[[StepShape], tuple[float, float]]:
    """One layer's attention of a step with chunks: what comes first, and what after it."""
    chunks_s, attend_s, fused_s, tile = (
        compiled_chunks(prefill),
        decodes.attention_s,
        _fused(form.fused),
        form.prefill.tile,
    )

    def attention_s(shape: StepShape) -> tuple[float, float]:
        chunks, _, num_decodes, context, max_context = shape
        alone_s = chunks_s(chunks)
        if not num_decodes:
            return 0.0, alone_s
        decode_s = attend_s(num_decodes, context, max_context)
        if fused_s is None:
            return decode_s, alone_s
        num_tokens = sum([tokens for tokens, _ in chunks])
        longest = max([tokens + before for tokens, before in chunks])
        return 0.0, max(fused_s(num_pairs(chunks, tile), num_tokens, longest, shape), decode_s, alone_s)

    return attention_s


def _step_by_parts(
    tables: CountTables, decode_s: DecodeSeconds, attention_s: Callable[[StepShape], tuple[float, float]]
) -> StepSeconds:
    dense, logits, vector_s, layers = tables.dense, tables.logits, tables.step_s, tables.layers
    hidden_step_s, hidden_request_s, added_step_s, added_request_s = tables.host

    def step_s(shape: StepShape) -> float:
        chunks, num_finishing, num_decodes, context, max_context = shape
        if not chunks:
            return decode_s(num_decodes, context, max_context)
        num_tokens = num_decodes
        for tokens, _ in chunks:
            num_tokens += tokens
        try:
            base_s = dense[num_tokens] + logits[num_finishing + num_decodes]
        except IndexError:
            return vector_s(shape)
        num_requests = len(chunks) + num_decodes
        first_s, then_s = attention_s(shape)
        gpu_s = (base_s + layers * first_s) + layers * then_s
        hidden_s = hidden_step_s + hidden_request_s * num_requests
        return (gpu_s if gpu_s > hidden_s else hidden_s) + (added_step_s + added_request_s * num_requests)

    return step_s
