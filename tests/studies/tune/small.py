"""A small question for tunes: one server, whose step takes longer with a larger budget."""

from __future__ import annotations

from typing import Any

STEPS = ("continuous", "chunked_prefill")

CONFIG: dict[str, Any] = {
    "name": "small",
    "engine": "compiled",
    "workload": {
        "type": "synthetic",
        "num_requests": 400,
        "arrivals": {"type": "poisson", "rate_per_s": 1.0},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 2},
    },
    "scheduler": {"type": "continuous", "max_num_seqs": 4},
    "cost_model": {"type": "constant", "step_s": 0.1},
    "kv_cache": {"num_blocks": 100},
    "slo": {"ttft_s": 1.0},
    "tune": {
        "workload.rate_scale": [0.5, 40],
        "scheduler.max_num_seqs": [1, 16],
        "trials": 16,
        "windows": [0.3],
    },
}
"""Each request takes two steps of 0.1 s: 16 at once allow 80 requests a second, 4 allow 20."""


def with_tune(**words: Any) -> dict[str, Any]:
    """The same with other words or keys below `tune`; dots in keys are written `__`."""
    told = {key.replace("__", "."): value for key, value in words.items()}
    return CONFIG | {"tune": CONFIG["tune"] | told}
