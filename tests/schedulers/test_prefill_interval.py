"""`prefill_schedule_interval`: which steps carry prompts, worked by hand."""

import json
from pathlib import Path

import pytest

import cbsim


@pytest.mark.parametrize("engine", ["interpreted", "compiled"])
def test_a_first_chunk_of_one_token_counts_as_a_prompt(engine: str, tmp_path: Path) -> None:
    """Beside two decodes a budget of 3 leaves a prompt one token a step, and then two steps carry none."""
    rows = [("a", 0.0, 1, 10), ("b", 0.0, 1, 10), ("c", 0.5, 4, 1)]
    names = ("request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens")
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    scheduler = {"type": "vllm", "max_tokens_per_step": 3, "async_scheduling": False}
    result = cbsim.run(
        {
            "model": "llama-3-8b",
            "gpu": "h200",
            "engine": engine,
            "workload": {"type": "trace", "path": str(trace)},
            "scheduler": scheduler | {"prefill_schedule_interval": 3},
            "kv_cache": {"num_blocks": 100},
            "cost_model": {"type": "constant", "step_s": 1.0},
            "output": {"batches": True},
        }
    )
    batches = result.batches
    assert batches["step"][batches["request_id"] == "c"].tolist() == [1, 4, 7, 10]
