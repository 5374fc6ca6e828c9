"""What is measured: each work, what it should cost, and the traffic it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from cbsim.base.paths import data_folder
from cbsim.base.units import MEGA
from cbsim.studies.run import is_measured

HOUR_NUM_REQUESTS = 19_366
"""Of the Azure 2023 conversation hour."""
RATE_PER_S = 5.53
"""Its requests per second, as `workloads/azure-like.yaml` has them."""
PROFILE = "h200/llama-3-8b"
SCALES = (1_000, 10_000, 100_000, 1_000_000)
"""Numbers of requests over which the cost of one must stay the same."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The most that a work should cost, by names of `Measured`."""

    cpu_s: float | None = None
    s_per_step: float | None = None
    peak_bytes: int | None = None

    @property
    def limits(self) -> dict[str, float]:
        """What it limits, and to how much."""
        return {name: most for name, most in asdict(self).items() if most is not None}


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the benchmark."""

    name: str
    settings: Mapping[str, Any]
    """The experiment, as `cbsim.run` takes it."""
    target: Goal | None = None
    stretch: Goal | None = None
    how: Literal["simulate", "command"] = "simulate"
    """Simulated with its metrics, or `cbsim run` in a process of its own until the run folder is written."""
    is_quick: bool = False
    """Whether it belongs to the quick subset."""
    scale: int | None = None
    """Number of requests, where the work is a point of the scaling table."""


def all_works(azure: Path | None = None) -> list[Work]:
    """Every work; the hour comes from the trace file `azure`, else from the generator fitted to it."""
    if azure is None:
        hour = azure_like() | {"num_requests": HOUR_NUM_REQUESTS}
    else:
        hour = {"type": "trace", "path": str(azure.resolve())}
    return [*hour_works(hour), *large_works(), *scaling_works()]


def hour_works(hour: dict[str, Any]) -> list[Work]:
    """The Azure hour: each scheduler, a tight KV cache, interpreted, and from the shell."""
    vllm, target, stretch = experiment(hour, "vllm"), Goal(cpu_s=0.2), Goal(cpu_s=0.12)
    tight = {"type": "vllm", "chunk_size": 100, "async_scheduling": False}
    small_cache = experiment(hour, tight, kv_cache={"num_blocks": 700})
    interpreted, shell = vllm | {"engine": "interpreted"}, "cbsim run to the folder"
    few = experiment(poisson(20, RATE_PER_S), "vllm")
    return [
        Work("hour, vllm", vllm, Goal(cpu_s=0.15), Goal(cpu_s=0.1), is_quick=True),
        *(
            Work(f"hour, {name}", experiment(hour, name), target, stretch)
            for name in ("preemptive", "chunked_prefill", "static", "continuous")
        ),
        Work("hour, 700 KV blocks, chunks of 100", small_cache, target, stretch),
        Work("hour, vllm, interpreted", interpreted, Goal(s_per_step=18e-6), Goal(s_per_step=12e-6)),
        Work(f"hour, {shell}", vllm, Goal(cpu_s=1.5), Goal(cpu_s=1.0), "command", is_quick=True),
        Work(f"20 requests, {shell}", few, Goal(cpu_s=0.6), Goal(cpu_s=0.4), "command", is_quick=True),
    ]


def large_works() -> list[Work]:
    """Long answers, conversations whose turns hold all that was said before, many replicas."""
    at_once = {
        "type": "synthetic",
        "num_requests": 10_000,
        "arrivals": {"type": "all_at_once"},
        "prompt_tokens": {"type": "fixed", "value": 100},
        "output_tokens": {"type": "fixed", "value": 1000},
    }
    decodes = experiment(at_once, {"type": "vllm", "max_num_seqs": 250})
    turns = {"num_turns": {"type": "fixed", "value": 5}, "think_time_s": 20.0}
    talk = experiment(
        poisson(8_000, RATE_PER_S) | {"sessions": turns}, "vllm", kv_cache={"prefix_caching": True}
    )
    sixteen = experiment(
        poisson(310_000, 16 * RATE_PER_S), "vllm", replicas={"count": 16, "router": "least_outstanding"}
    )
    target, stretch = (Goal(cpu_s=most_s, peak_bytes=400 * MEGA) for most_s in (3.0, 2.0))
    return [
        Work("decode-heavy, 250 running", decodes, Goal(cpu_s=0.15), Goal(cpu_s=0.05), is_quick=True),
        Work("8,000 requests in sessions, prefix caching", talk, Goal(cpu_s=0.3), Goal(cpu_s=0.2)),
        Work("16 replicas, 310,000 requests", sixteen, target, stretch),
    ]


def scaling_works() -> list[Work]:
    """The same traffic, longer and longer; only the last, of a million requests, has goals."""
    target, stretch = Goal(cpu_s=9.0, peak_bytes=450 * MEGA), Goal(cpu_s=6.0, peak_bytes=350 * MEGA)
    works = []
    for scale in SCALES:
        settings = experiment(poisson(scale, RATE_PER_S), "vllm")
        works.append(Work(f"{scale:,} Poisson requests", settings, is_quick=scale <= 10_000, scale=scale))
    return [*works[:-1], replace(works[-1], target=target, stretch=stretch)]


def experiment(workload: dict[str, Any], scheduler: str | dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Llama-3-8B on an H200, by the measured cost model where its profile is there."""
    is_profiled = is_measured(PROFILE)
    return {
        "name": "bench",
        "model": "llama-3-8b",
        "gpu": "h200",
        "workload": workload,
        "scheduler": {"type": scheduler} if isinstance(scheduler, str) else scheduler,
        "cost_model": {"type": "profile", "profile": PROFILE} if is_profiled else {"type": "roofline"},
        **sections,
    }


def poisson(num_requests: int, rate_per_s: float) -> dict[str, Any]:
    """Poisson arrivals with the hour's lengths."""
    arrivals = {"type": "poisson", "rate_per_s": rate_per_s}
    return azure_like() | {"num_requests": num_requests, "arrivals": arrivals}


def azure_like() -> dict[str, Any]:
    """The generator fitted to the hour, as it is shipped."""
    text = (data_folder("workloads") / "azure-like.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
