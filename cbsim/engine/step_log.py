"""The steps of a replica, stretches of equal ones as one row, and the table they unfold to."""

from __future__ import annotations

from array import array

import numpy as np

from cbsim.recorder import Column, Table, step_table
from cbsim.schedulers.base import StepPlan


class StepLog:
    """Every step's duration, end and blocks one by one; all else once a run of steps that differ by a law.

    Within a run of `count` steps the queues and the number of decodes stand still, and every decode's context
    grows by one a step.
    """

    def __init__(self) -> None:
        self.duration_s = array("d")
        self.end_s = array("d")
        self.kv_blocks_used = array("q")
        self.facts = Table(
            count="q",
            scheduled_at_s="d",
            start_s="d",
            num_prefill_tokens="q",
            num_prefill_seqs="q",
            num_decode_seqs="q",
            num_preempted="q",
            num_attention_pairs="q",
            num_context_tokens="q",
            num_logits="q",
            is_group_step="b",
        )
        self.states = Table(num_running="q", num_waiting="q", num_kv_tokens="q")
        self._finished_in = array("q")
        self._finished = array("q")
        self._ungrouped = array("q")

    def add(
        self,
        scheduled_at_s: float,
        start_s: float,
        duration_s: float,
        end_s: float,
        plan: StepPlan | None,
        num_group_decodes: int,
        group_context: int,
    ) -> None:
        """A step of `plan`'s slices beside so many decodes of the group, which attend to `group_context` tokens.

        `add_state` says the rest.
        """
        self.duration_s.append(duration_s)
        self.end_s.append(end_s)
        num_prefill_tokens = num_prefill_seqs = num_preempted = 0
        num_decodes = num_logits = num_group_decodes
        num_pairs = num_context_tokens = group_context
        if plan is not None:
            num_preempted = len(plan.preempted)
            for _, tokens, before, is_prefill, emits, _ in plan.slices:
                num_pairs += tokens * before + tokens * (tokens + 1) // 2
                num_context_tokens += before + tokens
                num_logits += emits
                if is_prefill:
                    num_prefill_tokens += tokens
                    num_prefill_seqs += 1
                else:
                    num_decodes += 1
        self.facts.append(
            1,
            scheduled_at_s,
            start_s,
            num_prefill_tokens,
            num_prefill_seqs,
            num_decodes,
            num_preempted,
            num_pairs,
            num_context_tokens,
            num_logits,
            num_group_decodes > 0,
        )

    def add_run(
        self,
        scheduled_at_s: float,
        start_s: float,
        duration_s: list[float],
        end_s: list[float],
        kv_blocks_used: list[int],
        num_decodes: int,
        context: int,
    ) -> None:
        """Steps of the group alone, one behind the other; `context` and the instants are the first one's."""
        self.duration_s.extend(duration_s)
        self.end_s.extend(end_s)
        self.kv_blocks_used.extend(kv_blocks_used)
        self.facts.append(
            len(end_s), scheduled_at_s, start_s, 0, 0, num_decodes, 0, context, context, num_decodes, True
        )

    def add_state(
        self, num_running: int, num_waiting: int, kv_blocks_used: int | None, num_kv_tokens: int
    ) -> None:
        """How queues and KV cache stand after the step just added was decided (of a run, the first)."""
        if kv_blocks_used is not None:
            self.kv_blocks_used.append(kv_blocks_used)
        self.states.append(num_running, num_waiting, num_kv_tokens)

    def finished(self, step: int, num_finished: int) -> None:
        """So many requests got their last token in a step."""
        self._finished_in.append(step)
        self._finished.append(num_finished)

    def ungroup(self, step: int) -> None:
        """A step decided as a group step was taken apart before it ended."""
        self._ungrouped.append(step)

    def group_end_s(self, num_steps: int) -> Column:
        """When each group step among the first `num_steps` steps ended, seconds."""
        rows = self.facts.to_columns()
        is_group_step = np.repeat(rows["is_group_step"], rows["count"]).astype(bool)
        is_group_step[np.array(self._ungrouped, dtype=np.int64)] = False
        return np.array(self.end_s)[:num_steps][is_group_step[:num_steps]]

    def to_columns(self, replica: int, num_steps: int, num_in_flight: int, num_blocks: int) -> dict[str, Column]:
        """The first `num_steps` steps as in `RunLog.steps`."""
        rows = {**self.facts.to_columns(), **self.states.to_columns()}
        counts = rows["count"]
        row = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        end_s = np.array(self.end_s)
        growth = place * rows["num_decode_seqs"][row]
        columns = {name: rows[name][row] for name in rows}
        for name in ("num_attention_pairs", "num_context_tokens", "num_kv_tokens"):
            columns[name] = columns[name] + growth
        within = place > 0
        columns["start_s"] = np.where(within, np.roll(end_s, 1), columns["start_s"])
        columns["scheduled_at_s"] = np.where(
            within, np.roll(end_s, num_in_flight), columns["scheduled_at_s"]
        )
        num_finished = np.zeros(len(row), dtype=np.int64)
        np.add.at(num_finished, np.array(self._finished_in, dtype=np.int64), np.array(self._finished))
        columns.update(
            replica=np.full(len(row), replica, dtype=np.int32),
            step=np.arange(len(row)),
            duration_s=np.array(self.duration_s),
            num_decode_tokens=columns["num_decode_seqs"],
            num_finished=num_finished,
            kv_blocks_used=np.array(self.kv_blocks_used),
            kv_blocks_total=np.full(len(row), num_blocks),
        )
        return {name: columns[name][:num_steps] for name in step_table().names}
