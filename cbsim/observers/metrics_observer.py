"""The observer `metrics`: what a monitoring system would have seen, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from cbsim.base.errors import CbsimError
from cbsim.base.paths import is_file, is_folder, write_text
from cbsim.base.trust import check_path
from cbsim.config.section import ComponentConfig
from cbsim.observers.metric_set import MetricSet
from cbsim.observers.observer import Needs, ObservedRun, Observer
from cbsim.observers.views import StepView
from cbsim.workload.request import Request, RequestState

_BEGINNING = "# HELP cbsim:"
"""What files of metrics begin with."""


class MetricsConfig(ComponentConfig):
    """Counters, gauges and histograms under vLLM's names (`cbsim:num_requests_running`), by replica. They are
    saved as `metrics.prom` as they stand at the end.
    """

    live_file: str | None = Field(default=None, min_length=1)
    """A file outside the run folder that is replaced as the run goes on, for whoever watches (such as the
    textfile collector of Prometheus' node exporter); null for none."""
    every_s: float = Field(default=60.0, gt=0)
    """How often `live_file` is written, seconds of simulated time; and once more at the end."""
    itl: bool = True
    """Count every gap between two tokens; false leaves that histogram empty and spares a look at each request
    in each step."""


class MetricsObserver(Observer):
    """Counts requests, tokens, KV use and latencies, and writes them in Prometheus' text format."""

    Config = MetricsConfig
    config: MetricsConfig
    needs = Needs.STEPS
    metrics: MetricSet
    """The figures as they stand, in the run and after it: `metrics.to_plain()`."""

    def on_run_start(self, run: ObservedRun) -> None:
        """See `Observer.on_run_start`."""
        self.metrics = MetricSet(len(run.schedulers))
        self._labels = [{"model_name": run.model, "engine": str(i)} for i in range(len(run.schedulers))]
        self._caches_prefixes = [scheduler.pool.prefix_caching for scheduler in run.schedulers]
        self._running: set[int] = set()
        self._last_token_s: dict[int, float] = {}
        self._due_s = self.config.every_s
        self.files()

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_request_arrived`."""
        self._at(now, replica)
        self.metrics.arrived.values[replica] += 1
        if request.state == RequestState.REJECTED:
            self.metrics.rejected.values[replica] += 1
        else:
            self.metrics.waiting.values[replica] += 1

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_admitted`."""
        metrics = self.metrics
        self._running.add(request.index)
        metrics.waiting.values[replica] -= 1
        metrics.running.values[replica] += 1
        if request.num_preemptions:
            return
        metrics.queue_s.observe(replica, now - request.arrival_s)
        if self._caches_prefixes[replica]:
            metrics.queried.values[replica] += request.num_prompt_tokens
            metrics.hit.values[replica] += request.num_cached_tokens

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_first_token`."""
        self.metrics.prompt_tokens.values[replica] += request.num_prompt_tokens
        self.metrics.ttft_s.observe(replica, now - request.arrival_s)

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_preempted`."""
        self._running.remove(request.index)
        self.metrics.running.values[replica] -= 1
        self.metrics.waiting.values[replica] += 1
        self.metrics.preemptions.values[replica] += 1

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_finished`."""
        metrics = self.metrics
        if request.index in self._running:
            self._running.remove(request.index)
            metrics.running.values[replica] -= 1
        else:  # preempted while its last token was in flight
            metrics.waiting.values[replica] -= 1
        metrics.finished.values[replica] += 1
        metrics.e2e_s.observe(replica, now - request.arrival_s)
        if request.num_output_tokens > 1 and request.first_token_at_s is not None:
            tpot_s = (now - request.first_token_at_s) / (request.num_output_tokens - 1)
            metrics.tpot_s.observe(replica, tpot_s)

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.before_step`."""
        self.metrics.kv_usage.values[replica] = step.kv_blocks_used / step.kv_blocks_total

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.after_step`."""
        metrics = self.metrics
        metrics.steps.values[replica] += 1
        metrics.new_tokens.values[replica] += step.num_new_tokens
        if not metrics.running.values[replica]:
            metrics.kv_usage.values[replica] = 0
        if self.config.itl:
            self._count_gaps(now, step, replica)
        self._at(now, replica)

    def on_run_end(self, now: float) -> None:
        """See `Observer.on_run_end`."""
        self._write_live()

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """See `Observer.files`; asked before a run, this tells what is wrong with `live_file` too."""
        if self.config.live_file is not None:
            _check_live_file(Path(self.config.live_file))
        return {"metrics.prom": lambda path: write_text(path, self.text())}

    def text(self) -> str:
        """The figures as they stand, in Prometheus' text format; the label `engine` is the replica."""
        return self.metrics.exposition(self._labels)

    def _count_gaps(self, now: float, step: StepView, replica: int) -> None:
        last_token_s = self._last_token_s
        gaps: Counter[float] = Counter()
        for part in step.slices:
            if part.emits:
                index = part.request.index
                if index in last_token_s:
                    gaps[now - last_token_s[index]] += 1
                last_token_s[index] = now
        for gap_s, times in gaps.items():
            self.metrics.itl_s.observe(replica, gap_s, times)
        for request in step.finished:
            del last_token_s[request.index]

    def _at(self, now: float, replica: int) -> None:
        """Take down the time, and write the live file if that is due."""
        self.metrics.simulated_s.values[replica] = now
        if now >= self._due_s:
            self._due_s = (now // self.config.every_s + 1) * self.config.every_s
            self._write_live()

    def _write_live(self) -> None:
        if self.config.live_file is not None:
            write_text(Path(self.config.live_file), self.text())


def _check_live_file(path: Path) -> None:
    """Raise `CbsimError` for a folder, and for a file that holds something else and would be lost."""
    check_path(path)
    if is_folder(path):
        raise CbsimError(f"{path}: is a folder; expected the name of a file")
    if not path.exists():
        return
    if is_file(path):
        with path.open(encoding="utf-8", errors="replace") as stream:
            if stream.read(len(_BEGINNING)) in ("", _BEGINNING):
                return
    raise CbsimError(f"{path}: holds no metrics of cbsim; name another file, or remove it")
