"""UncertainStep: a form's step times with an error drawn for each of its kernels."""

from __future__ import annotations

import numpy as np

from cbsim.cost.base import StepShape
from cbsim.cost.columns import Floats, Ints
from cbsim.cost.compiled import CompiledStep
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS
from cbsim.cost.errors import KernelErrors
from cbsim.cost.form import StepForm
from cbsim.cost.host import HostTime

Pair = tuple[float, float]
"""Seconds, and how much more of them errors make."""

_MAX_BITS = 64
"""Of any size."""


class UncertainStep:
    """In place of a `CompiledStep` and its form: each kernel's time is multiplied by its factor of `errors`.

    With `r` the factors less 1 and attention what the form's whole step has beyond dense layers and LM head,
    a step takes `whole + ((dense r + logits r) + attention r)` on the GPU, and then what the host makes of
    it. Factors depend on the shape alone, so that equal shapes cost equal seconds; sums and products are
    exactly rounded, so that scalar and vector agree to the bit.
    """

    def __init__(
        self,
        form: StepForm,
        padded_tokens: list[int],
        host: HostTime,
        errors: KernelErrors,
        max_context: int,
    ) -> None:
        """`padded_tokens` as for `CompiledStep`, `max_context` as for `with_errors`."""
        sizes = (MAX_TOKENS, max_context, MAX_DECODES, max_context)
        self._most_bits = [size.bit_length() for size in sizes]
        self._form, self._host, self._errors = form, host, errors
        self._gpu = CompiledStep(form, padded_tokens)
        self._dense_excess = np.array([errors.excess("dense", bits) for bits in range(_MAX_BITS)])
        self._logits_excess = np.array([errors.excess("logits", bits) for bits in range(_MAX_BITS)])
        counts = np.arange(max(form.dense.tokens[-1], len(padded_tokens)) + 1, dtype=np.int64)
        padded = counts.copy()
        padded[: len(padded_tokens)] = padded_tokens
        self._dense = _rows(self._dense_s(counts))
        self._padded = _rows(self._dense_s(padded))
        self._logits = _rows(self._logits_s(counts))

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step."""
        chunks, num_finishing, num_decodes, context, max_context = shape
        if not chunks:
            return self.decode_s(num_decodes, context, max_context)
        num_tokens = sum([tokens for tokens, _ in chunks])
        longest = max([tokens + before for tokens, before in chunks])
        excess = self._excess(num_tokens, longest, num_decodes, context)
        dense_s, more_dense_s = self._of_dense(num_tokens + num_decodes)
        logits_s, more_logits_s = self._of_logits(num_finishing + num_decodes)
        whole_s = self._gpu.step_s(shape)
        gpu_s = whole_s + ((more_dense_s + more_logits_s) + (whole_s - (dense_s + logits_s)) * excess)
        return self._with_host(gpu_s, len(chunks) + num_decodes)

    def decode_s(self, num_decodes: int, decode_context: int, max_decode_context: int) -> float:
        """Seconds of a step of decodes alone."""
        base_s, more_s = self._of_decodes(num_decodes)
        excess = self._excess(0, 0, num_decodes, decode_context)
        whole_s = self._gpu.decode_s(num_decodes, decode_context, max_decode_context)
        return self._with_host(whole_s + (more_s + (whole_s - base_s) * excess), num_decodes)

    def decodes_s(
        self, num_decodes: int, decode_context: int, max_decode_context: int, num_steps: int
    ) -> list[float]:
        """Seconds of so many such steps in a row, each with one token more of context for every decode."""
        wholes_s = self._gpu.decodes_s(num_decodes, decode_context, max_decode_context, num_steps)
        base_s, more_s = self._of_decodes(num_decodes)
        mean = decode_context // num_decodes
        gpu_s: list[float] = []
        while len(gpu_s) < num_steps:
            first = len(gpu_s)
            excess = self._excess(0, 0, num_decodes, decode_context + first * num_decodes)
            end = (1 << (mean + first).bit_length()) - mean
            gpu_s += [whole_s + (more_s + (whole_s - base_s) * excess) for whole_s in wholes_s[first:end]]
        hidden_s, added_s = self._host.hidden_s(num_decodes), self._host.added_s(num_decodes)
        return [(step_s if step_s > hidden_s else hidden_s) + added_s for step_s in gpu_s]

    def _excess(self, num_tokens: int, longest: int, num_decodes: int, context: int) -> float:
        """What attention is multiplied by, less 1, for so many tokens in chunks, and decodes."""
        if not num_decodes:
            return self._errors.excess("prefill", num_tokens.bit_length(), longest.bit_length())
        decodes = num_decodes.bit_length(), (context // num_decodes).bit_length()
        if not num_tokens:
            return self._errors.excess("decode", *decodes)
        cell = (num_tokens.bit_length(), longest.bit_length(), *decodes)
        return self._errors.excess("mixed", *map(min, cell, self._most_bits))

    def _with_host(self, gpu_s: float, num_requests: int) -> float:
        hidden_s: float = self._host.hidden_s(num_requests)
        added_s: float = self._host.added_s(num_requests)
        return (gpu_s if gpu_s > hidden_s else hidden_s) + added_s

    def _dense_s(self, num_tokens: Ints) -> tuple[Floats, Floats]:
        """Seconds of all dense layers by tokens, and how much more their errors make them."""
        seconds: Floats = self._form.num_layers * self._form.dense.at(num_tokens)
        return seconds, seconds * self._dense_excess[_bit_lengths(num_tokens)]

    def _logits_s(self, num_rows: Ints) -> tuple[Floats, Floats]:
        """The same of LM head and sampling by rows."""
        seconds = self._form.logits.at(num_rows)
        return seconds, seconds * self._logits_excess[_bit_lengths(num_rows)]

    def _of_decodes(self, num_decodes: int) -> Pair:
        """Dense layers and LM head of a step of decodes alone: seconds, and how much more."""
        dense_s, more_dense_s = self._of_dense(num_decodes, self._padded)
        logits_s, more_logits_s = self._of_logits(num_decodes)
        return dense_s + logits_s, more_dense_s + more_logits_s

    def _of_dense(self, count: int, table: list[Pair] | None = None) -> Pair:
        table = table or self._dense
        return table[count] if count < len(table) else _rows(self._dense_s(np.array([count])))[0]

    def _of_logits(self, count: int) -> Pair:
        table = self._logits
        return table[count] if count < len(table) else _rows(self._logits_s(np.array([count])))[0]


def _rows(columns: tuple[Floats, Floats]) -> list[Pair]:
    seconds, more = columns
    return list(zip(seconds.tolist(), more.tolist(), strict=True))


def _bit_lengths(sizes: Ints) -> Ints:
    """`int.bit_length` of each: exact below 2**53."""
    return np.frexp(sizes.astype(np.float64))[1].astype(np.int64)
