"""The report's chapter on single runs: what requests felt, with intervals, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from cbsim.results.metrics import meets_slo
from cbsim.results.result import Result
from cbsim.show.capacity_text import describe_slo
from cbsim.show.cdf_plot import latency_cdfs
from cbsim.show.chapter import Chapter, Picture, provenance
from cbsim.show.figures import latency
from cbsim.show.markup import Cell, HtmlTable
from cbsim.show.parts_plot import latency_parts
from cbsim.show.reader_tables import compare_runs, difference_table
from cbsim.show.text import format_figure, format_interval
from cbsim.show.timeline_plot import timeline, utilization
from cbsim.show.utilization import has_utilization
from cbsim.studies.compare import STATISTICS, compare
from cbsim.studies.explain.run_diagnosis import LATENCIES as LATENCY_NAMES
from cbsim.studies.explain.run_diagnosis import WORDS, diagnose_run, has_parts
from cbsim.studies.intervals import Interval, Values, block_bootstrap, mean_of

LATENCIES = ("queue_s", "ttft_s", "tpot_s", "max_itl_s", "e2e_s")
Statistic = Callable[[Values, Values], float]
MAX_DRAWN = 6
"""More runs are not drawn over time."""


def run_chapter(results: Mapping[str, Result], title: str) -> Chapter:
    """The chapter of some runs under their labels."""
    slo = {label: slo_of(result) for label, result in results.items()}
    limits = next(iter(slo.values()))
    told = compare_runs(results)
    tables = [HtmlTable.of_text("Figures of each run", told)]
    warnings = list(told.notes)
    if len(results) == 2:
        comparison = compare(*results.values())
        differences = difference_table(comparison, *results)
        tables.append(HtmlTable.of_text("Differences, paired by request", differences))
        warnings += [note for note in differences.notes if note not in warnings]
    tables.append(_interval_table(results))
    and_how_many = f", and how many meet {describe_slo(limits)}" if limits else ""
    return Chapter(
        title=title,
        question=f"What do the requests feel{and_how_many}?",
        answers=[_sentence(label, result, slo[label]) for label, result in results.items()],
        warnings=warnings,
        tables=tables,
        pictures=list(_pictures(results, limits)),
        provenance=[provenance(label, run.config, run.manifest) for label, run in results.items()],
    )


def _pictures(results: Mapping[str, Result], limits: Mapping[str, float]) -> Iterator[Picture]:
    drawn = dict(list(results.items())[:MAX_DRAWN])
    felt = []
    for label, result in results.items():
        p50, p99 = (format_figure(result.summary["ttft_s"][name]) for name in ("p50", "p99"))
        felt.append(f"{label}: TTFT p50 {p50} s, p99 {p99} s")
    described = f"Cumulative distributions of TTFT, TPOT, ITL and E2E, a curve a run. {'; '.join(felt)}"
    yield Picture(latency_cdfs(results, limits), "Latency distributions", described)
    if any(map(has_parts, drawn.values())):
        yield Picture(latency_parts(drawn), "Where the time went", _describe_parts(drawn))
    row = "waiting requests, decodes and prompt tokens of a step, KV blocks taken."
    yield Picture(timeline(drawn), "Queue, batch and KV use over time", f"A row of panels a run: {row}")
    if any(map(has_utilization, drawn.values())):
        means = ", ".join(
            f"{label}: MFU {result.summary['mfu']:.0%}, MBU {result.summary['mbu']:.0%}"
            for label, result in drawn.items()
            if result.summary["mfu"] is not None
        )
        yield Picture(utilization(drawn), "MFU and MBU over time", f"Means of each run: {means}")


def slo_of(result: Result) -> dict[str, float]:
    """The limits a run was given, seconds."""
    return {name: limit for name, limit in (result.config.get("slo") or {}).items() if limit is not None}


def _sentence(label: str, result: Result, slo: Mapping[str, float]) -> str:
    summary = result.summary
    ttft = _intervals(result, "ttft_s").get("p99")
    told = f"TTFT p99 is {format_interval(ttft)} s" if ttft else "no request got a token"
    rate = format_figure(summary["request_throughput_per_s"])
    if not slo:
        return f"`{label}`: {rate} requests/s finish; {told}."
    within = _attainment(result, slo)
    goodput = format_figure(summary["goodput_per_s"])
    return (
        f"`{label}`: {format_interval(within)} % of {summary['num_requests']:,} requests meet "
        f"{describe_slo(slo)}, {goodput} of the {rate} requests/s that finish; {told}."
    )


def _attainment(result: Result, slo: Mapping[str, float]) -> Interval:
    """Percent of requests within the SLO."""
    requests = result.requests
    latencies = {name: requests[name].to_numpy(np.float64) for name in LATENCIES}
    good = meets_slo(latencies, (requests["state"] == "finished").to_numpy(bool), slo)
    return _bootstrap(good * 100.0, {"mean": mean_of})["mean"]


def _intervals(result: Result, name: str) -> dict[str, Interval]:
    """Mean and percentiles of a latency; empty if no request has it."""
    values = result.requests[name].dropna().to_numpy(np.float64)
    return _bootstrap(values, STATISTICS) if len(values) else {}


def _bootstrap(
    values: Values, statistics: Mapping[str, Callable[[Values, Values], float]]
) -> dict[str, Interval]:
    """Statistics by the block bootstrap, with the same resamples in every report of the same runs."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0)))
    return dict(zip(statistics, block_bootstrap(values, list(statistics.values()), random), strict=True))


def _interval_table(results: Mapping[str, Result]) -> HtmlTable:
    rows = []
    for label, result in results.items():
        for figure in map(latency, LATENCIES):
            cells = []
            for interval in _intervals(result, figure.key).values():
                estimate, low, high = map(figure.show, interval)
                cells.append(Cell(f"{estimate} ({low} to {high})", interval.estimate * figure.scale))
            rows += [[Cell(label), Cell(figure.title), *cells]] if cells else []
    caption = "Latencies with 95% intervals by the circular block bootstrap over each run's requests"
    return HtmlTable(caption, ("run", "latency", *STATISTICS), rows, num_labels=2)


def _describe_parts(results: Mapping[str, Result]) -> str:
    """What the picture shows, and the largest part of each run's slowest requests."""
    told = []
    for label, result in ((label, result) for label, result in results.items() if has_parts(result)):
        largest = []
        for name, each in diagnose_run(result).latencies.items():
            part, share = next(iter(each.slowest.shares.items()))
            largest.append(f"{share:.0%} of {LATENCY_NAMES[name]} {WORDS[part]}")
        told.append(f"{label} {', '.join(largest) or 'has no token'}")
    shown = "Mean parts of TTFT and E2E, from the fastest requests to the slowest"
    return f"{shown}. Where most time goes in the slowest hundredth: {'; '.join(told)}"
