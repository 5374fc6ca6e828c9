"""Trim: the settings that all workloads share, applied to requests in order of arrival."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from cbsim.workload.request import Segments
from cbsim.workload.request_batch import FloatColumn, IntColumn, RequestBatch
from cbsim.workload.request_source import WorkloadConfig


class Trim:
    """Applies window, rate scale, limit and length caps, in this order, and counts what the caps cut."""

    def __init__(self, config: WorkloadConfig) -> None:
        self._config = config
        self._num_cut: Counter[str] = Counter()
        self._num_tokens_cut: Counter[str] = Counter()

    def apply(self, batches: Iterable[RequestBatch]) -> Iterator[RequestBatch]:
        """The batches with every setting applied; reads no further than the window and the limit need."""
        left = self._config.limit or sys.maxsize
        for batch in batches:
            start, end = self.window(batch.arrival_s)
            stop = min(end, start + left)
            left -= stop - start
            if stop > start:
                kept = batch.part(start, stop)
                yield self._capped(kept, (kept.arrival_s - self._config.start_s) / self._config.rate_scale)
            if end < len(batch) or left == 0:
                return

    def window(self, arrival_s: FloatColumn) -> tuple[int, int]:
        """The first row from `start_s` on, and the first from `end_s` on, of arrivals in order."""
        start = int(np.searchsorted(arrival_s, self._config.start_s))
        end_s = self._config.end_s
        stop = len(arrival_s) if end_s is None else int(np.searchsorted(arrival_s, end_s))
        return start, max(start, stop)

    def notes(self) -> list[str]:
        """What the caps have cut so far."""
        return [
            f"{name} = {getattr(self._config, name):,}: {what} cut: {self._num_cut[name]:,}, "
            f"tokens left out: {self._num_tokens_cut[name]:,}"
            for name, what in (("max_prompt_tokens", "prompts"), ("max_output_tokens", "answers"))
            if self._num_cut[name]
        ]

    def _capped(self, batch: RequestBatch, arrival_s: FloatColumn) -> RequestBatch:
        """The batch with other arrivals and with the caps applied."""
        num_prompt_tokens = self._cap("max_prompt_tokens", batch.num_prompt_tokens)
        num_output_tokens = self._cap("max_output_tokens", batch.num_output_tokens)
        prompt = batch.prompt
        if prompt is not None and num_prompt_tokens is not batch.num_prompt_tokens:
            lengths = num_prompt_tokens.tolist()
            prompt = [each and first_tokens(each, n) for each, n in zip(prompt, lengths, strict=True)]
        return replace(
            batch,
            arrival_s=arrival_s,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            prompt=prompt,
        )

    def _cap(self, name: str, lengths: IntColumn) -> IntColumn:
        cap: int | None = getattr(self._config, name)
        if cap is None or not (over := lengths > cap).any():
            return lengths
        self._num_cut[name] += int(over.sum())
        self._num_tokens_cut[name] += int((lengths[over] - cap).sum())
        return np.minimum(lengths, cap)


def first_tokens(prompt: Segments, num_tokens: int) -> Segments:
    """The first `num_tokens` tokens of a prompt (all of it, if it is no longer)."""
    kept: list[tuple[str, int]] = []
    for name, length in prompt:
        if num_tokens <= 0:
            break
        kept.append((name, min(length, num_tokens)))
        num_tokens -= length
    return tuple(kept)
