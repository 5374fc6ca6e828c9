"""The observer `metrics`: figures against the record's own, and the text read by a reader of its own."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import cbsim
from cbsim.observers import Observer, StepView
from cbsim.observers.metric_set import Histogram, Series, exposition
from cbsim.observers.metrics_observer import MetricsObserver
from cbsim.results.run_log import RunLog, distinct_gaps
from cbsim.workload.request import RequestState
from tests.observers.test_hooks import KINDS, crowd
from tests.observers.watched import row, setting, watch

LINE = re.compile(r'([a-zA-Z_:][\w:]*)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = dict[tuple[str, str, str], float]


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """`(name, engine, le)` -> value, and the type of each metric, as the format's own page has it."""
    samples: Samples = {}
    types: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            labels = dict(LABEL.findall(match[2]))
            assert labels.pop("model_name") == "tiny"
            key = (match[1], labels.pop("engine"), labels.pop("le", ""))
            assert not labels
            assert key not in samples
            assert re.sub("_(bucket|sum|count)$", "", match[1]) in types
            samples[key] = float(match[3])
    return samples, types


def observed(kind: str, **settings: object) -> tuple[RunLog, MetricsObserver]:
    metrics = MetricsObserver()
    mapping = setting(kind, num_blocks=10, replicas={"count": 2}, **settings)
    mapping["kv_cache"]["prefix_caching"] = kind == "vllm"
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 24
    rows = [*crowd(60), row("huge", 20.5, 4000, 2), row("late", 300.0, 6, 3)]
    return watch(mapping, rows, metrics), metrics


@pytest.mark.parametrize("kind", KINDS)
def test_counters_are_the_record_s_sums(kind: str) -> None:
    log, metrics = observed(kind)
    plain = metrics.metrics.to_plain()
    requests, steps = log.requests, log.steps
    for replica in range(2):
        own, own_steps = requests["replica"] == replica, steps["replica"] == replica
        served = own & (requests["state"] == RequestState.FINISHED)
        expected = {
            "num_requests_arrived_total": own.sum(),
            "num_requests_rejected_total": (own & (requests["state"] == RequestState.REJECTED)).sum(),
            "request_success_total": served.sum(),
            "num_preemptions_total": requests["num_preemptions"][own].sum(),
            "num_steps_total": own_steps.sum(),
            "prompt_tokens_total": requests["num_prompt_tokens"][served].sum(),
            "generation_tokens_total": requests["num_generated_tokens"][own].sum(),
            "prefix_cache_hits_total": requests["num_cached_tokens"][served].sum(),
            "prefix_cache_queries_total": (kind == "vllm") * requests["num_prompt_tokens"][served].sum(),
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0,
        }
        assert {name: plain[name][replica] for name in expected} == expected
    assert sum(plain["num_requests_rejected_total"]) >= 1
    assert (kind in ("vllm", "preemptive")) == (sum(plain["num_preemptions_total"]) > 0)


def counted(values: np.ndarray, weights: np.ndarray, bounds: list[float]) -> list[int]:
    """How much lies at most at each bound and above the one before, by looking at every value."""
    edges = [-np.inf, *bounds, np.inf]
    return [int(weights[(values > low) & (values <= high)].sum()) for low, high in pairwise(edges)]


@pytest.mark.parametrize("kind", KINDS)
def test_histograms_hold_every_latency_of_the_record(kind: str) -> None:
    log, metrics = observed(kind)
    plain = metrics.metrics.to_plain()
    requests = {
        name: column[log.requests["state"] == RequestState.FINISHED] for name, column in log.requests.items()
    }
    gap_s, gap_count = distinct_gaps(log.gaps)
    arrival_s = requests["arrival_s"]
    ttft_s = requests["first_token_at_s"] - arrival_s
    e2e_s = requests["finished_at_s"] - arrival_s
    gaps = requests["num_output_tokens"] - 1
    tpot_s = (requests["finished_at_s"] - requests["first_token_at_s"])[gaps > 0] / gaps[gaps > 0]
    for name, values in {
        "time_to_first_token_seconds": ttft_s,
        "e2e_request_latency_seconds": e2e_s,
        "request_queue_time_seconds": requests["first_scheduled_at_s"] - arrival_s,
        "request_time_per_output_token_seconds": tpot_s,
        "inter_token_latency_seconds": gap_s,
    }.items():
        weights = gap_count if values is gap_s else np.ones(len(values))
        histograms = plain[name]
        counts = np.sum([histogram["counts"] for histogram in histograms], axis=0)
        assert counts.tolist() == counted(values, weights, histograms[0]["bounds"]), name
        total = sum(histogram["sum"] for histogram in histograms)
        assert total == pytest.approx((values * weights).sum(), rel=1e-12), name


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_queues_and_blocks_are_right_at_every_step(kind: str, is_async: bool) -> None:
    class Compare(Observer):
        num_steps = 0

        def before_step(self, now: float, step: StepView, replica: int) -> None:
            plain = metrics.metrics
            assert plain.running.values[replica] == step.num_running
            assert plain.waiting.values[replica] == step.num_waiting
            assert plain.kv_usage.values[replica] == step.kv_blocks_used / 12
            self.num_steps += 1

    metrics, compare = MetricsObserver(itl=False), Compare()
    mapping = setting(num_blocks=12, scheduler={"type": kind, "async_scheduling": is_async})
    watch(mapping, crowd(), metrics, compare)
    assert compare.num_steps > 30
    assert metrics.metrics.itl_s.counts == [[0] * 20]


