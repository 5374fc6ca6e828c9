"""The `vllm` scheduler against decisions recorded from vLLM itself, where the recordings are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.binding import can_compile
from cbsim.results.run_log import EVENTS, RunLog
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.studies.simulation import simulate_core
from tests.simulation import Engine, make_scheduler, simulate

RECORDINGS = Path(__file__).parents[3] / "shared" / "vllm-oracle"
CASES = sorted(path.stem for path in RECORDINGS.glob("case_*.json"))

LISTS = ("new", "resumed", "preempted", "emitted", "finished")
ALWAYS = ("sched", *LISTS, "running", "waiting", "used", "used_end")
DETAIL = ("running_q", "waiting_q", "blocks", "cached_free_end")


def engine_of(case: dict[str, Any]) -> Engine:
    config = case["config"]
    return make_scheduler(
        "vllm",
        num_blocks=config["num_gpu_blocks"] - 1,
        block_size=config["block_size"],
        prefix_caching=config["enable_prefix_caching"],
        max_num_seqs=config["max_num_seqs"],
        max_tokens_per_step=config["max_num_batched_tokens"],
        chunk_size=config["long_prefill_token_threshold"],
        policy=config["policy"],
        enable_chunked_prefill=config["enable_chunked_prefill"],
        reserve_full_isl=config["reserve_full_isl"],
        watermark=config["watermark"],
        async_scheduling=config.get("async_scheduling", False),
    )


def requests_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    requests = [
        {
            "request_id": row["id"],
            "arrival_s": float(row.get("arrival_s", row.get("arrival_step"))),
            "num_prompt_tokens": row["prompt_tokens"],
            "num_output_tokens": row["output_tokens"],
            "priority": row["priority"],
            "prompt": tuple((name, n) for name, n in row["prompt"]) if "prompt" in row else None,
        }
        for row in case["requests"]
    ]
    return sorted(requests, key=lambda row: row["arrival_s"])


def rows_of(log: RunLog) -> list[dict[str, Any]]:
    """A row for each step, from the tables that `output.batches` gives."""
    assert log.batches is not None
    steps = {name: column.tolist() for name, column in log.steps.items()}
    rows: list[dict[str, Any]] = [
        {
            "scheduled_at": scheduled_at_s,
            "start": start_s,
            "running": num_running,
            "waiting": num_waiting,
            "used": used,
            "sched": [],
            "cached": {},
            **{name: [] for name in LISTS},
        }
        for scheduled_at_s, start_s, num_running, num_waiting, used in zip(
            *(
                steps[name]
                for name in ("scheduled_at_s", "start_s", "num_running", "num_waiting", "kv_blocks_used")
            ),
            strict=True,
        )
    ]
    names = log.requests["request_id"]
    batches = (
        log.batches[name].tolist() for name in ("step", "request", "num_tokens", "num_computed_tokens")
    )
    for step, request, num_tokens, num_computed in zip(*batches, strict=True):
        rows[step]["sched"].append([names[request], num_tokens, num_computed])
    events = (log.events[name].tolist() for name in ("step", "request", "event", "num_tokens"))
    for step, request, code, num_tokens in zip(*events, strict=True):
        event = {"admitted": "new"}.get(EVENTS[code], EVENTS[code])
        if step >= 0 and event in LISTS:
            rows[step][event].append(names[request])
            if event in ("new", "resumed") and num_tokens:
                rows[step]["cached"][names[request]] = num_tokens
    return rows


def comparable(row: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    out = {key: row.get(key, [] if key in (*LISTS, "sched") else None) for key in keys}
    out["cached"] = row.get("cached") or {}
    return out


@pytest.mark.skipif(not CASES, reason="the recordings of vLLM are not at hand")
@pytest.mark.parametrize("name", CASES or ["none"])
def test_every_row_is_what_vllm_decided(name: str) -> None:
    case = json.loads((RECORDINGS / f"{name}.json").read_text())
    lines = (RECORDINGS / f"{name}.steps.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    is_async = case["config"].get("async_scheduling", False)
    if not is_async:
        recorded = [{**row, "start": float(row["step"])} for row in recorded if row.get("sched")]
    simulated = simulate(engine_of(case), requests_of(case)).rows
    keys: tuple[str, ...] = (*ALWAYS, "start")
    if is_async:
        keys = (*keys, "scheduled_at")
    for place, (got, want) in enumerate(zip(simulated, recorded, strict=False)):
        shown = keys if want.get("start") is not None else tuple(k for k in keys if k != "used_end")
        if case.get("detail"):
            shown += tuple(key for key in DETAIL if key in want and key in got)
        assert comparable(got, shown) == comparable(want, shown), f"row {place}"
    assert len(simulated) == len(recorded)


@pytest.mark.skipif(not CASES, reason="the recordings of vLLM are not at hand")
@pytest.mark.xdist_group("core-vllm")
@pytest.mark.parametrize("speed", ["compiled", "interpreted"])
@pytest.mark.parametrize("name", CASES or ["none"])
def test_every_step_written_down_is_what_vllm_decided(name: str, speed: str) -> None:
    """Both speeds of the core, by the tables of a run; steps that vLLM never ran are not in these."""
    if speed == "compiled" and not can_compile():
        pytest.skip("numba is not installed")
    case = json.loads((RECORDINGS / f"{name}.json").read_text())
    lines = (RECORDINGS / f"{name}.steps.jsonl").read_text().splitlines()
    recorded = [row for row in map(json.loads, lines) if row.get("sched")]
    is_async = case["config"].get("async_scheduling", False)
    kit_case = engine_of(case).case(requests_of(case))
    setup = kit_case.make_setup(VllmScheduler, with_batches=True)
    log, _, outcome = simulate_core(setup, speed)
    assert outcome.is_compiled == (speed == "compiled")
    rows = rows_of(log)
    assert len(rows) == len(recorded)
    keys = tuple(key for key in ALWAYS if key != "used_end")
    for place, (got, want) in enumerate(zip(rows, recorded, strict=True)):
        shown = (*keys, "start", "scheduled_at") if is_async else keys
        assert comparable(got, shown) == comparable(want, shown), f"step {place}"
