"""MetricSet: what a serving engine's metrics endpoint tells, under vLLM's names."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal


class Series:
    """A number a replica: a counter, which only grows, or a gauge."""

    def __init__(self, num_replicas: int, kind: Literal["counter", "gauge"], name: str, meaning: str) -> None:
        self.name, self.kind, self.meaning = f"cbsim:{name}", kind, meaning
        self.values: list[float] = [0] * num_replicas

    def to_plain(self) -> list[float]:
        """The number of each replica."""
        return list(self.values)

    def samples(self, replica: int) -> Iterator[tuple[str, dict[str, str], float]]:
        """`(name, further labels, value)` of each line of the text."""
        yield self.name, {}, self.values[replica]


class Histogram:
    """How many observations are at most as large as each bound, and their sum, for each replica."""

    kind = "histogram"

    def __init__(self, num_replicas: int, name: str, bounds: Sequence[float], meaning: str) -> None:
        """`bounds` rise; the last bucket, of infinity, is added to them."""
        self.name, self.meaning, self.bounds = f"cbsim:{name}", meaning, tuple(bounds)
        self.counts = [[0] * (len(self.bounds) + 1) for _ in range(num_replicas)]
        """Of each replica and bucket; a bucket holds what is above the bound before its own."""
        self.sums = [0.0] * num_replicas

    def observe(self, replica: int, value: float, times: int = 1) -> None:
        """Count an observation, or several equal ones."""
        self.counts[replica][bisect_left(self.bounds, value)] += times
        self.sums[replica] += value * times

    def to_plain(self) -> list[dict[str, Any]]:
        """Of each replica: `bounds`, `counts` (one more, for what is above), `sum` and `count`."""
        return [
            {"bounds": list(self.bounds), "counts": list(counts), "sum": total, "count": sum(counts)}
            for counts, total in zip(self.counts, self.sums, strict=True)
        ]

    def samples(self, replica: int) -> Iterator[tuple[str, dict[str, str], float]]:
        """See `Series.samples`; the text's buckets are cumulative."""
        counts = self.counts[replica]
        for bound, up_to in zip((*self.bounds, math.inf), accumulate(counts), strict=True):
            yield f"{self.name}_bucket", {"le": _number(bound)}, up_to
        yield f"{self.name}_sum", {}, self.sums[replica]
        yield f"{self.name}_count", {}, sum(counts)


Metric = Series | Histogram


def exposition(metrics: Iterable[Metric], labels: Sequence[dict[str, str]]) -> str:
    """The text that a Prometheus server reads; `labels` are those of each replica."""
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.meaning}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for replica, own in enumerate(labels):
            for name, further, value in metric.samples(replica):
                pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**own, **further}.items())
                lines.append(f"{name}{{{pairs}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(value) if isinstance(value, int) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# The bounds of vLLM's own histograms (vllm/v1/metrics/loggers.py), so that its dashboards fit; seconds.
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
E2E_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class MetricSet:
    """Every metric of a run, each with a number or a histogram a replica."""

    def __init__(self, num_replicas: int) -> None:
        gauge, counter = (partial(Series, num_replicas, kind) for kind in ("gauge", "counter"))
        histogram = partial(Histogram, num_replicas)
        self.simulated_s = gauge("simulated_time_seconds", "When it was last heard of.")
        self.running = gauge("num_requests_running", "Requests that hold a slot.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait, the preempted too.")
        self.kv_usage = gauge("kv_cache_usage_perc", "Share of KV blocks used; 1 is all.")
        self.arrived = counter("num_requests_arrived_total", "Requests that arrived.")
        self.rejected = counter("num_requests_rejected_total", "Those never to be served.")
        self.finished = counter("request_success_total", "Those that got their last token.")
        self.preemptions = counter("num_preemptions_total", "Preemptions.")
        self.steps = counter("num_steps_total", "Steps that ended.")
        self.prompt_tokens = counter(
            "prompt_tokens_total", "Prompt tokens of requests that got a first token."
        )
        self.new_tokens = counter("generation_tokens_total", "Output tokens.")
        self.queried = counter("prefix_cache_queries_total", "Prompt tokens looked up at first admissions.")
        self.hit = counter("prefix_cache_hits_total", "Prompt tokens found there.")
        self.ttft_s = histogram("time_to_first_token_seconds", TTFT_S, "Arrival to first token.")
        self.itl_s = histogram("inter_token_latency_seconds", ITL_S, "Between two tokens of a request.")
        self.tpot_s = histogram(
            "request_time_per_output_token_seconds", ITL_S, "Mean time a token after the first, by request."
        )
        self.queue_s = histogram(
            "request_queue_time_seconds", E2E_S, "Arrival to first admission, by request."
        )
        self.e2e_s = histogram("e2e_request_latency_seconds", E2E_S, "Arrival to last token.")

    def to_plain(self) -> dict[str, Any]:
        """By name without the prefix: a list over replicas of numbers or of histograms."""
        return {metric.name.partition(":")[2]: metric.to_plain() for metric in vars(self).values()}

    def exposition(self, labels: Sequence[dict[str, str]]) -> str:
        """As the text that a Prometheus server reads; `labels` are those of each replica."""
        return exposition(vars(self).values(), labels)
