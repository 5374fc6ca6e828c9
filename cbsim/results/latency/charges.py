"""Charges: what the steps of a replica cost those that are in them, in ticks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cbsim.base.column_pieces import pieces
from cbsim.core.layout import KV_BLOCKS, SLOT
from cbsim.cost.cost_model import CostModel
from cbsim.results.latency.prices import StepPrices
from cbsim.results.latency.spans import Spans
from cbsim.results.latency.ticks import RangeSums, StepTimes, Ticks
from cbsim.results.run_log import Column, Slices


class Charges:
    """Each step is host time, moves of KV blocks, what others' chunks add for a request, and the rest.

    For a decode others' chunks add the step's seconds less those of the same step without chunks; for a
    prompt slice, less those of the same step without the other chunks. Host time counts in neither.
    """

    def __init__(
        self, steps: Mapping[str, Column], slices: Slices, cost: CostModel, times: StepTimes
    ) -> None:
        self._times = times
        self._lacking = [np.flatnonzero(steps["waiting_for"] == code) for code in (SLOT, KV_BLOCKS)]
        """The steps decided while the head of the queue lacked a slot, and KV blocks."""
        prices = StepPrices(steps, slices, cost)
        split = _Splitter(times, prices, steps["transfer_s"])
        self._charge_decodes(split, prices)
        self._charge_prefills(split, prices)

    def _charge_decodes(self, split: _Splitter, prices: StepPrices) -> None:
        """What ranges of steps cost a request that takes part in all their steps with decodes."""
        decodes, chunk_steps = prices.has_decodes, prices.chunk_steps
        self._host_of_decodes = split.host_up_to(decodes)
        moving = split.moving[decodes[split.moving]]
        self._swap_of_decodes = RangeSums(moving, split.of(moving).swap)
        is_mixed = decodes[chunk_steps]
        mixed, alone = chunk_steps[is_mixed], chunk_steps[~is_mixed]
        added = split.of(mixed).added(prices.without_chunks_s()[is_mixed])
        self.chunk_steps = RangeSums(chunk_steps, self._times.length(chunk_steps))
        """Ticks of the steps of chunks."""
        self._mixed = RangeSums(mixed, self._times.length(mixed), added)
        self._alone = RangeSums(alone, self._times.length(alone))
        self.chunks_alone = RangeSums(alone, np.ones(len(alone), dtype=np.int64))
        """Counts the steps of chunks without decodes."""

    def _charge_prefills(self, split: _Splitter, prices: StepPrices) -> None:
        """What its step is charged with, for each prompt slice."""
        of_slices = split.of(prices.chunk_steps).only(prices.place)
        self._length, self._host, self._swap = of_slices.length, of_slices.host, of_slices.swap
        self._added = of_slices.added(prices.with_own_chunk_s(of_slices.gpu_s))

    def waits(self, arrival_s: Column, admitted: Column) -> tuple[Column, Column]:
        """Ticks until each request's first step that the head of the queue lacked a slot, and KV blocks.

        What a step's decision found holds until the step ends. A request that arrives after that waits for
        the step, not for what the head had lacked.
        """
        if not any(map(len, self._lacking)):
            none = np.zeros(len(admitted), dtype=np.int64)
            return none, none
        first = self._times.first_decided(arrival_s)
        no_slot, no_kv = (
            RangeSums(steps, self._times.length(steps)).over(first, admitted - 1)[0]
            for steps in self._lacking
        )
        return no_slot, no_kv

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
        (alone,) = self._alone.over(first, last)
        mixed, added = self._mixed.over(first, last)
        (swap,) = self._swap_of_decodes.over(first, last)
        in_steps = self._times.end(last) - self._times.start(first) - idle - alone
        host = self._host_of_decodes[last + 1] - self._host_of_decodes[first]
        return in_steps, mixed, host, swap, added


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
