"""`preemptive` in any combination of settings, short of blocks: nothing is lost, on the GPU or the host."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbsim.base.units import GIB
from tests.schedulers.cases import BLOCK_BYTES, preemptive, row, run


@st.composite
def schedulers(draw: Any) -> dict[str, Any]:
    """Settings that may stand together."""
    policy = draw(st.sampled_from(["fcfs", "priority", "sjf", "edf", "fair"]))
    made = {
        "policy": policy,
        "victim": draw(
            st.sampled_from([None, "last_admitted", "lowest_priority", "most_blocks", "least_progress"])
        ),
        "preemption": draw(st.sampled_from(["recompute", "swap", "cheaper"])),
        "async_scheduling": draw(st.booleans()),
        "prefix_caching": draw(st.booleans()),
        "reserve_full_isl": draw(st.booleans()),
        "enable_chunked_prefill": draw(st.booleans()),
        "chunk_size": draw(st.sampled_from([0, 3, 8])),
        "max_tokens_per_step": draw(st.sampled_from([4, 16, 64])),
        "max_num_seqs": draw(st.sampled_from([2, 4, 8])),
        "watermark": draw(st.sampled_from([0.0, 0.1])),
        "aging_s": draw(st.sampled_from([None, 0.0, 5.0, 30.0])),
        "num_blocks": draw(st.sampled_from([13, 16, 24])),
    }
    if policy in ("priority", "sjf", "edf"):
        made["preempt_on_arrival"] = draw(st.booleans())
    if policy == "sjf":
        made["length_knowledge"] = draw(st.sampled_from(["oracle", "predicted", "prompt_only"]))
        made["prediction_error"] = 0.5 if made["length_knowledge"] == "predicted" else None
    if made["preemption"] != "recompute":
        made["swap_space_gib"] = draw(st.sampled_from([3, 8, 1000])) * BLOCK_BYTES / GIB
        made["swap_latency_s"] = draw(st.sampled_from([0.0, 1.0]))
    return made


@st.composite
def workloads(draw: Any) -> list[dict[str, Any]]:
    """Up to a dozen requests that arrive in bursts; some share a system prompt."""
    rows, now = [], 0.0
    for i in range(draw(st.integers(2, 12))):
        now += draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]))
        num_prompt = draw(st.integers(1, 30))
        shared = min(num_prompt, draw(st.sampled_from([0, 8])))
        prompt = tuple((name, n) for name, n in (("system", shared), (f"u{i}", num_prompt - shared)) if n)
        rows.append(
            row(
                f"r{i}",
                now,
                num_prompt,
                draw(st.integers(1, 20)),
                prompt=prompt,
                priority=draw(st.integers(0, 3)),
                user=draw(st.sampled_from("abc")),
                deadline_s=draw(st.sampled_from([None, 3.0, 20.0])),
            )
        )
    return rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedulers(), workloads())
def test_every_token_comes_once_and_every_block_goes_back(made: dict[str, Any], rows: Any) -> None:
    scheduler = preemptive(**made)
    simulation = run(scheduler, rows)
    rejected = {rows[i]["request_id"] for i in simulation.seen.log.rejections}
    emitted = [name for step in simulation.rows for name in step.get("emitted", [])]
    for r in rows:
        expected = 0 if r["request_id"] in rejected else r["num_output_tokens"]
        assert emitted.count(r["request_id"]) == expected
    for step in simulation.rows:
        assert sum(tokens for _, tokens, _ in step["sched"]) <= made["max_tokens_per_step"]
        assert step["running"] <= made["max_num_seqs"]
        assert step["used"] <= made["num_blocks"]
        assert not set(step["preempted"]) & set(step["resumed"])
        assert made["preemption"] != "recompute" or step["transfer_s"] == 0.0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedulers(), workloads())
def test_equal_runs_decide_equally(made: dict[str, Any], rows: Any) -> None:
    def decisions() -> list[Any]:
        simulation = run(preemptive(**made), rows)
        return [
            (step["start"], step["end"], step["sched"], step["preempted"], step["waiting_q"])
            for step in simulation.rows
            if step["start"] is not None
        ]

    assert decisions() == decisions()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedulers(), workloads())
def test_with_room_for_all_of_it_swapping_computes_no_token_twice(made: dict[str, Any], rows: Any) -> None:
    made.update(preemption="swap", swap_space_gib=1.0, prefix_caching=False)
    scheduler = preemptive(**made)
    simulation = run(scheduler, rows)
    rejected = {rows[i]["request_id"] for i in simulation.seen.log.rejections}
    needed = sum(
        r["num_prompt_tokens"] + r["num_output_tokens"] - 1 for r in rows if r["request_id"] not in rejected
    )
    assert simulation.own.num_tokens_recomputed == 0
    assert sum(tokens for step in simulation.rows for _, tokens, _ in step["sched"]) == needed
