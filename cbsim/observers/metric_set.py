"""MetricSet: what a serving engine's metrics endpoint tells, under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from cbsim.observers.prometheus import Histogram, Metric, Series, exposition

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

M = TypeVar("M", bound=Metric)


class MetricSet:
    """Every metric of a run, each with a number or a histogram a replica."""

    def __init__(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas
        self._metrics: list[Metric] = []
        self.simulated_s = self._gauge("simulated_time_seconds", "When it was last heard of.")
        self.running = self._gauge("num_requests_running", "Requests that hold a slot.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait, the preempted too.")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of KV blocks used; 1 is all.")
        self.arrived = self._counter("num_requests_arrived_total", "Requests that arrived.")
        self.rejected = self._counter("num_requests_rejected_total", "Those never to be served.")
        self.finished = self._counter("request_success_total", "Those that got their last token.")
        self.preemptions = self._counter("num_preemptions_total", "Preemptions.")
        self.steps = self._counter("num_steps_total", "Steps that ended.")
        self.prompt_tokens = self._counter(
            "prompt_tokens_total", "Prompt tokens of requests that got a first token."
        )
        self.new_tokens = self._counter("generation_tokens_total", "Output tokens.")
        self.queried = self._counter(
            "prefix_cache_queries_total", "Prompt tokens looked up at first admissions."
        )
        self.hit = self._counter("prefix_cache_hits_total", "Prompt tokens found there.")
        self.ttft_s = self._histogram("time_to_first_token_seconds", TTFT_S, "Arrival to first token.")
        self.itl_s = self._histogram("inter_token_latency_seconds", ITL_S, "Between two tokens of a request.")
        self.tpot_s = self._histogram(
            "request_time_per_output_token_seconds", ITL_S, "Mean time a token after the first, by request."
        )
        self.queue_s = self._histogram(
            "request_queue_time_seconds", E2E_S, "Arrival to first admission, by request."
        )
        self.e2e_s = self._histogram("e2e_request_latency_seconds", E2E_S, "Arrival to last token.")

    def to_plain(self) -> dict[str, Any]:
        """By name without the prefix: a list over replicas of numbers or of histograms."""
        return {metric.name.partition(":")[2]: metric.to_plain() for metric in self._metrics}

    def exposition(self, labels: Sequence[dict[str, str]]) -> str:
        """As the text that a Prometheus server reads; `labels` are those of each replica."""
        return exposition(self._metrics, labels)

    def _gauge(self, name: str, meaning: str) -> Series:
        return self._added(Series(f"cbsim:{name}", "gauge", meaning, self._num_replicas))

    def _counter(self, name: str, meaning: str) -> Series:
        return self._added(Series(f"cbsim:{name}", "counter", meaning, self._num_replicas))

    def _histogram(self, name: str, bounds: Sequence[float], meaning: str) -> Histogram:
        return self._added(Histogram(f"cbsim:{name}", meaning, bounds, self._num_replicas))

    def _added(self, metric: M) -> M:
        self._metrics.append(metric)
        return metric
