"""Prefix caching through whole runs: hits worked by hand, and against a naive count over token sequences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cbsim
from tests.schedulers.cases import row
from tests.simulation import make_scheduler, simulate

MOONCAKE = Path(__file__).parents[3] / "shared" / "traces" / "mooncake_synthetic_trace.jsonl"
BLOCK = 4


@pytest.mark.parametrize("type", ["vllm", "preemptive"])
def test_the_next_turn_finds_prompt_and_answer(type: str) -> None:
    """Turn 1: 10 + 7 tokens, of which 16 are computed. Turn 2 repeats all and adds 5: 4 blocks are found."""
    rows = [
        row("turn1", 0.0, 10, 7, prompt=(("s", 10),)),
        row("turn2", 50.0, 22, 3, prompt=(("s", 10), ("o:turn1", 7), ("s2", 5))),
        row("other", 99.0, 22, 3, prompt=(("s", 10), ("o:other", 7), ("s2", 5))),
    ]
    scheduler = make_scheduler(type, num_blocks=50, block_size=BLOCK, prefix_caching=True)
    simulation = simulate(scheduler, rows)
    assert [step["cached"] for step in simulation.rows if step["new"]] == [{}, {"turn2": 16}, {"other": 8}]


def test_a_step_tells_what_its_decodes_share() -> None:
    """b and c hold a's four blocks of `s` too: 8 blocks are again one that another has; 4 once a has gone.

    At 5 s the contexts are 25, 21 and 21 in 7 + 6 + 6 blocks, at 9 s those of b and c 25 each in 7 + 7.
    """
    rows = [
        row("a", 0.0, 20, 9, prompt=(("s", 16), ("o:a", 4))),
        row("b", 4.0, 20, 9, prompt=(("s", 16), ("o:b", 4))),
        row("c", 4.0, 20, 9, prompt=(("s", 16), ("o:c", 4))),
    ]
    scheduler = make_scheduler(
        "vllm", num_blocks=50, block_size=BLOCK, prefix_caching=True, async_scheduling=False
    )
    steps = simulate(scheduler, rows).seen.log.steps
    told = zip(steps["start_s"].tolist(), steps["num_shared_tokens"].tolist(), strict=True)
    assert [shared for start, shared in told if start in (3.0, 5.0, 9.0)] == [0, 67 * 8 // 19, 50 * 4 // 14]


def test_cached_tokens_are_not_computed_and_stand_in_the_results(tmp_path: Path) -> None:
    lines = [
        {"request_id": "a", "arrival_s": 0.0, "prompt": [["s", 40]], "num_output_tokens": 3},
        {"request_id": "b", "arrival_s": 9.0, "prompt": [["s", 40]], "num_output_tokens": 3},
        {"request_id": "c", "arrival_s": 18.0, "prompt": [["s", 20], ["t", 20]], "num_output_tokens": 3},
    ]
    trace = tmp_path / "three.jsonl"
    trace.write_text("".join(json.dumps({**line, "num_prompt_tokens": 40}) + "\n" for line in lines))
    result = cbsim.run(experiment(trace, num_blocks=100, block_size=4))
    # b's own last token is never taken from the cache: of 10 blocks it gets 9.
    assert result.requests["num_cached_tokens"].tolist() == [0, 36, 20]
    assert result.summary["prefix_hit_rate"] == 56 / 120
    assert result.steps["num_prefill_tokens"].sum() == 120 - 56


def experiment(trace: Path, **kv_cache: Any) -> dict[str, Any]:
    return {
        "model": "llama-3-8b",
        "gpu": "h200",
        "workload": {"type": "trace", "path": str(trace)},
        "scheduler": {"type": "preemptive", "chunk_size": 0, "max_tokens_per_step": 200_000},
        "kv_cache": {"prefix_caching": True, **kv_cache},
        "cost_model": {"type": "constant", "step_s": 1e-9},
    }


@pytest.mark.skipif(not MOONCAKE.exists(), reason="Mooncake's trace is not at hand")
def test_mooncake_hits_are_those_of_a_naive_count(tmp_path: Path) -> None:
    """With room for all and steps that take no time, it finds all leading hash blocks seen before."""
    with MOONCAKE.open() as file:
        lines = [line for line, _ in zip(file, range(300), strict=False)]
    trace = tmp_path / "first.jsonl"
    trace.write_text("".join(lines))
    seen: set[int] = set()
    expected = []
    for record in map(json.loads, lines):
        leading = 0
        while leading < len(record["hash_ids"]) and record["hash_ids"][leading] in seen:
            leading += 1
        num_tokens = min(leading * 512, record["input_length"])
        expected.append(min(num_tokens, record["input_length"] - 1) // 16 * 16)
        seen.update(record["hash_ids"])
    result = cbsim.run(experiment(trace, num_blocks=300_000))
    assert sum(expected) > 100_000
    assert result.requests["num_cached_tokens"].tolist() == expected
