"""Charges: what steps cost those that are in them, in ticks."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.records import pieces
from cbsim.core.layout import KV_BLOCKS, SLOT
from cbsim.cost.cost_model import CostModel
from cbsim.cost.step_columns import StepColumns
from cbsim.results.latency.spans import RangeSums, Spans, StepTimes, Ticks
from cbsim.results.latency.windows import Stretch
from cbsim.results.run_log import Column


class StepPrices:
    """Prices the steps of a stretch again: with chunks left out, and all of them without the host."""

    def __init__(self, stretch: Stretch, cost: CostModel) -> None:
        self._cost = cost
        self._prefills, steps = stretch.prefills, stretch.steps
        self.chunk_steps, self.place = np.unique(stretch.prefills["step"], return_inverse=True)
        """The steps with prompt chunks, rising; and of each prompt slice, which of these it is in."""
        self._num_chunks = np.bincount(self.place, minlength=len(self.chunk_steps))
        tokens, before = stretch.prefills["num_tokens"], stretch.prefills["num_computed_tokens"]
        self._has_window = "num_window_keys" in steps
        self._num_requests = steps["num_decode_seqs"].copy()
        self.has_decodes = self._num_requests > 0
        """Whether anything decodes, for every step."""
        self._num_decodes = self._num_requests[self.chunk_steps]
        self._num_requests[self.chunk_steps] += self._num_chunks
        self._steps = steps
        in_chunks = self._over_chunks(tokens + before)
        self._of_chunk_steps = {
            "num_decodes": self._num_decodes,
            "decode_context": steps["num_context_tokens"][self.chunk_steps] - in_chunks,
            "max_decode_context": steps["max_decode_context"][self.chunk_steps],
            "num_shared_tokens": steps["num_shared_tokens"][self.chunk_steps],
        }
        """The decodes of each of `chunk_steps`, as `StepColumns` has them."""
        if self._has_window:
            in_window = self._over_chunks(tokens + np.minimum(before, cost.model.window - 1))
            self._of_chunk_steps["windowed_context"] = steps["num_window_keys"][self.chunk_steps] - in_window

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
            alone = StepColumns([()] * len(mixed), none, **self._decodes(mixed))
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
            seconds[beside] = self._without_host_s(StepColumns(chunks, emits, **decodes))
        return seconds

    def _without_host_s(self, columns: StepColumns) -> Column:
        step_s = self._cost.steps_s(columns)
        host_s = self._cost.host_s(step_s, columns.num_chunks + columns.num_decodes, columns.take)
        seconds: Column = step_s - host_s
        return seconds

    def _decodes(self, places: Column) -> dict[str, Any]:
        """Of the decodes of some of `chunk_steps`, what `StepColumns` takes."""
        return {name: column[places] for name, column in self._of_chunk_steps.items()}

    def _chunks(self, rows: Column | slice) -> list[tuple[int, int]]:
        """Tokens now and before of some prompt slices."""
        tokens, before = (self._prefills[name][rows] for name in ("num_tokens", "num_computed_tokens"))
        return list(zip(tokens.tolist(), before.tolist(), strict=True))

    def _columns(self, rows: Column) -> StepColumns:
        """Any steps as they were; decodes without chunks as if their contexts were equal."""
        has_chunks = np.isin(rows, self.chunk_steps)
        places = np.searchsorted(self.chunk_steps, rows[has_chunks])
        num_decodes, context = self._num_requests[rows], self._context_of_steps[rows]
        decodes: dict[str, Any] = {
            "num_decodes": num_decodes,
            "decode_context": context,
            "max_decode_context": -(-context // np.maximum(num_decodes, 1)),
            "num_shared_tokens": self._steps["num_shared_tokens"][rows],
        }
        if self._has_window:
            decodes["windowed_context"] = self._steps["num_window_keys"][rows]
        for name, of_chunk_steps in self._decodes(places).items():
            decodes[name][has_chunks] = of_chunk_steps
        num_finishing = np.zeros(len(rows), dtype=np.int64)
        chunks: list[tuple[tuple[int, int], ...]] = [()] * len(rows)
        for row, place in zip(np.flatnonzero(has_chunks).tolist(), places.tolist(), strict=True):
            mine = slice(*np.searchsorted(self.place, [place, place + 1]).tolist())
            chunks[row], num_finishing[row] = tuple(self._chunks(mine)), self._prefills["emits"][mine].sum()
        return StepColumns(chunks, num_finishing, **decodes)

    @cached_property
    def _context_of_steps(self) -> Column:
        """Tokens that each step attends to; seldom asked for."""
        return self._steps["num_context_tokens"]


class Charges:
    """Each step is host time, moves of KV blocks, what others' chunks add for a request, and the rest.

    For a decode others' chunks add the step's seconds less those of the same step without chunks; for a
    prompt slice, less those of the same step without the other chunks. Host time counts in neither.
    """

    def __init__(self, stretch: Stretch, cost: CostModel, times: StepTimes) -> None:
        self._times = times
        prices = StepPrices(stretch, cost)
        split = _Splitter(times, prices, stretch.steps["transfer_s"])
        decodes, chunk_steps = prices.has_decodes, prices.chunk_steps
        self._host_of_decodes = split.host_up_to(decodes)
        moving = split.moving[decodes[split.moving]]
        self._swap_of_decodes = RangeSums(moving, split.of(moving).swap)
        is_mixed, length = decodes[chunk_steps], times.length(chunk_steps)
        added = np.zeros_like(length)
        added[is_mixed] = split.of(chunk_steps[is_mixed]).added(prices.without_chunks_s()[is_mixed])
        self.chunks = RangeSums(chunk_steps, length, added, np.where(is_mixed, 0, length), ~is_mixed)
        """Steps of chunks: their ticks, what decodes get of them; without decodes, their ticks and number."""
        of_slices = split.of(chunk_steps).only(prices.place)
        self._length, self._host, self._swap = of_slices.length, of_slices.host, of_slices.swap
        self._added = of_slices.added(prices.with_own_chunk_s(of_slices.gpu_s))

    def of(self, spans: Spans) -> dict[str, Column]:
        """What each span is charged with, by part; and its time in steps, all and those with chunks."""
        is_prefill = spans.prefill >= 0
        prefill, decode = spans.prefill[is_prefill], ~is_prefill
        names = ("in_steps", "beside_chunks", "host", "swap", "others_prefill")
        charged = {name: np.zeros(len(is_prefill), dtype=np.int64) for name in names}
        own = (self._length, self._length, self._host, self._swap, self._added)
        for name, ticks in zip(names, own, strict=True):
            charged[name][is_prefill] = ticks[prefill]
        for name, ticks in zip(names, self._of_decodes(spans.first[decode], spans.last[decode]), strict=True):
            charged[name][decode] = ticks
        rest = charged["in_steps"] - charged["host"] - charged["swap"] - charged["others_prefill"]
        charged["decode"] = np.where(decode, rest, 0)
        charged["recompute"] = np.where(spans.is_recompute, rest, 0)
        charged["prefill"] = np.where(is_prefill & ~spans.is_recompute, rest, 0)
        return charged

    def _of_decodes(self, first: Column, last: Column) -> tuple[Column, ...]:
        """Ticks charged over ranges of steps, steps with decodes only; in the order of `names` in `of`."""
        (idle,) = self._times.idle.over(first + 1, last)
        beside, added, alone, _ = self.chunks.over(first, last)
        (swap,) = self._swap_of_decodes.over(first, last)
        in_steps = self._times.end(last) - self._times.start(first) - idle - alone
        host = self._host_of_decodes[last + 1] - self._host_of_decodes[first]
        return in_steps, beside - alone, host, swap, added


class Waits:
    """How long the head of the queue lacked a slot, and KV blocks, until each visit's first step, in ticks.

    What a step's decision found holds until the step ends. A request that comes after that waits for the
    step, not for what the head had lacked.
    """

    def __init__(self, num_replicas: int, came_s: Column, replica: Column) -> None:
        """`came_s`: when each visit's request came, seconds; `replica`: to which, -1 for those of no use."""
        self._came_s = came_s
        order = np.lexsort((came_s, replica)).astype(np.int32)
        ends = np.searchsorted(replica[order], np.arange(num_replicas + 1))
        self._to_come = [order[slice(*each)] for each in pairwise(ends.tolist())]
        """By replica, the visits whose requests have not come yet, in the order in which they come."""
        self._lacked = np.zeros((2, num_replicas), np.int64)
        """Ticks that the head lacked a slot, and KV blocks, in the steps seen so far, by replica."""
        self.until_first_step = np.zeros((2, len(came_s)), np.int64)
        """By slot and KV blocks, then by visit."""

    def add(self, stretch: Stretch, times: StepTimes) -> None:
        """The new steps of a stretch; all those of its replicas before must have been added."""
        visit, first, replicas = (stretch.begun[name] for name in ("visit", "first_step", "replica"))
        if not (self._lacked.any() or np.isin(stretch.steps["waiting_for"], (SLOT, KV_BLOCKS)).any()):
            # Whoever came meanwhile may be found to have come later: nothing has been lacked yet.
            return
        up_to = np.zeros((2, len(times) + 1), np.int64)
        length = times.length(slice(0, len(times)))
        for place, code in enumerate((SLOT, KV_BLOCKS)):
            np.cumsum(np.where(stretch.steps["waiting_for"] == code, length, 0), out=up_to[place, 1:])
        # From the sums of this stretch to those since the beginning.
        before = self._lacked.copy()
        for replica, steps, num_new in stretch.replicas:
            if not num_new:
                continue
            before[:, replica] -= up_to[:, steps.start]
            self._lacked[:, replica] = before[:, replica] + up_to[:, steps.start + num_new]
            decided_s = stretch.steps["scheduled_at_s"][steps.start : steps.start + num_new]
            to_come = self._to_come[replica]
            num_come = int(np.searchsorted(self._came_s[to_come], decided_s[-1], side="right"))
            come, self._to_come[replica] = to_come[:num_come], to_come[num_come:]
            decided = steps.start + np.searchsorted(decided_s, self._came_s[come])
            self.until_first_step[:, come] -= up_to[:, decided] + before[:, [replica]]
        self.until_first_step[:, visit] += up_to[:, first] + before[:, replicas]


