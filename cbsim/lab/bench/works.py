"""What is measured: each work, what it should cost, and the traffic it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cbsim.base.paths import data_folder
from cbsim.base.units import MEGA
from cbsim.cost.costfile import shipped_profiles

HOUR_NUM_REQUESTS = 19_366
"""Of the Azure 2023 conversation hour."""
RATE_PER_S = 5.53
"""Its requests per second, as `workloads/azure-like.yaml` has them."""
PROFILE = "h200/llama-3-8b"
SCALES = (1_000, 10_000, 100_000, 1_000_000)
"""Numbers of requests over which the cost of one must stay the same."""
SHELL = "cbsim run to the folder"
LADDER = ("preemptive", "chunked_prefill", "static", "continuous")


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the benchmark."""

    name: str
    settings: Mapping[str, Any]
    """The experiment, as `cbsim.run` takes it."""
    goals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The most that it should cost, target and stretch, by names of `Measured`."""
    how: Literal["simulate", "command"] = "simulate"
    """Simulated with its metrics, or `cbsim run` in a process of its own until the run folder is written."""
    is_quick: bool = False
    """Whether it belongs to the quick subset."""
    scale: int | None = None
    """Number of requests, where the work is a point of the scaling table."""


def all_works(azure: Path | None = None) -> list[Work]:
    """Every work; the hour comes from the trace file `azure`, else from the generator fitted to it.

    The hour with each scheduler, a tight KV cache, interpreted, and from the shell; long answers; turns that
    hold all that was said before; many replicas; the same traffic, longer and longer.
    """
    if azure is None:
        hour = azure_like() | {"num_requests": HOUR_NUM_REQUESTS}
    else:
        hour = {"type": "trace", "path": str(azure.resolve())}
    vllm, ladder = experiment(hour, "vllm"), {"cpu_s": (0.2, 0.12)}
    tight = {"type": "vllm", "chunk_size": 100, "async_scheduling": False}
    small_cache = experiment(hour, tight, kv_cache={"num_blocks": 700})
    few = experiment(poisson(20), "vllm")
    at_once = {
        "type": "synthetic",
        "num_requests": 10_000,
        "arrivals": {"type": "all_at_once"},
        "prompt_tokens": {"type": "fixed", "value": 100},
        "output_tokens": {"type": "fixed", "value": 1000},
    }
    decodes = experiment(at_once, {"type": "vllm", "max_num_seqs": 250})
    turns = {"num_turns": {"type": "fixed", "value": 5}, "think_time_s": 20.0}
    talk = experiment(poisson(8_000) | {"sessions": turns}, "vllm", kv_cache={"prefix_caching": True})
    many = poisson(310_000, num_replicas=16)
    sixteen = experiment(many, "vllm", replicas={"count": 16, "router": "least_outstanding"})
    scales = {scale: experiment(poisson(scale), "vllm") for scale in SCALES}
    scale_goals = {SCALES[-1]: {"cpu_s": (9.0, 6.0), "peak_bytes": (450 * MEGA, 350 * MEGA)}}
    return [
        Work("hour, vllm", vllm, {"cpu_s": (0.15, 0.1)}, is_quick=True),
        *(Work(f"hour, {name}", experiment(hour, name), ladder) for name in LADDER),
        Work("hour, 700 KV blocks, chunks of 100", small_cache, ladder),
        Work("hour, vllm, interpreted", vllm | {"engine": "interpreted"}, {"s_per_step": (18e-6, 12e-6)}),
        Work(f"hour, {SHELL}", vllm, {"cpu_s": (1.5, 1.0)}, "command", is_quick=True),
        Work(f"20 requests, {SHELL}", few, {"cpu_s": (0.6, 0.4)}, "command", is_quick=True),
        Work("decode-heavy, 250 running", decodes, {"cpu_s": (0.15, 0.05)}, is_quick=True),
        Work("8,000 requests in sessions, prefix caching", talk, {"cpu_s": (0.3, 0.2)}),
        Work(
            "16 replicas, 310,000 requests",
            sixteen,
            {"cpu_s": (3.0, 2.0), "peak_bytes": (400 * MEGA, 400 * MEGA)},
        ),
        *(
            Work(
                f"{scale:,} Poisson requests",
                settings,
                scale_goals.get(scale, {}),
                is_quick=scale <= 10_000,
                scale=scale,
            )
            for scale, settings in scales.items()
        ),
    ]


def experiment(workload: dict[str, Any], scheduler: str | dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Llama-3-8B on an H200, by the measured cost model where its profile is there."""
    is_profiled = PROFILE in shipped_profiles()
    return {
        "name": "bench",
        "model": "llama-3-8b",
        "gpu": "h200",
        "workload": workload,
        "scheduler": {"type": scheduler} if isinstance(scheduler, str) else scheduler,
        "cost_model": {"type": "profile", "profile": PROFILE} if is_profiled else {"type": "roofline"},
        **sections,
    }


def poisson(num_requests: int, num_replicas: int = 1) -> dict[str, Any]:
    """Poisson arrivals at the hour's rate for each replica, with the hour's lengths."""
    arrivals = {"type": "poisson", "rate_per_s": num_replicas * RATE_PER_S}
    return azure_like() | {"num_requests": num_requests, "arrivals": arrivals}


def azure_like() -> dict[str, Any]:
    """The generator fitted to the hour, as it is shipped."""
    text = (data_folder("workloads") / "azure-like.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
