"""The steps of a replica, stretches of equal ones as one row, and the table they unfold to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

import numpy as np

from cbsim.base.column_pieces import pieces
from cbsim.cluster.engine.recorder import SLICE_STEP_COLUMNS, STEP_COLUMNS, Column, Table, as_column

RUN_REALS = ("scheduled_at_s", "start_s", "transfer_s", "num_attention_pairs")
"""Pairs are whole numbers, but of long prompts too many for 32 bits."""
STATE = ("num_running", "num_waiting", "waiting_for", "num_kv_tokens", "kv_blocks_used")
FACTS = (
    "num_prefill_tokens",
    "num_prefill_seqs",
    "num_decode_seqs",
    "num_preempted",
    "num_context_tokens",
    "num_logits",
    "max_decode_context",
    "is_group_step",
)
INSTANTS = ("scheduled_at_s", "start_s")
GROWING = ("num_attention_pairs", "num_context_tokens", "num_kv_tokens")
"""Columns that grow by the number of decodes from step to step of a run."""

State = tuple[int, int, int, int, int]
"""`STATE` right after a step was decided."""


Facts = tuple[int, int, int, int, int, int, int, int]
"""`FACTS`: what a step computes."""


class StepLog:
    """Every step's duration one by one; all else once a run of steps that differ by a law.

    Within a run of `count` steps the queues and the number of decodes stand still, and every decode's context
    grows by one a step. Ends are not kept: they are the sums of durations from the start of each busy period.
    """

    def __init__(self) -> None:
        self.duration_s = array("d")
        self.end_s = 0.0
        """When the last step of the log ends."""
        self.runs = Table(RUN_REALS, ("count", *STATE, *FACTS), "i")
        self._finished = Table((), ("step", "num_finished"), "i")
        self._period_starts: list[tuple[int, float]] = []

    def add(
        self,
        now: float,
        start_s: float,
        duration_s: float,
        end_s: float,
        transfer_s: float,
        num_pairs: int,
        state: State,
        facts: Facts,
    ) -> None:
        """A step on its own: decided at `now`, with what it computes in the order of `FACTS`."""
        if start_s != self.end_s:
            self._period_starts.append((len(self.duration_s), start_s))
        self.end_s = end_s
        self.duration_s.append(duration_s)
        self.runs.append(now, start_s, transfer_s, num_pairs, 1, *state, *facts)

    def add_run(
        self,
        now: float,
        start_s: float,
        duration_s: list[float],
        end_s: float,
        state: State,
        facts: Facts,
    ) -> None:
        """Steps of the group alone, one behind the other; `now`, `state` and `facts` are the first's."""
        if start_s != self.end_s:
            self._period_starts.append((len(self.duration_s), start_s))
        self.end_s = end_s
        self.duration_s.fromlist(duration_s)
        self.runs.append(now, start_s, 0.0, facts[4], len(duration_s), *state, *facts)

    def finished(self, step: int, num_finished: int) -> None:
        """So many requests got their last token in a step."""
        self._finished.append(step, num_finished)

    def ends(self) -> Column:
        """When each step ends, seconds, summed in order as the engine does."""
        ends = np.array(self.duration_s)
        # Before the first break, if there is one, time is counted from 0.
        periods = [(0, 0.0), *self._period_starts]
        lasts = [first for first, _ in periods[1:]] + [len(ends)]
        for (first, start_s), last in zip(periods, lasts, strict=True):
            if first < last:
                ends[first] = start_s + ends[first]
                np.add.accumulate(ends[first:last], out=ends[first:last])
        return ends

    def group_end_s(self, num_steps: int) -> Column:
        """When each group step among the first `num_steps` steps ended, seconds."""
        ends, took_part = self.ends()[:num_steps], self.is_group_step()[:num_steps]
        num_kept = 0
        for piece in pieces(num_steps):
            kept = ends[piece][took_part[piece]]
            ends[num_kept : num_kept + len(kept)] = kept
            num_kept += len(kept)
        return ends[:num_kept]

    def is_group_step(self) -> Column:
        """Whether the group took part, for each step."""
        runs = self.runs.to_columns()
        took_part: Column = np.repeat(runs["is_group_step"].astype(bool), runs["count"])
        return took_part

    def group_steps(self) -> Column:
        """The number, among all steps, of each group step."""
        numbers: Column = np.flatnonzero(self.is_group_step())
        return numbers

    def columns(
        self, replica: int, num_steps: int, num_in_flight: int, num_blocks: int, blocks_taken: Column
    ) -> Mapping[str, Column]:
        """The first `num_steps` steps as in `RunLog.steps`, unfolded when a column is asked for.

        `blocks_taken` are the KV blocks that each group step takes.
        """
        constant = {"replica": replica, "kv_blocks_total": num_blocks}
        return UnfoldedSteps(self, num_steps, constant, blocks_taken, num_in_flight)

    def num_finished(self, num_steps: int) -> Column:
        """How many requests got their last token in each of the first `num_steps` steps."""
        finished = self._finished.to_columns()
        num_finished = np.zeros(num_steps, dtype=np.int64)
        num_finished[finished["step"]] = finished["num_finished"]
        return num_finished