class _Split(NamedTuple):
    """Steps: their seconds without host time and moves; their ticks, and those of host and moves."""

    ticks: Ticks
    gpu_s: Column
    length: Column
    host: Column
    swap: Column

    def only(self, rows: Column) -> _Split:
        """The steps at `rows`; a row may come more than once."""
        return _Split(self.ticks, *(column[rows] for column in self[1:]))

    def added(self, without_s: Column) -> Column:
        """Ticks by which steps are longer than their price without something, `without_s`, host apart."""
        most = self.length - self.host - self.swap
        added: Column = np.minimum(self.ticks.of(np.maximum(self.gpu_s - without_s, 0.0)), most)
        return added


class _Splitter:
    """Splits steps when asked: all of them at once would take more memory than the run itself."""

    def __init__(self, times: StepTimes, prices: StepPrices, transfer_s: Column) -> None:
        self._times, self._prices = times, prices
        self.moving = np.flatnonzero(transfer_s)
        """The steps that moved KV blocks."""
        self._transfer_s = transfer_s if len(self.moving) else np.broadcast_to(0.0, transfer_s.shape)

    def of(self, steps: Column | slice) -> _Split:
        """Some steps, by their rising numbers."""
        transfer_s = self._transfer_s[steps]
        step_s = self._times.duration_s[steps] - transfer_s
        length, host_s = self._times.length(steps), self._prices.host_s(step_s, steps)
        ticks = self._times.ticks
        host = np.minimum(ticks.of(host_s), length)
        swap = np.minimum(ticks.of(transfer_s), length - host)
        return _Split(ticks, step_s - host_s, length, host, swap)

    def host_up_to(self, chosen: Column) -> Column:
        """At place n: the host's ticks in the chosen of the first n steps; `chosen` has a bool a step."""
        up_to = np.zeros(len(chosen) + 1, dtype=np.int64)
        for piece in pieces(len(chosen)):
            up_to[piece.start + 1 : piece.stop + 1] = np.where(chosen[piece], self.of(piece).host, 0)
        return np.cumsum(up_to, out=up_to)
