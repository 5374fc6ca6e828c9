"""StepPrices: what a step would have cost with less in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from cbsim.cost.cost_model import CostModel
from cbsim.cost.step_columns import StepColumns
from cbsim.results.run_log import Column, Slices


class StepPrices:
    """Prices the steps of a replica again: with chunks left out, and all of them without the host."""

    def __init__(self, steps: Mapping[str, Column], slices: Slices, cost: CostModel) -> None:
        self._cost = cost
        self._prefills = slices.prefills
        self.chunk_steps, self.place = np.unique(slices.prefills["step"], return_inverse=True)
        """The steps with prompt chunks, rising; and of each prompt slice, which of these it is in."""
        self._num_chunks = np.bincount(self.place, minlength=len(self.chunk_steps))
        reach = np.zeros(len(self.chunk_steps), dtype=np.int64)
        np.add.at(reach, self.place, self._reach(slice(None)))
        self._num_requests = steps["num_decode_seqs"].copy()
        self.has_decodes = self._num_requests > 0
        """Whether anything decodes, for every step."""
        self._num_decodes = self._num_requests[self.chunk_steps]
        self._num_requests[self.chunk_steps] += self._num_chunks
        self._steps = steps
        self._context = steps["num_context_tokens"][self.chunk_steps] - reach
        """Tokens that the decodes of each of `chunk_steps` attend to."""
        self._max_context = steps["max_decode_context"][self.chunk_steps]

    def host_s(self, step_s: Column, steps: Column | slice) -> Column:
        """Seconds by which some steps would be shorter without the host; `step_s` is their time, moves apart.

        A slice of steps must not have a stride.
        """

        def columns_of(places: Column) -> StepColumns:
            return self._columns(steps.start + places if isinstance(steps, slice) else steps[places])

        return self._cost.host_s(step_s, self._num_requests[steps], columns_of)

    def without_chunks_s(self) -> Column:
        """Seconds of each of `chunk_steps` with its decodes alone, host apart; 0 if it has none."""
        seconds = np.zeros(len(self.chunk_steps))
        mixed = np.flatnonzero(self._num_decodes)
        if len(mixed):
            seconds[mixed] = self._without_host_s(self._decodes_of(mixed))
        return seconds

    def with_own_chunk_s(self, own_s: Column) -> Column:
        """Seconds of each prompt slice's step with the other chunks left out, decodes kept, host apart.

        `own_s` are the seconds of the steps as they are, where there is no other chunk.
        """
        seconds = own_s.copy()
        beside = np.flatnonzero(self._num_chunks[self.place] > 1)
        if len(beside):
            seconds[beside] = self._without_host_s(self._one_chunk(beside))
        return seconds

    def _without_host_s(self, columns: StepColumns) -> Column:
        step_s = self._cost.steps_s(columns)
        host_s = self._cost.host_s(step_s, columns.num_chunks + columns.num_decodes, columns.take)
        seconds: Column = step_s - host_s
        return seconds

    def _reach(self, rows: Column | slice) -> Column:
        """Tokens that the last query of each prompt slice attends to."""
        reach: Column = (self._prefills["num_tokens"] + self._prefills["num_computed_tokens"])[rows]
        return reach

    def _decodes_of(self, places: Column) -> StepColumns:
        """The decodes alone of some of `chunk_steps`."""
        num_decodes, none = self._num_decodes[places], np.zeros(len(places), dtype=np.int64)
        return StepColumns(
            num_tokens=num_decodes,
            num_logits=num_decodes,
            num_chunks=none,
            prefill_tokens=none,
            longest_prefill=none,
            num_decodes=num_decodes,
            decode_context=self._context[places],
            max_decode_context=self._max_context[places],
            chunks=((),) * len(places),
        )

    def _one_chunk(self, prefills: Column) -> StepColumns:
        """The steps of some prompt slices, each with that slice and the step's decodes."""
        places = self.place[prefills]
        num_decodes, num_tokens = self._num_decodes[places], self._prefills["num_tokens"][prefills]
        before = self._prefills["num_computed_tokens"][prefills]
        return StepColumns(
            num_tokens=num_decodes + num_tokens,
            num_logits=num_decodes + self._prefills["emits"][prefills],
            num_chunks=np.ones(len(places), dtype=np.int64),
            prefill_tokens=num_tokens,
            longest_prefill=before + num_tokens,
            num_decodes=num_decodes,
            decode_context=self._context[places],
            max_decode_context=self._max_context[places],
            chunks=tuple((chunk,) for chunk in zip(num_tokens.tolist(), before.tolist(), strict=True)),
        )

    def _columns(self, rows: Column) -> StepColumns:
        """Any steps as they were; decodes without chunks as if their contexts were equal."""
        place = np.minimum(np.searchsorted(self.chunk_steps, rows), max(len(self.chunk_steps) - 1, 0))
        has_chunks = self.chunk_steps[place] == rows if len(self.chunk_steps) else np.zeros(len(rows), bool)
        num_decodes, context = self._num_requests[rows], self._context_of_steps[rows]
        num_decodes[has_chunks] -= self._num_chunks[place[has_chunks]]
        max_context = -(-context // np.maximum(num_decodes, 1))
        num_chunks, num_tokens, num_logits, longest = (np.zeros(len(rows), dtype=np.int64) for _ in range(4))
        chunks: list[tuple[tuple[int, int], ...]] = [()] * len(rows)
        for row in np.flatnonzero(has_chunks).tolist():
            mine = self._chunk_slice(int(place[row]))
            tokens, before = self._prefills["num_tokens"][mine], self._prefills["num_computed_tokens"][mine]
            chunks[row] = tuple(zip(tokens.tolist(), before.tolist(), strict=True))
            num_chunks[row], num_tokens[row] = len(tokens), tokens.sum()
            num_logits[row] = self._prefills["emits"][mine].sum()
            longest[row] = (tokens + before).max()
            context[row], max_context[row] = self._context[place[row]], self._max_context[place[row]]
        return StepColumns(
            num_tokens=num_decodes + num_tokens,
            num_logits=num_decodes + num_logits,
            num_chunks=num_chunks,
            prefill_tokens=num_tokens,
            longest_prefill=longest,
            num_decodes=num_decodes,
            decode_context=context,
            max_decode_context=max_context,
            chunks=tuple(chunks),
        )

    @cached_property
    def _context_of_steps(self) -> Column:
        """Tokens that each step attends to; seldom asked for."""
        return self._steps["num_context_tokens"]

    def _chunk_slice(self, place: int) -> slice:
        first, end = np.searchsorted(self.place, [place, place + 1])
        return slice(int(first), int(end))
