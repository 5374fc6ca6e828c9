"""The record of a run: one small run told in full, and how tables are kept."""

from __future__ import annotations

import numpy as np

from cbsim.cluster.engine.recorder import EVENTS, KINDS, MergedSteps, Table, distinct_gaps
from cbsim.schedulers import SCHEDULERS
from cbsim.testing import Case, observe
from cbsim.workload.request import RequestState


def test_a_table_gives_its_rows_back_by_column() -> None:
    table = Table(("time_s",), ("replica", "step"))
    assert {name: len(column) for name, column in table.to_columns().items()} == {
        "time_s": 0,
        "replica": 0,
        "step": 0,
    }
    table.append(0.5, 1, 2)
    table.append(1.5, 3, 4)
    columns = table.to_columns()
    assert len(table) == 2
    assert columns["time_s"].tolist() == [0.5, 1.5]
    assert columns["time_s"].dtype == np.float64
    assert (columns["replica"].tolist(), columns["step"].tolist()) == ([1, 3], [2, 4])
    assert columns["step"].dtype == np.int64


def test_steps_of_several_replicas_come_by_start_then_replica() -> None:
    first = {"start_s": np.array([0.0, 1.0]), "replica": np.array([0, 0])}
    second = {"start_s": np.array([0.5, 1.0]), "replica": np.array([1, 1])}
    merged = MergedSteps([first, second])
    assert merged["start_s"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert merged["replica"].tolist() == [0, 1, 0, 1]


def test_a_whole_run_as_it_is_written_down() -> None:
    """The golden `recompute` of `preemptive`, and a request that never fits: every column, by hand.

    a: prompt 2, tokens at 1, 2, 3, 4. b: prompt 2, token at 1, preempted at 1, back at 4 with 3 tokens to
    compute, tokens at 5 and 6. Blocks of 2 tokens.
    """
    rows = [("a", 2, 4), ("b", 2, 3), ("c", 7, 1)]
    case = Case(
        requests=tuple(
            {
                "request_id": name,
                "arrival_s": 0.0,
                "num_prompt_tokens": p,
                "num_output_tokens": o,
                "priority": 1,
            }
            for name, p, o in rows
        ),
        num_blocks=3,
        block_size=2,
    )
    log = observe(SCHEDULERS.get("preemptive"), case).log

    requests = {name: column.tolist() for name, column in log.requests.items()}
    assert requests["request_id"] == ["a", "b", "c"]
    assert requests["state"] == [RequestState.FINISHED, RequestState.FINISHED, RequestState.REJECTED]
    assert requests["replica"] == [0, 0, 0]
    assert requests["num_generated_tokens"] == [4, 3, 0]
    assert requests["num_preemptions"] == [0, 1, 0]
    np.testing.assert_array_equal(log.requests["first_scheduled_at_s"], [0.0, 0.0, np.nan])
    np.testing.assert_array_equal(log.requests["first_token_at_s"], [1.0, 1.0, np.nan])
    np.testing.assert_array_equal(log.requests["finished_at_s"], [4.0, 6.0, np.nan])
    np.testing.assert_array_equal(log.requests["max_itl_s"], [1.0, 4.0, np.nan])
    assert log.rejections == {2: "needs 4 KV blocks, the cache has 3"}

    # Gaps: a 1, 1, 1; b 4 and 1.
    gap_s, gap_count = distinct_gaps(log.gaps)
    assert (gap_s.tolist(), gap_count.tolist()) == ([1.0, 4.0], [4, 1])
    assert (log.num_tokens_recomputed, log.num_padding_tokens, log.end_s) == (2, 0, 6.0)

    steps = {name: column.tolist() for name, column in log.steps.items()}
    assert steps["step"] == [0, 1, 2, 3, 4, 5]
    assert steps["start_s"] == steps["scheduled_at_s"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert steps["num_prefill_tokens"] == [4, 0, 0, 0, 3, 0]
    assert steps["num_decode_tokens"] == [0, 1, 1, 1, 0, 1]
    assert steps["num_running"] == [2, 1, 1, 1, 1, 1]
    assert steps["num_waiting"] == [0, 1, 1, 1, 0, 0]
    assert steps["num_preempted"] == [0, 1, 0, 0, 0, 0]
    assert steps["num_finished"] == [0, 0, 0, 1, 0, 1]
    assert steps["kv_blocks_used"] == [2, 2, 2, 3, 2, 2]
    assert steps["kv_blocks_total"] == [3] * 6
    # A prompt of n has n (n + 1) / 2 pairs of query and key; a decode on top of n tokens n + 1.
    assert steps["num_attention_pairs"] == [3 + 3, 3, 4, 5, 6, 4]
    assert steps["num_context_tokens"] == [4, 3, 4, 5, 3, 4]
    assert steps["num_logits"] == [2, 1, 1, 1, 1, 1]
    assert steps["num_kv_tokens"] == [4, 3, 4, 5, 3, 4]

    told = [
        (time_s, step, requests["request_id"][request], EVENTS[code])
        for time_s, step, request, code in zip(
            *(log.events[name].tolist() for name in ("time_s", "step", "request", "event")), strict=True
        )
        if EVENTS[code] != "emitted"
    ]
    assert told == [
        (0.0, -1, "a", "arrived"),
        (0.0, -1, "b", "arrived"),
        (0.0, -1, "c", "arrived"),
        (0.0, -1, "c", "rejected"),
        (0.0, 0, "a", "admitted"),
        (0.0, 0, "b", "admitted"),
        (1.0, 1, "b", "preempted"),
        (4.0, 3, "a", "finished"),
        (4.0, 4, "b", "resumed"),
        (6.0, 5, "b", "finished"),
    ]

    assert log.batches is not None
    batches = {name: column.tolist() for name, column in log.batches.items()}
    assert batches["step"] == [0, 0, 1, 2, 3, 4, 5]
    assert batches["position"] == [0, 1, 0, 0, 0, 0, 0]
    assert batches["request"] == [0, 1, 0, 0, 0, 1, 1]
    assert batches["num_tokens"] == [2, 2, 1, 1, 1, 3, 1]
    assert batches["num_computed_tokens"] == [0, 0, 2, 3, 4, 0, 3]
    assert [KINDS[code] for code in batches["kind"]] == ["prefill"] * 2 + ["decode"] * 3 + [
        "prefill",
        "decode",
    ]


def test_columns_agree_in_length_and_type_whatever_happened() -> None:
    """A run in which nobody is admitted has the same tables, without rows of steps."""
    rows = ({"request_id": "a", "arrival_s": 0.0, "num_prompt_tokens": 99, "num_output_tokens": 1},)
    empty = observe(SCHEDULERS.get("vllm"), Case(requests=rows, num_blocks=1)).log
    full = observe(SCHEDULERS.get("vllm"), Case(requests=rows)).log
    assert empty.batches is not None
    assert full.batches is not None
    for one, other in (
        (empty.steps, full.steps),
        (empty.requests, full.requests),
        (empty.batches, full.batches),
    ):
        assert {name: column.dtype for name, column in one.items()} == {
            name: column.dtype for name, column in other.items()
        }
        assert len({len(column) for column in one.values()}) == 1
    assert len(empty.steps["step"]) == 0
    assert len(distinct_gaps(empty.gaps)[0]) == 0