def test_the_text_says_what_the_figures_do() -> None:
    _, metrics = observed("vllm")
    samples, types = parse(metrics.text())
    assert types["cbsim:num_requests_running"] == "gauge"
    assert types["cbsim:num_preemptions_total"] == "counter"
    assert types["cbsim:time_to_first_token_seconds"] == "histogram"
    for name, by_replica in metrics.metrics.to_plain().items():
        for replica, figure in enumerate(by_replica):
            engine = str(replica)
            if not isinstance(figure, dict):
                assert samples[f"cbsim:{name}", engine, ""] == figure
                continue
            up_to = 0
            for bound, count in zip([*figure["bounds"], np.inf], figure["counts"], strict=True):
                up_to += count
                le = "+Inf" if bound == np.inf else repr(bound)
                assert samples[f"cbsim:{name}_bucket", engine, le] == up_to
            assert samples[f"cbsim:{name}_count", engine, ""] == up_to == figure["count"]
            assert samples[f"cbsim:{name}_sum", engine, ""] == figure["sum"]


def test_the_exposition_worked_by_hand() -> None:
    counter = Series(2, "counter", "served_total", "Served.")
    counter.values = [3, 4]
    histogram = Histogram(1, "wait_seconds", (0.5, 1.0), "Waited.")
    for value in (0.5, 0.75, 9.0):
        histogram.observe(0, value)
    histogram.observe(0, 1.0, times=2)
    labels = [{"name": 'a "b"\\\n'}, {"name": "c"}]
    assert exposition([counter], labels) == (
        "# HELP cbsim:served_total Served.\n"
        "# TYPE cbsim:served_total counter\n"
        'cbsim:served_total{name="a \\"b\\"\\\\\\n"} 3\n'
        'cbsim:served_total{name="c"} 4\n'
    )
    assert exposition([histogram], labels[1:]) == (
        "# HELP cbsim:wait_seconds Waited.\n"
        "# TYPE cbsim:wait_seconds histogram\n"
        'cbsim:wait_seconds_bucket{name="c",le="0.5"} 1\n'
        'cbsim:wait_seconds_bucket{name="c",le="1.0"} 4\n'
        'cbsim:wait_seconds_bucket{name="c",le="+Inf"} 5\n'
        'cbsim:wait_seconds_sum{name="c"} 12.25\n'
        'cbsim:wait_seconds_count{name="c"} 5\n'
    )


def test_a_live_file_is_replaced_as_time_goes_on(tmp_path: Path) -> None:
    """Every 3 s of simulated time, at the first step's end or arrival from then on, and at the end."""
    live = tmp_path / "live" / "cbsim.prom"

    class Watch(Observer):
        def on_run_start(self, run: object) -> None:
            self.seen: list[float | None] = []

        def after_step(self, now: float, step: StepView, replica: int) -> None:
            name = ("cbsim:simulated_time_seconds", "0", "")
            self.seen.append(parse(live.read_text())[0][name] if live.exists() else None)

    watcher = Watch()
    metrics = MetricsObserver(live_file=str(live), every_s=3.0)
    watch(setting(), [row("a", 0.0, 4, 8), row("b", 20.5, 4, 2)], metrics, watcher)
    assert watcher.seen == [None, None, 3.0, 3.0, 3.0, 6.0, 6.0, 6.0, 21.5, 21.5]
    assert live.read_text() == metrics.text()
    assert [path.name for path in live.parent.iterdir()] == ["cbsim.prom"]


def test_the_run_folder_has_the_text_at_the_end(tmp_path: Path) -> None:
    settings = {
        "model": "tiny",
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 20},
        "scheduler": "vllm",
        "observers": ["metrics"],
    }
    result = cbsim.run(settings, out=tmp_path / "run")
    samples, _ = parse((tmp_path / "run" / "metrics.prom").read_text())
    assert samples["cbsim:request_success_total", "0", ""] == 20
    assert samples["cbsim:simulated_time_seconds", "0", ""] == result.requests["finished_at_s"].max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_live_file_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    metrics = MetricsObserver(live_file=str(tmp_path / "file" / "x.prom"))
    told = r"^observer MetricsObserver failed in on_run_end at 1 s: .*x.prom: can't be written: "
    with pytest.raises(cbsim.PluginError, match=told):
        watch(setting(), [row("a", 0.0, 4, 1)], metrics)


def test_a_live_file_takes_the_place_of_metrics_alone(tmp_path: Path) -> None:
    own, live = tmp_path / "experiment.yaml", tmp_path / "x.prom"
    own.write_text("model: tiny\n")
    for path, told in ((own, "holds no metrics of cbsim"), (tmp_path, "is a folder")):
        with pytest.raises(cbsim.PluginError, match=rf"failed in on_run_start at 0 s: {path}: {told}"):
            watch(setting(), [row("a", 0.0, 4, 1)], MetricsObserver(live_file=str(path)))
    assert own.read_text() == "model: tiny\n"
    for _ in range(2):
        watch(setting(), [row("a", 0.0, 4, 1)], MetricsObserver(live_file=str(live)))
    assert live.read_text().startswith("# HELP cbsim:")
