"""The steps of a replica, stretches of equal ones as one row, and the table they unfold to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

import numpy as np

from cbsim.recorder import SLICE_STEP_COLUMNS, STEP_COLUMNS, Column, Table, as_column

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
        ends: Column = self.ends()[:num_steps][self.is_group_step()[:num_steps]]
        return ends

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
        finished = self._finished.to_columns()
        num_finished = np.zeros(num_steps, dtype=np.int64)
        num_finished[finished["step"]] = finished["num_finished"]
        own = {"num_finished": num_finished, "duration_s": as_column(self.duration_s)[:num_steps]}
        constant = {"replica": replica, "kv_blocks_total": num_blocks}
        return UnfoldedSteps(self, own, constant, blocks_taken, num_in_flight)


class UnfoldedSteps(Mapping[str, Column]):
    """The columns of `RunLog.steps`, each made from the rows of runs whenever it is asked for."""

    def __init__(
        self,
        log: StepLog,
        own: dict[str, Column],
        constant: dict[str, int],
        blocks_taken: Column,
        num_in_flight: int,
    ) -> None:
        """`own` are the columns that are there already, `constant` those that hold one number."""
        self._log = log
        self._runs = log.runs.to_columns()
        self._own = own
        self._constant = constant
        self._blocks_taken = blocks_taken
        self._num_in_flight = num_in_flight
        self._num_steps = len(own["duration_s"])

    def __iter__(self) -> Iterator[str]:
        return iter((*STEP_COLUMNS, *SLICE_STEP_COLUMNS))

    def __len__(self) -> int:
        return len(STEP_COLUMNS) + len(SLICE_STEP_COLUMNS)

    def __getitem__(self, name: str) -> Column:
        if name in self._own:
            return self._own[name]
        if name in self._constant:
            return np.full(self._num_steps, self._constant[name])
        if name == "step":
            return np.arange(self._num_steps)
        return self._unfold("num_decode_seqs" if name == "num_decode_tokens" else name)[: self._num_steps]

    def _unfold(self, name: str) -> Column:
        counts, runs = self._runs["count"], self._runs[name]
        is_real = runs.dtype == np.float64 and name not in GROWING
        values: Column = np.repeat(runs.astype(np.float64 if is_real else np.int64), counts)
        if name in GROWING:
            values += self._place() * np.repeat(self._runs["num_decode_seqs"], counts)
        elif name == "kv_blocks_used":
            values += self._blocks_taken_in_run()
        elif name == "start_s":
            values = np.where(self._place() > 0, np.roll(self._log.ends(), 1), values)
        elif name == "scheduled_at_s":
            # Within a run the call for a step is made when the one `num_in_flight` before it ends.
            values = np.where(self._place() > 0, np.roll(self._log.ends(), self._num_in_flight), values)
        return values

    def _place(self) -> Column:
        """The place of each step in its run, from 0."""
        counts = self._runs["count"]
        place: Column = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return place

    def _blocks_taken_in_run(self) -> Column:
        """Blocks taken since the first step of its run, for each step."""
        counts = self._runs["count"]
        num_steps = int(counts.sum())
        taken = np.zeros(num_steps, dtype=np.int64)
        taken[self._log.is_group_step()] = self._blocks_taken
        so_far = np.cumsum(taken)
        in_run: Column = so_far - np.repeat(so_far[np.cumsum(counts) - counts], counts)
        return in_run
