"""The report: runs, sweeps, capacities and tunes as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.results.metrics import meets_slo
from cbsim.results.output import FILES, REPORT_MARK, check_report_target, holds
from cbsim.results.result import Result, hash_folder, load_run
from cbsim.results.slo import Slo
from cbsim.results.step_work import has_utilization
from cbsim.show import capacity_text, sweep_text
from cbsim.show.capacity_plot import RATE, capacity_bars, rate_picture
from cbsim.show.capacity_text import capacity_table, meaning
from cbsim.show.chapter import Chapter, HtmlTable, Markup, Picture, joined, provenance, tag
from cbsim.show.latency_plot import latency_cdfs, latency_parts
from cbsim.show.reader_tables import (
    MBU,
    MET,
    MFU,
    SummaryFigure,
    are_best,
    compare_runs,
    compared_figures,
    difference_table,
    kv_table,
    latency,
    pool_tables,
    rate_axes,
    run_answer,
    run_labels,
    traffics_of,
)
from cbsim.show.replicas_plot import comes_and_goes, replicas_up
from cbsim.show.served_line import served_at_rates, served_points, served_runs, served_trials
from cbsim.show.sweep_plot import sweep_pictures
from cbsim.show.sweep_text import Sweep, read_sweep_table
from cbsim.show.text import BEST, MISSING, Table, format_figure, format_interval, format_share
from cbsim.show.timeline_plot import timeline, utilization
from cbsim.show.tune_plot import tune_pictures
from cbsim.show.tune_text import tune_sentence, tune_table
from cbsim.studies.capacity import CapacityAnswer
from cbsim.studies.capacity.answer import load_capacity
from cbsim.studies.compare import STATISTICS, compare
from cbsim.studies.explain.run_diagnosis import LATENCIES as LATENCY_NAMES
from cbsim.studies.explain.run_diagnosis import WORDS, diagnose_run, has_parts
from cbsim.studies.intervals import Interval, Values, block_bootstrap, mean_of
from cbsim.studies.labels import short_keys
from cbsim.studies.tune.best_settings import TuneAnswer, load_tune


def write_report(folders: Sequence[Path], path: Path, title: str | None = None) -> None:
    """Write the report on some folders, whole or not at all.

    Each sweep, capacity and tune has a chapter of its own; all runs share one. Raises `CbsimError` with a
    line for each folder that holds none of them, or if the file can't be written or is another than a report.
    """
    check_report_target(path)
    write_text(path, make_report(folders, title))


def make_report(folders: Sequence[Path], title: str | None = None) -> str:
    """The text of the report, without a title under its first chapter's; equal folders give equal texts."""
    problems = [
        f"{folder}: no run, sweep, capacity or tune was written there"
        for folder in folders
        if not any(holds(folder, kind) for kind in ("run", "sweep", "capacity", "tune"))
    ]
    if problems:
        raise CbsimError(*problems)
    chapters = _chapters(folders)
    heading = title or ", ".join(dict.fromkeys(each.title for each in chapters))
    # A page of one chapter has its title already.
    own = "Answer" if len(chapters) == 1 and heading == chapters[0].title else None
    sections = {f"chapter-{number}": chapter for number, chapter in enumerate(chapters, 1)}
    links = (tag("li", tag("a", each.title, href=f"#{key}")) for key, each in sections.items())
    contents = tag("nav", tag("ul", *links), aria_label="Chapters")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(REPORT_MARK),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", heading),
        tag("style", _own_file("page.css")),
    )
    body = tag(
        "body",
        tag("header", tag("h1", heading), contents if len(chapters) > 1 else None),
        tag("main", *(each.render(key, own) for key, each in sections.items())),
        tag("footer", "Written by cbsim. Columns sort by a click on their names."),
        tag("script", _own_file("page.js")),
    )
    return joined([Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"])


def _chapters(folders: Sequence[Path]) -> list[Chapter]:
    chapters: list[Chapter] = []
    runs: list[Path] = []
    for folder in folders:
        if holds(folder, "capacity"):
            chapters.append(capacity_chapter(load_capacity(folder)))
        elif holds(folder, "tune"):
            chapters.append(tune_chapter(load_tune(folder)))
        elif holds(folder, "sweep"):
            chapters.append(sweep_chapter(folder))
        else:
            runs.append(folder)
    if runs:
        results = dict(zip(run_labels(runs), map(load_run, runs), strict=True))
        title = next(iter(results.values())).name if len(results) == 1 else f"{len(results)} runs"
        chapters.append(run_chapter(results, title))
    return chapters


def _own_file(name: str) -> Markup:
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


LATENCIES = ("queue_s", "ttft_s", "tpot_s", "max_itl_s", "e2e_s")
MAX_DRAWN = 6
"""More runs are not drawn over time."""


_POOL_CAPTIONS = (
    "What the replicas of each pool did",
    "KV caches handed over: how many, how long on their way, what requests waited for before and after",
)


def run_chapter(results: Mapping[str, Result], title: str) -> Chapter:
    """The chapter of some runs under their labels."""
    promised = next(iter(results.values())).promised
    told = compare_runs(results)
    tables = [HtmlTable("Figures of each run", told)]
    warnings = list(told.notes)
    if len(results) == 2:
        comparison = compare(*results.values())
        differences = difference_table(comparison, *results)
        tables.append(HtmlTable("Differences, paired by request", differences))
        warnings += [note for note in differences.notes if note not in warnings]
    tables += map(HtmlTable, _POOL_CAPTIONS, pool_tables(results), (3, 1))
    tables.append(HtmlTable("What the KV cache of a replica holds", kv_table(results)))
    tables.append(_interval_table(results))
    and_how_many = f", and is {promised.promise()} met" if promised else ""
    return Chapter(
        title=title,
        served=served_runs([*results.values()]),
        question=f"What do the requests feel{and_how_many}?",
        answers=[_sentence(label, result) for label, result in results.items()],
        warnings=warnings,
        tables=tables,
        pictures=list(_pictures(results, promised)),
        provenance=[provenance(label, run.config, run.manifest) for label, run in results.items()],
    )


def _pictures(results: Mapping[str, Result], promised: Slo) -> Iterator[Picture]:
    drawn = dict(list(results.items())[:MAX_DRAWN])
    felt = []
    for label, result in results.items():
        p50, p99 = (format_figure(result.summary["ttft_s"][name]) for name in ("p50", "p99"))
        felt.append(f"{label}: TTFT p50 {p50} s, p99 {p99} s")
    described = f"Cumulative distributions of TTFT, TPOT, ITL and E2E, a curve a run. {'; '.join(felt)}"
    yield Picture(latency_cdfs(results, promised), "Latency distributions", described)
    if any(map(has_parts, drawn.values())):
        yield Picture(latency_parts(drawn), "Where the time went", _describe_parts(drawn))
    row = "waiting requests, decodes and prompt tokens of a step, KV blocks taken."
    yield Picture(
        timeline(drawn), "Queue, batch and KV use over time", f"A row of panels a run and pool: {row}"
    )
    for label, result in drawn.items():
        if comes_and_goes(result):
            told = "Replicas that serve, in each pool, beside what arrives and what waits"
            name = label if len(drawn) > 1 else ""
            yield Picture(replicas_up(result, name), f"Replicas over time: {label}", told)
    if any(map(has_utilization, drawn.values())):
        means = ", ".join(
            f"{label}: MFU {result.summary['mfu']:.0%}, MBU {result.summary['mbu']:.0%}"
            for label, result in drawn.items()
            if result.summary["mfu"] is not None
        )
        yield Picture(utilization(drawn), "MFU and MBU over time", f"Means of each run: {means}")


def _sentence(label: str, result: Result) -> str:
    summary, slo = result.summary, result.promised
    ttft = _intervals(result, "ttft_s").get("p99")
    told = f"TTFT p99 is {format_interval(ttft)} s" if ttft else "no request got a token"
    rate = format_figure(summary["request_throughput_per_s"])
    verdict = " ".join(run_answer(result, f"`{label}`")) or f"`{label}`:"
    finish = f"{rate} requests/s finish; {told}."
    if slo.own and summary["num_requests"]:
        _, low, high = _attainment(result, slo.own)
        goodput = format_figure(summary["goodput_per_s"])
        finish = f"Goodput is {goodput} of the {rate} requests/s that finish; {told}."
        if low < high:
            least, most = (format_figure(min(max(share, 0.0), 100.0)) for share in (low, high))
            finish = (
                f"By {summary['num_requests']:,} requests, the share within {slo.describe_own()} is {least} "
                f"to {most} % in 95% of cases. {finish}"
            )
    return f"{verdict} {finish}"


def _attainment(result: Result, own: Mapping[str, float]) -> Interval:
    """Percent of requests within their own limits."""
    requests = result.measured
    latencies = {name: requests[name].to_numpy(np.float64) for name in LATENCIES}
    good = meets_slo(latencies, (requests["state"] == "finished").to_numpy(bool), own)
    return _bootstrap(good * 100.0, {"mean": mean_of})["mean"]


def _intervals(result: Result, name: str) -> dict[str, Interval]:
    """Mean and percentiles of a latency; empty if no request has it."""
    values = result.measured[name].dropna().to_numpy(np.float64)
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
            shown = [map(figure.show, interval) for interval in _intervals(result, figure.key).values()]
            cells = [f"{estimate} ({low} to {high})" for estimate, low, high in shown]
            rows += [(label, figure.title, *cells)] if cells else []
    caption = "Latencies with 95% intervals by the circular block bootstrap over each run's requests"
    return HtmlTable(caption, Table(("run", "latency", *STATISTICS), tuple(rows)), num_labels=2)


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


def _curve_figures(slo: Slo) -> list[SummaryFigure]:
    """What the table of a capacity's curve shows."""
    kept = (
        SummaryFigure("slo_attainment", "within SLO", format_share),
        SummaryFigure("goodput_per_s", "goodput (req/s)"),
    )
    return [
        SummaryFigure(RATE, "requests/s"),
        *(kept if slo.own else ()),
        SummaryFigure("output_token_throughput_per_s", "output tokens/s"),
        *(figure for figure, _ in rate_axes(slo)),
    ]


def capacity_chapter(answer: CapacityAnswer) -> Chapter:
    """The chapter of one capacity folder."""
    title = "Capacity of each contender"
    described = (
        "Panels against requests a second: latencies with the SLO's limits, throughput and, where requests "
        "have limits of their own, goodput and the share within them."
    )
    return Chapter(
        title=f"{answer.name}: capacity",
        served=served_at_rates(answer.config, _swept(answer), int(answer.curve["num_requests"].max())),
        question=f"Up to which rate is {answer.slo.promise()} met?",
        answers=[capacity_text.sentence(answer)],
        warnings=[
            *capacity_text.remarks(answer),
            *meaning(answer),
            *capacity_text.run_notes(answer),
        ],
        tables=[HtmlTable(title, capacity_table(answer)), _curve_table(answer)],
        pictures=[
            Picture(capacity_bars(answer), title, "A bar a contender, with its interval."),
            Picture(rate_picture(answer), "What a request rate does", described),
        ],
        provenance=[provenance(answer.name, answer.config, answer.manifest)],
    )


def _swept(answer: CapacityAnswer) -> dict[str, list[Any]]:
    """What contenders differ in: the values of each key."""
    keys = dict.fromkeys(key for each in answer.contenders for key in each.swept)
    return {key: [each.swept.get(key) for each in answer.contenders] for key in keys}


def tune_chapter(answer: TuneAnswer) -> Chapter:
    """The chapter of one tune folder."""
    told, promise = tune_table(answer), answer.aim.slo.promise()
    best = {"goodput": "serves the most", "cost": "costs the least", "latency": "answers the fastest"}
    names = " and ".join(f"`{key}`" for key in answer.keys)
    return Chapter(
        title=f"{answer.name}: tune",
        served=served_trials(answer.config, {key: answer.table[key].tolist() for key in answer.keys}),
        question=f"Which {names} {best[answer.aim.objective]}{f' within {promise}' if promise else ''}?",
        answers=[tune_sentence(answer)],
        warnings=list(told.notes),
        tables=[HtmlTable("The best settings tried", told)],
        pictures=list(tune_pictures(answer).values()),
        provenance=[provenance(answer.name, answer.config, answer.manifest)],
    )


def _curve_table(answer: CapacityAnswer) -> HtmlTable:
    """The curve, averaged over replicates."""
    shown = _curve_figures(answer.slo)
    by, figures = ["contender", RATE], [figure.key for figure in shown[1:]]
    labels = list(dict.fromkeys(each.label for each in answer.contenders))
    means = answer.curve.groupby(by)[figures].mean()
    curve = means.reindex(labels, level="contender").reset_index()
    rows = [
        (row["contender"], *(each.show(row[each.key]) for each in shown)) for row in curve.to_dict("records")
    ]
    header = ("contender", *(figure.title for figure in shown))
    return HtmlTable("The curve: means over replicates", Table(header, tuple(rows)))


def sweep_chapter(folder: Path) -> Chapter:
    """The chapter of one sweep folder. Raises `CbsimError` if it is damaged, or nothing in it ran."""
    table = read_sweep_table(folder)
    ran = table[table["error"].isna()]
    if not len(ran):
        raise CbsimError(f"{folder}: no point of this sweep ran")
    first = load_run(folder / "points" / str(ran["point"].iloc[0]))
    sweep = Sweep.of(table, first.promised, first.config)
    names = " and ".join(f"`{key}`" for key in sweep.keys) or "the seed"
    aim = f"goodput within {sweep.slo.describe_own()}" if sweep.slo.own else "throughput"
    met = f", with {sweep.slo.describe_run()}" if sweep.slo.of_run else ""
    return Chapter(
        title=f"{first.name}: sweep",
        served=served_points(first, {key: table[key].tolist() for key in sweep.keys}),
        question=f"Which {names} gives the highest {aim}{met}?",
        answers=[sweep_text.sentence(sweep)],
        warnings=sweep_text.remarks(sweep),
        tables=[_table(sweep)],
        pictures=[*sweep_pictures(sweep, first.name).values(), *_run_pictures(sweep, folder)],
        provenance=[
            provenance(
                f"{first.name}, first point",
                first.config,
                first.manifest | {FILES: hash_folder(folder, "table.parquet")},
            )
        ],
    )


def _table(sweep: Sweep) -> HtmlTable:
    figures = [each for each in compared_figures(sweep.slo)[2:-1] if each is not MET and sweep.has(each)]
    shown = (*figures, MFU, MBU)
    points = sweep.records()
    traffics = traffics_of(points, sweep.keys)
    best = [are_best(figure, [row.get(figure.key) for row in points], traffics) for figure in shown]
    rows = [
        (
            *(_label(row[key]) for key in sweep.keys),
            *([_met(sweep, row)] if sweep.slo else []),
            *(_cell(sweep, *column, row) for column in zip(shown, are_so, strict=True)),
        )
        for row, are_so in zip(points, zip(*best, strict=True), strict=True)
    ]
    met_header = ["SLO"] if sweep.slo else []
    header = (*short_keys(sweep.keys).values(), *met_header, *(figure.title for figure in shown))
    replicated = f", means of replicates {sweep.spread}" if sweep.is_replicated else ""
    caption = f"Points of the sweep{replicated}"
    return HtmlTable(caption, Table(header, tuple(rows)), max(1, len(sweep.keys)))


def _met(sweep: Sweep, row: Mapping[str, Any]) -> str:
    promised = sweep.promised(row)
    return MET.show(promised.met(row)) if promised else MISSING


def _cell(sweep: Sweep, figure: SummaryFigure, is_best: bool, row: Mapping[str, Any]) -> str:
    value = row.get(figure.key)
    if value is None:
        return MISSING
    text = figure.show(value)
    interval, seen = sweep.interval(row, figure.key), sweep.seen(row, figure.key)
    if seen is not None:
        text += f" ({' to '.join(map(figure.show, seen))})"
    elif sweep.is_replicated and interval.high is not None and interval.high > value:
        text += f" ± {figure.show(interval.half_width)}"
    return text + BEST if is_best else text


def _run_pictures(sweep: Sweep, folder: Path) -> list[Picture]:
    """Of few points: latencies and what happened over time, in the first run of each."""
    if len(sweep.ran) > MAX_DRAWN or sweep.is_replicated:
        return []
    labels = [sweep.name(row) for row in sweep.records()]
    first_runs = sweep.ran.drop_duplicates(sweep.keys) if sweep.keys else sweep.ran.head(1)
    folders = [folder / "points" / point for point in first_runs["point"]]
    runs = dict(zip(labels, map(load_run, folders), strict=True))
    pictures = {
        "Latency distributions": latency_cdfs(runs, sweep.slo),
        "Queue, batch and KV use over time": timeline(runs),
        "MFU and MBU over time": utilization(runs),
    }
    described = f"A curve or a row of panels for each of {', '.join(labels)}"
    return [Picture(figure, title, described) for title, figure in pictures.items()]


def _label(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,.15g}" if is_number else str(value)
