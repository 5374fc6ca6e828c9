"""Small runs that are explained in the tests: requests written down, every step a second unless said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.source import Source

Row = tuple[float, int, int]
"""Arrival, prompt tokens, output tokens."""

PREEMPTED = {"a": (0.0, 2, 3), "b": (0.0, 2, 3), "c": (0.0, 2, 3)}
"""On 4 blocks of 2 tokens: at 1 s a takes the fourth block and b gets its second from c, the last admitted.
c's 3 known tokens run again at 3 s, when a and b are done (`tests/goldens/vllm_preemption.yaml`)."""


def experiment(
    folder: Path, requests: dict[str, Row], *, prompts: dict[str, Any] | None = None, **settings: Any
) -> Experiment:
    """An experiment with a trace of these requests in `folder`; `settings` replace its sections."""
    lines = [
        {
            "request_id": name,
            "arrival_s": arrival_s,
            "num_prompt_tokens": num_prompt_tokens,
            "num_output_tokens": num_output_tokens,
        }
        | ({"prompt": prompts[name]} if prompts else {})
        for name, (arrival_s, num_prompt_tokens, num_output_tokens) in requests.items()
    ]
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    mapping: dict[str, Any] = {
        "name": "small",
        "workload": {"type": "trace", "path": "trace.jsonl"},
        "scheduler": {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 8},
        "kv_cache": {"num_blocks": 4, "block_size": 2},
        "cost_model": {"type": "constant", "step_s": 1.0},
    }
    return Experiment.from_mapping(mapping | settings, folder=folder)


def source(folder: Path, requests: dict[str, Row], **settings: Any) -> Source:
    """That experiment, to be explained."""
    return Source("small", given=experiment(folder, requests, **settings))
