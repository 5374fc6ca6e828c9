"""The steps of a replica, stretches of equal ones as one row, and the table they unfold to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from cbsim.recorder import STEP_COLUMNS, Column, Table, as_column


class StepLog:
    """Every step's duration and end one by one; all else once a run of steps that differ by a law.

    Within a run of `count` steps the queues and the number of decodes stand still, every decode's context
    grows by one a step, and the blocks taken repeat after as many steps as a block has tokens.
    """

    def __init__(self) -> None:
        self.duration_s = array("d")
        self.end_s = array("d")
        self.block_needs = array("i")
        self.runs = Table(RUN_REALS, RUN_INTEGERS, "i")
        self._finished = Table((), ("step", "num_finished"))
        self._ungrouped = array("q")

    def add(
        self,
        instants: tuple[float, float],
        duration_s: float,
        end_s: float,
        state: tuple[int, int, int, int],
        facts: StepFacts,
    ) -> None:
        """A step on its own: when it was scheduled and starts, how long it takes, and what it computes.

        `state` is (running, waiting, KV tokens, KV blocks used) after it was decided.
        """
        self.duration_s.append(duration_s)
        self.end_s.append(end_s)
        self.runs.append(*instants, facts.num_attention_pairs, 1, *state, *facts[:-1])

    def add_run(
        self,
        instants: tuple[float, float],
        duration_s: list[float],
        end_s: list[float],
        state: tuple[int, int, int, int],
        num_decodes: int,
        context: int,
        block_needs: list[int],
    ) -> None:
        """Steps of the group alone, one behind the other; `instants`, `state`, `context` are the first's.

        `block_needs`, if blocks are taken, says how many blocks each of them takes, over and over.
        """
        self.duration_s.extend(duration_s)
        self.end_s.extend(end_s)
        num_steps = len(end_s)
        row = (num_steps, *state, 0, 0, num_decodes, 0, context, num_decodes, 1)
        self.runs.append(*instants, context, *row)
        if num_steps > 1:
            self.block_needs.extend(block_needs)

    def finished(self, step: int, num_finished: int) -> None:
        """So many requests got their last token in a step."""
        self._finished.append(step, num_finished)

    def ungroup(self, step: int) -> None:
        """A step decided as a group step was taken apart before it ended."""
        self._ungrouped.append(step)

    def group_end_s(self, num_steps: int) -> Column:
        """When each group step among the first `num_steps` steps ended, seconds."""
        runs = self.runs.to_columns()
        is_group_step = np.repeat(runs["is_group_step"], runs["count"]).astype(bool)
        is_group_step[np.array(self._ungrouped, dtype=np.int64)] = False
        ends: Column = as_column(self.end_s)[:num_steps][is_group_step[:num_steps]]
        return ends

    def columns(
        self, replica: int, num_steps: int, num_in_flight: int, num_blocks: int
    ) -> Mapping[str, Column]:
        """The first `num_steps` steps as in `RunLog.steps`, unfolded when a column is asked for."""
        finished = self._finished.to_columns()
        num_finished = np.zeros(num_steps, dtype=np.int64)
        num_finished[finished["step"]] = finished["num_finished"]
        own = {"num_finished": num_finished, "duration_s": as_column(self.duration_s)[:num_steps]}
        return UnfoldedSteps(
            self.runs.to_columns(),
            own,
            {"replica": replica, "kv_blocks_total": num_blocks},
            as_column(self.end_s),
            as_column(self.block_needs),
            num_in_flight,
        )


class UnfoldedSteps(Mapping[str, Column]):
    """The columns of `RunLog.steps`, each made from the rows of runs whenever it is asked for."""

    def __init__(
        self,
        runs: dict[str, Column],
        own: dict[str, Column],
        constant: dict[str, int],
        end_s: Column,
        block_needs: Column,
        num_in_flight: int,
    ) -> None:
        """`own` are the columns that are there already, `constant` those that hold one number."""
        self._runs = runs
        self._own = own
        self._constant = constant
        self._end_s = end_s
        self._block_needs = block_needs
        self._num_in_flight = num_in_flight
        self._num_steps = len(own["duration_s"])

    def __iter__(self) -> Iterator[str]:
        return iter(STEP_COLUMNS)

    def __len__(self) -> int:
        return len(STEP_COLUMNS)

    def __getitem__(self, name: str) -> Column:
        if name in self._own:
            return self._own[name]
        if name in self._constant:
            return np.full(self._num_steps, self._constant[name])
        if name == "step":
            return np.arange(self._num_steps)
        return self._unfold("num_decode_seqs" if name == "num_decode_tokens" else name)[: self._num_steps]

    def _unfold(self, name: str) -> Column:
        counts = self._runs["count"]
        kind = np.float64 if name in INSTANTS else np.int64
        values: Column = np.repeat(self._runs[name].astype(kind), counts)
        if name in GROWING:
            values += self._place() * np.repeat(self._runs["num_decode_seqs"], counts)
        elif name == "kv_blocks_used":
            values += self._blocks_taken()
        elif name == "start_s":
            values = np.where(self._place() > 0, np.roll(self._end_s, 1), values)
        elif name == "scheduled_at_s":
            # Within a run the call for a step is made when the one `num_in_flight` before it ends.
            values = np.where(self._place() > 0, np.roll(self._end_s, self._num_in_flight), values)
        return values

    def _place(self) -> Column:
        """The place of each step in its run, from 0."""
        counts = self._runs["count"]
        place: Column = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return place

    def _blocks_taken(self) -> Column:
        """Blocks taken since the first step of its run, for each step."""
        counts, place = self._runs["count"], self._place()
        if not len(self._block_needs):
            return np.zeros(len(place), dtype=np.int64)
        is_long = counts > 1
        needs = self._block_needs.reshape(int(is_long.sum()), -1)
        num_phases = needs.shape[1]
        # Of each phase and those before it, without the first step's own.
        taken = np.cumsum(needs, axis=1) - needs[:, :1]
        line = np.repeat(np.cumsum(is_long) - 1, counts)
        whole = needs.sum(axis=1)[line] * (place // num_phases)
        return np.where(np.repeat(is_long, counts), whole + taken[line, place % num_phases], 0)


class StepFacts(NamedTuple):
    """What a step computes, for its record."""

    num_prefill_tokens: int
    num_prefill_seqs: int
    num_decode_seqs: int
    num_preempted: int
    num_context_tokens: int
    num_logits: int
    is_group_step: int
    num_attention_pairs: int


INSTANTS = ("scheduled_at_s", "start_s")
GROWING = ("num_attention_pairs", "num_context_tokens", "num_kv_tokens")
"""Columns that grow by the number of decodes from step to step of a run."""
RUN_REALS = ("scheduled_at_s", "start_s", "num_attention_pairs")
"""Pairs are whole numbers, but of long prompts too many for 32 bits."""
STATE = ("num_running", "num_waiting", "num_kv_tokens", "kv_blocks_used")
RUN_INTEGERS = ("count", *STATE, *StepFacts._fields[:-1])
