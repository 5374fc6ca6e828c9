"""What is measured: each work, what it should cost, and the traffic it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from cbsim.base.paths import data_folder
from cbsim.base.units import MEGA

HOUR_NUM_REQUESTS = 19_366
"""Of the Azure 2023 conversation hour."""
RATE_PER_S = 5.53
"""Its requests per second, as `workloads/azure-like.yaml` has them."""
PROFILE = "h200/llama-3-8b"
SCALES = (1_000, 10_000, 100_000, 1_000_000)
"""Numbers of requests over which the cost of one must stay the same."""


class How(StrEnum):
    """What is done with an experiment to measure it."""

    SIMULATE = "simulate"
    """Simulate it and compute its metrics."""
    COMMAND = "command"
    """`cbsim run` in a process of its own, until the run folder is written."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a work should cost at most, or how fast it should be at least."""

    cpu_s: float | None = None
    s_per_step: float | None = None
    """CPU seconds a step."""
    peak_bytes: int | None = None
    metrics_share: float | None = None
    """Of the simulation's CPU seconds."""


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the benchmark."""

    name: str
    settings: Mapping[str, Any]
    """The experiment, as `cbsim.run` takes it."""
    how: How = How.SIMULATE
    target: Goal | None = None
    stretch: Goal | None = None
    is_quick: bool = False
    """Whether it belongs to the quick subset."""
    scale: int | None = None
    """Number of requests, where the work is a point of the scaling table."""


def all_works(azure: Path | None = None) -> list[Work]:
    """Every work; the hour comes from a trace file, else from the generator fitted to it."""
    hour = azure_hour(azure)
    return [*hour_works(hour), *large_works(), *scaling_works()]


def hour_works(hour: dict[str, Any]) -> list[Work]:
    """The Azure hour: each scheduler, a tight KV cache, a plug-in, interpreted, and from the shell."""
    target, stretch = Goal(cpu_s=0.2), Goal(cpu_s=0.12)
    tight = {
        "type": "vllm",
        "chunk_size": 100,
        "async_scheduling": False,
    }
    return [
        Work(
            "hour, vllm",
            experiment(hour, "vllm"),
            target=Goal(cpu_s=0.15),
            stretch=Goal(cpu_s=0.1),
            is_quick=True,
        ),
        *(
            Work(f"hour, {name}", experiment(hour, name), target=target, stretch=stretch)
            for name in ("preemptive", "chunked_prefill", "static", "continuous")
        ),
        Work(
            "hour, 700 KV blocks, chunks of 100",
            experiment(hour, "vllm", kv_cache={"num_blocks": 700}) | {"scheduler": tight},
            target=target,
            stretch=stretch,
        ),
        Work(
            "hour, vllm, interpreted",
            experiment(hour, "vllm", engine="interpreted"),
            target=Goal(s_per_step=18e-6),
            stretch=Goal(s_per_step=12e-6),
        ),
        Work(
            "hour, cbsim run to the folder",
            experiment(hour, "vllm"),
            how=How.COMMAND,
            target=Goal(cpu_s=1.5),
            stretch=Goal(cpu_s=1.0),
            is_quick=True,
        ),
        Work(
            "20 requests, cbsim run to the folder",
            experiment(poisson(20, RATE_PER_S), "vllm"),
            how=How.COMMAND,
            target=Goal(cpu_s=0.6),
            stretch=Goal(cpu_s=0.4),
            is_quick=True,
        ),
    ]


def large_works() -> list[Work]:
    """Long answers, sessions, many replicas."""
    sixteen = {"replicas": {"count": 16, "router": "least_outstanding"}}
    return [
        Work(
            "decode-heavy, 250 running",
            decode_heavy(),
            target=Goal(cpu_s=0.15),
            stretch=Goal(cpu_s=0.05),
            is_quick=True,
        ),
        Work(
            "8,000 requests in sessions, prefix caching",
            experiment(sessions(8_000), "vllm", kv_cache={"prefix_caching": True}),
            target=Goal(cpu_s=0.3),
            stretch=Goal(cpu_s=0.2),
        ),
        Work(
            "16 replicas, 310,000 requests",
            experiment(poisson(310_000, 16 * RATE_PER_S), "vllm", **sixteen),
            target=Goal(cpu_s=3.0, peak_bytes=400 * MEGA),
            stretch=Goal(cpu_s=2.0, peak_bytes=400 * MEGA),
        ),
    ]


def scaling_works() -> list[Work]:
    """The same traffic, longer and longer; the last is the work of a million requests."""
    million = (
        Goal(cpu_s=9.0, peak_bytes=450 * MEGA),
        Goal(cpu_s=6.0, peak_bytes=350 * MEGA),
    )
    return [
        Work(
            f"{scale:,} Poisson requests",
            experiment(poisson(scale, RATE_PER_S), "vllm"),
            target=million[0] if scale == SCALES[-1] else None,
            stretch=million[1] if scale == SCALES[-1] else None,
            is_quick=scale <= 10_000,
            scale=scale,
        )
        for scale in SCALES
    ]


def experiment(workload: dict[str, Any], scheduler: str, **sections: Any) -> dict[str, Any]:
    """Llama-3-8B on an H200, by the measured cost model where its profile is there."""
    has_profile = (data_folder("calibration") / "profiles" / PROFILE / "cost.json").is_file()
    cost_model = {"type": "profile", "profile": PROFILE} if has_profile else {"type": "roofline"}
    return {
        "name": "bench",
        "model": "llama-3-8b",
        "gpu": "h200",
        "workload": workload,
        "scheduler": {"type": scheduler},
        "cost_model": cost_model,
        **sections,
    }


def azure_hour(trace: Path | None) -> dict[str, Any]:
    """The hour as a workload: a trace file, or as many generated requests at its rate."""
    if trace is not None:
        return {"type": "trace", "path": str(trace.resolve())}
    return azure_like() | {"num_requests": HOUR_NUM_REQUESTS}


def poisson(num_requests: int, rate_per_s: float) -> dict[str, Any]:
    """Poisson arrivals with the hour's lengths."""
    arrivals = {"type": "poisson", "rate_per_s": rate_per_s}
    return azure_like() | {"num_requests": num_requests, "arrivals": arrivals}


def sessions(num_requests: int) -> dict[str, Any]:
    """Turns of conversations that hold all that was said before, at the hour's rate."""
    return poisson(num_requests, RATE_PER_S) | {
        "sessions": {"num_turns": {"type": "fixed", "value": 5}, "think_time_s": 20.0}
    }


def decode_heavy() -> dict[str, Any]:
    """10,000 requests at once, 100 tokens in and 1,000 out, 250 of them running."""
    workload = {
        "type": "synthetic",
        "num_requests": 10_000,
        "arrivals": {"type": "all_at_once"},
        "prompt_tokens": {"type": "fixed", "value": 100},
        "output_tokens": {"type": "fixed", "value": 1000},
    }
    settings = experiment(workload, "vllm")
    settings["scheduler"] = {"type": "vllm", "max_num_seqs": 250}
    return settings


def azure_like() -> dict[str, Any]:
    """The generator fitted to the hour, as it is shipped."""
    text = (data_folder("workloads") / "azure-like.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
