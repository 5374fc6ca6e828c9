"""Small, tight simulations for hypothesis: ties on step boundaries, full pools, every scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from cbsim.testing import Case

SCHEDULERS = ("static", "continuous", "chunked_prefill", "preemptive", "vllm")
POLICIES = ("fcfs", "priority", "sjf", "edf", "fair")
VLLM_POLICIES = ("fcfs", "priority")
Rows = tuple[dict[str, Any], ...]


@st.composite
def workloads(draw: st.DrawFn, max_requests: int = 10) -> Rows:
    """Requests as keyword arguments of `Request`; arrivals are multiples of 1/8 s, many at one instant."""
    rows: list[dict[str, Any]] = []
    arrival_s = 0.0
    shares_prefixes = draw(st.booleans())
    for number in range(draw(st.integers(1, max_requests))):
        arrival_s += draw(st.sampled_from([0.0, 0.0, 0.125, 1.0, 2.0, 2.5, 9.0]))
        num_prompt_tokens = draw(st.one_of(st.sampled_from([1, 4, 8, 16]), st.integers(1, 40)))
        row: dict[str, Any] = {
            "request_id": f"r{number}",
            "arrival_s": arrival_s,
            "num_prompt_tokens": num_prompt_tokens,
            "num_output_tokens": draw(st.one_of(st.just(1), st.integers(1, 20))),
            "priority": draw(st.integers(0, 2)),
            "deadline_s": draw(st.sampled_from([None, 1.0, 10.0])),
            "user": draw(st.sampled_from([None, "ann", "bob"])),
        }
        if shares_prefixes:
            row["prompt"] = draw(prompts(num_prompt_tokens, number))
        rows.append(row)
    return tuple(rows)


@st.composite
def prompts(draw: st.DrawFn, num_tokens: int, number: int) -> tuple[tuple[str, int], ...]:
    """Segments that add up to `num_tokens`: a common part, perhaps an earlier answer, a part of one's own."""
    num_common = draw(st.integers(0, num_tokens))
    num_answer = draw(st.integers(0, num_tokens - num_common)) if number else 0
    parts = [
        ("system", num_common),
        ("o:r0", num_answer),
        (f"own{number}", num_tokens - num_common - num_answer),
    ]
    return tuple((name, n) for name, n in parts if n)


@st.composite
def scheduler_settings(
    draw: st.DrawFn, types: Sequence[str] = SCHEDULERS, policies: Sequence[str] = POLICIES
) -> dict[str, Any]:
    """A `scheduler` section with limits small enough to bind."""
    kind = draw(st.sampled_from(types))
    settings: dict[str, Any] = {
        "type": kind,
        "async_scheduling": draw(st.booleans()),
        "max_num_seqs": draw(st.integers(1, 6)),
    }
    if kind == "static":
        settings["batch_timeout_s"] = draw(st.sampled_from([0.0, 0.5, 3.0]))
        return settings
    settings["max_tokens_per_step"] = draw(st.sampled_from([1, 2, 5, 8, 16, 64]))
    if kind == "continuous":
        settings["prefill_first"] = draw(st.booleans())
    else:
        settings["chunk_size"] = draw(st.sampled_from([0, 1, 3, 8]))
    if kind in ("continuous", "chunked_prefill"):
        settings["max_output_tokens"] = draw(st.sampled_from([None, 10]))
        return settings
    settings["enable_chunked_prefill"] = draw(st.booleans())
    settings["reserve_full_isl"] = draw(st.booleans())
    settings["watermark"] = draw(st.sampled_from([0.0, 0.2]))
    if kind == "vllm":
        settings["policy"] = draw(st.sampled_from([name for name in policies if name in VLLM_POLICIES]))
    else:
        settings.update(draw(preemptive_settings(policies)))
    return settings


@st.composite
def preemptive_settings(draw: st.DrawFn, policies: Sequence[str] = POLICIES) -> dict[str, Any]:
    """What only `preemptive` has, in combinations that it accepts."""
    policy = draw(st.sampled_from(policies))
    settings: dict[str, Any] = {
        "policy": policy,
        "victim": draw(
            st.sampled_from([None, "last_admitted", "lowest_priority", "most_blocks", "least_progress"])
        ),
        "preemption": draw(st.sampled_from(["recompute", "swap", "cheaper"])),
    }
    if policy in ("priority", "sjf", "edf"):
        settings["preempt_on_arrival"] = draw(st.booleans())
        settings["aging_s"] = draw(st.sampled_from([None, 5.0]))
    return settings


@st.composite
def kv_settings(draw: st.DrawFn, rows: Rows) -> dict[str, Any]:
    """A `kv_cache` section: a pool from just too small for the largest request to ample."""
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    largest = max(row["num_prompt_tokens"] + row["num_output_tokens"] for row in rows)
    num_blocks = -(-largest // block_size) + draw(st.sampled_from([-1, 0, 0, 1, 2, 8, 40]))
    return {
        "num_blocks": max(1, num_blocks),
        "block_size": block_size,
        "prefix_caching": draw(st.booleans()),
    }


@st.composite
def cases(
    draw: st.DrawFn,
    types: Sequence[str] = SCHEDULERS,
    policies: Sequence[str] = POLICIES,
    **fixed: Any,
) -> tuple[str, Case]:
    """A scheduler's name and a case for it; `fixed` overrides its settings."""
    rows = draw(workloads())
    settings = draw(scheduler_settings(types, policies)) | fixed
    kind = settings.pop("type")
    return kind, Case(
        requests=rows,
        settings=settings,
        **draw(kv_settings(rows)),
        step_s=draw(st.sampled_from([0.125, 1.0])),
        token_s=draw(st.sampled_from([0.0, 0.125])),
        num_replicas=draw(st.sampled_from([1, 1, 2])),
        concurrency=draw(st.sampled_from([None, None, None, 1, 3])),
    )
