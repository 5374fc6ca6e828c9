"""CompiledStep: `StepForm` for one step at a time, in under a microsecond and with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from cbsim.cost.base import StepShape
from cbsim.cost.compiled_grid import CompiledGrid
from cbsim.cost.form import DecodeAttention, FusedAttention, PrefillAttention, StepForm

DecodeSeconds = Callable[[int, int], float]
"""Of decodes and their context in all."""
PrefillSeconds = Callable[[int, int, int, int], float]
"""Of pairs, tokens, chunks and the longest context."""
FusedSeconds = Callable[[int, int, int, StepShape], float]
"""Of pairs, tokens, the chunks' longest context, and the step for its decodes."""

VECTOR_STEPS = 48
"""Steps in a row from which arrays are quicker than a loop."""


class CompiledStep:
    """Scalar evaluation: tables of g(T) and LM(S) by count, the same expressions in the same order otherwise.

    `padded_tokens[n]` is the token count that a pure decode step of n decodes runs dense layers at; it may be
    shorter than the table.
    """

    def __init__(self, form: StepForm, padded_tokens: list[int]) -> None:
        self._form = form
        self._layers = form.num_layers
        self._table_size = max(form.dense.tokens[-1], len(padded_tokens)) + 1
        counts = np.arange(self._table_size, dtype=np.int64)
        padded = counts.copy()
        padded[: len(padded_tokens)] = padded_tokens
        dense = form.num_layers * form.dense.at(counts)
        logits = form.logits.at(counts)
        self._dense: list[float] = dense.tolist()
        self._logits: list[float] = logits.tolist()
        self._decode_base: list[float] = (form.num_layers * form.dense.at(padded) + logits).tolist()
        self._half_tile = form.prefill.tile // 2
        self._decode_attention = _decode_seconds(form.decode)
        self._prefill_attention = _prefill_seconds(form.prefill)
        self._fused_attention = _fused_seconds(form.fused) if form.fused is not None else None
        self._grid = CompiledGrid(form.grid) if form.grid is not None else None

    def decode_s(self, num_decodes: int, decode_context: int, max_decode_context: int) -> float:
        """Seconds of a step of decodes alone."""
        if self._grid is not None:
            attention = self._grid.decode_s(num_decodes, decode_context, max_decode_context)
        else:
            attention = self._decode_attention(num_decodes, decode_context)
        return self._decode_base_s(num_decodes) + self._layers * attention

    def decodes_s(
        self, num_decodes: int, decode_context: int, max_decode_context: int, num_steps: int
    ) -> list[float]:
        """Seconds of so many such steps in a row, each with one token more of context for every decode."""
        base, layers = self._decode_base_s(num_decodes), self._layers
        if self._grid is not None:
            price_s = self._grid.decode_s
            contexts = range(decode_context, decode_context + num_decodes * num_steps, num_decodes)
            return [
                base + layers * price_s(num_decodes, context, longest)
                for longest, context in enumerate(contexts, max_decode_context)
            ]
        if num_steps < VECTOR_STEPS:
            contexts = range(decode_context, decode_context + num_decodes * num_steps, num_decodes)
            return _decode_series(self._form.decode, base, layers, num_decodes, contexts)
        steps = np.arange(num_steps, dtype=np.int64)
        several = self._form.decode.seconds(num_decodes, decode_context + num_decodes * steps)
        seconds: list[float] = (base + layers * several).tolist()
        return seconds

    def step_s(self, shape: StepShape) -> float:
        """Seconds of any step."""
        chunks, num_finishing, num_decodes, decode_context, max_decode_context = shape
        if not chunks:
            return self.decode_s(num_decodes, decode_context, max_decode_context)
        if self._grid is not None:
            num_tokens = num_decodes + sum([tokens for tokens, _ in chunks])
            base = self._base_s(num_tokens, num_finishing + num_decodes)
            return base + self._layers * self._grid.step_s(shape)
        half_tile = self._half_tile
        tile = 2 * half_tile
        pairs = num_tokens = longest = 0
        for tokens, context in chunks:
            num_tokens += tokens
            pairs += -(-tokens // tile) * half_tile * (2 * context + tokens + tile)
            if context + tokens > longest:
                longest = context + tokens
        prefill = self._prefill_attention(pairs, num_tokens, len(chunks), longest)
        decode = 0.0
        if num_decodes:
            decode = self._decode_attention(num_decodes, decode_context)
            if self._fused_attention is not None:
                prefill = max(self._fused_attention(pairs, num_tokens, longest, shape), decode, prefill)
                decode = 0.0
            num_tokens += num_decodes
        base = self._base_s(num_tokens, num_finishing + num_decodes)
        return (base + self._layers * decode) + self._layers * prefill

    def _base_s(self, num_tokens: int, num_logits: int) -> float:
        """All but attention."""
        if num_tokens < self._table_size:
            return self._dense[num_tokens] + self._logits[num_logits]
        return self._beyond_table_s(num_tokens, num_logits)

    def _decode_base_s(self, num_decodes: int) -> float:
        """All but attention of a step of decodes alone."""
        if num_decodes < self._table_size:
            return self._decode_base[num_decodes]
        return self._beyond_table_s(num_decodes, num_decodes)

    def _beyond_table_s(self, num_tokens: int, num_logits: int) -> float:
        """Dense layers and LM head at more tokens than the table has."""
        dense = self._layers * float(self._form.dense.at(np.array([num_tokens]))[0])
        return dense + float(self._form.logits.at(np.array([num_logits]))[0])


def _decode_seconds(form: DecodeAttention) -> DecodeSeconds:
    launch_s, floor_s, per_decode_s = form.launch_s, form.floor_s, form.per_decode_s
    per_token_s, start_per_token_s, start = form.per_token_s, form.start_per_token_s, form.start_tokens
    softness, floor_softness = form.softness, form.floor_softness

    def seconds(num_decodes: int, context: int) -> float:
        decodes = per_decode_s * num_decodes
        stream = per_token_s * context + start_per_token_s * (context if context < start else start)
        difference = decodes - stream
        work = 0.5 * ((decodes + stream) + sqrt(difference * difference + softness * decodes * stream))
        difference = work - floor_s
        return launch_s + 0.5 * (
            (work + floor_s) + sqrt(difference * difference + floor_softness * work * floor_s)
        )

    return seconds


def _decode_series(
    form: DecodeAttention, base: float, layers: int, num_decodes: int, contexts: range
) -> list[float]:
    """`base + layers * seconds(num_decodes, context)` of `_decode_seconds`, without a call for each."""
    launch_s, floor_s, softness, floor_softness = (
        form.launch_s,
        form.floor_s,
        form.softness,
        form.floor_softness,
    )
    per_token_s, start_per_token_s, start = form.per_token_s, form.start_per_token_s, form.start_tokens
    decodes = form.per_decode_s * num_decodes
    series = []
    for context in contexts:
        stream = per_token_s * context + start_per_token_s * (context if context < start else start)
        difference = decodes - stream
        work = 0.5 * ((decodes + stream) + sqrt(difference * difference + softness * decodes * stream))
        difference = work - floor_s
        blended = (work + floor_s) + sqrt(difference * difference + floor_softness * work * floor_s)
        series.append(base + layers * (launch_s + 0.5 * blended))
    return series


def _prefill_seconds(form: PrefillAttention) -> PrefillSeconds:
    launch_s, floor_s, per_pair_s = form.launch_s, form.floor_s, form.per_pair_s
    per_token_s, per_chunk_s = form.per_token_s, form.per_chunk_s
    beyond_per_token_s, beyond = form.beyond_per_token_s, form.beyond_tokens
    per_longest_token_s, softness, floor_softness = (
        form.per_longest_token_s,
        form.softness,
        form.floor_softness,
    )

    def seconds(pairs: int, num_tokens: int, num_chunks: int, longest: int) -> float:
        excess = num_tokens - beyond
        work = (
            per_pair_s * pairs
            + per_token_s * num_tokens
            + per_chunk_s * num_chunks
            + beyond_per_token_s * (excess if excess > 0.0 else 0.0)
        )
        chain = per_longest_token_s * longest
        difference = work - chain
        work = 0.5 * ((work + chain) + sqrt(difference * difference + softness * work * chain))
        difference = work - floor_s
        return launch_s + 0.5 * (
            (work + floor_s) + sqrt(difference * difference + floor_softness * work * floor_s)
        )

    return seconds


def _fused_seconds(form: FusedAttention) -> FusedSeconds:
    launch_s, per_pair_s, per_token_s = form.launch_s, form.per_pair_s, form.per_token_s
    per_decode_s, per_context_token_s = form.per_decode_s, form.per_context_token_s
    beyond_per_token_s, beyond = form.beyond_per_context_token_s, form.beyond_context_tokens
    per_longest_token_s = form.per_longest_token_s
    per_longest_decode_token_s, softness = form.per_longest_decode_token_s, form.softness

    def seconds(pairs: int, num_tokens: int, longest: int, shape: StepShape) -> float:
        _, _, num_decodes, decode_context, max_decode_context = shape
        excess = decode_context - beyond
        work = (
            per_pair_s * pairs
            + per_token_s * num_tokens
            + per_decode_s * num_decodes
            + per_context_token_s * decode_context
            + beyond_per_token_s * (excess if excess > 0.0 else 0.0)
        )
        chain = max(per_longest_token_s * longest, per_longest_decode_token_s * max_decode_context)
        difference = work - chain
        return launch_s + 0.5 * ((work + chain) + sqrt(difference * difference + softness * work * chain))

    return seconds
