"""The traffic of a benchmark's command, `vllm bench serve` or SGLang's `bench_serving`, as a workload."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError

_START = re.compile(r"(?:\S*/)?vllm bench serve|\S*sglang\.bench_serving|\S*benchmark_serving\.py")
_NOT_TOLD = {"tokenizer", "model", "base-url", "host", "port", "endpoint", "backend", "dataset-path"}
"""Flags with values that say nothing of the traffic."""


class BenchTraffic(NamedTuple):
    """What a benchmark sends."""

    workload: dict[str, Any]
    """The workload's settings."""
    told: str
    """The command's flags that it came from."""
    granted: list[str]
    """What the command does not say."""


def traffic_of(words: Sequence[str]) -> BenchTraffic | None:
    """The traffic of a command's words; `None` if it is no benchmark of a server.

    Requests of the dataset `random` have lengths drawn evenly around the ones given (SGLang: up to them); of
    other datasets the bundled trace's stand in. Without a rate all are sent at once, at most
    `max-concurrency` at a time.
    """
    line = " ".join(words)
    found = _START.search(line)
    if found is None:
        return None
    flags = _values(line[found.end() :].split())
    is_sglang = "sglang" in found[0]
    granted: list[str] = []
    num_requests = _granted(flags, "num-prompts", 1000, granted, "workload.num_requests")
    rate = _number(flags, "request-rate", math.inf)
    workload: dict[str, Any] = {"type": "synthetic", "num_requests": num_requests}
    if math.isinf(rate):
        workload["arrivals"] = {"type": "all_at_once"}
    else:
        burstiness = _number(flags, "burstiness", 1.0)
        drawn = {"type": "poisson"} if burstiness == 1.0 else {"type": "gamma", "burstiness": burstiness}
        workload["arrivals"] = {**drawn, "rate_per_s": rate}
    if "max-concurrency" in flags:
        if math.isinf(rate):
            workload["concurrency"] = _count(flags, "max-concurrency", 1)
        else:
            granted.append(
                "workload: max-concurrency beside a rate is not modelled: requests come at the rate"
            )
    if flags.get("dataset-name", "random") == "random":
        ratio = _number(flags, "random-range-ratio", 0.0)
        for key, flag, usual in (("prompt_tokens", "input", 1024), ("output_tokens", "output", 128)):
            length = _granted(flags, f"random-{flag}-len", usual, granted, f"workload.{key}")
            workload[key] = _lengths(length, ratio, is_sglang=is_sglang)
        prefix = _count(flags, "random-prefix-len", 0)
        if prefix:
            workload["shared_prefix"] = {"num_tokens": prefix, "num_groups": 1}
    else:
        for key in ("prompt_tokens", "output_tokens"):
            workload[key] = {"type": "empirical", "path": "azure-like.csv"}
        granted.append(
            f"workload: lengths of the bundled azure-like.csv stand for those of {flags['dataset-name']}, "
            "which the command does not say"
        )
    told = ", ".join(f"--{name} {value}" for name, value in flags.items() if name not in _NOT_TOLD)
    return BenchTraffic(workload, told, granted)


def _values(words: Sequence[str]) -> dict[str, str]:
    """The flags with values, without dashes, in kebab case."""
    flags = {}
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = words[place + 1] if place + 1 < len(words) else "--"
        if equals or not following.startswith("--"):
            flags[name.replace("_", "-")] = value if equals else following
    return flags


def _number(flags: Mapping[str, str], flag: str, usual: float) -> float:
    """The number of a flag, or the usual one. Raises `ConfigError` for anything else."""
    try:
        number = float(flags.get(flag, usual))
    except ValueError:
        number = math.nan
    if not number >= 0 or (math.isinf(number) and not math.isinf(usual)):
        raise ConfigError(f"COMMAND: --{flag}: got {flags[flag]!r}; expected a number")
    return number


def _count(flags: Mapping[str, str], flag: str, usual: int) -> int:
    return int(_number(flags, flag, usual))


def _granted(flags: Mapping[str, str], flag: str, usual: int, granted: list[str], key: str) -> int:
    """A count, or the benchmark's own where none is given."""
    if flag not in flags:
        granted.append(f"{key}: {usual:,}, the benchmark's own --{flag}")
    return _count(flags, flag, usual)


def _lengths(length: int, ratio: float, *, is_sglang: bool) -> dict[str, Any]:
    """Lengths of the dataset `random`: vLLM draws from (1 - r) to (1 + r) times the length, SGLang from r
    times it up to it.
    """
    low, high = (length * ratio, length) if is_sglang else (length * (1 - ratio), length * (1 + ratio))
    low, high = max(1, math.floor(low)), max(1, math.ceil(high))
    if low == high:
        return {"type": "fixed", "value": low}
    return {"type": "uniform", "min": low, "max": high}