class UnfoldedSteps(Mapping[str, Column]):
    """The columns of `RunLog.steps`, each made from the rows of runs whenever it is asked for.

    A column of all steps is much of what a long run takes: few are held at once.
    """

    def __init__(
        self,
        log: StepLog,
        num_steps: int,
        constant: dict[str, int],
        blocks_taken: Column,
        num_in_flight: int,
    ) -> None:
        """`constant` are the columns that hold one number."""
        self._log = log
        self._runs = log.runs.to_columns()
        self._num_steps = num_steps
        self._constant = constant
        self._blocks_taken = blocks_taken
        self._num_in_flight = num_in_flight

    def __iter__(self) -> Iterator[str]:
        return iter((*STEP_COLUMNS, *SLICE_STEP_COLUMNS))

    def __len__(self) -> int:
        return len(STEP_COLUMNS) + len(SLICE_STEP_COLUMNS)

    def __getitem__(self, name: str) -> Column:
        if name == "duration_s":
            return as_column(self._log.duration_s)[: self._num_steps]
        if name == "num_finished":
            return self._log.num_finished(self._num_steps)
        if name in self._constant:
            return np.broadcast_to(np.int64(self._constant[name]), self._num_steps)
        if name == "step":
            return np.arange(self._num_steps)
        return self._unfold("num_decode_seqs" if name == "num_decode_tokens" else name)[: self._num_steps]

    def _unfold(self, name: str) -> Column:
        counts, runs = self._runs["count"], self._runs[name]
        if name in INSTANTS:
            # Within a run a step starts when the one before it ends, and the call for it is made when the one
            # `num_in_flight` before it does.
            instants: Column = np.roll(self._log.ends(), 1 if name == "start_s" else self._num_in_flight)
            instants[self._first_steps()] = runs
            return instants
        if name in GROWING:
            growth = np.repeat(self._runs["num_decode_seqs"].astype(np.int64), counts)
            return self._summed(runs.astype(np.int64), growth)
        if name == "kv_blocks_used":
            taken = np.zeros(int(counts.sum()), dtype=np.int64)
            taken[self._log.is_group_step()] = self._blocks_taken
            return self._summed(runs.astype(np.int64), taken)
        values: Column = np.repeat(runs.astype(np.float64 if runs.dtype == np.float64 else np.int64), counts)
        return values

    def _first_steps(self) -> Column:
        """Of each run."""
        counts = self._runs["count"]
        first: Column = np.cumsum(counts, dtype=np.int64) - counts
        return first

    def _summed(self, start: Column, added: Column) -> Column:
        """`start` of each run and what its further steps add, summed up; in place of `added`."""
        first = self._first_steps()
        if len(first):
            added[first] = 0
            end = start + np.add.reduceat(added, first)
            added[first] = start
            added[first[1:]] -= end[:-1]
        return np.cumsum(added, out=added)
