"""CompiledStep: `StepForm` for one step at a time, in well under a microsecond and with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from cbsim.cost.base import StepShape
from cbsim.cost.form import DecodeAttention, FusedAttention, PrefillAttention, StepForm, num_pairs

DecodeSeconds = Callable[[int, int], float]


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
        self._decode_attention = _compile_decode(form.decode)

    def decode_s(self, num_decodes: int, decode_context: int) -> float:
        """Seconds of a step of decodes alone."""
        if num_decodes < self._table_size:
            base = self._decode_base[num_decodes]
        else:
            base = self._dense_s(num_decodes) + self._logits_s(num_decodes)
        return base + self._layers * self._decode_attention(num_decodes, decode_context)

    def step_s(self, shape: StepShape) -> float:
        """Seconds of any step."""
        chunks, num_decodes = shape.chunks, shape.num_decodes
        if not chunks:
            return self.decode_s(num_decodes, shape.decode_context)
        form = self._form
        prefill_tokens = longest = 0
        for tokens, context in chunks:
            prefill_tokens += tokens
            if context + tokens > longest:
                longest = context + tokens
        prefill = _prefill_s(form.prefill, chunks, prefill_tokens, longest)
        decode = self._decode_attention(num_decodes, shape.decode_context) if num_decodes else 0.0
        if num_decodes and form.fused is not None:
            prefill = max(_fused_s(form.fused, shape, prefill_tokens, longest), decode, prefill)
            decode = 0.0
        base = self._dense_s(prefill_tokens + num_decodes) + self._logits_s(shape.num_logits)
        return (base + self._layers * decode) + self._layers * prefill

    def _dense_s(self, num_tokens: int) -> float:
        if num_tokens < self._table_size:
            return self._dense[num_tokens]
        return self._layers * float(self._form.dense.at(np.array([num_tokens]))[0])

    def _logits_s(self, num_rows: int) -> float:
        if num_rows < self._table_size:
            return self._logits[num_rows]
        return float(self._form.logits.at(np.array([num_rows]))[0])


def _compile_decode(form: DecodeAttention) -> DecodeSeconds:
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


def _blend(a: float, b: float, softness: float) -> float:
    difference = a - b
    return 0.5 * ((a + b) + sqrt(difference * difference + softness * a * b))


def _prefill_s(
    form: PrefillAttention, chunks: tuple[tuple[int, int], ...], num_tokens: int, longest: int
) -> float:
    work = (
        form.per_pair_s * num_pairs(chunks, form.tile)
        + form.per_token_s * num_tokens
        + form.per_chunk_s * len(chunks)
        + form.beyond_per_token_s * max(num_tokens - form.beyond_tokens, 0.0)
    )
    work = _blend(work, form.per_longest_token_s * longest, form.softness)
    return form.launch_s + _blend(work, form.floor_s, form.floor_softness)


def _fused_s(form: FusedAttention, shape: StepShape, num_tokens: int, longest: int) -> float:
    work = (
        form.per_pair_s * num_pairs(shape.chunks, form.tile)
        + form.per_token_s * num_tokens
        + form.per_decode_s * shape.num_decodes
        + form.per_context_token_s * shape.decode_context
    )
    chain = max(
        form.per_longest_token_s * longest, form.per_longest_decode_token_s * shape.max_decode_context
    )
    return form.launch_s + _blend(work, chain, form.softness)
