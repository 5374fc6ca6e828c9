"""The steps of a replica, stretches of equal ones as one row, and the table they unfold to."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from cbsim.recorder import STEP_COLUMNS, Column, Table


class StepLog:
    """Every step's duration and end one by one; all else once a run of steps that differ by a law.

    Within a run of `count` steps the queues and the number of decodes stand still, every decode's context
    grows by one a step, and the blocks taken repeat after as many steps as a block has tokens.
    """

    def __init__(self) -> None:
        self.duration_s = array("d")
        self.end_s = array("d")
        self.block_needs = array("q")
        self.runs = Table(RUN_REALS, RUN_INTEGERS)
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
        self.runs.append(instants, (1, *state, *facts))

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
        row = (num_steps, *state, 0, 0, num_decodes, 0, context, context, num_decodes, 1)
        self.runs.append(instants, row)
        if num_steps > 1:
            self.block_needs.extend(block_needs)

    def finished(self, step: int, num_finished: int) -> None:
        """So many requests got their last token in a step."""
        self._finished.append((), (step, num_finished))

    def ungroup(self, step: int) -> None:
        """A step decided as a group step was taken apart before it ended."""
        self._ungrouped.append(step)

    def group_end_s(self, num_steps: int) -> Column:
        """When each group step among the first `num_steps` steps ended, seconds."""
        runs = self.runs.to_columns()
        is_group_step = np.repeat(runs["is_group_step"], runs["count"]).astype(bool)
        is_group_step[np.array(self._ungrouped, dtype=np.int64)] = False
        ends: Column = np.array(self.end_s)[:num_steps][is_group_step[:num_steps]]
        return ends

    def to_columns(
        self, replica: int, num_steps: int, num_in_flight: int, num_blocks: int
    ) -> dict[str, Column]:
        """The first `num_steps` steps as in `RunLog.steps`."""
        runs = self.runs.to_columns()
        counts = runs["count"]
        run = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
        within = place > 0
        growth = place * runs["num_decode_seqs"][run]
        end_s = np.array(self.end_s)
        columns = {name: values[run] for name, values in runs.items()}
        for name in ("num_attention_pairs", "num_context_tokens", "num_kv_tokens"):
            columns[name] += growth
        columns["start_s"] = np.where(within, np.roll(end_s, 1), columns["start_s"])
        # Within a run the call for a step is made when the one `num_in_flight` before it ends.
        called_at_s = np.roll(end_s, num_in_flight)
        columns["scheduled_at_s"] = np.where(within, called_at_s, columns["scheduled_at_s"])
        finished = self._finished.to_columns()
        columns["num_finished"] = np.zeros(len(run), dtype=np.int64)
        columns["num_finished"][finished["step"]] = finished["num_finished"]
        columns["replica"] = np.full(len(run), replica)
        columns["step"] = np.arange(len(run))
        columns["duration_s"] = np.array(self.duration_s)
        columns["num_decode_tokens"] = columns["num_decode_seqs"]
        columns["kv_blocks_used"] += self._blocks_taken(counts, run, place)
        columns["kv_blocks_total"] = np.full(len(run), num_blocks)
        return {name: columns[name][:num_steps] for name in STEP_COLUMNS}

    def _blocks_taken(self, counts: Column, run: Column, place: Column) -> Column:
        """Blocks taken since the first step of its run, for each step."""
        if not self.block_needs:
            return np.zeros(len(run), dtype=np.int64)
        is_long = counts > 1
        needs = np.array(self.block_needs).reshape(int(is_long.sum()), -1)
        num_phases = needs.shape[1]
        # Of each phase and those before it, without the first step's own.
        taken = np.cumsum(needs, axis=1) - needs[:, :1]
        line = (np.cumsum(is_long) - 1)[run]
        whole = needs.sum(axis=1)[line] * (place // num_phases)
        return np.where(is_long[run], whole + taken[line, place % num_phases], 0)


class StepFacts(NamedTuple):
    """What a step computes, for its record."""

    num_prefill_tokens: int
    num_prefill_seqs: int
    num_decode_seqs: int
    num_preempted: int
    num_attention_pairs: int
    num_context_tokens: int
    num_logits: int
    is_group_step: int


RUN_REALS = ("scheduled_at_s", "start_s")
STATE = ("num_running", "num_waiting", "num_kv_tokens", "kv_blocks_used")
RUN_INTEGERS = ("count", *STATE, *StepFacts._fields)
