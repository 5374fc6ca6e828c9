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
        tokens, before = slices.prefills["num_tokens"], slices.prefills["num_computed_tokens"]
        self._has_window = "num_window_keys" in steps
        self._num_requests = steps["num_decode_seqs"].copy()
        self.has_decodes = self._num_requests > 0
        """Whether anything decodes, for every step."""
        self._num_decodes = self._num_requests[self.chunk_steps]
        self._num_requests[self.chunk_steps] += self._num_chunks
        self._steps = steps
        self._of_chunk_steps = [
            self._num_decodes,
            steps["num_context_tokens"][self.chunk_steps] - self._over_chunks(tokens + before),
            steps["max_decode_context"][self.chunk_steps],
        ]
        """The decodes of each of `chunk_steps`: number, tokens attended to, the most, those in windows."""
        if self._has_window:
            in_window = self._over_chunks(tokens + np.minimum(before, cost.model.window - 1))
            self._of_chunk_steps.append(steps["num_window_keys"][self.chunk_steps] - in_window)

    def _over_chunks(self, figures: Column) -> Column:
        """The sum of a figure of each prompt slice, for each of `chunk_steps`."""
        sums = np.zeros(len(self.chunk_steps), dtype=np.int64)
        np.add.at(sums, self.place, figures)
        return sums

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
            none = np.zeros(len(mixed), dtype=np.int64)
            alone = StepColumns([()] * len(mixed), none, *self._decodes(mixed))
            seconds[mixed] = self._without_host_s(alone)
        return seconds

    def with_own_chunk_s(self, own_s: Column) -> Column:
        """Seconds of each prompt slice's step with the other chunks left out, decodes kept, host apart.

        `own_s` are the seconds of the steps as they are, where there is no other chunk.
        """
        seconds = own_s.copy()
        beside = np.flatnonzero(self._num_chunks[self.place] > 1)
        if len(beside):
            chunks = [(chunk,) for chunk in self._chunks(beside)]
            emits, decodes = self._prefills["emits"][beside], self._decodes(self.place[beside])
            seconds[beside] = self._without_host_s(StepColumns(chunks, emits, *decodes))
        return seconds

    def _without_host_s(self, columns: StepColumns) -> Column:
        step_s = self._cost.steps_s(columns)
        host_s = self._cost.host_s(step_s, columns.num_chunks + columns.num_decodes, columns.take)
        seconds: Column = step_s - host_s
        return seconds

    def _decodes(self, places: Column) -> list[Column]:
        """Of the decodes of some of `chunk_steps`, what `StepColumns` takes."""
        return [column[places] for column in self._of_chunk_steps]

    def _chunks(self, rows: Column | slice) -> list[tuple[int, int]]:
        """Tokens now and before of some prompt slices."""
        tokens, before = (self._prefills[name][rows] for name in ("num_tokens", "num_computed_tokens"))
        return list(zip(tokens.tolist(), before.tolist(), strict=True))

    def _columns(self, rows: Column) -> StepColumns:
        """Any steps as they were; decodes without chunks as if their contexts were equal."""
        has_chunks = np.isin(rows, self.chunk_steps)
        places = np.searchsorted(self.chunk_steps, rows[has_chunks])
        num_decodes, context = self._num_requests[rows], self._context_of_steps[rows]
        decodes = [num_decodes, context, -(-context // np.maximum(num_decodes, 1))]
        if self._has_window:
            decodes.append(self._steps["num_window_keys"][rows])
        for column, of_chunk_steps in zip(decodes, self._decodes(places), strict=True):
            column[has_chunks] = of_chunk_steps
        num_finishing = np.zeros(len(rows), dtype=np.int64)
        chunks: list[tuple[tuple[int, int], ...]] = [()] * len(rows)
        for row, place in zip(np.flatnonzero(has_chunks).tolist(), places.tolist(), strict=True):
            mine = slice(*np.searchsorted(self.place, [place, place + 1]).tolist())
            chunks[row], num_finishing[row] = tuple(self._chunks(mine)), self._prefills["emits"][mine].sum()
        return StepColumns(chunks, num_finishing, *decodes)

    @cached_property
    def _context_of_steps(self) -> Column:
        """Tokens that each step attends to; seldom asked for."""
        return self._steps["num_context_tokens"]
