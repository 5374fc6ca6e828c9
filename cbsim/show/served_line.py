"""What was served on what, in a line: model, GPUs, scheduler and traffic, of a run or of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.results.result import Result
from cbsim.results.slo import joined
from cbsim.show.text import format_figure
from cbsim.specs import ParallelSpec

_ALL = ("model", "gpu", "scheduler")


def served_run(result: Result) -> str:
    """`llama-3-8b on 2 x h200, vllm scheduler: 2,000 requests of azure-like.csv at 6.00 requests/s`."""
    arrival_s = result.requests["arrival_s"].to_numpy(np.float64)
    span_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    rate = f" at {format_figure((len(arrival_s) - 1) / span_s)} requests/s" if span_s else ""
    num_clients = (result.config.get("workload") or {}).get("concurrency")
    if num_clients is not None:
        rate = f" by {num_clients:,} clients in a closed loop"
    return f"{_served(result.config)}: {len(arrival_s):,} requests{_source(result.config)}{rate}"


def served_runs(results: Sequence[Result]) -> str:
    """The lines of some runs; one, if it is the same for all."""
    return "; ".join(dict.fromkeys(map(served_run, results)))


def served_points(first: Result, swept: Mapping[str, Sequence[Any]]) -> str:
    """Of a sweep: what its first run says, with the values of what it sweeps instead."""
    told = _served(first.config, swept)
    if any(key.partition(".")[0] == "workload" for key in swept):
        return f"{told}: requests{_source(first.config)}, as swept"
    return f"{told}: {served_run(first).partition(': ')[2]}"


def served_at_rates(config: Mapping[str, Any], swept: Mapping[str, Sequence[Any]], num_requests: int) -> str:
    """Of a capacity, whose rate is what is asked for."""
    return f"{_served(config, swept)}: {num_requests:,} requests{_source(config)} a run, at rising rates"


def served_trials(config: Mapping[str, Any], tried: Mapping[str, Sequence[Any]]) -> str:
    """Of a tune, with the values that it tried."""
    return f"{_served(config, tried)}: requests{_source(config)}"


def _served(config: Mapping[str, Any], swept: Mapping[str, Sequence[Any]] | None = None) -> str:
    """`llama-3-8b on 2 x h200, vllm scheduler`; names of what is swept all."""
    names = {}
    for section in _ALL:
        given = config.get(section) or {}
        own = given.get("name") or given.get("type") or section
        keys = [key for key in (section, f"{section}.name", f"{section}.type") if key in (swept or {})]
        values = swept[keys[0]] if swept and keys else [own]
        names[section] = joined([str(value) for value in dict.fromkeys(values)])
    if pools := (config.get("cluster") or {}).get("pools"):
        if any(key.split(".")[:2] in (["cluster"], ["cluster", "pools"]) for key in swept or {}):
            gpus = dict.fromkeys(_gpu(config, pool) for pool in pools)
            return f"{names['model']} on {joined(list(gpus))} in swept pools"
        return f"{names['model']} on {joined([_pool(config, pool) for pool in pools])}"
    is_counted = not any(key.partition(".")[0] in ("replicas", "parallel") for key in swept or {})
    num_gpus = num_gpus_of(config) if is_counted else 1
    count, swept_too = f"{num_gpus} x " if num_gpus > 1 else "", "" if is_counted else " in swept numbers"
    return f"{names['model']} on {count}{names['gpu']}{swept_too}, {names['scheduler']} scheduler"


def _pool(config: Mapping[str, Any], pool: Mapping[str, Any]) -> str:
    """`2 x h200 (prefill)`: what a pool leaves out is the experiment's."""
    count = num_gpus_of({**config, "cluster": {"pools": [pool]}})
    return f"{count} x {_gpu(config, pool)} ({pool.get('name', 'pool')})"


def _gpu(config: Mapping[str, Any], pool: Mapping[str, Any]) -> str:
    gpu = pool.get("gpu") or config.get("gpu")
    return str(gpu["name"] if isinstance(gpu, Mapping) else gpu)


def num_gpus_of(config: Mapping[str, Any]) -> int:
    """All GPUs of an experiment as resolved."""
    total = 0
    for alike in (config.get("cluster") or {}).get("pools") or [config.get("replicas") or {}]:
        parallel = dict(alike.get("parallel") or config.get("parallel") or {})
        parallel["tensor"] = max(parallel.get("tensor", 1), alike.get("tensor_parallel", 1))
        total += alike.get("count", 1) * ParallelSpec.model_validate(parallel).num_gpus
    return total


def _source(config: Mapping[str, Any]) -> str:
    """Where requests come from: ` of azure-like.csv`, ` of a generator (poisson arrivals)`."""
    workload = config.get("workload") or {}
    if isinstance(workload.get("path"), str):
        return f" of {Path(workload['path']).name}"
    arrivals = workload.get("arrivals") or {}
    kind = f" ({arrivals['type']} arrivals)" if isinstance(arrivals.get("type"), str) else ""
    return f" of the {workload.get('type', 'given')} workload{kind}"
