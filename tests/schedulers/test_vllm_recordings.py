"""The `vllm` scheduler against decisions recorded from vLLM itself, where the recordings are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import make_scheduler, simulate

RECORDINGS = Path(__file__).parents[3] / "shared" / "vllm-oracle"
CASES = sorted(path.stem for path in RECORDINGS.glob("case_*.json"))

LISTS = ("new", "resumed", "preempted", "emitted", "finished")
ALWAYS = ("sched", *LISTS, "running", "waiting", "used", "used_end")
DETAIL = ("running_q", "waiting_q", "blocks", "cached_free_end")


def run_case(case: dict[str, Any]) -> list[dict[str, Any]]:
    config = case["config"]
    scheduler = make_scheduler(
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
    requests.sort(key=lambda row: row["arrival_s"])
    return simulate(scheduler, requests).rows


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
    simulated = run_case(case)
    keys: tuple[str, ...] = (*ALWAYS, "start")
    if is_async:
        keys = (*keys, "scheduled_at")
    for place, (got, want) in enumerate(zip(simulated, recorded, strict=False)):
        shown = keys if want.get("start") is not None else tuple(k for k in keys if k != "used_end")
        if case.get("detail"):
            shown += tuple(key for key in DETAIL if key in want and key in got)
        assert comparable(got, shown) == comparable(want, shown), f"row {place}"
    assert len(simulated) == len(recorded)
